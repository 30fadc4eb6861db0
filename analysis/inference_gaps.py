"""What keeps the bound from the evidence on MNIST: the family, the β of training, or the encoder?

The table of Cremer, Li and Duvenaud (2018) for this package: binarised MNIST, 20 latents, small
(one layer of 64) and large (two of 400) encoders and decoders, trained at β = 1 and 4 for 15
epochs; the gaps on 64 test and 64 training images, with a full-rank normal for each beside the
diagonal one. One training run each.

    python analysis/inference_gaps.py --data-root FOLDER_THAT_HOLDS_MNIST

An interrupted run is continued by the same command.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_bvae import BetaVAE, Decoder, datasets, fit, inference_gaps
from pyro_bvae.evaluation import InferenceGaps
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import LinearWarmup

RESULTS = Path(__file__).parent / "results" / "inference_gaps"
LATENTS, EPOCHS, NUM_IMAGES, NUM_SAMPLES = 20, 15, 64, 2000
SIZES = {"small": (64,), "large": (400, 400)}
BETAS = (1.0, 4.0)
# The published values for a diagonal guide, 50 latents and networks of two layers of 200, trained
# at β = 1.
PUBLISHED = {
    "evidence": -89.80,
    "elbo": -92.57,
    "approximation": 1.43,
    "beta": 0.0,
    "amortization": 1.34,
}
FAMILIES = ("full-rank",)
PARTS = ("variational", "approximation", "beta", "amortization", "generalization")


def measure(
    encoder: str, decoder: str, beta: float, splits: datasets.Splits, runs: Path
) -> InferenceGaps:
    """Train one model and measure its gaps."""
    torch.manual_seed(0)
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(MLP(LATENTS, 784, hidden=SIZES[decoder]), BernoulliLikelihood()),
        NormalPosterior(MLP(784, 2 * LATENTS, hidden=SIZES[encoder])),
    )
    output = runs / f"{encoder}-encoder-{decoder}-decoder-beta{beta:g}"
    resume = (output / "checkpoints" / "last.pt").exists()
    schedule = LinearWarmup(beta, EPOCHS / 5)
    fit(
        vae,
        splits.train,
        beta=schedule,
        epochs=EPOCHS,
        output=output,
        resume=resume,
        progress=False,
    )
    test, train = (part.x[:NUM_IMAGES] for part in (splits.test, splits.train.binarized(0)))
    return inference_gaps(
        vae.model,
        vae.guide,
        test,
        training_beta=beta,
        num_samples=NUM_SAMPLES,
        families=FAMILIES,
        train=(train,),
        progress=True,
    )


def row_of(encoder: str, decoder: str, beta: float, gaps: InferenceGaps) -> dict[str, object]:
    """Return one line of the table, with standard errors over the images."""
    row: dict[str, object] = {"encoder": encoder, "decoder": decoder, "training_beta": beta}
    named: dict[str, Any] = {"evidence": gaps.evidence, "elbo": gaps.elbo}
    named |= {name: getattr(gaps, name) for name in PARTS}
    named |= {f"left by {name}": gap for name, gap in gaps.families.items()}
    for name, estimate in named.items():
        row[name] = f"{estimate.value:.3f}"
        row[f"{name}_error"] = f"{estimate.standard_error:.3f}"
        row[f"{name}_monte_carlo"] = f"{estimate.monte_carlo_error:.3f}"
    row |= {
        "untrusted": gaps.evidence.untrusted,
        "certified": int(gaps.certified.sum()),
        "verdict": gaps.verdict,
    }
    return row


def figure_of(rows: list[dict[str, str]]) -> Figure:
    """Draw each gap as a bar of its parts, the published one above them."""
    figure = Figure((10, 5), layout="constrained")
    axes = figure.subplots()
    parts = {"approximation": "#0072B2", "beta": "#E69F00", "amortization": "#D55E00"}
    labels = {
        "approximation": "family too small",
        "beta": "trained at another β",
        "amortization": "encoder too weak",
    }
    bars: list[tuple[str, dict[str, float], str]]
    bars = [("Cremer et al. 2018", {name: PUBLISHED[name] for name in parts}, "")]
    for row in rows:
        name = (
            f"β = {float(row['training_beta']):g}, {row['encoder']} encoder, {row['decoder']} "
            f"decoder"
        )
        error = f" ± {float(row['variational_error']):.2f}"
        bars.append((name, {part: float(row[part]) for part in parts}, error))
    for place, (_, values, error) in enumerate(bars):
        right, left = 0.0, 0.0
        for part, colour in parts.items():
            start = right if values[part] >= 0 else left
            axes.barh(
                place,
                values[part],
                left=start,
                color=colour,
                label=labels[part] if place == 0 else None,
            )
            right, left = right + max(values[part], 0.0), left + min(values[part], 0.0)
        axes.text(right + 0.05, place, f"{sum(values.values()):.2f}{error}", va="center")
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlim(
        right=1.18 * max(sum(max(value, 0.0) for value in values.values()) for _, values, _ in bars)
    )
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("variational gap log p(x) - ELBO, nats an image (± standard error over images)")
    axes.set_title(
        "What keeps the bound from the evidence on binarised MNIST", loc="left", fontweight="bold"
    )
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(data_root: str, runs: Path) -> None:
    """Write the table and the figure."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "table.csv"
    splits = datasets.mnist(Path(data_root), validation=0, download=False).binarized("dynamic")
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    done = {(row["encoder"], row["decoder"], float(row["training_beta"])) for row in rows}
    for beta, decoder, encoder in itertools.product(BETAS, SIZES, SIZES):
        if (encoder, decoder, beta) in done:
            continue
        results = row_of(encoder, decoder, beta, measure(encoder, decoder, beta, splits, runs))
        rows.append({name: str(value) for name, value in results.items()})
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(results, flush=True)
    figure_of(rows).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/inference_gaps"))
    options = parser.parse_args()
    main(options.data_root, options.runs)
