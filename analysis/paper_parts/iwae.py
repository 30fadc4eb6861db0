"""Row 1: test NLL of the architecture of Burda, Grosse and Salakhutdinov (2016) on binarised MNIST."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from paper_parts.machinery import (
    Entry,
    Line,
    Place,
    Row,
    Work,
    columns_of,
    in_blocks,
    paired,
    read,
    write,
)
from pyro_bvae import BetaVAE, Decoder, elbo, evidence, fit
from pyro_bvae.datasets import Splits, mnist
from pyro_bvae.evaluation import Estimate, annealed_evidence
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import IWELBO, History, start_at_mean

LATENTS, HIDDEN = 50, (200, 200)
NUM_SAMPLES, BLOCK, ANNEALED_BLOCK = 500, 500, 20
NUM_ANNEALED = 20
ANNEALING = AnnealingSettings(num_temperatures=400, num_chains=16)
#: Epochs by particles: those of some five minutes of a core that others share; the paper has 3,280.
EPOCHS = {1: 40, 5: 15, 50: 5}
CURVE = "iwae_curve.csv"


def new_vae(
    features: int = 784, latents: int = LATENTS, hidden: tuple[int, ...] = HIDDEN
) -> BetaVAE:
    """Return the model: tanh layers, one stochastic layer."""
    torch.manual_seed(0)
    decoder = MLP(latents, features, hidden=hidden, activation=nn.Tanh)
    encoder = MLP(features, 2 * latents, hidden=hidden, activation=nn.Tanh)
    return BetaVAE(
        NormalPrior(latents), Decoder(decoder, BernoulliLikelihood()), NormalPosterior(encoder)
    )


def trained(work: Work, splits: Splits, vae: BetaVAE, objective: Any, epochs: int) -> History:
    """Train, or go on."""
    output = work.folder / "run"
    start_at_mean(vae, splits.train.dense().x[:4096])
    return fit(
        vae, splits.train, epochs=epochs, objective=objective, output=output,
        resume=(output / "checkpoints" / "last.pt").exists(), progress=False,
        callbacks=[work.clock.tick],
    )  # fmt: skip


def add_curve(path: Path, line: str, history: History) -> None:
    """Write the training objective of each epoch beside those of other lines."""
    others = [each for each in read(path) if each["line"] != line]
    own = [
        {"line": line, "epoch": f"{at + 1}", "loss": f"{float(row['objective']):.3f}"}
        for at, row in enumerate(history.rows)
    ]
    write(path, others + own, ("line", "epoch", "loss"))


def chosen(num_data: int, count: int) -> Tensor:
    """Return the numbers of some images, at random, the first of them the same for any count."""
    return torch.randperm(num_data, generator=torch.Generator().manual_seed(0))[:count]


def annealed(work: Work, vae: BetaVAE, x: Tensor, settings: AnnealingSettings) -> Estimate:
    """Return the evidence of images by annealing from the guide."""

    def measure(some: Tensor, seed: int) -> dict[str, Estimate]:
        options: dict[str, Any] = {"start": "guide", "settings": settings, "seed": seed}
        return {"evidence": annealed_evidence(vae.model, vae.guide, some, **options)}

    return in_blocks(work.folder / "annealed", x, measure, work.clock, ANNEALED_BLOCK)["evidence"]


def measured(
    work: Work, vae: BetaVAE, x: Tensor, num_samples: int, num_annealed: int, settings: AnnealingSettings
) -> Line:  # fmt: skip
    """Return the NLL of all images, the bound, and how far annealing says that the NLL is off."""

    def weighted(some: Tensor, seed: int) -> dict[str, Estimate]:
        options: dict[str, Any] = {"seed": seed, "progress": False}
        return {
            "nll": evidence(vae.model, vae.guide, some, num_samples=num_samples, **options),
            "elbo": elbo(vae.model, vae.guide, some, num_samples=20, seed=seed),
        }

    found = in_blocks(work.folder / f"importance-{num_samples}", x, weighted, work.clock, BLOCK)
    nll, bound = found["nll"], found["elbo"]
    some = chosen(len(x), num_annealed)
    better = annealed(work, vae, x[some], settings)
    gain, error = paired(better.per_datum, nll.per_datum[some])
    return {
        **columns_of(nll, sign=-1.0),
        "seeds": "1",
        "note": f"K = {num_samples}, {nll.untrusted} images untrusted; bias check on "
        f"{len(some)} random images: annealing has {gain:.2f} ± {error:.2f} nats more evidence "
        f"(Monte Carlo {better.monte_carlo_error:.2f}, {better.untrusted} untrusted); "
        f"-ELBO {-bound.value:.2f}",
    }


def measure(work: Work, *, line: str, particles: int, doubly: bool, epochs: int) -> Line:
    """Train on MNIST and measure the test images."""
    splits = mnist(work.place.data_root, validation=0, download=False).binarized("dynamic", 0)
    objective = IWELBO(particles, doubly_reparametrized=doubly) if particles > 1 else None
    vae = new_vae()
    history = trained(work, splits, vae, objective, epochs)
    add_curve(work.place.results / CURVE, line, history)
    return measured(work, vae, splits.test.dense().x, NUM_SAMPLES, NUM_ANNEALED, ANNEALING)


def entry(line: str, published: str, particles: int, doubly: bool, cost: str) -> Entry:
    """Return a line."""
    epochs = EPOCHS[particles]
    return Entry(
        line,
        "test NLL, nats an image",
        published,
        "A",
        "dynamically binarised MNIST, 50 latents, two tanh layers of 200 on either side, start at "
        f"the mean; {epochs} epochs, batch 128, Adam on one cycle to 3e-3",
        f"{epochs} epochs for 3,280, batch 128 for 20, one cycle; test images binarised once, "
        f"K = {NUM_SAMPLES} for 5,000 from a guide with wider tails",
        cost,
        partial(measure, line=line, particles=particles, doubly=doubly, epochs=epochs),
    )


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw the learning curves."""
    points = read(place.results / CURVE)
    picture = Figure((8, 4), layout="constrained")
    axes = picture.subplots()
    for name in dict.fromkeys(point["line"] for point in points):
        shown = [point for point in points if point["line"] == name]
        epochs = [int(point["epoch"]) for point in shown]
        axes.plot(epochs, [float(point["loss"]) for point in shown], label=name)
    losses = [float(point["loss"]) for point in points]
    axes.set_ylim(min(losses) - 1, min(losses) + 30)
    axes.set_xscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training objective, nats an image")
    axes.set_title(
        "Learning curves on binarised MNIST, each on its own objective", loc="left", weight="bold"
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


ROW = Row(
    "iwae",
    "The architecture of the importance weighted autoencoder",
    ("data_root",),
    (
        entry("VAE", "86.76", 1, False, "15 CPU minutes"),
        entry("IWAE, K = 5", "85.54", 5, False, "15 CPU minutes"),
        entry("IWAE, K = 5, doubly reparametrised", "84.90", 5, True, "20 CPU minutes"),
        entry("IWAE, K = 50", "84.78", 50, False, "40 CPU minutes"),
        entry("IWAE, K = 50, doubly reparametrised", "84.32", 50, True, "50 CPU minutes"),
    ),
    figure,
)
