"""How many latents: what do evidence, gaps and active units say of the latent size, and which one to choose?

Linear: 20 features drawn from 5 factors, where the right answer is known and every size has a
closed form: the best linear model of that size, the leading axes of the covariance (probabilistic
PCA, Tipping and Bishop 1999). Digits: scikit-learn's, a normal likelihood of scale 0.3, two hidden
layers of 128. Both at β = 1, and all but the latent size equal.

    python analysis/latent_size.py

A size is chosen as a reader would: the smallest one whose evidence on held-out data is not behind
the best by more than two errors of the difference, datum by datum and over seeds, and a slack of
0.1 nats. The verdict is computed from the table, and says what the rule without the slack would
choose.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, inference_gaps, sweep
from pyro_bvae.evaluation import elbo_parts, kl_per_dimension
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "latent_size"
FACTORS, NOISE, DIGITS_SCALE = 5, 0.5, 0.3
# A unit carries something from this KL on, in nats: the largest axis of pure noise has up to 0.08
# here.
CARRIES = 0.1
# What a choice may cost, in nats: models of one size that were trained from other seeds differ by
# some hundredths.
SLACK = 0.1
NUM_SAMPLES, REFITTED, REFIT_SAMPLES = 500, 48, 500
Row = dict[str, str]


@dataclass(frozen=True)
class Study:
    """One data set with the models that are fitted to it."""

    name: str
    splits: datasets.Splits
    sizes: tuple[int, ...]
    hidden: tuple[int, ...]
    scale: float
    epochs: int
    batch_size: int
    learning_rate: float
    seeds: tuple[int, ...]
    exact: Callable[[int], float] | None = None
    exact_active: Callable[[int], int] | None = None

    def make(self, size: int) -> Callable[[int], BetaVAE]:
        """Return what builds the model of a size."""
        features = self.splits.train.x.shape[1]

        def build(seed: int) -> BetaVAE:
            decoder = Decoder(MLP(size, features, hidden=self.hidden), NormalLikelihood(self.scale))
            return BetaVAE(
                NormalPrior(size),
                decoder,
                NormalPosterior(MLP(features, 2 * size, hidden=self.hidden)),
            )

        return build


class Size(NamedTuple):
    """What the seeds of one size say; ``(S, N)`` for S seeds and N held-out data."""

    evidence: Tensor
    row: Row


def weight() -> Tensor:
    """Return the planted weight.

    5 factors of falling strength in 20 features, no two along one axis.
    """
    directions = torch.linalg.qr(datasets.linear_gaussian_weight(20, FACTORS)).Q
    return directions * torch.tensor([3.0, 2.4, 1.8, 1.4, 1.0])


def best_linear(x: Tensor, size: int) -> LinearGaussian:
    """Return the best linear model of a size.

    The leading axes of the covariance, less the noise.
    """
    x = x.double()
    values, axes = torch.linalg.eigh(torch.cov(x.T, correction=0))
    leading, strengths = axes[:, -size:], (values[-size:] - NOISE**2).clamp(min=0).sqrt()
    return LinearGaussian(leading * strengths, NOISE, bias=x.mean(0))


def studies(quick: bool) -> list[Study]:
    """Return the two studies."""
    linear = datasets.linear_gaussian(
        4000, weight=weight(), noise_scale=NOISE, validation=0, test=0.25
    )
    test, train = linear.test, linear.train
    assert test is not None

    def exact(size: int) -> float:
        return float(best_linear(train.x, size).evidence(test.x).mean())

    def exact_active(size: int) -> int:
        values = torch.linalg.eigvalsh(torch.cov(train.x.double().T, correction=0))[-size:]
        return int((1 - NOISE**2 / values > 0.01).sum())

    seeds = (0, 1) if quick else (0, 1, 2)
    linear_epochs, digits_epochs = (80, 30) if quick else (150, 100)
    sizes = ((1, 3, 4, 5, 6, 8, 12, 20), (1, 2, 3, 5, 8, 12, 20, 32))
    return [
        Study(
            "linear",
            linear,
            sizes[0],
            (),
            NOISE,
            linear_epochs,
            256,
            0.02,
            seeds,
            exact,
            exact_active,
        ),
        Study(
            "digits",
            datasets.digits(),
            sizes[1],
            (128, 128),
            DIGITS_SCALE,
            digits_epochs,
            64,
            3e-3,
            seeds,
        ),
    ]


def spread(values: list[float], digits: int = 3) -> tuple[str, str]:
    """Return mean and standard error over seeds."""
    seeds = torch.tensor(values, dtype=torch.double)
    return (
        f"{float(seeds.mean()):.{digits}f}",
        f"{float(seeds.std()) / math.sqrt(len(seeds)):.{digits}f}",
    )


def measure(study: Study, size: int) -> Size:
    """Train all seeds of a size and return what they say."""
    test = study.splits.test
    assert test is not None
    options: dict[str, Any] = {
        "epochs": study.epochs,
        "batch_size": study.batch_size,
        "learning_rate": study.learning_rate,
    }
    runs = sweep(
        study.make(size),
        study.splits.train,
        betas=[1.0],
        seeds=study.seeds,
        progress=False,
        **options,
    )
    results, bounds, active, carrying, untrusted, widths = [], [], [], [], 0, []
    for run in runs:
        pair = (run.vae.model, run.vae.guide)
        estimate, parts = (
            evidence(*pair, test.x, num_samples=NUM_SAMPLES),
            elbo_parts(*pair, test.x),
        )
        kl = kl_per_dimension(*pair, test.x)
        assert kl is not None and kl.values is not None
        results.append(estimate.per_datum)
        bounds.append(parts)
        untrusted += estimate.untrusted
        active.append(float(kl.active.sum()))
        carrying.append(float((kl.values > CARRIES).sum()))
        widths.append(estimate.value - parts.elbo.value)
    vae = runs[0].vae
    gaps = inference_gaps(vae.model, vae.guide, test.x[:REFITTED], num_samples=REFIT_SAMPLES)
    columns = {
        "evidence": [float(values.mean()) for values in results],
        "elbo": [parts.elbo.value for parts in bounds],
        "variational_gap": widths,
        "rate": [parts.rate.value for parts in bounds],
        "distortion": [parts.distortion.value for parts in bounds],
        "active_units": active,
        "carrying_units": carrying,
    }
    row = {"data": study.name, "latents": f"{size}"}
    for name, values in columns.items():
        row[name], row[f"{name}_seed_error"] = spread(values)
    row |= {
        "exact_evidence": "" if study.exact is None else f"{study.exact(size):.3f}",
        "exact_active": "" if study.exact_active is None else f"{study.exact_active(size)}",
        "approximation_gap": f"{gaps.approximation.value:.3f}",
        "approximation_error": f"{gaps.approximation.standard_error:.3f}",
        "amortization_gap": f"{gaps.amortization.value:.3f}",
        "amortization_error": f"{gaps.amortization.standard_error:.3f}",
        "evidence_untrusted": f"{untrusted} of {len(test.x) * len(runs)}",
    }
    return Size(torch.stack(results), row)


def behind(sizes: list[Size]) -> list[tuple[float, float]]:
    """Return how far each size is behind the best, with the error of the difference over data and over seeds."""
    best = max(sizes, key=lambda size: float(size.evidence.mean()))
    results = []
    for size in sizes:
        difference = best.evidence - size.evidence
        over_data = float(difference.mean(0).std()) / math.sqrt(difference.shape[1])
        over_seeds = float(difference.mean(1).std()) / math.sqrt(difference.shape[0])
        results.append((float(difference.mean()), math.hypot(over_data, over_seeds)))
    return results


def choose(rows: list[Row], slack: float = SLACK) -> int:
    """Return the smallest size that is not behind the best by more than two errors and the slack."""
    pairs = zip(numbers(rows, "behind_the_best"), numbers(rows, "behind_error"), strict=True)
    return next(
        int(row["latents"])
        for row, (value, error) in zip(rows, pairs, strict=True)
        if value <= 2 * error + slack
    )


def read_linear(rows: list[Row]) -> list[str]:
    """Say what the data show whose right answer is known."""
    chosen, widest = choose(rows), rows[-1]
    pairs = zip(numbers(rows, "evidence"), numbers(rows, "exact_evidence"), strict=True)
    surplus = [row for row in rows if int(row["latents"]) > FACTORS]
    off = max(exact - results for results, exact in pairs)
    active, exact_active, carrying = (
        numbers(surplus, f"{n}") for n in ("active_units", "exact_active", "carrying_units")
    )
    return [
        f"Linear, {FACTORS} factors: the rule chooses {chosen} latents, "
        f"{'the' if chosen == FACTORS else 'not the'}"
        f" truth, and {choose(rows, 0.0)} without the {SLACK} nats of slack; the trained evidence "
        f"is at most"
        f" {off:.2f} nats below the closed form.",
        f"Linear, 6 to {widest['latents']} latents: {min(active):.1f} to {max(active):.1f} units "
        f"are active, where the"
        f" closed form has {min(exact_active):g} to {max(exact_active):g}: the usual threshold "
        f"counts axes of sampling"
        f" noise too. Those that carry {CARRIES} nats are {min(carrying):.1f} to "
        f"{max(carrying):.1f},"
        f" {'the truth' if max(abs(each - FACTORS) for each in carrying) < 0.5 else 'not always the truth'}.",
        f"Linear, {widest['latents']} latents: {widest['behind_the_best']} ± "
        f"{widest['behind_error']} nats behind the"
        " best.",
    ]


def read_digits(rows: list[Row]) -> list[str]:
    """Say what the digits show."""
    chosen, widest, first = choose(rows), rows[-1], rows[0]
    best = next(row for row in rows if float(row["behind_the_best"]) == 0)
    return [
        f"Digits: the rule chooses {chosen} latents, and {choose(rows, 0.0)} without slack; the "
        f"best is"
        f" {best['latents']} (evidence {best['evidence']} ±"
        f" {best['evidence_seed_error']} over seeds), with {best['active_units']} active; one "
        f"latent is"
        f" {first['behind_the_best']} ± {first['behind_error']} nats behind, {widest['latents']} "
        f"are"
        f" {widest['behind_the_best']} ± {widest['behind_error']}, with {widest['active_units']} "
        f"active"
        f" and {widest['carrying_units']} that carry {CARRIES} nats.",
        f"Digits: the variational gap goes from {first['variational_gap']} nats at one latent to"
        f" {widest['variational_gap']} at {widest['latents']}: approximation "
        f"{first['approximation_gap']} to"
        f" {widest['approximation_gap']}, amortization {first['amortization_gap']} to "
        f"{widest['amortization_gap']}.",
    ]


def reading(rows: dict[str, list[Row]]) -> list[str]:
    """Say what the table shows, and what to choose."""
    too_few = min(float(results[0]["behind_the_best"]) for results in rows.values())
    too_many = max(float(results[-1]["behind_the_best"]) for results in rows.values())
    return [
        *read_linear(rows["linear"]),
        *read_digits(rows["digits"]),
        f"What to choose: rather too many than too few. The fewest latents cost {too_few:.1f} nats "
        f"or more, the most at"
        f" most {too_many:.1f}; then take the smallest size whose held-out evidence is as good as "
        f"the best.",
        f"The answer belongs to the likelihood's scale ({NOISE} and {DIGITS_SCALE} here) and to β: "
        f"a latent is worth"
        " its nats only where it explains more variance than β times the noise.",
    ]


def numbers(rows: list[Row], name: str) -> list[float]:
    """Return a column."""
    return [float(row[name]) for row in rows]


def draw_evidence(axes: Axes, rows: list[Row], chosen: int, title: str) -> None:
    """Draw evidence and bound against the size, with the chosen one."""
    sizes = numbers(rows, "latents")
    if rows[0]["exact_evidence"]:
        exact = numbers(rows, "exact_evidence")
        axes.plot(
            sizes,
            exact,
            color="#999999",
            linewidth=6,
            alpha=0.5,
            label="closed form of the evidence",
        )
    for name, colour, label in (("evidence", "#0072B2", "evidence"), ("elbo", "#D55E00", "ELBO")):
        errors = numbers(rows, f"{name}_seed_error")
        axes.errorbar(
            sizes,
            numbers(rows, name),
            yerr=errors,
            fmt="o-",
            markersize=4,
            color=colour,
            label=label,
        )
    axes.axvline(chosen, color="black", linestyle=":", label=f"chosen: {chosen}")
    axes.set_ylabel("nats a datum, held out")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1)


def draw_active(axes: Axes, rows: list[Row], chosen: int, title: str) -> None:
    """Draw the active units against the size."""
    sizes = numbers(rows, "latents")
    axes.plot(sizes, sizes, color="#999999", linestyle="--", label="all")
    shown = (
        ("active", "#009E73", "active: mean varies"),
        ("carrying", "#56B4E9", f"carry {CARRIES} nats"),
    )
    for name, colour, label in shown:
        values, errors = numbers(rows, f"{name}_units"), numbers(rows, f"{name}_units_seed_error")
        axes.errorbar(sizes, values, yerr=errors, fmt="o-", markersize=4, color=colour, label=label)
    axes.axvline(chosen, color="black", linestyle=":")
    axes.set_ylabel("units")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1)


def draw_gaps(axes: Axes, rows: list[Row], chosen: int) -> None:
    """Draw the gaps against the size."""
    sizes = numbers(rows, "latents")
    shown = (
        ("approximation", "#CC79A7", "family too small"),
        ("amortization", "#E69F00", "one encoder for all data"),
    )
    for name, colour, label in shown:
        values, errors = numbers(rows, f"{name}_gap"), numbers(rows, f"{name}_error")
        axes.errorbar(sizes, values, yerr=errors, fmt="o-", markersize=4, color=colour, label=label)
    axes.axvline(chosen, color="black", linestyle=":")
    axes.set_ylim(-0.03, 1.1)
    axes.set_ylabel("gap, nats a datum")
    axes.set_title("Where the bound falls short", loc="left", fontsize=10)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1)


def draw(rows: dict[str, list[Row]]) -> Figure:
    """Draw both studies: a row each."""
    figure = Figure((13, 7), layout="constrained")
    grid = figure.subplots(2, 3)
    for cells, name in zip(grid, rows, strict=True):
        size = f"linear data of {FACTORS} factors" if name == "linear" else "digits"
        draw_evidence(
            cells[0], rows[name], choose(rows[name]), f"{size.capitalize()}: evidence stops rising"
        )
        draw_active(cells[1], rows[name], choose(rows[name]), "Latents that are used")
        draw_gaps(cells[2], rows[name], choose(rows[name]))
        for axes in cells:
            axes.set_xscale("log")
            ticks = [int(row["latents"]) for row in rows[name]]
            axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axes.minorticks_off()
            axes.set_xlabel("latents")
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "How many latents: too few cost evidence, too many cost little", fontweight="bold"
    )
    return figure


def main(quick: bool) -> None:
    """Write the table, the figure and the reading."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {}
    for study in studies(quick):
        sizes = []
        for size in study.sizes:
            sizes.append(measure(study, size))
            print(sizes[-1].row, flush=True)
        rows[study.name] = [size.row for size in sizes]
        for row, (value, error) in zip(rows[study.name], behind(sizes), strict=True):
            row["behind_the_best"], row["behind_error"] = f"{value:.3f}", f"{error:.3f}"
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows["linear"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows["linear"] + rows["digits"])
    lines = reading(rows)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(rows).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer epochs and two seeds")
    main(parser.parse_args().quick)
