"""Planted modes: posteriors of two modes with the encoder in one of them, and as many of one mode that look alike.

Half of the problems have two modes, 3 to 10 of their standard deviations apart, in 1, 2 or 5
latents, the encoder in a mode of weight 0.05 to 0.95. They are found where the interval of the
evidence holds the truth, flagged where it is untrusted or several modes are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bvae import inference_gaps
from pyro_bvae.evaluation.refit import RefitSettings

NUM_DATA, NUM_SAMPLES = 3, 2000
# Of three data, most of the time is set-up: fewer and shorter rounds.
SETTINGS = RefitSettings(
    num_particles=8, steps_per_round=10, max_rounds=6, num_plateaus=2, check_particles=64
)
DIMS, SEPARATIONS = (1, 2, 5), (3.0, 4.0, 5.5, 7.0, 10.0)
WEIGHTS = (0.05, 0.1, 0.25, 0.5)
# A problem is found within two of its errors, or within so many nats.
_CLOSE = 0.01

Function = Callable[..., None]


@dataclass(frozen=True)
class ModeProblem:
    """A program with its data and its truth.

    Attributes:
        kind: How the posterior comes by its modes.
        d: Number of latents.
        separation: Between the modes, in their standard deviations; 0 for one mode.
        weight: Of the encoder's mode, 1 for one mode.
        model: The model.
        guide: The guide, a normal at one mode.
        x: The data.
        truth: The evidence of each datum, ``(N,)``.
    """

    kind: str
    d: int
    separation: float
    weight: float
    model: Function
    guide: Function
    x: Tensor
    truth: Tensor


def mode_problems(seed: int = 0, num_problems: int = 100) -> list[ModeProblem]:
    """Return problems of two modes and of one, in turn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        two = (_mixed_prior, _mixed_sensor, _square)
        one = (_linear, _counted, _bent, _positive)
        problems = []
        for index in range((num_problems + 1) // 2):
            d = DIMS[index % 3]
            separation = SEPARATIONS[index % len(SEPARATIONS)]
            minor = WEIGHTS[(index // 3) % len(WEIGHTS)]
            weight = minor if index % 2 else 1 - minor
            problems += [two[(index // 2) % 3](d, separation, weight), one[(index // 2) % 4](d)]
    return problems[:num_problems]


def gaps_rows(num_problems: int = 100, seed: int = 0, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield what the inference gaps make of each problem."""
    for index, problem in enumerate(mode_problems(seed, num_problems)):
        given = {"settings": SETTINGS, "num_samples": NUM_SAMPLES, **options}
        measured = inference_gaps(problem.model, problem.guide, problem.x, seed=seed, **given)
        evidence, truth = measured.evidence, float(problem.truth.mean())
        several = measured.modes is not None and bool((measured.modes > 1).any())
        low, high = evidence.interval
        yield {
            "problem": index,
            "kind": problem.kind,
            "d": problem.d,
            "separation": problem.separation,
            "weight": problem.weight,
            "found": low - _CLOSE <= truth <= high + _CLOSE,
            "flagged": not evidence.trusted or several,
            "estimate": evidence.value,
            "truth": truth,
        }


def _unit(d: int) -> Tensor:
    direction = torch.randn(d, dtype=torch.double)
    return direction / direction.norm()


def _beside(direction: Tensor) -> Tensor:
    """Return data at a right angle to a direction, which leave the weights of modes along it as they are."""
    x = 0.7 * torch.randn(NUM_DATA, len(direction), dtype=torch.double)
    return x - (x @ direction)[:, None] * direction


def _normal_guide(loc: Callable[[Tensor], Tensor], scale: float) -> Function:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), scale).to_event(1))

    return guide


def _mixed_prior(d: int, separation: float, weight: float) -> ModeProblem:
    """Two normals in the prior, seen through noise."""
    direction, spread, noise = _unit(d), 1.0, 1.5
    variance = 1 / (1 / spread**2 + 1 / noise**2)
    place = separation * variance**0.5 / 2 * spread**2 / variance  # of the prior's modes
    means = place * torch.stack([direction, -direction])
    weights = torch.tensor([weight, 1 - weight], dtype=torch.double)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(means, spread).to_event(1)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), parts))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def loc(x: Tensor) -> Tensor:
        return variance * (x / noise**2 + means[0] / spread**2)

    x = _beside(direction)
    each = dist.Normal(means, math.hypot(spread, noise)).to_event(1).log_prob(x[:, None])
    truth = (each + weights.log()).logsumexp(-1)
    return ModeProblem(
        "mixed prior", d, separation, weight, model, _normal_guide(loc, variance**0.5), x, truth
    )


def _mixed_sensor(d: int, separation: float, weight: float) -> ModeProblem:
    """A wide normal prior, and a sensor that is off by one of two vectors."""
    direction, spread, noise = _unit(d), 5.0, 1.0
    variance = 1 / (1 / spread**2 + 1 / noise**2)
    place = separation * variance**0.5 / 2 * noise**2 / variance
    shifts = place * torch.stack([direction, -direction])
    weights = torch.tensor([weight, 1 - weight], dtype=torch.double)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(d, dtype=torch.double), spread).to_event(1)
            )
            parts = dist.Normal(z.unsqueeze(-2) - shifts, noise).to_event(1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)

    def loc(x: Tensor) -> Tensor:
        return variance / noise**2 * (x + shifts[0])

    x = _beside(direction)
    each = dist.Normal(-shifts, math.hypot(spread, noise)).to_event(1).log_prob(x[:, None])
    truth = (each + weights.log()).logsumexp(-1)
    return ModeProblem(
        "mixed sensor", d, separation, weight, model, _normal_guide(loc, variance**0.5), x, truth
    )


def _square(d: int, separation: float, weight: float) -> ModeProblem:
    """The square of the first latent is seen, the others themselves.

    The prior's mean makes one root likelier.
    """
    root, noise = 1.5, 4 * 1.5**2 / separation
    mean = math.log(weight / (1 - weight)) / (2 * root)
    prior_mean = torch.cat([torch.tensor([mean]), torch.zeros(d - 1)]).double()
    scales = torch.cat([torch.tensor([noise]), torch.ones(d - 1)]).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(prior_mean, 1.0).to_event(1))
            means = torch.cat([z[..., :1].square(), z[..., 1:]], -1)
            pyro.sample("x", dist.Normal(means, scales).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        scale = torch.cat(
            [torch.tensor([2 * root / separation]), torch.full((d - 1,), 0.5**0.5)]
        ).double()
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(torch.cat([x[:, :1].sqrt(), x[:, 1:] / 2], -1), scale).to_event(1)
            )

    x = torch.randn(NUM_DATA, d, dtype=torch.double)
    x[:, 0] = root**2 * torch.linspace(0.95, 1.05, NUM_DATA)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.double)[:, None]
    joint = dist.Normal(mean, 1.0).log_prob(grid) + dist.Normal(grid.square(), noise).log_prob(
        x[:, 0]
    )
    truth = joint.logsumexp(0) + math.log(24 / 200_000)
    truth = truth + dist.Normal(0.0, 2**0.5).log_prob(x[:, 1:]).sum(-1)
    return ModeProblem("square", d, separation, weight, model, guide, x, truth)


def _linear(d: int) -> ModeProblem:
    """A normal posterior with correlations, and a guide that is somewhat off."""
    weight = torch.eye(d, dtype=torch.double) + 0.3 * torch.randn(d, d, dtype=torch.double)
    precision = torch.eye(d).double() + 4 * weight.T @ weight
    factor, shift = 0.8 + 0.45 * float(torch.rand(())), 0.5 * float(torch.rand(()))
    scale = precision.diagonal().rsqrt()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(d, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = torch.linalg.solve(precision, (4 * x @ weight).T).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + shift * scale, factor * scale).to_event(1))

    x = torch.randn(NUM_DATA, d, dtype=torch.double) @ weight.T
    covariance = weight @ weight.T + 0.25 * torch.eye(d).double()
    truth = dist.MultivariateNormal(torch.zeros(d, dtype=torch.double), covariance).log_prob(x)
    return ModeProblem("linear", d, 0.0, 1.0, model, guide, x, truth)


def _counted(d: int) -> ModeProblem:
    """Counts whose logarithms of rates are latent: skewed posteriors."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(d, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal((x + 0.4).log() / (1 + 1 / (x + 0.7)), (x + 1.5).rsqrt()).to_event(1),
            )

    x = dist.Poisson(1.5 * torch.ones(NUM_DATA, d, dtype=torch.double)).sample()
    grid = torch.linspace(-10, 8, 100_001, dtype=torch.double)[:, None, None]
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Poisson(grid.exp()).log_prob(x)
    truth = (joint.logsumexp(0) + math.log(18 / 100_000)).sum(-1)
    return ModeProblem("counted", d, 0.0, 1.0, model, guide, x, truth)


def _bent(d: int) -> ModeProblem:
    """A ridge that bends: the last latent less half the square of the first is seen."""
    d = max(d, 2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(d, dtype=torch.double), 1.0).to_event(1))
            bent = z[..., -1:] - z[..., :1].square() / 2
            pyro.sample(
                "x", dist.Normal(torch.cat([bent, z[..., 1:-1]], -1), 0.5).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        loc = torch.cat([0 * x[:, :1], 0.8 * x[:, 1:], 0.8 * x[:, :1] + 0.3], -1)
        scale = torch.cat([torch.tensor([0.9]), torch.full((d - 1,), 0.5)]).double()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    x = 0.5 * torch.randn(NUM_DATA, d - 1, dtype=torch.double)
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.double)[:, None]
    marginal = dist.Normal(-grid.square() / 2, 1.25**0.5).log_prob(
        x[:, 0]
    )  # the last latent integrated out
    first = (dist.Normal(0.0, 1.0).log_prob(grid) + marginal).logsumexp(0) + math.log(16 / 20_000)
    truth = first + dist.Normal(0.0, 1.25**0.5).log_prob(x[:, 1:]).sum(-1)
    return ModeProblem("bent", d, 0.0, 1.0, model, guide, x, truth)


def _positive(d: int) -> ModeProblem:
    """Positive latents with a log-normal guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample(
                "z", dist.Gamma(2 * torch.ones(d, dtype=torch.double), 0.5).to_event(1)
            )
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.LogNormal(((x + 1.5) / 1.5).log(), 0.9 * (x + 1.5).rsqrt()).to_event(1)
            )

    x = dist.Poisson(4 * torch.ones(NUM_DATA, d, dtype=torch.double)).sample()
    truth = dist.GammaPoisson(torch.tensor(2.0).double(), 0.5).log_prob(x).sum(-1)
    return ModeProblem("positive", d, 0.0, 1.0, model, guide, x, truth)
