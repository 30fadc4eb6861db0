"""What happens at both ends of β, and when is a rising KL healthy?

scikit-learn's digits, a normal likelihood of scale 0.3, ten latents, one network, and β from 0 to
1,000 with everything else equal. At the lower end an autoencoder: a large rate, reconstructions
that are sharp, codes unlike the prior and samples from it that are no digits. At the upper end
nothing is encoded: the doctor says why, and from which β on.

    python analysis/beta_extremes.py

The mismatch of codes and prior is the KL of two normals, of the codes' mean and covariance and of
the prior's: a lower bound for what more than moments would see. The verdict of each half is
computed from the table.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, diagnose, evidence, fit
from pyro_bvae.evaluation import elbo_parts, kl_per_dimension
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import History

RESULTS = Path(__file__).parent / "results" / "beta_extremes"
BETAS = (0.0, 1e-3, 1e-2, 0.1, 1.0, 3.0, 10.0, 100.0, 1000.0)
SHOWN = (0.0, 1.0, 1000.0)
LATENTS, FEATURES, HIDDEN, SCALE = 10, 64, (128, 128), 0.3
EPOCHS, QUICK_EPOCHS, NUM_SAMPLES, NUM_IMAGES = 200, 40, 1000, 8

Row = dict[str, str]


def train(splits: datasets.Splits, beta: float, epochs: int) -> tuple[BetaVAE, History]:
    """Train one model at a constant β."""
    torch.manual_seed(0)
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=HIDDEN), NormalLikelihood(SCALE))
    vae = BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=HIDDEN))
    )
    history = fit(
        vae,
        splits.train,
        validation=splits.validation,
        beta=beta,
        epochs=epochs,
        batch_size=64,
        progress=False,
    )
    return vae, history


@torch.no_grad()
def mismatch(vae: BetaVAE, x: Tensor) -> float:
    """Return the KL to the prior of a normal with the mean and the covariance of the codes, in nats."""
    posterior = vae.encoder(x)
    codes = posterior.mean.double()
    covariance = torch.cov(codes.T, correction=0) + torch.diag(posterior.variance.double().mean(0))
    trace, mean = float(covariance.diagonal().sum()), float(codes.mean(0).square().sum())
    return 0.5 * (trace + mean - LATENTS - float(torch.linalg.slogdet(covariance)[1]))


def measure(vae: BetaVAE, splits: datasets.Splits, beta: float) -> Row:
    """Return the row of one model."""
    x = splits.test.x
    parts = elbo_parts(vae.model, vae.guide, x)
    result = evidence(vae.model, vae.guide, x, num_samples=NUM_SAMPLES)
    kl, diagnosis = (
        kl_per_dimension(vae.model, vae.guide, x),
        diagnose(vae, splits.train, beta=beta),
    )
    assert kl is not None
    assert all(bool(torch.isfinite(parameter).all()) for parameter in vae.parameters())
    return {
        "beta": f"{beta:g}",
        "rate": f"{parts.rate.value:.3f}",
        "distortion": f"{parts.distortion.value:.3f}",
        "elbo": f"{parts.elbo.value:.3f}",
        "elbo_error": f"{parts.elbo.standard_error:.3f}",
        "evidence": f"{result.value:.3f}",
        "evidence_untrusted": f"{result.untrusted} of {len(x)}",
        "active_units": f"{int(kl.active.sum())}",
        "codes_against_prior": f"{mismatch(vae, splits.train.x):.3f}",
        "doctor": str(diagnosis).partition("\n")[0],
    }


def reading(rows: list[Row], histories: dict[float, History]) -> list[str]:
    """Say what the table shows."""
    low, one, high = (next(row for row in rows if float(row["beta"]) == beta) for beta in SHOWN)
    lines = [
        f"β = 0: rate {low['rate']} nats (β = 1: {one['rate']}), distortion {low['distortion']} "
        f"({one['distortion']}),"
        f" codes {low['codes_against_prior']} nats off the prior ({one['codes_against_prior']}).",
        f"β = 1000: rate {high['rate']} nats, {high['active_units']} active units; the doctor: "
        f"{high['doctor']}.",
    ]
    for beta in (1.0, 0.0):
        history = histories[beta]
        lines.append(
            f"β = {beta:g}: from epoch {history['epoch'][len(history['epoch']) // 4]:g} on the "
            f"rate rises by"
            f" {change(history['rate']):.2f} nats and the held-out ELBO by "
            f"{change(history['validation_elbo']):.2f}:"
            f" {'healthy' if change(history['validation_elbo']) > 0 else 'not healthy'}."
        )
    return lines


def change(values: list[float]) -> float:
    """Return how much a column changes over the last three quarters of a training."""
    return values[-1] - values[len(values) // 4]


def draw_curves(figure: Figure, rows: list[Row], histories: dict[float, History]) -> None:
    """Draw rate and distortion against β, and what rate and held-out bound do in training at β = 1 and 0."""
    left, *others = figure.subplots(1, 3)
    positive = [row for row in rows if float(row["beta"]) > 0]
    betas = [float(row["beta"]) for row in positive]
    left.plot(betas, [float(row["rate"]) for row in positive], "o-", color="#0072B2", label="rate")
    left.plot(
        betas,
        [float(row["distortion"]) for row in positive],
        "s-",
        color="#D55E00",
        label="distortion",
    )
    left.set_xscale("log")
    left.set_xlabel("β")
    left.set_ylabel("nats a digit")
    left.set_title("The rate goes to 0, the distortion up", loc="left", fontsize=10)
    left.legend(frameon=False)
    for axes, beta, title in zip(
        others, (1.0, 0.0), ("β = 1: rising KL is healthy", "β = 0: rising KL is not"), strict=True
    ):
        history = histories[beta]
        axes.plot(history["epoch"], history["rate"], color="#0072B2", label="rate")
        axes.plot(
            history["epoch"], history["validation_elbo"], color="#009E73", label="held-out ELBO"
        )
        low, high = min(history["rate"][2:]), max(history["rate"][2:])
        bottom, top = min(history["validation_elbo"][5:]), max(history["validation_elbo"][5:])
        axes.set_ylim(min(low, bottom) - 2, max(high, top) + 2)
        axes.set_xlabel("epoch")
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(frameon=False)
    for axes in (left, *others):
        axes.spines[["top", "right"]].set_visible(False)


def draw_images(figure: Figure, models: dict[float, BetaVAE], x: Tensor) -> None:
    """Draw data, reconstructions and samples from the prior of the models that are shown."""
    grid = figure.subplots(1 + 2 * len(SHOWN), NUM_IMAGES)
    rows = [("data", x[:NUM_IMAGES])]
    for beta in SHOWN:
        rows.append((f"β = {beta:g}: rebuilt", models[beta].reconstruct(x[:NUM_IMAGES])))
        rows.append((f"β = {beta:g}: from the prior", models[beta].generate(NUM_IMAGES, seed=0)))
    for cells, (name, images) in zip(grid, rows, strict=True):
        for axes, image in zip(cells, images, strict=True):
            axes.imshow(image.reshape(8, 8).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center")


def main(epochs: int) -> None:
    """Write the table and the figure, and say what they show."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    splits = datasets.digits()
    rows: list[Row] = []
    models, histories = {}, {}
    for beta in BETAS:
        models[beta], histories[beta] = train(splits, beta, epochs)
        rows.append(measure(models[beta], splits, beta))
        print(rows[-1], flush=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = reading(rows, histories)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    figure = Figure((11, 8.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 3))
    draw_curves(top, rows, histories)
    draw_images(bottom, models, splits.test.x)
    figure.suptitle("Both ends of β on digits", fontweight="bold")
    figure.savefig(RESULTS / "figure.png", dpi=150)
    assert math.isfinite(sum(float(row["elbo"]) for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs instead of {EPOCHS}"
    )
    main(QUICK_EPOCHS if parser.parse_args().quick else EPOCHS)
