"""How much of the gap on MNIST is closed with the model fixed: by training on, by steps, by a flow?

Binarised MNIST, 20 latents, an encoder of two layers of 200, a small decoder (one layer of 64) or a
large one (two of 200), trained at β = 1 or 4 for 5 epochs. Then, with decoder and prior fixed:
`improve_guide` for 4 epochs, `posteriors.refined` with 20 steps for each image before and after
that, and a flow guide that is trained anew for 3 epochs. The gaps are those of 30 test images. The
evidence and the best guide of the family are the model's own, and measured once; so the bound of
each guide gives its gap. One training run each: all sizes are those of an hour on a busy core.

    python analysis/closing_the_gap.py --data-root FOLDER_THAT_HOLDS_MNIST

An interrupted run is continued by the same command; `--betas 1` measures the models of one β alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_bvae import BetaVAE, Decoder, datasets, elbo, fit, inference_gaps
from pyro_bvae.evaluation import InferenceGaps
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FlowPosterior, NormalPosterior, refined
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import LinearWarmup, improve_guide

RESULTS = Path(__file__).parent / "results" / "closing_the_gap"
LATENTS, NUM_IMAGES, NUM_SAMPLES, STEPS = 20, 30, 500, 20
EPOCHS, MORE_EPOCHS, FLOW_EPOCHS = 5, 4, 3
ENCODER, DECODERS = (200, 200), {"large": (200, 200), "small": (64,)}
BETAS = (1.0, 4.0)
# Gaps of a diagonal guide on binarised MNIST after Cremer, Li and Duvenaud (2018): 50 latents, two
# layers of 200, trained at β = 1. Quoted at second hand: the paper itself was not at hand.
PUBLISHED = {"approximation": 1.43, "beta": 0.0, "amortization": 1.34}
PARTS = {"approximation": "#0072B2", "beta": "#E69F00", "amortization": "#D55E00"}
LABELS = {
    "approximation": "approximation (the family)",
    "beta": "β gap",
    "amortization": "amortization (the encoder)",
    "variational": "not divided (a flow has another family)",
}


def model_of(decoder: str, beta: float, splits: datasets.Splits, runs: Path) -> BetaVAE:
    """Return a trained model, or that of its run directory."""
    torch.manual_seed(0)
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(MLP(LATENTS, 784, hidden=DECODERS[decoder]), BernoulliLikelihood()),
        NormalPosterior(MLP(784, 2 * LATENTS, hidden=ENCODER)),
    )
    output = runs / f"{decoder}-decoder-beta{beta:g}"
    resume = (output / "checkpoints" / "last.pt").exists()
    fit(
        vae, splits.train, beta=LinearWarmup(beta, EPOCHS / 5), epochs=EPOCHS, output=output,
        resume=resume, progress=False, compile=False,
    )  # fmt: skip
    return vae


def guides_of(
    vae: BetaVAE, beta: float, splits: datasets.Splits
) -> Iterator[tuple[str, BetaVAE, Any]]:
    """Yield guides of a model, the cheap ones first."""
    few = {"test": splits.test[:2].binarized(0).x, "num_samples": 10}  # the gaps are measured here
    options: dict[str, Any] = {"training_beta": beta, "progress": False, "compile": False, **few}
    yield "as trained", vae, vae.guide
    yield "refined", vae, refined(vae.guide, vae.model, STEPS)
    better = improve_guide(vae, splits.train, epochs=MORE_EPOCHS, **options)
    yield "improved", better.vae, better.guide
    yield "improved and refined", better.vae, refined(better.guide, better.model, STEPS)
    torch.manual_seed(0)
    flow = FlowPosterior(MLP(784, FlowPosterior.num_outputs(LATENTS), hidden=ENCODER))
    better = improve_guide(vae, splits.train, posterior=flow, epochs=FLOW_EPOCHS, **options)
    yield "flow", better.vae, better.guide


def rows_of(vae: BetaVAE, beta: float, splits: datasets.Splits) -> Iterator[dict[str, str]]:
    """Yield a line of the table for each guide."""
    x = splits.test[:NUM_IMAGES].binarized(0).x
    first: InferenceGaps | None = None
    started = time.process_time()
    for name, model, guide in guides_of(vae, beta, splits):
        if first is None:
            first = inference_gaps(
                vae.model, guide, x, training_beta=beta, num_samples=NUM_SAMPLES,
                settings=RefitSettings(num_starts=2),
            )  # fmt: skip
        bound = first.elbo if name == "as trained" else elbo(model.model, guide, x, num_samples=500)
        per_datum = first.evidence.per_datum - bound.per_datum
        row = {
            "guide": name,
            "evidence": f"{first.evidence.value:.3f}",
            "evidence_monte_carlo": f"{first.evidence.monte_carlo_error:.3f}",
            "untrusted": str(first.evidence.untrusted),
            "elbo": f"{bound.value:.3f}",
            "variational": f"{float(per_datum.mean()):.3f}",
            "variational_error": f"{float(per_datum.std()) / len(x) ** 0.5:.3f}",
        }
        if name != "flow":  # of the same family: what it leaves is the model's own
            gap = first.beta.value if name == "as trained" else 0.0
            row["approximation"] = f"{first.approximation.value:.3f}"
            row["beta"] = f"{gap:.3f}"
            left = float(per_datum.mean()) - first.approximation.value - gap
            row["amortization"] = f"{left:.3f}"
        yield row | {"cpu_seconds": f"{time.process_time() - started:.0f}"}


def figure_of(rows: list[dict[str, str]]) -> Figure:
    """Draw each gap as a bar of its parts, the published one above them."""
    bars: list[tuple[str, dict[str, float], str]]
    bars = [("Cremer et al. 2018, β = 1 (second hand)", dict(PUBLISHED), "")]
    for row in rows:
        name = f"β = {row['training_beta']}, {row['decoder']} decoder: {row['guide']}"
        names = [*PARTS] if row["approximation"] else ["variational"]
        error = f" ± {float(row['variational_error']):.2f}"
        bars.append((name, {part: float(row[part]) for part in names}, error))
    figure = Figure((10, 1.5 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colours = PARTS | {"variational": "#999999"}
    for part, colour in colours.items():
        axes.barh(0, 0, color=colour, label=LABELS[part])
    for place, (_, values, error) in enumerate(bars):
        right, left = 0.0, 0.0
        for part, value in values.items():
            axes.barh(place, value, left=right if value >= 0 else left, color=colours[part])
            right, left = right + max(value, 0.0), left + min(value, 0.0)
        axes.text(right + 0.05, place, f"{sum(values.values()):.2f}{error}", va="center")
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlim(right=1.15 * max(sum(max(v, 0) for v in each.values()) for _, each, _ in bars))
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("log p(x) - ELBO, nats an image (± standard error over images)")
    axes.set_title("The gap on binarised MNIST, with the model fixed", loc="left", weight="bold")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, if it is there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the rows of a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(data_root: Path, runs: Path, betas: tuple[float, ...]) -> None:
    """Write the tables and the figure."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    splits = datasets.mnist(data_root, validation=0, download=False).binarized("dynamic")
    for decoder, beta in itertools.product(DECODERS, betas):
        path = RESULTS / f"{decoder}-decoder-beta{beta:g}.csv"
        if len(read(path)) == 5:
            continue
        rows: list[dict[str, str]] = []
        for row in rows_of(model_of(decoder, beta, splits, runs), beta, splits):
            rows.append({"training_beta": f"{beta:g}", "decoder": decoder, **row})
            write(path, rows)
            print(rows[-1], flush=True)
    paths = [RESULTS / f"{name}-decoder-beta{beta:g}.csv" for beta in BETAS for name in DECODERS]
    measured = [row for path in paths for row in read(path)]
    figure_of(measured).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/closing_the_gap"))
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS)
    given = parser.parse_args()
    main(given.data_root, given.runs, tuple(given.betas))
