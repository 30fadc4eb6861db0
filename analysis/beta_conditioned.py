"""Can one model that is told β replace a model for each β?

MNIST (20,000 images), one hidden layer of 400, 20 latents. A sweep trains a model for each of six β
from 0.1 to 8. A single one is trained with β drawn for each image and told to encoder and decoder:
appended to their inputs, or scaling and shifting their layers, for 9 epochs where a model of the
sweep has 10. D + βR on the test images at each β, as paired differences to the separate model, and
the time of training, against that of a model that is told nothing.

    python analysis/beta_conditioned.py --data-root FOLDER_THAT_HOLDS_MNIST
    python analysis/beta_conditioned.py --quick

The second command takes scikit-learn's digits. Times are CPU seconds of one thread, epochs in turn.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, fit, sweep
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.evaluation import Estimate, elbo_parts
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.networks.modulated import ModulatedMLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import ConditionedBeta, at_beta, with_beta

RESULTS = Path(__file__).parent / "results" / "beta_conditioned"
BETAS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
LIMIT, TIME_LIMIT, NUM_SAMPLES, TIMED_EPOCHS = 1.0, 1.5, 1, 3
COLOURS = {"modulated": "#0072B2", "appended": "#D55E00"}

Row = dict[str, str]


class Setting(NamedTuple):
    """What the models are trained on, and for how long."""

    name: str
    train: datasets.Dataset
    test: datasets.Dataset
    hidden: tuple[int, ...]
    latent_dim: int
    epochs: int
    told_epochs: int
    seeds: tuple[int, ...]
    likelihood: Callable[[], nn.Module]


def mnist(data_root: Path) -> Setting:
    """Return the full setting."""
    splits = datasets.mnist(data_root, validation=5000, download=False)
    return Setting(
        "MNIST", splits.train[:20_000], splits.test, (400,), 20, 10, 9, (0, 1), BernoulliLikelihood
    )


def digits() -> Setting:
    """Return the quick setting."""
    splits = datasets.digits()
    return Setting(
        "digits", splits.train, splits.test, (128,), 10, 60, 54, (0,), lambda: NormalLikelihood(0.2)
    )


def separate(setting: Setting) -> BetaVAE:
    """Return an untrained model that is told nothing."""
    size, latents, hidden = setting.train.num_features, setting.latent_dim, setting.hidden
    decoder = Decoder(MLP(latents, size, hidden=hidden), setting.likelihood())
    return BetaVAE(
        NormalPrior(latents), decoder, NormalPosterior(MLP(size, 2 * latents, hidden=hidden))
    )


def told(setting: Setting, decoder: nn.Module, encoder: nn.Module) -> BetaVAE:
    """Return an untrained model of two networks whose last input is log β."""
    return BetaVAE(
        NormalPrior(setting.latent_dim),
        Decoder(decoder, setting.likelihood(), num_covariates=1),
        NormalPosterior(encoder, num_covariates=1),
    )


def modulated(setting: Setting) -> BetaVAE:
    """Return an untrained model in which β scales and shifts hidden layers and latents."""
    size, latents = setting.train.num_features, setting.latent_dim
    low, high, hidden = BETAS[0], BETAS[-1], setting.hidden
    decoder = ModulatedMLP(
        latents + 1, size, hidden, low=low, high=high, modulate_input=True, modulate_output=True
    )
    return told(
        setting,
        decoder,
        ModulatedMLP(size + 1, 2 * latents, hidden, low=low, high=high, modulate_output=True),
    )


def appended(setting: Setting) -> BetaVAE:
    """Return an untrained model in which log β is one more input."""
    size, latents, hidden = setting.train.num_features, setting.latent_dim, setting.hidden
    return told(
        setting, MLP(latents + 1, size, hidden=hidden), MLP(size + 1, 2 * latents, hidden=hidden)
    )


CONDITIONED: dict[str, Callable[[Setting], BetaVAE]] = {
    "modulated": modulated,
    "appended": appended,
}


def train(make: Callable[[Setting], BetaVAE], setting: Setting, seed: int) -> BetaVAE:
    """Train one model for all β."""
    with seeded(seed, WEIGHTS_STREAM):
        vae = make(setting)
    fit(
        vae, with_beta(setting.train), objective=ConditionedBeta(BETAS[0], BETAS[-1]), epochs=setting.told_epochs,
        seed=seed, progress=False,
    )  # fmt: skip
    return vae


def seconds(setting: Setting) -> dict[str, float]:
    """Return the CPU seconds of training each kind of model, from the medians of epochs taken in turn."""
    kinds = {"separate": (separate, setting.train, None)}
    for name, make in CONDITIONED.items():
        kinds[name] = (make, with_beta(setting.train), ConditionedBeta(BETAS[0], BETAS[-1]))
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(TIMED_EPOCHS):
        for name, (make, data, objective) in kinds.items():
            vae, started = make(setting), time.process_time()
            fit(vae, data, objective=objective, epochs=1, progress=False)
            times[name].append(time.process_time() - started)
    epochs = {name: setting.epochs if name == "separate" else setting.told_epochs for name in kinds}
    return {name: epochs[name] * statistics.median(values) for name, values in times.items()}


class Point(NamedTuple):
    """What the models of one kind make of the test data at one β, means over the seeds."""

    objective: Estimate
    rate: float
    distortion: float


def measure(models: list[BetaVAE], x: Tensor, beta: float) -> Point:
    """Measure the models of all seeds at one β."""
    results = [elbo_parts(vae.model, vae.guide, x, num_samples=NUM_SAMPLES) for vae in models]
    objective = torch.stack([each.objective(beta).per_datum for each in results])
    rate, distortion = (
        statistics.fmean(getattr(each, name).value for each in results)
        for name in ("rate", "distortion")
    )
    return Point(Estimate.over_data(objective.mean(0)), rate, distortion)


def table(points: dict[str, dict[float, Point]], times: dict[str, float]) -> list[Row]:
    """Return a row for each kind of conditioned model and β."""
    rows = []
    for name in CONDITIONED:
        for beta in BETAS:
            mine, own = points[name][beta], points["separate"][beta]
            difference = Estimate.over_data(mine.objective.per_datum - own.objective.per_datum)
            rows.append(
                {
                    "model": name,
                    "beta": f"{beta:g}",
                    "objective": f"{mine.objective.value:.3f}",
                    "objective_error": f"{mine.objective.standard_error:.3f}",
                    "separate_objective": f"{own.objective.value:.3f}",
                    "separate_error": f"{own.objective.standard_error:.3f}",
                    "above_separate": f"{difference.value:.3f}",
                    "above_separate_error": f"{difference.standard_error:.3f}",
                    "rate": f"{mine.rate:.3f}",
                    "separate_rate": f"{own.rate:.3f}",
                    "distortion": f"{mine.distortion:.3f}",
                    "separate_distortion": f"{own.distortion:.3f}",
                    "time_ratio": f"{times[name] / times['separate']:.2f}",
                }
            )
    return rows


def reading(rows: list[Row], setting: Setting) -> list[str]:
    """Say what the table shows."""
    lines = [
        f"{setting.name}, {setting.epochs} epochs for a separate model and {setting.told_epochs} "
        f"for one told β,"
        f" {len(setting.seeds)} seed(s), D + βR in nats."
    ]
    for name in CONDITIONED:
        mine = [row for row in rows if row["model"] == name]
        worst = max(mine, key=lambda row: float(row["above_separate"]))
        better = [
            row["beta"]
            for row in mine
            if float(row["above_separate"]) < -3 * float(row["above_separate_error"])
        ]
        far = [row["beta"] for row in mine if float(row["above_separate"]) > LIMIT]
        ratio = float(mine[0]["time_ratio"])
        lines.append(
            f"{name}: at worst {worst['above_separate']} ± {worst['above_separate_error']} nats "
            f"above the separate"
            f" model (β = {worst['beta']}), below it at β = {', '.join(better) or 'none'}; "
            f"{ratio:g} times one run."
        )
        near = "within 1 nat at every β" if not far else f"not within 1 nat at β = {', '.join(far)}"
        cost = "at no more than" if ratio <= TIME_LIMIT else "at more than"
        lines.append(f"{name}: {near}, {cost} {TIME_LIMIT:g} times one run.")
    return lines


def draw(
    rows: list[Row],
    own: dict[float, Point],
    curve: list[Point],
    setting: Setting,
    times: dict[str, float],
) -> Figure:
    """Draw the curve of the one model through the separate ones, and how far from each it is."""
    figure = Figure((10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(
        [point.distortion for point in curve], [point.rate for point in curve],
        color=COLOURS["modulated"], label="one model, told β",
    )  # fmt: skip
    left.plot(
        [own[beta].distortion for beta in BETAS], [own[beta].rate for beta in BETAS],
        "o", color="black", label="a model for each β",
    )  # fmt: skip
    for beta in BETAS:
        left.annotate(
            f"β = {beta:g}",
            (own[beta].distortion, own[beta].rate),
            (7, 5),
            textcoords="offset points",
            fontsize=8,
        )
    left.set_xlabel("distortion, nats")
    left.set_ylabel("rate, nats")
    left.set_title("The curve of one model, and models of one β each", loc="left", fontsize=10)
    left.legend(frameon=False)
    for name, colour in COLOURS.items():
        mine = [row for row in rows if row["model"] == name]
        values = [float(row["above_separate"]) for row in mine]
        errors = [float(row["above_separate_error"]) for row in mine]
        label = f"β {name}: {times[name] / times['separate']:.2f} times one run"
        right.errorbar(BETAS, values, errors, fmt="o-", color=colour, capsize=3, label=label)
    right.axhline(0, color="black", lw=0.8)
    right.axhspan(-LIMIT, LIMIT, color="0.9", zorder=0)
    right.set_xscale("log")
    right.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    right.minorticks_off()
    right.set_xlabel("β")
    right.set_ylabel("D + βR above the separate model, nats")
    right.set_title(
        "Below 0: better than a model of that β alone (grey: 1 nat)", loc="left", fontsize=10
    )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"One β-conditioned model on {setting.name}", fontweight="bold")
    return figure


def main(setting: Setting) -> None:
    """Write the table and the figure, and say what they show."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    times = seconds(setting)
    print(times, flush=True)
    x, points = setting.test.x, {}
    runs = sweep(
        lambda seed: separate(setting), setting.train,
        betas=BETAS, seeds=setting.seeds, epochs=setting.epochs, progress=False,
    )  # fmt: skip
    points["separate"] = {
        beta: measure([run.vae for run in runs if run.beta == beta], x, beta) for beta in BETAS
    }
    models = {
        name: [train(make, setting, seed) for seed in setting.seeds]
        for name, make in CONDITIONED.items()
    }
    for name, trained in models.items():
        points[name] = {
            beta: measure([at_beta(vae, beta) for vae in trained], x, beta) for beta in BETAS
        }
    fine = [BETAS[0] * (BETAS[-1] / BETAS[0]) ** (step / 16) for step in range(17)]
    curve = [
        measure([at_beta(vae, beta) for vae in models["modulated"]], x[:2000], beta)
        for beta in fine
    ]
    rows = table(points, times)
    assert all(math.isfinite(float(row["objective"])) for row in rows)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = reading(rows, setting)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(rows, points["separate"], curve, setting, times).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--quick", action="store_true", help="digits instead of MNIST")
    options = parser.parse_args()
    if not options.quick and options.data_root is None:
        parser.error("--data-root is needed, or --quick")
    main(digits() if options.quick else mnist(options.data_root))
