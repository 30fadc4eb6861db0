"""Draws of a distribution at given standard normal noise, with their log density."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import AutoregressiveNormal, LowRankNormal, matrix_vector

# Distributions whose noise is that of another within.
_OUTER = (torch.distributions.Independent, torch.distributions.TransformedDistribution)
# The dimensions that a sequence of Sobol has at most.
_MOST_DIMS = 21_201


def noise_points(count: int, size: int, seed: int) -> Tensor:
    """Return points of a standard normal in antithetic pairs, ``(S, M)``, float64.

    Their mean is exactly 0 and their variance exactly 1. Where there are pairs enough, their
    covariance is exactly the identity. S is ``count``, rounded up to an even number.

    Args:
        count: S.
        size: M.
        seed: Seed of the scrambled sequence of Sobol that they are of (Owen 1997).
    """
    pairs = -(-count // 2)
    if size > _MOST_DIMS:
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(pairs, size, generator=generator, dtype=torch.double)
    else:
        engine = SobolEngine(size, scramble=True, seed=seed)
        uniform = engine.draw(pairs, dtype=torch.double).clamp(1e-9, 1 - 1e-9)
        half = torch.special.ndtri(uniform)
    if pairs >= size:
        tril = torch.linalg.cholesky(half.T @ half / pairs)
        half = torch.linalg.solve_triangular(tril, half.T, upper=False).T
    else:
        half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])


def event_numbers(law: Any, data_dim: int) -> torch.Size:
    """Return the shape of a distribution's noise with one row for all data.

    Args:
        law: The distribution.
        data_dim: The dimension of the data in its batch, counted from the right.
    """
    shape = [*law.batch_shape]
    shape[data_dim] = 1
    inner = law
    while isinstance(inner, _OUTER):
        inner = inner.base_dist
    whole = torch.Size([*inner.batch_shape, *inner.event_shape])
    return torch.Size([*shape, *whole[len(law.batch_shape) :]])


@functools.singledispatch
def drawn(law: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the draws of a distribution that noise stands for, and their log density.

    Args:
        law: The distribution.
        noise: Standard normal, ``(S, *batch, *event)``, or with one row for all data.

    Raises:
        InputError: for a family whose draws are no function of noise of their shape.
    """
    raise InputError(
        f"a guide of family {type(law).__name__} cannot be refined: its draws are no map of normal"
        " noise"
    )


@drawn.register
def _(law: torch.distributions.Normal, noise: Tensor) -> tuple[Tensor, Tensor]:
    value = law.loc + law.scale * noise
    return value, law.log_prob(value)


@drawn.register
def _(law: torch.distributions.MultivariateNormal, noise: Tensor) -> tuple[Tensor, Tensor]:
    tril = law.scale_tril
    value = law.loc + matrix_vector(tril, noise.expand(len(noise), *law.loc.shape))
    log_volume = tril.diagonal(0, -2, -1).log().sum(-1)
    return value, _log_normal(noise) - log_volume


@drawn.register
def _(law: LowRankNormal, noise: Tensor) -> tuple[Tensor, Tensor]:
    value = law.loc + matrix_vector(law.scale_tril, noise.expand(len(noise), *law.loc.shape))
    return value, law.log_prob(value)


@drawn.register
def _(law: AutoregressiveNormal, noise: Tensor) -> tuple[Tensor, Tensor]:
    value, log_det = law.push(noise.expand(len(noise), *law.batch_shape, *law.event_shape))
    return value, _log_normal(noise) - log_det


@drawn.register
def _(law: torch.distributions.Independent, noise: Tensor) -> tuple[Tensor, Tensor]:
    value, density = drawn(law.base_dist, noise)
    count = law.reinterpreted_batch_ndims
    return value, density.flatten(-count).sum(-1) if count else density


@drawn.register
def _(law: torch.distributions.TransformedDistribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    value, density = drawn(law.base_dist, noise)
    rank = 1 + len(law.batch_shape)
    for transform in law.transforms:
        moved = transform(value)
        volume = transform.log_abs_det_jacobian(value, moved)
        density = _summed(density, rank) - _summed(volume, rank)
        value = moved
    return value, density


def _summed(terms: Tensor, rank: int) -> Tensor:
    """Sum the dimensions of an event."""
    return terms.flatten(rank).sum(-1) if terms.dim() > rank else terms


def _log_normal(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
