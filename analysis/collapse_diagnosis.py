"""Five planted causes of posterior collapse, and none: does the doctor name each?

Sizes, noise, strength of the signal, β, likelihood and the way of planting change with the seed.
Thresholds of the doctor and ways of planting were settled on the seeds from 1000; the table is one
run of the seeds from 0.

    python analysis/collapse_diagnosis.py
"""

from __future__ import annotations

import argparse
import csv
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.evaluation import diagnose
from pyro_bvae.evaluation.collapse import Cause
from pyro_bvae.likelihoods import (
    AutoregressiveBernoulliLikelihood,
    BernoulliLikelihood,
    LearnedScale,
    NormalLikelihood,
    PoissonLikelihood,
)
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "collapse_diagnosis"
UNIT = 0.54  # softplus(0.54) = 1: the scale of the prior
Row = dict[str, str]


class Case(NamedTuple):
    """A model with a planted cause.

    The data and the β that it was trained with, and how it was planted.
    """

    vae: BetaVAE
    x: Tensor
    beta: float
    planted: str


class Problem(NamedTuple):
    """Data with a few directions of signal in noise.

    Attributes:
        x: ``(N, D)``.
        likelihood: A likelihood of the noise as it is.
        strengths: Eigenvalues with the noise, in units of the noise's variance where it is normal,
            largest first.
    """

    x: Tensor
    likelihood: nn.Module
    strengths: np.ndarray


def problem(rng: np.random.Generator, signals: int, kind: int | None = None) -> Problem:
    """Draw a problem of normal (kind 0), binary (1) or count (2) data."""
    num_data, num_features = int(rng.integers(800, 1501)), int(rng.integers(20, 41))
    strengths = np.sort(rng.uniform(4, 12, signals))[::-1]
    directions = np.linalg.qr(rng.normal(size=(num_features, num_features)))[0][:, :signals]
    signal = rng.normal(size=(num_data, signals)) * np.sqrt(strengths) @ directions.T
    kind = int(rng.integers(3)) if kind is None else kind
    if kind == 0:
        noise_scale = float(rng.uniform(0.2, 2))
        noisy = noise_scale * (signal + rng.normal(size=signal.shape))
        return Problem(torch.tensor(noisy).float(), NormalLikelihood(noise_scale), strengths + 1)
    if kind == 1:
        binary = rng.uniform(size=signal.shape) < 1 / (
            1 + np.exp(-4 * signal - rng.normal(size=num_features))
        )
        return Problem(torch.tensor(binary).float(), BernoulliLikelihood(), strengths + 1)
    rates = np.exp(0.5 * signal + rng.uniform(0.7, 1.7, num_features))
    return Problem(torch.tensor(rng.poisson(rates)).float(), PoissonLikelihood(), strengths + 1)


def build(
    x: Tensor,
    likelihood: nn.Module,
    latent_dim: int,
    hidden: int = 32,
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> BetaVAE:
    """Return a small VAE."""
    num_features = x.shape[1]
    outputs = num_features * getattr(likelihood, "parameters_per_feature", 1)
    decoder = MLP(latent_dim, outputs, hidden=(hidden,), activation=activation)
    inputs = torch.log1p if isinstance(likelihood, PoissonLikelihood) else None
    encoder = NormalPosterior(
        MLP(num_features, 2 * latent_dim, hidden=(hidden,), activation=activation), inputs=inputs
    )
    return BetaVAE(NormalPrior(latent_dim), Decoder(decoder, likelihood), encoder)


def train(vae: BetaVAE, x: Tensor, beta: float, epochs: int = 60) -> BetaVAE:
    """Train for a second or two.

    What training itself has to say of collapse is not the question here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit(vae, x, beta=beta, epochs=epochs, learning_rate=1e-2, progress=False)
    return vae


def layers(network: nn.Module) -> list[nn.Linear]:
    """Return the affine maps of a network, first to last."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


class Preceding(nn.Module):
    """Normal features around the decoder's output and an affine map of the features before them."""

    parameters_per_feature = 1

    def __init__(self, num_features: int, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.zeros(num_features, num_features)), scale

    def forward(self, parameters: Tensor, context: object = None) -> dist.Distribution:
        """Return p(x | z): a normal whose precision has the Cholesky factor (I - A) / σ."""
        eye = torch.eye(len(self.weight))
        inverse = torch.linalg.solve_triangular(eye - self.weight.tril(-1), eye, upper=False)
        loc = parameters @ inverse.T
        return dist.MultivariateNormal(loc, scale_tril=self.scale * inverse)


# -- causes
# --------------------------------------------------------------------------------------------------


def threshold(rng: np.random.Generator) -> Case:
    """β above all eigenvalues, or between two of them, or a likelihood of too much noise, by hand."""
    signals, way = int(rng.integers(2, 5)), int(rng.integers(3))
    results = problem(rng, signals, kind=None if way == 0 else 0)
    latent_dim, beta, likelihood = signals + int(rng.integers(0, 3)), 1.0, results.likelihood
    if way == 0:
        beta = float(results.strengths[0] * rng.uniform(1.5, 4))
    elif way == 1:  # in the widest gap
        place = int(np.argmax(results.strengths[:-1] / results.strengths[1:]))
        beta = float(np.sqrt(results.strengths[place] * results.strengths[place + 1]))
    else:
        likelihood = NormalLikelihood(
            scale_of(results) * float(np.sqrt(results.strengths[0] * rng.uniform(1.5, 3)))
        )
    vae = build(results.x, likelihood, latent_dim)
    ways = ("beta above all", "beta between two", "scale too large")
    return Case(train(vae, results.x, beta), results.x, beta, ways[way])


def scale_of(results: Problem) -> float:
    """Return the noise scale of a normal problem."""
    return float(results.likelihood.scale.scale)  # type: ignore[union-attr, arg-type]


def bypass(rng: np.random.Generator) -> Case:
    """A chain of features under a decoder that sees those before."""
    num_data, num_features = int(rng.integers(800, 1501)), int(rng.integers(20, 41))
    latent_dim, beta = int(rng.integers(2, 6)), float(rng.uniform(0.7, 1.5))
    stay = float(rng.uniform(0.8, 0.95))
    if rng.uniform() < 0.5:
        flips = (rng.uniform(size=(num_data, num_features)) > stay).astype(int)
        flips[:, 0] = rng.integers(2, size=num_data)
        x = torch.tensor(np.cumsum(flips, 1) % 2).float()
        likelihood: nn.Module = AutoregressiveBernoulliLikelihood(num_features, hidden=(64,))
    else:
        scale = float(rng.uniform(0.3, 1.5))
        noise, columns = rng.normal(size=(num_data, num_features)), []
        for place in range(num_features):
            columns.append((stay * columns[-1] if columns else 0) + scale * noise[:, place])
        x = torch.tensor(np.stack(columns, 1)).float()
        likelihood = Preceding(num_features, scale)
    # A high β first: the decoder learns to do without latents, and has no need of them afterwards.
    vae = train(build(x, likelihood, latent_dim), x, 20 * beta, epochs=80)
    return Case(train(vae, x, beta, epochs=40), x, beta, type(likelihood).__name__)


def lagging(rng: np.random.Generator) -> Case:
    """A trained model whose encoder is set back, or replaced by one that has hardly begun."""
    results = problem(rng, signals := int(rng.integers(2, 5)))
    beta = float(rng.uniform(0.5, 1.2))
    vae = train(build(results.x, results.likelihood, signals), results.x, beta)
    network = vae.encoder.network
    fresh = rng.uniform() < 0.5
    if fresh:
        network = MLP(results.x.shape[1], 2 * signals, hidden=(32,))
        vae.encoder.network = network
    last = layers(network)[-1]
    lags = slice(0, signals if rng.uniform() < 0.7 else 1)
    with torch.no_grad():
        for rows, bias in ((slice(0, signals), 0.0), (slice(signals, None), UNIT)):
            last.weight[rows][lags] *= 0.01
            last.bias[rows][lags] = bias
    return Case(vae, results.x, beta, "hardly begun" if fresh else "set back")


def dead(rng: np.random.Generator) -> Case:
    """Units that are dead for all data, or zeros on both sides of a latent."""
    results = problem(rng, signals := int(rng.integers(2, 5)))
    beta, way = float(rng.uniform(0.5, 1.2)), int(rng.integers(4))
    vae = build(results.x, results.likelihood, signals, activation=nn.ReLU)
    encoder, decoder = layers(vae.encoder.network), layers(vae.decoder.network)
    ways = (
        "dead encoder from the start",
        "dead encoder later",
        "dead decoder",
        "zeros for some latents",
    )
    with torch.no_grad():
        if way == 0:
            encoder[0].bias.fill_(-1e4)
        elif way == 2:
            decoder[0].bias.fill_(-1e4)
    train(vae, results.x, beta)
    with torch.no_grad():
        if way == 1:
            encoder[0].bias.fill_(-1e4)
            encoder[-1].bias[signals:] = UNIT
        elif way == 3:
            zeroed = int(rng.integers(1, signals + 1))
            decoder[0].weight[:, :zeroed] = 0
            if rng.uniform() < 0.5:
                encoder[-1].weight[:zeroed] = 0
                encoder[-1].bias[:zeroed] = 0
    return Case(vae, results.x, beta, ways[way])


def no_signal(rng: np.random.Generator) -> Case:
    """Independent features, and a β and a scale at which latents have nothing to gain by encoding the noise itself."""
    shape = int(rng.integers(800, 1501)), int(rng.integers(20, 41))
    latent_dim, beta, kind = (
        int(rng.integers(2, 6)),
        float(rng.uniform(1.5, 4)),
        int(rng.integers(3)),
    )
    if kind == 0:
        x = rng.normal(size=shape) * np.exp(0.3 * rng.normal(size=shape[1])) + rng.normal(
            size=shape[1]
        )
        likelihood: nn.Module = NormalLikelihood(LearnedScale(shape[1], initial=2.0))
    elif kind == 1:
        x, likelihood = (
            rng.uniform(size=shape) < rng.uniform(0.02, 0.98, shape[1]),
            BernoulliLikelihood(),
        )
    else:
        x, likelihood = (
            rng.poisson(np.exp(rng.uniform(-1, 3, shape[1])), shape),
            PoissonLikelihood(),
        )
    data = torch.tensor(x).float()
    return Case(
        train(build(data, likelihood, latent_dim), data, beta),
        data,
        beta,
        type(likelihood).__name__,
    )


def healthy(rng: np.random.Generator) -> Case:
    """A trained model, half of the time with more latents than signal.

    Some decoders see a few features before.
    """
    signals, windowed = int(rng.integers(2, 5)), rng.uniform() < 0.25
    results = problem(rng, signals, kind=1 if windowed else None)
    beta, surplus = float(rng.uniform(0.7, 1.3)), int(rng.integers(0, 2) * rng.integers(1, 4))
    likelihood = results.likelihood
    if windowed:
        likelihood = AutoregressiveBernoulliLikelihood(results.x.shape[1], hidden=(64,), window=2)
    vae = build(results.x, likelihood, signals + surplus)
    return Case(
        train(vae, results.x, beta),
        results.x,
        beta,
        "more latents" if surplus else "as many latents",
    )


CAUSES: dict[Cause, Callable[[np.random.Generator], Case]] = {
    Cause.THRESHOLD: threshold,
    Cause.BYPASS: bypass,
    Cause.LAGGING: lagging,
    Cause.DEAD: dead,
    Cause.NO_SIGNAL: no_signal,
    Cause.HEALTHY: healthy,
}


def examine(cause: Cause, seed: int) -> Row:
    """Plant a cause, and ask the doctor."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    case = CAUSES[cause](np.random.default_rng([seed, list(CAUSES).index(cause)]))
    trained = time.perf_counter()
    results = diagnose(case.vae, case.x, beta=case.beta)
    seconds = time.perf_counter() - trained
    return {
        "planted": cause,
        "seed": str(seed),
        "way": case.planted,
        "likelihood": type(case.vae.decoder.likelihood).__name__,
        "data": str(len(case.x)),
        "features": str(case.x.shape[1]),
        "latents": str(len(results.latents)),
        "beta": f"{case.beta:.2f}",
        "found": results.cause,
        "right": "yes" if results.cause == cause else "no",
        "per_latent": " ".join(latent.cause.name.lower() for latent in results.latents),
        "largest_eigenvalue": f"{float(results.eigenvalues[0]):.2f}",
        "noise_edge": f"{results.edge:.2f}",
        "seconds_to_plant": f"{trained - start:.1f}",
        "seconds_to_diagnose": f"{seconds:.1f}",
    }


def figure_of(table: list[Row]) -> Figure:
    """Draw how often each cause was named for each planted one."""
    names = [str(cause) for cause in CAUSES]
    counts = np.array(
        [[sum(r["planted"] == a and r["found"] == b for r in table) for b in names] for a in names]
    )
    right, whole = int(np.trace(counts)), len(table)
    figure = Figure((8, 5.6), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, column in np.argwhere(counts > 0):
        colour = "#0072B2" if row == column else "#D55E00"
        strength = 0.25 + 0.75 * shares[row, column]
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=strength, linewidth=0)
        )
        white = shares[row, column] > 0.4
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            color="white" if white else "black",
        )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_aspect("equal")
    wrapped = [textwrap.fill(name.replace("initialisation", "start"), 13) for name in names]
    axes.set_xticks(range(len(names)), wrapped, fontsize=8)
    axes.set_yticks(range(len(names)), wrapped, fontsize=8)
    axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
    axes.grid(which="minor", color="#DDDDDD")
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("what the doctor said")
    axes.set_ylabel("what was planted")
    figure.suptitle(
        f"The doctor names the planted cause in {right} of {whole} models", fontweight="bold"
    )
    return figure


def rows(seeds: range, only: list[str]) -> Iterator[Row]:
    """Examine every case."""
    for cause, plant in CAUSES.items():
        if not only or plant.__name__ in only:
            for seed in seeds:
                row = examine(cause, seed)
                print("  ".join(row.values()), flush=True)
                yield row


def main(seeds: range, only: list[str], results: Path) -> None:
    """Write the table and the figure."""
    torch.set_num_threads(1)
    table = list(rows(seeds, only))
    results.mkdir(parents=True, exist_ok=True)
    with (results / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    figure_of(table).savefig(results / "figure.png", dpi=150)
    for cause in CAUSES:
        of_cause = [row for row in table if row["planted"] == cause]
        print(f"{cause:<34}{sum(row['right'] == 'yes' for row in of_cause)} of {len(of_cause)}")
    print(f"{'all':<34}{sum(row['right'] == 'yes' for row in table)} of {len(table)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds for each cause")
    parser.add_argument("--only", nargs="*", default=[], help="names of causes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    main(range(options.first, options.first + options.seeds), options.only, options.results)
