"""How far does importance sampling fall short on a decoder of continuous pixels, and does annealing close it?

The point of Wu, Burda, Salakhutdinov and Grosse (2017): a decoder with a small learned noise has a
posterior so narrow that samples from the encoder never reach it. Grey MNIST, 50 latents, one hidden
layer of 400, trained for 20 epochs on all 60,000 images; evidence of 16 test images by every means,
with its cost, and the sandwich of bidirectional Monte Carlo on 16 simulated images, which says how
far annealing itself can be off.

    python analysis/annealing_mnist.py --data-root FOLDER_THAT_HOLDS_MNIST

An interrupted run is continued by the same command.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, elbo, evidence, fit
from pyro_bvae.evaluation import Estimate, annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.marginal import AnnealingSettings, HeavyTailedProposal, RefitProposal
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "annealing_mnist"
LATENTS, EPOCHS, NUM_IMAGES = 50, 20, 16
SETTINGS = AnnealingSettings(num_temperatures=1000, num_chains=16, leapfrog_steps=10)


def trained(data_root: str, runs: Path) -> tuple[BetaVAE, Tensor]:
    """Return the model and the test images."""
    splits = datasets.mnist(Path(data_root), validation=0, download=False)
    torch.manual_seed(0)
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(MLP(LATENTS, 784, hidden=(400,)), NormalLikelihood(LearnedScale())),
        NormalPosterior(MLP(784, 2 * LATENTS, hidden=(400,))),
    )
    resume = (runs / "checkpoints" / "last.pt").exists()
    fit(vae, splits.train, epochs=EPOCHS, output=runs, resume=resume, progress=False)
    return vae, splits.test.x[:NUM_IMAGES]


def estimators(vae: BetaVAE, x: Tensor) -> dict[str, Callable[[], Estimate]]:
    """Return what is compared, by name, from cheap to dear."""
    pair = (vae.model, vae.guide, x)
    return {
        "ELBO": lambda: elbo(*pair, num_samples=1000),
        "importance, 500 samples": lambda: evidence(*pair, num_samples=500),
        "importance, 5,000": lambda: evidence(*pair),
        "importance, 50,000": lambda: evidence(*pair, num_samples=50_000),
        "heavy-tailed, 5,000": lambda: evidence(*pair, proposal=HeavyTailedProposal()),
        "refitted guide, 5,000": lambda: evidence(*pair, proposal=RefitProposal()),
        "annealed from the guide": lambda: annealed_evidence(
            *pair, start="guide", settings=SETTINGS
        ),
        "annealed from the prior": lambda: annealed_evidence(*pair, settings=SETTINGS),
    }


def row_of(name: str, estimate: Estimate, seconds: float) -> dict[str, object]:
    """Return one line of the table."""
    return {
        "estimator": name,
        "nats": f"{estimate.value:.2f}",
        "standard_error": f"{estimate.standard_error:.2f}",
        "monte_carlo_error": f"{estimate.monte_carlo_error:.3f}",
        "untrusted": f"{estimate.untrusted} of {len(estimate.per_datum)}"
        if estimate.reliable is not None
        else "",
        "decoder_evaluations": estimate.cost or NUM_IMAGES * estimate.num_samples,
        "seconds": f"{seconds:.0f}",
    }


def figure_of(rows: list[dict[str, object]], gap: dict[str, float]) -> Figure:
    """Draw how far each estimate lies below the highest."""
    figure = Figure((9.5, 4.2), layout="constrained")
    axes = figure.subplots()
    best = max(float(str(row["nats"])) for row in rows)
    for place, row in enumerate(rows):
        short = best - float(str(row["nats"]))
        untrusted = not str(row["untrusted"]).startswith("0") and row["untrusted"] != ""
        axes.barh(place, short, color="#D55E00" if untrusted else "#0072B2")
        note = f"  {float(str(row['nats'])):.1f} nats" + (
            f", untrusted for {row['untrusted']}" if untrusted else ""
        )
        axes.text(short, place, note, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [str(row["estimator"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(best - float(str(row["nats"])) for row in rows))
    axes.set_xlabel("nats below the highest lower bound of log p(x), mean over 16 test images")
    certificate = (
        f"two-sided bounds on simulated images: {gap['gap']:.1f} ± "
        f"{gap['gap_error']:.1f} nats apart"
    )
    axes.set_title("Continuous MNIST: how short each estimate falls", loc="left", fontweight="bold")
    axes.text(
        0.99, 0.03, certificate, transform=axes.transAxes, ha="right", fontsize=9, color="#444444"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(data_root: str, runs: Path) -> None:
    """Write the table, the sandwich and the figure."""
    vae, x = trained(data_root, runs)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path, rows = RESULTS / "table.csv", []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    for name, estimator in estimators(vae, x).items():
        if any(row["estimator"] == name for row in rows):
            continue
        start = time.perf_counter()
        estimate = estimator()
        rows.append(row_of(name, estimate, time.perf_counter() - start))
        print(rows[-1], flush=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    certificate = RESULTS / "sandwich.json"
    if not certificate.exists():
        result = bidirectional_evidence(vae.model, vae.guide, x, settings=SETTINGS)
        numbers = {
            "lower": result.lower.value,
            "upper": result.upper.value,
            "gap": result.gap.value,
            "gap_error": result.gap.monte_carlo_error,
        }
        certificate.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        print(numbers, flush=True)
    gap = json.loads(certificate.read_text(encoding="utf-8"))
    figure_of(rows, gap).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/annealing_mnist"))
    options = parser.parse_args()
    main(options.data_root, options.runs)
