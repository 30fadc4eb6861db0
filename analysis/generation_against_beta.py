"""Which β generates best, and which reconstructs best? The background texts' table of guidelines, held to numbers.

That table grades both by words: as β grows from below 1 to far above it, reconstruction goes from
excellent to very blurry, and generation from poor over good (β = 1) and very good to excellent.
Here models that differ in β and seed only are scored on held-out images: reconstruction by
distortion and sharpness, generation by scores of as many samples as there are images. Samples are
decoded from the prior, at the mean of the likelihood, as people look at them. Precision, recall,
density, coverage and Fréchet distance are those of the last hidden layer of a classifier of the
training images' labels, and, for a second opinion, of whitened principal components of the pixels.

    python analysis/generation_against_beta.py
    python analysis/generation_against_beta.py --data-root FOLDER_THAT_HOLDS_MNIST

The first command runs scikit-learn's digits, the second 12,000 images of MNIST. Verdicts are
computed from the table: one β is ahead of another if it is so by more than two standard errors,
over seeds and over samples together.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, decompose_kl, sweep
from pyro_bvae.evaluation import elbo_parts, sample_quality
from pyro_bvae.evaluation.samples import LabelClassifier, PrincipalFeatures, SampleQuality
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "generation_against_beta"
BETAS, FAR = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), 8.0
NEIGHBOURS, SPLITS, SHOWN = 5, 8, (5, 4)
# Where a model of the sweep is scored in both spaces of features, and of which classifier's
# answers.
SPACES, SCORES = ("classifier", "pixels"), ("precision", "recall", "density", "coverage", "frechet")
ANSWERS = ("confident", "inception_score", "imbalance")
GREY, BLUE, ORANGE, GREEN, PURPLE = "#8a8a8a", "#0072B2", "#D55E00", "#009E73", "#8F4A9E"

Row = dict[str, str]


@dataclass(frozen=True)
class Study:
    """One data set and the models that are trained on it."""

    name: str
    train: datasets.Dataset
    test: datasets.Dataset
    latents: int
    hidden: tuple[int, ...]
    epochs: int
    seeds: tuple[int, ...]

    def untrained(self, seed: int) -> BetaVAE:
        """Return the untrained model of a seed."""
        torch.manual_seed(seed)
        size = self.train.x.shape[1]
        decoder = Decoder(MLP(self.latents, size, hidden=self.hidden), BernoulliLikelihood())
        return BetaVAE(
            NormalPrior(self.latents),
            decoder,
            NormalPosterior(MLP(size, 2 * self.latents, hidden=self.hidden)),
        )


class Measured(NamedTuple):
    """A number over the seeds of one β."""

    value: float
    error: float


def digits(quick: bool) -> Study:
    """Return the study of scikit-learn's digits, half of them held out."""
    splits = datasets.digits(validation=0, test=0.5)
    return Study(
        "digits",
        splits.train,
        splits.test,
        10,
        (128,),
        30 if quick else 100,
        (0, 1) if quick else (0, 1, 2),
    )


def mnist(root: str, quick: bool) -> Study:
    """Return the study of MNIST.

    Some images to train on, and some of the test images to score against.
    """
    splits = datasets.mnist(Path(root), validation=0, download=False)
    study = Study("MNIST", splits.train[:12_000], splits.test[:2_000], 20, (400,), 15, (0, 1))
    return replace(study, train=study.train[:6_000], epochs=5) if quick else study


def sharpness(x: Tensor, shape: Sequence[int]) -> float:
    """Return the mean squared difference of neighbouring pixels."""
    images = x.reshape(len(x), *shape[-2:]).double()
    return float(images.diff(dim=1).square().mean() + images.diff(dim=2).square().mean())


def measure(
    study: Study, vae: BetaVAE, qualities: dict[str, SampleQuality], samples: Tensor
) -> Row:
    """Return what is said of one model: reconstruction, latents, and the scores of its samples."""
    x, shape = study.test.x, study.test.image_shape
    parts, latents = elbo_parts(vae.model, vae.guide, x), decompose_kl(vae.model, vae.guide, x)
    assert latents.total_correlation is not None
    assert shape is not None
    results = {
        "distortion": (parts.distortion.value, parts.distortion.standard_error),
        "rate": (parts.rate.value, parts.rate.standard_error),
        "elbo": (parts.elbo.value, parts.elbo.standard_error),
        "marginal_kl": (latents.marginal_kl.value, latents.marginal_kl.standard_error),
        "total_correlation": (
            latents.total_correlation.value,
            latents.total_correlation.standard_error,
        ),
        "sharpness": (sharpness(vae.reconstruct(x), shape) / sharpness(x, shape), 0.0),
        "sample_sharpness": (sharpness(samples, shape) / sharpness(x, shape), 0.0),
    }
    for space, quality in qualities.items():
        chosen = SCORES + (("accuracy", *ANSWERS) if quality.labels is not None else ())
        results |= {
            f"{space}_{name}": (quality.scores[name].value, quality.scores[name].standard_error)
            for name in chosen
        }
    return {
        key: f"{number:.4f}"
        for name, (value, error) in results.items()
        for key, number in ((name, value), (f"{name}_error", error))
    }


def run(study: Study) -> tuple[list[Row], dict[str, float], dict[float, Tensor]]:
    """Train and score: return the table, what real images score, and samples of the first seed's models."""
    models = sweep(
        study.untrained,
        study.train.x,
        betas=BETAS,
        seeds=study.seeds,
        epochs=study.epochs,
        progress=False,
    )
    assert study.train.labels is not None
    classifier = LabelClassifier(study.train.x, study.train.labels)
    features: dict[str, Callable[[Tensor], Tensor]] = {
        "classifier": classifier,
        "pixels": PrincipalFeatures(study.train.x),
    }
    rows: list[Row] = []
    real, shown = {"classifier_found": classifier.accuracy}, dict[float, Tensor]()
    for replica in models:
        samples = replica.vae.generate(len(study.test.x), seed=replica.seed)
        qualities = {
            space: sample_quality(
                study.test.x,
                samples,
                features=features[space],
                classifier=classifier if space == "classifier" else None,
                neighbours=NEIGHBOURS,
                num_splits=SPLITS,
                seed=replica.seed,
            )
            for space in SPACES
        }
        measured = measure(study, replica.vae, qualities, samples)
        rows.append({"beta": f"{replica.beta:g}", "seed": f"{replica.seed}", **measured})
        real |= {
            f"{space}_{name}": score.real
            for space in SPACES
            for name, score in qualities[space].scores.items()
        }
        shown.setdefault(replica.beta, samples[: math.prod(SHOWN)])
        brief = (
            "distortion",
            "classifier_precision",
            "classifier_recall",
            "classifier_coverage",
            "classifier_frechet",
        )
        print({name: rows[-1][name] for name in ("beta", "seed", *brief)}, flush=True)
    rows.append(
        {"beta": "real", "seed": "", **{key: f"{real[key]:.4f}" for key in rows[0] if key in real}}
    )
    return rows, real, shown


def over_seeds(rows: list[Row], name: str) -> dict[float, Measured]:
    """Return mean and error of a column for each β.

    The spread of seeds, and the mean error over samples and data.
    """
    results = {}
    for beta in BETAS:
        some = [row for row in rows if row["beta"] == f"{beta:g}"]
        values, errors = (
            torch.tensor([float(row[key]) for row in some], dtype=torch.double)
            for key in (name, f"{name}_error")
        )
        error = math.hypot(float(errors.mean()), float(values.std()) / math.sqrt(len(values)))
        results[beta] = Measured(float(values.mean()), error)
    return results


def ahead(better: Measured, worse: Measured, sign: float) -> float:
    """Return by how many standard errors one number is ahead of another.

    ``sign`` is 1 where more is better.
    """
    return sign * (better.value - worse.value) / max(math.hypot(better.error, worse.error), 1e-12)


def best(results: dict[float, Measured], sign: float) -> tuple[float, str]:
    """Return the best β, and it with those that it is not ahead of in words."""
    first = max(results, key=lambda beta: sign * results[beta].value)
    level = [
        f"{beta:g}"
        for beta in BETAS
        if beta != first and ahead(results[first], results[beta], sign) <= 2
    ]
    return first, f"β = {first:g}" + (f" (not ahead of {', '.join(level)})" if level else "")


def verdict(claims: dict[float, bool]) -> str:
    """Say for which β of a row the claim holds."""
    held = [f"{beta:g}" for beta, holds in claims.items() if holds]
    if 0 < len(held) < len(claims):
        return f"borne out at β = {', '.join(held)} only"
    return "borne out" if held else "not borne out"


def table_rows(rows: list[Row], space: str) -> list[str]:
    """Hold each row of the guidelines to the Fréchet distance and the distortion."""
    generation, rebuilt = over_seeds(rows, f"{space}_frechet"), over_seeds(rows, "distortion")
    low, above, others = (
        [beta for beta in BETAS if test(beta)]
        for test in (lambda beta: beta < 1, lambda beta: 1 < beta < FAR, lambda beta: beta != FAR)
    )

    def less(
        results: dict[float, Measured], firsts: Sequence[float], seconds: Sequence[float]
    ) -> bool:
        """Whether each of the first has less of it than each of the second."""
        return all(
            ahead(results[first], results[second], -1) > 2 for first in firsts for second in seconds
        )

    def say(
        betas: Sequence[float],
        row: str,
        reconstruction: Callable[[float], bool],
        generates: Callable[[float], bool],
    ) -> str:
        first, second = row.split("; ")
        numbers = ", ".join(f"{generation[b].value:.2f} ± {generation[b].error:.2f}" for b in betas)
        return (
            f"{first}: {verdict({b: reconstruction(b) for b in betas})}; {second}:"
            f" {verdict({b: generates(b) for b in betas})}. Fréchet distance {numbers},"
            f" distortion {', '.join(f'{rebuilt[b].value:.1f}' for b in betas)}."
        )

    return [
        say(
            low,
            "β < 1: reconstruction excellent (better than at 1); generation poor (worse than at 1)",
            lambda beta: less(rebuilt, [beta], [1.0]),
            lambda beta: less(generation, [1.0], [beta]),
        ),
        say(
            [1.0],
            "β = 1: reconstruction good (better than above); generation good (better than below, "
            "worse than above)",
            lambda beta: less(rebuilt, [beta], above),
            lambda beta: less(generation, [beta], low) and less(generation, above, [beta]),
        ),
        say(
            above,
            "β > 1: reconstruction blurry (worse than at 1); generation very good (better than at "
            "1)",
            lambda beta: less(rebuilt, [1.0], [beta]),
            lambda beta: less(generation, [beta], [1.0]),
        ),
        say(
            [FAR],
            "β ≫ 1: reconstruction very blurry (the worst); generation excellent (the best)",
            lambda beta: less(rebuilt, others, [beta]),
            lambda beta: less(generation, [beta], others),
        ),
    ]


def reading(study: Study, rows: list[Row], real: dict[str, float]) -> list[str]:
    """Say what the table shows."""

    def column(name: str) -> dict[float, Measured]:
        return over_seeds(rows, name)

    precision, coverage, recall = (
        column(f"classifier_{name}") for name in ("precision", "coverage", "recall")
    )
    accuracy, ends = column("classifier_accuracy"), (BETAS[0], 1.0, FAR)
    most = max(precision, key=lambda beta: precision[beta].value)

    def at_ends(results: dict[float, Measured], digits: int = 2) -> str:
        return ", ".join(
            f"{results[beta].value:.{digits}f} ± {results[beta].error:.{digits}f}" for beta in ends
        )

    return [
        f"{study.name}: {len(study.train.x)} training images, {len(study.seeds)} seeds, "
        f"{len(study.test.x)} held-out"
        f" images against as many samples; the classifier finds {real['classifier_found']:.1%} of "
        f"held-out labels.",
        f"Reconstructs best: {best(column('distortion'), -1)[1]}. Best bound at β = 1: "
        f"{best(column('elbo'), 1)[1]}.",
        f"Generates best: {best(column('classifier_frechet'), -1)[1]} by the Fréchet distance of "
        f"the classifier's"
        f" features, {best(column('pixels_frechet'), -1)[1]} by that of pixels;"
        f" {best(precision, 1)[1]} by precision, {best(recall, 1)[1]} by recall, "
        f"{best(coverage, 1)[1]} by coverage.",
        f"Where precision is highest, β = {most:g}, recall is {recall[most].value:.2f} of the"
        f" {real['classifier_recall']:.2f} of images: precision alone"
        f" {'also rewards samples that are all alike' if recall[most].value < 0.1 else 'misleads little here'}.",
        f"At β = {', '.join(f'{beta:g}' for beta in ends)}: precision {at_ends(precision)} (real "
        f"images"
        f" {real['classifier_precision']:.2f}); recall {at_ends(recall)} "
        f"({real['classifier_recall']:.2f}); coverage"
        f" {at_ends(coverage)} ({real['classifier_coverage']:.2f}); sure of its class"
        f" {at_ends(column('classifier_confident'))} ({real['classifier_confident']:.2f}); "
        f"marginal KL"
        f" {at_ends(column('marginal_kl'))} nats; sharpness of samples relative to images"
        f" {at_ends(column('sample_sharpness'))}, of reconstructions "
        f"{at_ends(column('sharpness'))}.",
        f"A classifier tells samples from images with accuracy {at_ends(accuracy, 3)}, at the least"
        f" {min(results.value for results in accuracy.values()):.3f}, where 0.5 would be no "
        f"telling.",
        "The guidelines, row by row (each number in the order of β):",
        *table_rows(rows, "classifier"),
        "The same by pixels: "
        + " | ".join(line.partition(". Fréchet")[0] for line in table_rows(rows, "pixels")),
    ]


def draw_samples(figure: SubFigure, study: Study, shown: dict[float, Tensor]) -> None:
    """Draw samples of each β, and images, in columns."""
    down, across = SHOWN
    assert study.test.image_shape is not None
    height, width = study.test.image_shape[-2:]
    columns = [
        ("images", study.test.x[: down * across]),
        *((f"β = {beta:g}", shown[beta]) for beta in BETAS),
    ]
    for axes, (name, images) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        framed = torch.nn.functional.pad(
            images.reshape(down, across, height, width), (0, 1, 0, 1), value=1.0
        )
        tiles = framed.transpose(1, 2).flatten(0, 1).flatten(1, 2)
        axes.imshow(tiles.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(name, fontsize=11, fontweight="bold" if name == "images" else "normal")
        axes.set_xticks([])
        axes.set_yticks([])


def draw_curve(
    axes: Axes, results: dict[float, Measured], colour: str, name: str = "", marker: str = "o"
) -> None:
    """Draw a score against β, with two errors to either side."""
    values, errors = (
        [results[beta].value for beta in BETAS],
        [2 * results[beta].error for beta in BETAS],
    )
    axes.errorbar(
        BETAS, values, yerr=errors, color=colour, marker=marker, capsize=3, linewidth=2, label=name
    )


def draw_scores(figure: SubFigure, rows: list[Row], real: dict[str, float]) -> None:
    """Draw generation, what it is made of, and reconstruction against β."""
    left, middle, right = figure.subplots(1, 3)
    frechet, distortion = over_seeds(rows, "classifier_frechet"), over_seeds(rows, "distortion")
    panels: tuple[tuple[Axes, dict[float, Measured], str, str, Callable[[str], str]], ...] = (
        (
            left,
            frechet,
            BLUE,
            "Fréchet distance (less is better)",
            lambda b: f"Generation: best at β = {b}",
        ),
        (
            right,
            distortion,
            ORANGE,
            "distortion, nats (less is better)",
            lambda b: f"Reconstruction: best at β = {b}",
        ),
    )
    for axes, results, colour, ylabel, title in panels:
        draw_curve(axes, results, colour)
        first, _ = best(results, -1)
        axes.plot(first, results[first].value, "*", color=colour, markersize=20, zorder=5)
        axes.set_ylabel(ylabel)
        axes.set_title(title(f"{first:g}"), loc="left", fontsize=11, fontweight="bold")
    left.axhline(real["classifier_frechet"], color=GREY, linestyle="--")
    left.annotate(
        "real images",
        (BETAS[0], real["classifier_frechet"]),
        (0, 4),
        textcoords="offset points",
        color=GREY,
    )
    left.set_ylim(bottom=0)
    for name, colour, marker in (
        ("precision", BLUE, "o"),
        ("coverage", GREEN, "s"),
        ("recall", PURPLE, "^"),
    ):
        draw_curve(middle, over_seeds(rows, f"classifier_{name}"), colour, name, marker)
    middle.set_ylim(0, 1)
    middle.set_ylabel("share (more is better)")
    middle.set_title(
        "Like images (precision), and all of them?", loc="left", fontsize=11, fontweight="bold"
    )
    middle.legend(frameon=False)
    for axes in (left, middle, right):
        axes.set_xscale("log")
        axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
        axes.minorticks_off()
        axes.set_xlabel("β")
        axes.spines[["top", "right"]].set_visible(False)


def main(study: Study) -> None:
    """Write the table, the reading and the figure."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows, real, shown = run(study)
    with (RESULTS / f"{study.name.lower()}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = reading(study, rows, real)
    (RESULTS / f"{study.name.lower()}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    figure = Figure((14, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    draw_samples(top, study, shown)
    draw_scores(bottom, rows, real)
    generates, rebuilds = (
        best(over_seeds(rows, name), -1)[0] for name in ("classifier_frechet", "distortion")
    )
    figure.suptitle(
        f"{study.name}: samples from the prior are best at β = {generates:g}, reconstructions at β "
        f"= {rebuilds:g}",
        fontweight="bold",
    )
    figure.savefig(RESULTS / f"{study.name.lower()}.png", dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder that holds MNIST/raw: run that part; digits without it"
    )
    parser.add_argument("--quick", action="store_true", help="fewer epochs, seeds and images")
    options = parser.parse_args()
    main(
        digits(options.quick)
        if options.data_root is None
        else mnist(options.data_root, options.quick)
    )
