r"""How much of the prior lies where nothing was ever encoded, at which β, and does a prior fitted afterwards repair it?

MNIST and sprites of 32 x 32, binarised, 10,000 and 8,000 training images, ten latents, one hidden
layer of 200, β = 0.25, 1 and 4, one training each. Then two priors are fitted to the aggregated
posterior, a mixture of normals and a flow, encoder and decoder untouched (Ghosh et al. 2020, Dai
and Wipf 2019), and all three are measured on images that no part has seen:

- the hole mass, the share of the prior where log q(z) is below what 99% of encoded test images
  have, and the p-value of the energy distance between prior and aggregated posterior;
- the evidence of 100 test images by importance sampling, and the bound of 2,000, each as the gain
  over the standard prior, image by image;
- the quality of as many samples as test images, noise included: Fréchet distance of 32 whitened
  principal components without its bias, density and coverage.

    python analysis/latent_holes.py --data-root FOLDER_THAT_HOLDS_MNIST

``--quick`` takes scikit-learn's digits and no files.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit
from pyro_bvae.evaluation import Estimate, elbo_parts, hole_mass, sample_quality
from pyro_bvae.evaluation.information import HoleMass
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import FlowPrior, MixturePrior, NormalPrior
from pyro_bvae.training import fit_ex_post_prior

RESULTS = Path(__file__).parent / "results" / "latent_holes"
BETAS = (0.25, 1.0, 4.0)
PRIORS = ("standard", "mixture", "flow")
COLOURS = dict(zip(PRIORS, ("#D55E00", "#009E73", "#0072B2"), strict=True))
LATENTS, HIDDEN, COMPONENTS = 10, (200,), 50
EPOCHS, FIT_EPOCHS, QUICK_EPOCHS = 20, 15, 60
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 10_000, 1000, 2000
NUM_IMAGES, NUM_SAMPLES, SHOWN = 100, 1000, 9

Row = dict[str, str]


class Task(NamedTuple):
    """A data set as it is modelled."""

    name: str
    splits: datasets.Splits
    epochs: int
    normal: bool = False  # grey pixels with normal noise, else binary ones


class Measured(NamedTuple):
    """What a prior of a model is worth."""

    holes: HoleMass
    evidence: Estimate
    elbo: Estimate
    frechet: tuple[float, float]
    density: tuple[float, float]
    coverage: tuple[float, float]


def tasks(data_root: str | None) -> list[Task]:
    """Return MNIST and sprites, or digits where there is no folder."""
    if data_root is None:
        splits = datasets.digits()
        return [Task("digits", splits, QUICK_EPOCHS, normal=True)]
    results = []
    for splits in (
        datasets.mnist(Path(data_root), download=False),
        datasets.sprites(8000, NUM_VALIDATION, NUM_TEST, size=32),
    ):
        assert splits.validation is not None
        small = replace(
            splits,
            train=some(splits.train, NUM_TRAIN),
            validation=some(splits.validation, NUM_VALIDATION),
            test=some(splits.test, NUM_TEST),
        )
        results.append(Task(splits.name, small.binarized("dynamic"), EPOCHS))
    return results


def some(data: datasets.Dataset, count: int) -> datasets.Dataset:
    """Return data at random.

    The first half of MNIST's test images are of other writers than the second.
    """
    return data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]]


def train(task: Task, beta: float) -> BetaVAE:
    """Train one model at a constant β."""
    torch.manual_seed(0)
    features = task.splits.train.num_features
    likelihood: nn.Module = NormalLikelihood(0.3) if task.normal else BernoulliLikelihood()
    decoder = Decoder(MLP(LATENTS, features, hidden=HIDDEN), likelihood)
    vae = BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(features, 2 * LATENTS, hidden=HIDDEN))
    )
    fit(
        vae,
        task.splits.train,
        validation=task.splits.validation,
        beta=beta,
        epochs=task.epochs,
        progress=False,
    )
    return vae


def with_priors(task: Task, vae: BetaVAE) -> dict[str, BetaVAE]:
    """Return the model with its own prior and with those fitted afterwards."""
    torch.manual_seed(0)
    models = {"standard": vae}
    epochs = task.epochs if task.normal else FIT_EPOCHS
    for name, prior in (
        ("mixture", MixturePrior(LATENTS, COMPONENTS)),
        ("flow", FlowPrior(LATENTS)),
    ):
        models[name] = fit_ex_post_prior(
            vae,
            task.splits.train,
            prior,
            validation=task.splits.validation,
            epochs=epochs,
            progress=False,
        )
    return models


def measure(task: Task, vae: BetaVAE) -> Measured:
    """Measure one prior of a model."""
    train_part, test = task.splits.train, task.splits.test.x
    x = train_part.x if task.normal else train_part.binarized(0).x
    quality = sample_quality(test, vae.generate(len(test), noise=True, seed=1))
    return Measured(
        hole_mass(vae.model, vae.guide, x, held_out=test),
        evidence(vae.model, vae.guide, test[:NUM_IMAGES], num_samples=NUM_SAMPLES),
        elbo_parts(vae.model, vae.guide, test, num_samples=4).elbo,
        *(
            (score.value, score.standard_error)
            for score in (quality.frechet_unbiased, quality.density, quality.coverage)
        ),
    )


def gained(after: Estimate, before: Estimate) -> tuple[float, float]:
    """Return the mean gain, datum by datum, and its standard error."""
    gain = after.per_datum - before.per_datum
    return float(gain.mean()), float(gain.std()) / math.sqrt(len(gain))


def row_of(task: str, beta: float, prior: str, results: Measured, before: Measured) -> Row:
    """Return the row of one prior of a model."""
    holes = results.holes
    row = {
        "data": task,
        "beta": f"{beta:g}",
        "prior": prior,
        "hole_mass": f"{holes.hole_mass.value:.4f}",
        "hole_mass_error": f"{holes.hole_mass.standard_error:.4f}",
        "energy_distance": f"{holes.energy.distance:.4f}",
        "p_value": f"{holes.p_value:.3f}",
        "latents_unlike_the_prior": f"{int((holes.dimensions['p_value'] < 0.01).sum())}",
        "evidence": f"{results.evidence.value:.3f}",
        "evidence_untrusted": f"{results.evidence.untrusted} of {len(results.evidence.per_datum)}",
        "elbo": f"{results.elbo.value:.3f}",
    }
    for name in ("evidence", "elbo"):
        value, error = gained(getattr(results, name), getattr(before, name))
        row |= {f"{name}_gain": f"{value:.3f}", f"{name}_gain_error": f"{error:.3f}"}
    for name in ("frechet", "density", "coverage"):
        value, error = getattr(results, name)
        row |= {name: f"{value:.3f}", f"{name}_error": f"{error:.3f}"}
    return row


def of(rows: list[Row], task: str, beta: float, prior: str) -> Row:
    """Return the row of one prior of a model."""
    return next(
        row
        for row in rows
        if (row["data"], float(row["beta"]), row["prior"]) == (task, beta, prior)
    )


def share(row: Row) -> str:
    """Return a hole mass in words."""
    return f"{100 * float(row['hole_mass']):.1f} ± {100 * float(row['hole_mass_error']):.1f}%"


def better(rows: list[Row], name: str, sign: int, task: str, prior: str) -> tuple[int, int]:
    """Return at how many β a prior is better, and worse, than the standard one by more than two errors."""
    counts = [0, 0]
    for beta in BETAS:
        after, before = (of(rows, task, beta, which) for which in (prior, "standard"))
        error = math.hypot(*(float(row[f"{name}_error"]) for row in (after, before)))
        change = sign * (float(after[name]) - float(before[name]))
        counts[0] += change > 2 * error
        counts[1] += change < -2 * error
    return counts[0], counts[1]


def reading(rows: list[Row]) -> list[str]:
    """Say what the table shows."""
    lines = []
    for task in dict.fromkeys(row["data"] for row in rows):
        standard = [of(rows, task, beta, "standard") for beta in BETAS]
        masses = ", ".join(
            f"{share(row)} at β = {beta:g}" for row, beta in zip(standard, BETAS, strict=True)
        )
        lines.append(
            f"{task}: of the standard prior lie in holes {masses} (1% if it were q(z));"
            f" p-values {', '.join(row['p_value'] for row in standard)}. Evidence untrusted for"
            f" {', '.join(row['evidence_untrusted'] for row in standard)} images."
        )
        for prior in PRIORS[1:]:
            after = [of(rows, task, beta, prior) for beta in BETAS]
            gains = [
                f"{row['elbo_gain']} ± {row['elbo_gain_error']} ({row['evidence_gain']} ± "
                f"{row['evidence_gain_error']})"
                for row in after
            ]
            lines.append(
                f"    with the {prior}: {', '.join(share(row) for row in after)}; p-values"
                f" {', '.join(row['p_value'] for row in after)}; bound (evidence) gains "
                f"{', '.join(gains)} nats."
            )
            counts = {
                name: better(rows, name, sign, task, prior)
                for name, sign in (("frechet", -1), ("density", 1), ("coverage", 1))
            }
            words = (
                f"{name} better at {more} and worse at {less}"
                for name, (more, less) in counts.items()
            )
            lines.append(
                f"    samples, of {len(BETAS)} β by more than two errors: {', '.join(words)}."
            )
    holes = [
        (float(row["hole_mass"]), float(row["hole_mass_error"]))
        for row in rows
        if row["prior"] != "standard"
    ]
    repaired = sum(value <= 0.01 + 2 * error for value, error in holes)
    won = sum(
        float(row["elbo_gain"]) > 2 * float(row["elbo_gain_error"])
        for row in rows
        if row["prior"] != "standard"
    )
    lines.append(
        f"Repair: {repaired} of {len(holes)} fitted priors have no more mass in holes than the 1% "
        f"of data (within two"
        f" errors), and {won} gain bound on held-out images (by more than two)."
    )
    return lines


def draw_numbers(figure: Figure, rows: list[Row], names: list[str]) -> None:
    """Draw hole mass, gain and Fréchet distance over β, a row of panels for each data set."""
    panels = (
        ("hole_mass", "prior mass in holes, %", 100.0),
        ("elbo_gain", "bound gained, nats", 1.0),
        ("frechet", "Fréchet distance of samples", 1.0),
    )
    grid = figure.subplots(len(names), len(panels), squeeze=False)
    for task, cells in zip(names, grid, strict=True):
        for axes, (column, label, factor) in zip(cells, panels, strict=True):
            for place, prior in enumerate(PRIORS):
                some = [of(rows, task, beta, prior) for beta in BETAS]
                axes.bar(
                    [spot + 0.27 * (place - 1) for spot in range(len(BETAS))],
                    [factor * float(row[column]) for row in some],
                    width=0.25,
                    yerr=[2 * factor * float(row[f"{column}_error"]) for row in some],
                    color=COLOURS[prior],
                    capsize=2,
                    label=f"{prior} prior"
                    if prior == "standard"
                    else f"{prior}, fitted afterwards",
                )
            axes.set_xticks(range(len(BETAS)), [f"β = {beta:g}" for beta in BETAS])
            axes.set_title(f"{task}: {label}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            if column == "hole_mass":
                axes.axhline(1, color="black", linewidth=1, linestyle=":")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )


def pictures_of(vae: BetaVAE, results: HoleMass) -> tuple[Tensor, Tensor]:
    """Return decoded draws of the prior outside and inside of holes."""
    return vae.decode(results.outside(SHOWN)), vae.decode(results.inside(SHOWN))


def draw_pictures(figure: Figure, name: str, size: int, rows: list[tuple[str, Tensor]]) -> None:
    """Draw rows of images under their names."""
    grid = figure.subplots(len(rows), SHOWN)
    for cells, (label, images) in zip(grid, rows, strict=True):
        for place, axes in enumerate(cells):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if place < len(images):
                axes.imshow(images[place].reshape(size, size).numpy(), cmap="gray", vmin=0, vmax=1)
        cells[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(name, x=0.02, ha="left", fontsize=10)


def main(data_root: str | None) -> None:
    """Write table, figure and reading."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    shown: dict[str, tuple[float, int, list[tuple[str, Tensor]]]] = {}
    for task in tasks(data_root):
        for beta in BETAS:
            models = with_priors(task, train(task, beta))
            results = {name: measure(task, vae) for name, vae in models.items()}
            for name in PRIORS:
                rows.append(row_of(task.name, beta, name, results[name], results["standard"]))
                print(rows[-1], flush=True)
            most = results["standard"].holes.hole_mass.value
            if task.name not in shown or most > shown[task.name][0]:
                pictures = []
                for name in ("standard", "flow"):
                    outside, inside = pictures_of(models[name], results[name].holes)
                    part = f"{100 * results[name].holes.hole_mass.value:.0f}% of the {name} prior"
                    pictures += [
                        (f"{name} prior, not in a hole", outside),
                        (f"in a hole: {part}", inside),
                    ]
                size = math.isqrt(task.splits.train.num_features)
                shown[task.name] = (most, size, [(f"β = {beta:g}", torch.empty(0)), *pictures])
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = reading(rows)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    figure = Figure((12, 3.6 * len(shown) + 3.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.6 * len(shown) + 0.5, 3.2))
    draw_numbers(top, rows, list(shown))
    for part, (name, (_, size, images)) in zip(
        bottom.subfigures(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        draw_pictures(
            part, f"{name}, {images[0][0]}: draws of the prior, decoded", size, images[1:]
        )
    figure.suptitle(
        "Holes of the latent space, and priors that know of them (bars: two errors)",
        fontweight="bold",
    )
    figure.savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data-root", help="folder that holds MNIST/raw")
    which.add_argument("--quick", action="store_true", help="digits alone")
    main(parser.parse_args().data_root)
