"""The ELBO where log weights have heavy tails, beside its closed form."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bvae import elbo

COUNT, MEAN, SLOPE = 3.0, 0.3, 3.0
SCALES, SAMPLES, SIZES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), (100, 1000), (1, 50)


class Cell(NamedTuple):
    """One setting: the model, the guide's scale, draws a datum and data of one estimate."""

    model: str
    scale: float
    num_samples: int
    num_data: int


def cells(quick: bool) -> Iterator[Cell]:
    """Yield the settings."""
    for model in ("exponential", "linear"):
        for scale in (0.2, 0.7) if quick else SCALES:
            for num_samples in SAMPLES[:1] if quick else SAMPLES:
                for num_data in SIZES:
                    yield Cell(model, scale, num_samples, num_data)


def program_of(cell: Cell) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], float]:
    r"""Return model, guide and exact ELBO of a datum.

    ``exponential``: a Poisson count of rate :math:`e^{3z}`, whose log weights have the tail of a
    log-normal; the guide is wide. ``linear``: ten latents seen with noise, whose log weights have
    the tail of a chi-square.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if cell.model == "linear":
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, 0]), 1.0))
                pyro.sample("x", dist.Poisson((SLOPE * z).exp()), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if cell.model == "linear":
                pyro.sample("z", dist.Normal(torch.zeros_like(x) + MEAN, cell.scale).to_event(1))
            else:
                pyro.sample("z", dist.Normal(torch.zeros_like(x[:, 0]) + MEAN, cell.scale))

    variance = cell.scale**2
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    prior = -0.5 * (math.log(2 * math.pi) + MEAN**2 + variance)
    if cell.model == "linear":
        return model, guide, 10 * (entropy + 2 * prior)  # data of zero
    mean_rate = math.exp(SLOPE * MEAN + 0.5 * SLOPE**2 * variance)
    return model, guide, entropy + prior + COUNT * SLOPE * MEAN - mean_rate - math.lgamma(COUNT + 1)


def row(cell: Cell, repetitions: int) -> dict[str, Any]:
    """Return how often the mean of a cell is trusted, and how often its interval then holds the truth."""
    model, guide, exact = program_of(cell)
    value = 0.0 if cell.model == "linear" else COUNT
    x = torch.full((cell.num_data, 10), value, dtype=torch.double)
    first = 1000 * zlib.crc32(repr(cell).encode())  # no two settings share their draws
    estimates = [
        elbo(model, guide, x, num_samples=cell.num_samples, seed=first + repetition)
        for repetition in range(repetitions)
    ]
    trusted = [estimate for estimate in estimates if estimate.trusted]
    covered = [low <= exact <= high for low, high in (estimate.interval for estimate in trusted)]
    offsets = [estimate.value - exact for estimate in trusted]
    return {
        **cell._asdict(),
        "repetitions": repetitions,
        "trusted": len(trusted),
        "covered": sum(covered),
        "mean_offset": f"{sum(offsets) / len(offsets):.5f}" if offsets else "",
        "covered_of_all": sum(
            estimate.interval[0] <= exact <= estimate.interval[1] for estimate in estimates
        ),
    }
