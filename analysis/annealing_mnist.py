"""How far does importance sampling fall short on a decoder of continuous pixels, and does annealing close it?

The point of Wu, Burda, Salakhutdinov and Grosse (2017): a decoder with a small learned noise has a
posterior so narrow that samples from the encoder never reach it. Grey MNIST, 50 latents, one hidden
layer of 400, trained for 20 epochs on all 60,000 images; evidence of 16 test images by every means,
with its cost, and the sandwich of bidirectional Monte Carlo on 16 simulated images, which says how
far annealing itself can be off.

``each.csv`` holds importance sampling, annealing alone and ``method="auto"`` on 64 test images one
by one, ``auto.csv`` their cost in decoder evaluations and CPU seconds.

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
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, elbo, evidence, fit
from pyro_bvae.evaluation import Estimate, annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.estimate import METHODS
from pyro_bvae.evaluation.marginal import AnnealingSettings, HeavyTailedProposal, RefitProposal
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "annealing_mnist"
LATENTS, EPOCHS, NUM_IMAGES, NUM_AUTO = 50, 20, 16, 64
ALONE = AnnealingSettings(num_temperatures=1000, num_chains=16, leapfrog_steps=5)
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
    return vae, splits.test.x[:NUM_AUTO]


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


def compared(vae: BetaVAE, x: Tensor) -> dict[str, Callable[[], Estimate]]:
    """Return the estimators that are compared image by image."""
    pair = (vae.model, vae.guide, x)
    return {
        "importance": lambda: evidence(*pair),
        "auto": lambda: evidence(*pair, method="auto"),
        "annealing alone": lambda: annealed_evidence(*pair, start="guide", settings=ALONE),
    }


def measured(name: str, call: Callable[[], Estimate], path: Path) -> dict[str, Any]:
    """Return an estimate of each image with its cost, from the file of an earlier run if any."""
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    start = time.process_time()
    estimate = call()
    result: dict[str, Any] = {
        "cpu_seconds": time.process_time() - start,
        "cost": estimate.cost,
        "budget": estimate.budget,
        "methods": [] if estimate.methods is None else estimate.methods.tolist(),
    }
    for part in ("per_datum", "errors", "reliable"):
        result[part] = getattr(estimate, part).tolist()
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(name, f"{estimate}, {estimate.cost:,} decoder evaluations", flush=True)
    return result


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def auto_tables(results: dict[str, dict[str, Any]]) -> None:
    """Write the images one by one, and what each estimator cost."""
    alone = results["annealing alone"]
    each, whole = [], []
    for image in range(NUM_AUTO):
        row: dict[str, object] = {"image": image}
        for name, result in results.items():
            row[name.replace(" ", "_")] = f"{result['per_datum'][image]:.3f}"
            row[f"{name.replace(' ', '_')}_error"] = f"{result['errors'][image]:.3f}"
        row["auto_answered_by"] = METHODS[results["auto"]["methods"][image]]
        row["auto_trusted"] = results["auto"]["reliable"][image]
        off = results["auto"]["per_datum"][image] - alone["per_datum"][image]
        each.append({**row, "auto_minus_annealing": f"{off:.3f}"})
    for name, result in results.items():
        off = torch.tensor(result["per_datum"]) - torch.tensor(alone["per_datum"])
        whole.append({
            "estimator": name,
            "mean_nats": f"{sum(result['per_datum']) / NUM_AUTO:.3f}",
            "untrusted": f"{NUM_AUTO - sum(result['reliable'])} of {NUM_AUTO}",
            "mean_off_annealing": f"{float(off.mean()):.3f}",
            "largest_off_annealing": f"{float(off.abs().max()):.3f}",
            "decoder_evaluations_an_image": result["cost"] // NUM_AUTO,
            "budget_an_image": result["budget"] // NUM_AUTO or "",
            "cpu_seconds_an_image": f"{result['cpu_seconds'] / NUM_AUTO:.2f}",
        })  # fmt: skip
    write(RESULTS / "each.csv", each)
    write(RESULTS / "auto.csv", whole)


def auto_figure(results: dict[str, dict[str, Any]]) -> Figure:
    """Draw how far importance sampling and auto lie from annealing alone, image by image."""
    figure = Figure((9.5, 3.8), layout="constrained")
    alone = torch.tensor(results["annealing alone"]["per_datum"])
    titles = {
        "importance": "importance samples, 5,000: far below",
        "auto": 'method="auto": within half a nat',
    }
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        off = torch.tensor(results[name]["per_datum"]) - alone
        sure = torch.tensor(results[name]["reliable"])
        for trusted, colour in ((True, "#0072B2"), (False, "#D55E00")):
            rows = (sure == trusted).nonzero().flatten()
            label = f"{'trusted' if trusted else 'untrusted'}: {len(rows)} of {NUM_AUTO}"
            axes.scatter(rows, off[rows], s=14, color=colour, label=label)
        axes.axhline(0, color="#444444", linewidth=0.8)
        if name == "auto":
            axes.axhspan(-0.5, 0.5, color="#0072B2", alpha=0.08)
            axes.set_ylim(-max(1.0, float(off.abs().max())), max(1.0, float(off.abs().max())))
        cost = results[name]["cost"] // NUM_AUTO
        axes.set_title(f"{title}\n{cost:,} decoder evaluations an image", loc="left", fontsize=10)
        axes.set_xlabel("test image")
        axes.set_ylabel("nats above annealing alone")
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def compare_each(vae: BetaVAE, x: Tensor, runs: Path) -> None:
    """Write the comparison on many images."""
    results = {
        name: measured(name, call, runs / f"each-{name.replace(' ', '-')}.json")
        for name, call in compared(vae, x).items()
    }
    auto_tables(results)
    auto_figure(results).savefig(RESULTS / "auto.png", dpi=150)


def main(data_root: str, runs: Path) -> None:
    """Write the table, the sandwich and the figure."""
    vae, images = trained(data_root, runs)
    x = images[:NUM_IMAGES]
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
        write(path, rows)
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
    compare_each(vae, images, runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/annealing_mnist"))
    options = parser.parse_args()
    main(options.data_root, options.runs)
