"""Factors that come together: what does β make of them?

Upright sprites of 32 pixels, three shapes and six scales, whose positions x and y are correlated by
0 to 0.95 while each stays uniform; one small network, β = 1 and 4, three seeds. The prior of a
β-VAE is independent in its axes: are the latents x and y, or the axes along which such data are
uncorrelated, x + y and x - y?

    python analysis/correlated_factors.py

A latent's axis is the direction in the plane of x and y along which its posterior mean rises
fastest, by regression; latents count as much as position explains of them. The axes, mutual
information and one of the gaps are measured on sprites whose x and y are independent, so that they
say what the latents do and not what the data do: there is one part of the plane that models trained
on correlated positions have seldom seen. The total correlation is of held-out sprites like those
that were trained on; of these is the other gap too, beside that of a perfect code, the factors
themselves. The verdict is computed from the table.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, decompose_kl, sweep
from pyro_bvae.datasets import Dataset, Splits
from pyro_bvae.evaluation import elbo_parts, read_latents
from pyro_bvae.evaluation.disentanglement import mutual_information_gap
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "correlated_factors"
CORRELATIONS, BETAS, SEEDS = (0.0, 0.5, 0.8, 0.95), (1.0, 4.0), (0, 1, 2)
COLOURS = {1.0: "#0072B2", 4.0: "#D55E00"}
LATENTS, PIXELS, HIDDEN, SIZE = 6, 1024, (128, 128), 32
NUM_TRAIN, NUM_TEST, NUM_READ, EPOCHS, QUICK_EPOCHS = 4000, 3000, 1500, 60, 10
FIXED, PAIR = {"orientation": 0}, ("x", "y")
CHANCE = 22.5  # degrees off the nearest axis that a direction picked at random has on average

GAPS = ("gap", "gap_independent")

Row = dict[str, str]


def data(correlation: float, num_train: int = NUM_TRAIN, seed: int = 0) -> Splits:
    """Return sprites whose x and y are correlated."""
    pair = {PAIR: correlation}
    return datasets.sprites(
        num_train, 0, NUM_TEST, size=SIZE, seed=seed, fixed=FIXED, correlation=pair
    )


def make(seed: int) -> BetaVAE:
    """Return an untrained model; the sweep seeds its weights."""
    decoder = Decoder(MLP(LATENTS, PIXELS, hidden=HIDDEN), BernoulliLikelihood())
    return BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(PIXELS, 2 * LATENTS, hidden=HIDDEN))
    )


@torch.no_grad()
def codes(vae: BetaVAE, test: Dataset) -> Tensor:
    """Return the posterior means, ``(N, L)``."""
    return vae.encoder(test.x).mean.double()


def position(test: Dataset) -> Tensor:
    """Return x and y, ``(N, 2)``."""
    assert test.factors is not None
    return test.factors[:, [test.factor_names.index(name) for name in PAIR]]


def off_the_factors(z: Tensor, place: Tensor) -> float:
    """Return how many degrees the latents' axes are off x or y, whichever is nearer.

    0, and 45 for x + y or x - y.
    """
    standard = (place.double() - place.double().mean(0)) / place.double().std(0, correction=0)
    active = z[:, z.var(0) > 0.01]
    active = (active - active.mean(0)) / active.std(0, correction=0)
    slopes = torch.linalg.lstsq(standard, active).solution  # (2, active)
    explained = (standard @ slopes).var(0)
    angles = torch.rad2deg(torch.atan2(slopes[1], slopes[0])) % 90
    return float((torch.minimum(angles, 90 - angles) * explained).sum() / explained.sum())


def pair_information(vae: BetaVAE, test: Dataset) -> dict[str, float]:
    """Return the most that a latent tells of x, y, x + y and x - y, in nats."""
    x, y = position(test)[:NUM_READ].double().T
    names = ("x", "y", "x + y", "x - y")
    results = read_latents(
        vae.model,
        vae.guide,
        test.x[:NUM_READ],
        factors=torch.stack([x, y, x + y, x - y], 1),
        factor_names=names,
    )
    most = results.mutual_information.max()
    return {name: float(most[name]) for name in names}


def measure(
    vae: BetaVAE, correlation: float, beta: float, seed: int, own: Dataset, independent: Dataset
) -> Row:
    """Return the row of one model."""
    parts, terms = (
        elbo_parts(vae.model, vae.guide, own.x),
        decompose_kl(vae.model, vae.guide, own.x),
    )
    assert terms.total_correlation is not None
    mean, elsewhere = codes(vae, own), codes(vae, independent)
    gap = mutual_information_gap(mean, position(own), factor_names=PAIR)
    gap_elsewhere = mutual_information_gap(elsewhere, position(independent), factor_names=PAIR)
    perfect = mutual_information_gap(position(own), position(own), num_bootstrap=0)
    information = pair_information(vae, independent)
    return {
        "correlation": f"{correlation:g}",
        "beta": f"{beta:g}",
        "seed": f"{seed}",
        "rate": f"{parts.rate.value:.3f}",
        "distortion": f"{parts.distortion.value:.3f}",
        "total_correlation": f"{terms.total_correlation.value:.4f}",
        "total_correlation_error": f"{terms.total_correlation.monte_carlo_error:.4f}",
        "gap": f"{gap.value:.4f}",
        "gap_error": f"{gap.standard_error:.4f}",
        "gap_independent": f"{gap_elsewhere.value:.4f}",
        "gap_independent_error": f"{gap_elsewhere.standard_error:.4f}",
        "gap_perfect_code": f"{perfect.value:.4f}",
        "off_the_factors": f"{off_the_factors(elsewhere, position(independent)):.2f}",
        "active_units": f"{int((mean.var(0) > 0.01).sum())}",
        **{
            f"information_{name.replace(' ', '')}": f"{value:.3f}"
            for name, value in information.items()
        },
    }


@torch.no_grad()
def paths(vae: BetaVAE, test: Dataset) -> list[Tensor]:
    """Return where the decoded sprite goes as each active latent goes through 90% of its codes, in pixels."""
    mean = codes(vae, test).float()
    grid = torch.arange(SIZE) + 0.5
    results = []
    for latent in (mean.var(0) > 0.01).nonzero().flatten().tolist():
        z = mean.median(0).values.repeat(40, 1)
        low, high = mean[:, latent].quantile(torch.tensor([0.05, 0.95]))
        z[:, latent] = torch.linspace(float(low), float(high), 40)
        images = vae.decoder(z).mean.view(-1, SIZE, SIZE)
        mass = images.sum((1, 2))
        results.append(
            torch.stack(
                [(images.sum(1) * grid).sum(1) / mass, (images.sum(2) * grid).sum(1) / mass], 1
            )
        )
    return results


def over_seeds(rows: list[Row], correlation: float, beta: float, name: str) -> tuple[float, float]:
    """Return mean and standard error over the seeds."""
    values = [
        float(row[name])
        for row in rows
        if float(row["correlation"]) == correlation and float(row["beta"]) == beta
    ]
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def difference(
    rows: list[Row], name: str, first: tuple[float, float], second: tuple[float, float]
) -> tuple[float, float]:
    """Return how far a number changes from one (correlation, β) to another, and its error over the seeds."""
    (before, error), (after, other) = (over_seeds(rows, *each, name) for each in (first, second))
    return after - before, math.hypot(error, other)


def told(change: tuple[float, float]) -> str:
    """Say whether a change is one: more than three errors."""
    value, error = change
    if abs(value) <= 3 * error:
        return f"no clear change ({value:+.2f} ± {error:.2f})"
    return f"{'rises' if value > 0 else 'falls'} by {abs(value):.2f} ± {error:.2f}"


def axes_named(value: tuple[float, float]) -> str:
    """Say which axes an angle off the factors means, against what a direction at random has."""
    mean, error = value
    if mean + 3 * error < CHANCE:
        return "nearer x and y than chance"
    return (
        "nearer x + y and x - y than chance"
        if mean - 3 * error > CHANCE
        else "neither, within three errors of chance"
    )


def reading(rows: list[Row]) -> list[str]:
    """Say what the table shows."""
    low, high = BETAS
    least, most = CORRELATIONS[0], CORRELATIONS[-1]
    lines = []
    for beta in BETAS:
        results = [
            over_seeds(rows, correlation, beta, "off_the_factors") for correlation in CORRELATIONS
        ]
        listed = "; ".join(
            f"{correlation:g}: {value[0]:.0f} ± {value[1]:.0f} ({axes_named(value)})"
            for correlation, value in zip(CORRELATIONS, results, strict=True)
        )
        lines.append(
            f"Axes at β = {beta:g}, degrees off x and y (45 is x + y, x - y) at each correlation: "
            f"{listed}."
        )
    for correlation in (least, most):
        change = told(
            difference(rows, "total_correlation", (correlation, low), (correlation, high))
        )
        lines.append(
            f"Total correlation, in nats, from β = {low:g} to {high:g} at correlation "
            f"{correlation:g}: {change}."
        )
    for beta in BETAS:
        own, elsewhere = (
            told(difference(rows, name, (least, beta), (most, beta))) for name in GAPS
        )
        lines.append(
            f"Mutual information gap of x and y at β = {beta:g} from correlation {least:g} to "
            f"{most:g}: {own} on data"
            f" like those of training, {elsewhere} where x and y are independent."
        )
    before, after = (
        over_seeds(rows, correlation, high, "gap_perfect_code")[0] for correlation in (least, most)
    )
    lines.append(
        f"The gap of x and y themselves, on data like those of training, goes from {before:.2f} to "
        f"{after:.2f}."
    )
    for beta in BETAS:
        along, across = (
            over_seeds(rows, most, beta, f"information_{name}") for name in ("x+y", "x-y")
        )
        lines.append(
            f"At correlation {most:g} and β = {beta:g} the best latent tells {along[0]:.2f} ± "
            f"{along[1]:.2f} nats of"
            f" x + y, and {across[0]:.2f} ± {across[1]:.2f} of x - y."
        )
    return [*lines, verdict(rows)]


def verdict(rows: list[Row]) -> str:
    """Say what becomes of the claim that correlated factors stay entangled, and of β's part in it."""
    least, most, (low, high) = CORRELATIONS[0], CORRELATIONS[-1], BETAS
    turned = difference(rows, "off_the_factors", (least, high), (most, high))
    back = difference(rows, "off_the_factors", (most, low), (most, high))
    less = difference(rows, "total_correlation", (most, low), (most, high))
    return (
        f"Verdict: that correlated factors are not isolated is "
        f"{'' if turned[0] > 3 * turned[1] else 'not '}borne out:"
        f" from correlation {least:g} to {most:g} the angle off x and y, in degrees, "
        f"{told(turned)} at β = {high:g}."
        f" From β = {low:g} to {high:g}, at correlation {most:g}: total correlation, in nats, "
        f"{told(less)};"
        f" angle, {told(back)}. β makes codes {'' if less[0] < -3 * less[1] else 'not '}more "
        f"independent, and"
        f" {'leads back' if back[0] < -3 * back[1] else 'does not lead back'} to the factors."
    )


def draw_lines(
    axes: Axes, rows: list[Row], name: str, shift: float = 0.0, style: str = "o-", label: str = ""
) -> None:
    """Draw a column against the correlation: mean and error over the seeds, and each seed."""
    for beta in BETAS:
        values, errors = zip(
            *(over_seeds(rows, each, beta, name) for each in CORRELATIONS), strict=True
        )
        axes.errorbar(
            CORRELATIONS,
            values,
            errors,
            fmt=style,
            color=COLOURS[beta],
            label=f"β = {beta:g}{label}",
        )
        seeds = [
            (float(row["correlation"]), float(row[name]))
            for row in rows
            if float(row["beta"]) == beta
        ]
        if style == "o-":
            axes.plot(
                *zip(*((x + shift, y) for x, y in seeds), strict=True),
                ".",
                color=COLOURS[beta],
                alpha=0.35,
            )


def draw(rows: list[Row], shown: dict[float, tuple[Dataset, list[Tensor]]]) -> Figure:
    """Draw axes, total correlation and gaps against the correlation, and the paths of the latents in the plane."""
    figure = Figure((12, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
    first, second, third = top.subplots(1, 3)
    first.axhline(CHANCE, color="#999999", linestyle=":")
    first.text(0.55, CHANCE - 2, "chance", color="#777777", fontsize=8)
    draw_lines(first, rows, "off_the_factors", 0.012)
    first.set_ylim(0, 46)
    first.set_yticks([0, 15, 30, 45], ["x and y", "15°", "30°", "x + y\nand x - y"])
    first.set_title("The latents' axes", loc="left", fontsize=10)
    draw_lines(second, rows, "total_correlation", 0.012)
    second.set_ylim(bottom=0)
    second.set_ylabel("nats")
    second.set_title("Total correlation of the codes", loc="left", fontsize=10)
    draw_lines(third, rows, "gap", 0.012)
    draw_lines(third, rows, "gap_independent", style="s--", label=", x and y independent")
    perfect = [over_seeds(rows, each, BETAS[0], "gap_perfect_code")[0] for each in CORRELATIONS]
    third.plot(
        CORRELATIONS, perfect, color="#999999", linewidth=4, alpha=0.5, label="x and y themselves"
    )
    third.set_ylim(0, 1)
    third.set_title("Mutual information gap of x and y", loc="left", fontsize=10)
    for axes in (first, second, third):
        axes.set_xlabel("correlation of x and y")
        axes.spines[["top", "right"]].set_visible(False)
    first.legend(frameon=False, fontsize=8, loc="lower right")
    third.legend(frameon=False, fontsize=8)
    for axes, (correlation, (test, lines)) in zip(
        bottom.subplots(1, len(shown)), shown.items(), strict=True
    ):
        draw_plane(axes, test, lines)
        axes.set_title(f"correlation {correlation:g}", loc="left", fontsize=10)
    bottom.suptitle(
        f"Where the sprite goes as one latent changes (β = {BETAS[-1]:g}, seed {SEEDS[0]}); grey: "
        f"where the data are",
        fontsize=10,
    )
    figure.suptitle(
        "Correlated factors: do latents take the factors' axes, or those along which the data are "
        "uncorrelated?",
        fontweight="bold",
    )
    return figure


def draw_plane(axes: Axes, test: Dataset, lines: list[Tensor]) -> None:
    """Draw positions in the data, and the path of the decoded sprite for each latent, in pixels."""
    position = datasets.SPRITE_FACTORS.values_of(test.factors)[:1000, 3:]  # type: ignore[arg-type]
    x, y = (SIZE * (0.26 + 0.48 * position)).T
    axes.plot(x, y, ".", color="#DDDDDD", markersize=3)
    for line in lines:
        axes.plot(line[:, 0], line[:, 1], linewidth=2.5)
    axes.set_xlim(6, 26)
    axes.set_ylim(26, 6)
    axes.set_xticks([8, 16, 24])
    axes.set_yticks([8, 16, 24])
    axes.set_aspect("equal")
    axes.set_xlabel("x, pixels")
    axes.set_ylabel("y, pixels")


def main(quick: bool) -> None:
    """Write the table, the figure and the reading."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    independent = data(0.0, 1, seed=1).test
    assert isinstance(independent, Dataset)
    rows: list[Row] = []
    shown = {}
    for correlation in CORRELATIONS:
        splits = data(correlation)
        assert isinstance(splits.test, Dataset)
        runs = sweep(
            make,
            splits.train.x,
            betas=BETAS,
            seeds=SEEDS[:2] if quick else SEEDS,
            epochs=QUICK_EPOCHS if quick else EPOCHS,
            batch_size=200,
            progress=False,
        )
        for run in runs:
            rows.append(measure(run.vae, correlation, run.beta, run.seed, splits.test, independent))
            print(rows[-1], flush=True)
            if (run.beta, run.seed) == (BETAS[-1], SEEDS[0]):
                shown[correlation] = splits.test, paths(run.vae, splits.test)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = reading(rows)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(rows, shown).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs and two seeds")
    main(parser.parse_args().quick)
