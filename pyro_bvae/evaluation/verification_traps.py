"""Small programs that invite a wrong number: to be refused, right, or called untrusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.evaluation.gaps.measure import inference_gaps
from pyro_bvae.evaluation.marginal.annealing import annealed_evidence
from pyro_bvae.evaluation.marginal.importance import elbo, evidence
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings
from pyro_bvae.program.program import Function

_NUM_DATA = 8
_PRIOR_SCALE = 3.0


class Trap(NamedTuple):
    """A measurement, and the exact value that it must give; None where it must be refused."""

    what: str
    measure: Callable[[], Any]
    exact: float | None = None
    latents: int = 1


def _model(x: Tensor) -> None:
    """Latents of scale 3 seen with noise, of posterior scale 1 in each at x = 0."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x[0]), _PRIOR_SCALE).to_event(1))
        pyro.sample("x", dist.Normal(z, (1 - _PRIOR_SCALE**-2) ** -0.5).to_event(1), obs=x)


def _exact(latents: int) -> float:
    variance = _PRIOR_SCALE**2 + 1 / (1 - _PRIOR_SCALE**-2)
    return -0.5 * latents * math.log(2 * math.pi * variance)


def _guide(x: Tensor, ratio: float = 1.0, shift: float = 0.0) -> None:
    loc = torch.zeros_like(x)
    loc[:, 0] = shift
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, ratio).to_event(1))


def traps(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Trap]:
    """Yield all traps.

    Args:
        dtype: Number type of the data.
        device: Where they lie.
        seed: Seed of the draws.
    """
    zeros = partial(torch.zeros, dtype=dtype, device=device)
    yield from _programs(zeros(_NUM_DATA, 1), seed)
    for latents, ratio, shift in ((1, 0.5, 0.0), (4, 0.5, 0.0), (10, 0.7, 1.0)):
        guide, x = partial(_guide, ratio=ratio, shift=shift), zeros(_NUM_DATA, latents)
        measure = partial(evidence, _model, guide, x, num_samples=2000, seed=seed)
        yield Trap(f"a guide of {ratio:g} sd, {shift:g} off", measure, _exact(latents), latents)
    for temperatures, chains in ((10, 8), (60, 32)):
        settings = AnnealingSettings(num_temperatures=temperatures, num_chains=chains)
        measure = partial(
            annealed_evidence, _model, _guide, zeros(_NUM_DATA, 10), settings=settings, seed=seed
        )
        yield Trap(f"annealing in {temperatures} temperatures", measure, _exact(10), 10)
    for ratio, shift in ((0.01, 3.0), (0.001, 1.0)):
        guide = partial(_guide, ratio=ratio, shift=shift)
        measure = partial(_approximation, guide, zeros(_NUM_DATA, 1), seed)
        yield Trap(f"refit of {ratio:g} sd, {shift:g} off", measure, 0.0)
    yield _two_modes(zeros(_NUM_DATA, 1), seed)
    yield _heavy_bound(zeros(_NUM_DATA, 1) + 3, seed)


def _approximation(guide: Function, x: Tensor, seed: int) -> Any:
    return inference_gaps(_model, guide, x, num_samples=1000, seed=seed).approximation


def _programs(x: Tensor, seed: int) -> Iterator[Trap]:
    """Yield programs that would be measured as something else."""

    def noisy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Uniform(x[:, 0], x[:, 0] + 2), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def point(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x, event_dim=1))

    def broadcasting(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

    def positive(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(torch.ones_like(x[0])).to_event(1))
            pyro.sample("x", dist.Exponential(z).to_event(1), obs=x)

    known = poutine.condition(_model, data={"z": x})
    wide, outside = x.expand(-1, 3), torch.cat([x, x, x, x, x, x, x, x, x, x - 0.5])
    for what, model, guide, data in (
        ("noise beside the latents", _model, noisy, x),
        ("a guide that is a point", _model, point, x),
        ("an observed latent that is drawn", known, _guide, x),
        ("one number for three latents", _model, broadcasting, wide),
        ("a count of -0.5 in row 73", counts, _guide, outside),
    ):
        yield Trap(what, partial(evidence, model, guide, data, num_samples=100, seed=seed))
    # With a prior and a likelihood that are exponential, p(x) = 1 / (1 + x)^2.
    measure = partial(
        evidence, positive, partial(_guide, shift=0.8), x + 1, num_samples=20_000, seed=seed
    )
    yield Trap("a guide beyond its support", measure, -2 * math.log(2))


def _two_modes(x: Tensor, seed: int) -> Trap:
    """Return an encoder in the mode of a tenth of its posterior, five scales off the other."""
    places = torch.tensor([[-2.5], [2.5]], dtype=x.dtype, device=x.device)
    shares = torch.tensor([0.1, 0.9], dtype=x.dtype, device=x.device)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(places, 0.5).to_event(1)
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(shares), parts))
            pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x) - 2.5, 0.5).to_event(1))

    def variational() -> Any:
        return inference_gaps(model, guide, x, num_samples=1000, seed=seed).variational

    return Trap("an encoder in the smaller mode", variational, math.log(10))


def _heavy_bound(x: Tensor, seed: int) -> Trap:
    """Return a bound whose log weights have the tail of a log-normal."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson((3 * z).exp()).to_event(1), obs=x)

    measure = partial(elbo, model, partial(_guide, shift=0.3), x, seed=seed)
    exact = 0.5 * (1 - 0.3**2 - 1) + 9 * 0.3 - math.exp(0.9 + 4.5) - math.lgamma(4)
    return Trap("a bound with a heavy tail", measure, exact)
