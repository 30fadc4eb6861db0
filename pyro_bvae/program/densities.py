"""Weights of particles: log densities of draws, apart and together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LatentValues = dict[str, Tensor]


class LogDensities(NamedTuple):
    """Log densities of K particles for each of N data, every entry of shape ``(K, N)``."""

    latent: Tensor  # log p(z)
    observed: Tensor  # log p(x | z)
    guide: Tensor  # log q(z | x)

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights, ``log p(x, z) - log q(z | x)``."""
        return self.observed + self.latent - self.guide


class BoundTerms(NamedTuple):
    """Draws of the bound of a guide that has discrete sites, each ``(K, N)``.

    The latents y of those sites are summed at every draw of the others: means under q(y | z, x).
    """

    elbo: Tensor  # E log p(x, y, z) - log q(y, z | x)
    observed: Tensor  # E log p(x | y, z)


class Particles(NamedTuple):
    """K particles from the guide: the guide's values and their weights.

    The bound is None where a draw's is its log weight.
    """

    values: LatentValues
    densities: LogDensities
    bound: BoundTerms | None = None

    @property
    def elbo(self) -> Tensor:
        """Draws of the bound at β = 1."""
        return self.densities.log_weights if self.bound is None else self.bound.elbo

    @property
    def observed(self) -> Tensor:
        """Draws of the reconstruction in the bound."""
        return self.densities.observed if self.bound is None else self.bound.observed

    def repeated(self, values: LatentValues, count: int) -> Particles:
        """Return the same densities for several particles, at their values."""
        latent, observed, guide = (part.expand(count, -1) for part in self.densities)
        bound = self.bound and BoundTerms(*(part.expand(count, -1) for part in self.bound))
        return Particles(values, LogDensities(latent, observed, guide), bound)

    def objective(self, beta: float) -> Tensor:
        """Draws of the bound with β before its KL."""
        return self.observed + beta * (self.elbo - self.observed)


def count_particles(values: LatentValues) -> int:
    """Return the number K of particles in the values of a draw."""
    return len(next(iter(values.values())))


def particles(values: LatentValues) -> Iterator[LatentValues]:
    """Yield the values of each of K particles."""
    return (
        {name: value[k] for name, value in values.items()} for k in range(count_particles(values))
    )


def is_close(one: LogDensities, other: LogDensities) -> bool:
    """Whether densities are the same but for rounding."""
    return all(
        # Sums of many terms are float64 in a float32 model.
        a.shape == b.shape
        and torch.allclose(a, b.to(a.dtype), rtol=1e-4, atol=1e-3, equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


def stack(draws: list[Particles]) -> Particles:
    """Put single-particle draws together along a new first dimension."""
    values = {name: torch.stack([draw.values[name] for draw in draws]) for name in draws[0].values}
    densities = (
        torch.cat(terms) for terms in zip(*(draw.densities for draw in draws), strict=True)
    )
    bounds = [draw.bound for draw in draws if draw.bound is not None]
    bound = BoundTerms(*map(torch.cat, zip(*bounds, strict=True))) if bounds else None
    return Particles(values, LogDensities(*densities), bound)
