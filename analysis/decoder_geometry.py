"""Does β make the columns of the decoder's Jacobian orthogonal, and is it β or the diagonal guide that does so?

The background text has it that a larger β forces the columns to be orthogonal, a "factorized chart"
of the data. Rolinek et al. (2019) say that the diagonal covariance of the guide does: it makes the
latents' axes the principal ones of the local linear map, at any β. Told apart by a guide with a
full covariance, and by a null: the same decoder in latents that are rotated at random. Digits,
normal pixels of scale 0.3, ten latents, four β, three seeds.

    python analysis/decoder_geometry.py

Orthogonality is one minus the mean |cos| between columns of active latents, weighted by the product
of their lengths; alignment is 1 where each singular direction of the Jacobian lies along a single
latent. Both are means over held-out data, at their posterior means. Errors are over the seeds; a
slope is told from 0 by Student's t with two degrees of freedom. The geodesics join pairs of
held-out data of different class.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, sweep
from pyro_bvae.datasets import Dataset, Splits
from pyro_bvae.evaluation import decoder_geometry, geodesic
from pyro_bvae.evaluation.geometry import DecoderGeometry, Geodesic
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "decoder_geometry"
LATENTS, NUM_DATA, NUM_PAIRS, SEEDS = 10, 300, 4, (0, 1, 2)
# The 97.5% point of Student's t with two degrees of freedom: three seeds.
T_TWO = 4.303
GUIDES = {"diagonal": (NormalPosterior, "#0072B2"), "full": (FullRankPosterior, "#D55E00")}
SHADES = ("#9ECAE1", "#6BAED6", "#3182BD", "#08306B")
Row = dict[str, str]


@dataclass(frozen=True)
class Study:
    """A data set, and how it is modelled and trained."""

    name: str
    splits: Splits
    image_shape: tuple[int, int]
    likelihood: Callable[[], nn.Module]
    hidden: tuple[int, ...]
    betas: tuple[float, ...]
    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Found:
    """What was measured of one model."""

    study: Study
    guide: str
    beta: float
    seed: int
    geometry: DecoderGeometry
    geodesics: list[Geodesic]

    def row(self) -> Row:
        """Return its row of the table."""
        saved = [
            1 - path.length / path.straight_length
            for path in self.geodesics
            if path.straight_length > 0
        ]
        values = {
            "data": self.study.name,
            "guide": self.guide,
            "beta": f"{self.beta:g}",
            "seed": f"{self.seed}",
        }
        values["active"] = f"{int(self.geometry.active.sum())}"
        for name in ("orthogonality", "alignment"):
            test = getattr(self.geometry, name)
            numbers = ("", "", "", "", "")
            if test is not None:
                null = test.null
                parts = (
                    test.estimate.value,
                    test.estimate.standard_error,
                    float(null.mean()),
                    float(null.std()),
                )
                numbers = (*(f"{value:.4f}" for value in parts), f"{test.share:.3f}")  # type: ignore[assignment]
            names = ("", "_error", "_rotated", "_rotated_deviation", "_share_as_high")
            values |= {f"{name}{part}": value for part, value in zip(names, numbers, strict=True)}
        spectrum = self.geometry.singular_values.median(0).values
        values["singular_values"] = " ".join(f"{value:.4g}" for value in spectrum)
        values["geodesic_saves"] = f"{statistics.mean(saved):.4f}" if saved else ""
        values["geodesics_converged"] = (
            f"{sum(path.converged for path in self.geodesics)} of {len(self.geodesics)}"
        )
        return values


def studies(quick: bool) -> tuple[Study, ...]:
    """Return the data sets, trained for less where it must be quick."""
    few = 10 if quick else 1
    digits = Study(
        "digits",
        datasets.digits(),
        (8, 8),
        functools.partial(NormalLikelihood, 0.3),
        (128, 128),
        (0.1, 0.3, 1.0, 3.0),
        120 // few,
        64,
        3e-3,
    )
    return (digits,)


def pairs(data: Dataset) -> list[tuple[int, int]]:
    """Return pairs of data of different classes."""
    assert data.labels is not None
    results, labels = [], data.labels.tolist()
    for first in range(0, len(labels), 7):
        other = next(
            (index for index in range(first + 1, len(labels)) if labels[index] != labels[first]),
            None,
        )
        if other is not None:
            results.append((first, other))
    return results[:NUM_PAIRS]


def measure(study: Study, guide: str) -> list[Found]:
    """Train the models of a data set and a guide side by side, and measure each."""
    family, width = GUIDES[guide][0], study.splits.train.x.shape[1]

    def make(_: int) -> BetaVAE:
        encoder: Any = family(MLP(width, family.num_outputs(LATENTS), hidden=study.hidden))
        decoder = Decoder(MLP(LATENTS, width, hidden=study.hidden[::-1]), study.likelihood())
        return BetaVAE(NormalPrior(LATENTS), decoder, encoder)

    options: dict[str, Any] = {
        "epochs": study.epochs,
        "batch_size": study.batch_size,
        "progress": False,
    }
    trained = sweep(
        make,
        study.splits.train,
        betas=study.betas,
        seeds=SEEDS,
        learning_rate=study.learning_rate,
        **options,
    )
    results, test = [], study.splits.test[:NUM_DATA]
    for run in trained:
        codes = run.vae.encode(test.x)
        # The full covariance is there for the scores alone.
        joined = pairs(test) if guide == "diagonal" else []
        paths = [
            geodesic(run.vae, codes[first], codes[last], num_points=65) for first, last in joined
        ]
        results.append(
            Found(study, guide, run.beta, run.seed, decoder_geometry(run.vae, codes), paths)
        )
        print(results[-1].row(), flush=True)
    return results


def scores(
    results: list[Found], name: str, beta: float, *, rotated: bool = False
) -> dict[int, float]:
    """Return a score of each seed's model at a β, of those with two active latents."""
    tests = {one.seed: getattr(one.geometry, name) for one in results if one.beta == beta}
    known = {seed: test for seed, test in tests.items() if test is not None}
    return {
        seed: float(test.null.mean()) if rotated else test.estimate.value
        for seed, test in known.items()
    }


def excesses(results: list[Found], name: str) -> dict[int, list[tuple[float, float]]]:
    """Return log2 β and the score above its null of each seed's models."""
    points: dict[int, list[tuple[float, float]]] = {seed: [] for seed in SEEDS}
    for beta in results[0].study.betas:
        own, null = scores(results, name, beta), scores(results, name, beta, rotated=True)
        for seed, value in own.items():
            points[seed].append((math.log2(beta), value - null[seed]))
    return points


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return mean and standard error; NaN for the error of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def verdict(results: list[Found], name: str) -> str:
    """Say whether a score is above its null, and whether it rises with β, raw and above the null."""
    points = excesses(results, name)
    per_seed = [
        statistics.mean(value for _, value in of_seed) for of_seed in points.values() if of_seed
    ]
    above, above_error = mean_and_error(per_seed)
    raw = {
        seed: [
            (math.log2(beta), own[seed])
            for beta in results[0].study.betas
            if seed in (own := scores(results, name, beta))
        ]
        for seed in SEEDS
    }
    trends = []
    for label, series in (("score", raw), ("score above the null", points)):
        rise, error = mean_and_error(
            [slope(of_seed) for of_seed in series.values() if len(of_seed) > 1]
        )
        word = (
            "no trend told from 0"
            if not abs(rise) > T_TWO * error
            else "rises"
            if rise > 0
            else "falls"
        )
        trends.append(f"{label} per doubling of β {rise:+.3f} ± {error:.3f} ({word})")
    word = (
        "above"
        if above > T_TWO * above_error
        else "below"
        if above < -T_TWO * above_error
        else "not told from"
    )
    return (
        f"{name} {above:+.3f} ± {above_error:.3f} beside rotated axes ({word} the null); "
        f"{'; '.join(trends)}"
    )


def reading(results: list[Found]) -> list[str]:
    """Say what the table shows."""
    lines = []
    for study, guide in dict.fromkeys((one.study, one.guide) for one in results):
        own = [one for one in results if (one.study, one.guide) == (study, guide)]
        for name in ("orthogonality", "alignment"):
            lines.append(f"{study.name.capitalize()}, {guide} covariance: {verdict(own, name)}.")
    for study in dict.fromkeys(one.study for one in results):
        paths = [
            (one.beta, path) for one in results if one.study is study for path in one.geodesics
        ]
        parts = []
        for beta in study.betas:
            saved = [
                1 - path.length / path.straight_length
                for b, path in paths
                if b == beta and path.straight_length
            ]
            mean, error = mean_and_error(saved)
            parts.append(f"{100 * mean:.1f} ± {100 * error:.1f}% at β = {beta:g}")
        done = sum(path.converged for _, path in paths)
        lines.append(
            f"{study.name.capitalize()}: geodesics are shorter than straight lines by "
            f"{', '.join(parts)}"
            f" ({done} of {len(paths)} converged; errors over {len(SEEDS) * NUM_PAIRS} paths)."
        )
    return lines


def draw_scores(axes: Axes, results: list[Found], name: str) -> None:
    """Draw a score against β for both guides.

    Each seed a dot, the mean a line, rotated axes dashed.
    """
    for guide, (_, colour) in GUIDES.items():
        own = [one for one in results if one.guide == guide]
        for rotated in (False, True):
            known = {
                b: v for b in own[0].study.betas if (v := scores(own, name, b, rotated=rotated))
            }
            means = [statistics.mean(values.values()) for values in known.values()]
            style: dict[str, Any] = {"color": colour, "linestyle": "--" if rotated else "-"}
            label = f"{guide} covariance{', axes rotated' if rotated else ''}"
            axes.plot(list(known), means, linewidth=1.5 if rotated else 2.5, label=label, **style)
            for beta, values in known.items() if not rotated else ():
                axes.plot(
                    [beta] * len(values),
                    list(values.values()),
                    "o",
                    color=colour,
                    markersize=5,
                    alpha=0.6,
                )
    axes.set_xscale("log")
    axes.set_xticks(
        results[0].study.betas, [f"{beta:g}" for beta in results[0].study.betas], minor=False
    )
    axes.minorticks_off()
    axes.set_xlabel("β")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(
        f"{results[0].study.name.capitalize()}: {name}", loc="left", fontsize=11, fontweight="bold"
    )


def draw_spectrum(axes: Axes, results: list[Found]) -> None:
    """Draw the singular values at each β, the mean of the seeds' medians over the data."""
    for shade, beta in zip(SHADES, results[0].study.betas, strict=True):
        values = [
            one.geometry.singular_values.median(0).values for one in results if one.beta == beta
        ]
        mean: Tensor = torch.stack(values).mean(0)
        axes.plot(
            range(1, LATENTS + 1),
            mean.tolist(),
            "o-",
            color=shade,
            markersize=4,
            label=f"β = {beta:g}",
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-3)
    axes.set_xticks(range(1, LATENTS + 1))
    axes.set_xlabel("singular value, largest first (diagonal covariance)")
    title = f"{results[0].study.name.capitalize()}: spectrum of the Jacobian"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=9)


def draw_paths(figure: Figure, results: list[Found]) -> None:
    """Draw, for each data set, the pair whose geodesic saves the most.

    What is shown along it and the straight line.
    """
    num, studied = 11, list(dict.fromkeys(one.study for one in results))
    blocks = figure.subfigures(1, len(studied), squeeze=False)[0]
    for block, study in zip(blocks, studied, strict=True):
        own = [(one, path) for one in results if one.study is study for path in one.geodesics]
        one, path = max(own, key=lambda pair: 1 - pair[1].length / pair[1].straight_length)
        saved = 100 * (1 - path.length / path.straight_length)
        title = f"{study.name.capitalize()}, β = {one.beta:g}: the geodesic is {saved:.0f}% shorter"
        block.suptitle(
            f"{title} (the most of {len(own)} pairs)",
            x=0.02,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        steps = torch.linspace(0, len(path.path) - 1, num).round().long()
        rows = (("straight", path.straight_decoded), ("geodesic", path.decoded))
        for cells, (name, images) in zip(block.subplots(2, num), rows, strict=True):
            for axes, image in zip(cells, images[steps], strict=True):
                axes.imshow(image.reshape(study.image_shape).numpy(), cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
            cells[0].set_ylabel(name, rotation=0, ha="right", va="center")


def draw(results: list[Found]) -> Figure:
    """Draw the scores against β beside their nulls, the spectra, and what is shown along geodesics."""
    studied = list(dict.fromkeys(one.study for one in results))
    figure = Figure((13, 3 + 4 * len(studied)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2 * len(studied), 1))
    grid = top.subplots(len(studied), 3, squeeze=False)
    for cells, study in zip(grid, studied, strict=True):
        own = [one for one in results if one.study is study]
        draw_scores(cells[0], own, "orthogonality")
        draw_scores(cells[1], own, "alignment")
        draw_spectrum(cells[2], [one for one in own if one.guide == "diagonal"])
    for axes in grid.flatten():
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=9, loc="lower left")
    draw_paths(bottom, [one for one in results if one.geodesics])
    figure.suptitle(headline(results), fontweight="bold")
    return figure


def headline(results: list[Found]) -> str:
    """Return the figure's title: which guide's axes are told from rotated ones."""
    words = []
    for guide in GUIDES:
        own = [one for one in results if one.guide == guide]
        studied = dict.fromkeys(one.study for one in own)
        series = [
            excesses([one for one in own if one.study is study], "orthogonality")
            for study in studied
        ]
        per_seed = [
            statistics.mean(v for _, v in points)
            for of in series
            for points in of.values()
            if points
        ]
        mean, error = mean_and_error(per_seed)
        words.append(f"{guide} covariance {mean:+.2f} ± {error:.2f}")
    return f"Orthogonality of the decoder's columns beyond rotated axes: {', '.join(words)}"


def main(quick: bool) -> None:
    """Write the table, the reading and the figure."""
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = [one for study in studies(quick) for guide in GUIDES for one in measure(study, guide)]
    rows = [one.row() for one in results]
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = reading(results)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(results).savefig(RESULTS / "figure.png", dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the epochs")
    main(parser.parse_args().quick)
