r"""The aggregated posterior: the log density of a mixture of all data's posteriors.

.. math:: q(z) = \frac1N \sum_m q(z \mid x_m), \qquad q(z_d) = \frac1N \sum_m q(z_d \mid x_m)

Points and posteriors meet in tiles, so memory beyond them and their parameters is that of a tile.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.precision import fast_products, full_precision
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.distributions import LowRankNormal
from pyro_bvae.evaluation.marginal.importance import stream_blocks
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import Site, product_base, unwrapped

# Points and posteriors that meet at once: a tile stays in a processor's cache, and fills a GPU.
_ON_CPU, _ON_CUDA = (256, 2048), (4096, 16_384)
# Numbers in a tile where each latent has a density of its own.
_NUMBERS = 2_000_000
# Below this an exponential is nothing beside 1, and the processor's arithmetic on the remains of
# it is slow.
_NEGLIGIBLE = -80.0
# Nats that a product in float32 may be off by at most.
_TOLERANCE = 1e-3
# Nodes of a table within the narrowest posterior's scale: cubic interpolation is then good to about
# 1e-5 nats.
_NODES = 10


class Normals(NamedTuple):
    """The mean and scale of each datum's latents, each ``(N, L)``, float64."""

    loc: Tensor
    scale: Tensor


class Aggregate(NamedTuple):
    """Log densities of the aggregated posterior at M points."""

    joint: Tensor  # (M,)
    marginals: (
        Tensor | None
    )  # (M, L), or None where a posterior's dimensions have no density of their own


def is_diagonal(distribution: Any) -> bool:
    """Whether a distribution is a product of normals."""
    return isinstance(unwrapped(distribution), torch.distributions.Normal)


def normal_marginals(distribution: Any, data_dim: int) -> Normals | None:
    """Return mean and scale of each single dimension, where each is normal by itself; else None.

    Args:
        distribution: The posterior of a block of data.
        data_dim: The dimension of the data in its values, counted from the right.
    """
    base = unwrapped(distribution)
    correlated = (
        torch.distributions.MultivariateNormal,
        torch.distributions.LowRankMultivariateNormal,
        LowRankNormal,
    )
    if not isinstance(base, (torch.distributions.Normal, *correlated)):
        return None
    shape = base.batch_shape + base.event_shape
    parts = (part.expand(shape).movedim(data_dim, 0) for part in (base.mean, base.variance.sqrt()))
    return Normals(*(part.reshape(len(part), -1).double() for part in parts))


def log_mixture(points: Tensor, normals: Normals, progress: bool = False) -> Tensor:
    r"""Return the log density of an even mixture of diagonal normals, ``(M,)``, float64.

    .. math:: \log \frac1N \sum_m \prod_d \mathcal{N}(z_d; \mu_{md}, \sigma_{md}^2)

    The exponents are one matrix product, of :math:`(z^2, z, 1)` and
    :math:`(-\tfrac12 \sigma^{-2}, \mu \sigma^{-2}, \cdot)`. The terms of a square cancel, and the
    rest is good to 1e-3 nats: in float32 where means are some dozens of scales from their centre,
    in float64 elsewhere, down to scales of 1e-5 times the spread of the means.
    """
    centre = normals.loc.mean(0)
    points, loc = points.double() - centre, normals.loc - centre
    precision = normals.scale**-2
    constant = -0.5 * (loc.square() * precision).sum(1) - normals.scale.log().sum(1)
    constant -= 0.5 * loc.shape[1] * math.log(2 * math.pi) + math.log(len(loc))
    # The largest terms of a draw, four scales from the mean, times their rounding.
    error = (
        float((loc.abs() / normals.scale + 4).square().sum(1).max())
        * torch.finfo(torch.float32).eps
    )
    dtype = torch.float32 if error < _TOLERANCE else torch.float64
    weights = (
        torch.cat([-0.5 * precision, loc * precision, constant.unsqueeze(1)], 1)
        .to(dtype)
        .T.contiguous()
    )
    rows, columns = _ON_CUDA if points.is_cuda else _ON_CPU
    tiles = weights.split(columns, 1)
    exponents = weights.new_empty(min(rows, len(points)) * min(columns, len(loc)))
    sums = []
    with full_precision(), fast_products(points.device):
        for some in ProgressBar(
            points.split(rows), disable=not progress, desc="aggregated posterior", unit="tiles"
        ):
            factors = torch.cat([some.square(), some, torch.ones_like(some[:, :1])], 1).to(dtype)
            parts = []
            for tile in tiles:
                tile_exponents = exponents[: len(some) * tile.shape[1]].view(len(some), -1)
                # Exponentials are taken in float32, which keeps all terms near the largest.
                own = torch.mm(factors, tile, out=tile_exponents).float()
                most = own.amax(1, keepdim=True)
                own.sub_(most).clamp_(min=_NEGLIGIBLE).exp_()
                parts.append(own.sum(1).double().log_() + most.squeeze(1))
            sums.append(torch.stack(parts).logsumexp(0))
    return torch.cat(sums)


def log_marginals(points: Tensor, normals: Normals) -> Tensor:
    r"""Return :math:`\log q(z_d)` of an even mixture of normals, ``(M, L)``, float64.

    A dimension is computed at evenly spaced nodes, ten within its narrowest scale, and interpolated
    by cubics; at the points themselves where they are fewer than the nodes.
    """
    columns = []
    for place in range(points.shape[1]):
        column, one = (
            points[:, place].double(),
            Normals(*(part[:, place : place + 1] for part in normals)),
        )
        step = float(one.scale.min()) / _NODES
        low, high = float(column.min()) - 2 * step, float(column.max()) + 2 * step
        count = (high - low) / step + 2
        if count >= len(column):
            columns.append(log_mixture(column.unsqueeze(1), one))
            continue
        nodes = low + step * torch.arange(int(count), dtype=column.dtype, device=column.device)
        columns.append(_interpolate(log_mixture(nodes.unsqueeze(1), one), (column - low) / step))
    return torch.stack(columns, 1)


def _interpolate(values: Tensor, at: Tensor) -> Tensor:
    """Return values between nodes 0, 1, ..., by the cubic through the two on either side."""
    left = at.floor().long().clamp(1, len(values) - 3)
    t = at - left
    before, here, there, after = (values[left + shift] for shift in (-1, 0, 1, 2))
    return (
        -t * (t - 1) * (t - 2) / 6 * before
        + (t + 1) * (t - 1) * (t - 2) / 2 * here
        - (t + 1) * t * (t - 2) / 2 * there
        + (t + 1) * t * (t - 1) / 6 * after
    )


def guide_site(program: Program, block: tuple[Any, ...]) -> Site:
    """Return the latent's site in the guide of a block of data."""
    return poutine.trace(program.guide).get_trace(*block).nodes[program.latents[0]]


def aggregate_of(program: Program, rows: Tensor, progress: bool = False) -> Aggregate:
    """Return the log densities of any guide's aggregate, by scoring all points block by block.

    Args:
        program: A program whose guide has one site, the latent.
        rows: Points, ``(M, *)``: values of the latent without the dimension of the data.
        progress: Show a progress bar.

    Returns:
        With marginals where the guide is a product of dimensions.
    """
    joint: Tensor | None = None
    marginals: Tensor | None = None
    with ProgressBar(
        total=program.num_data, disable=not progress, desc="aggregated posterior", unit="data"
    ) as bar:
        for block in stream_blocks(program, 1, bar):
            base = product_base(guide_site(program, block)["fn"])
            size, width = program.count(block), max(1, rows[0].numel())
            some = [
                _score(program, block, base, part)
                for part in rows.split(max(1, _NUMBERS // (size * width)))
            ]
            joint = _add(joint, torch.cat([part.joint for part in some]))
            singles = [part.marginals for part in some if part.marginals is not None]
            marginals = _add(marginals, torch.cat(singles)) if singles else None
    assert joint is not None
    log_count = math.log(program.num_data)
    return Aggregate(joint - log_count, None if marginals is None else marginals - log_count)


def _add(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else torch.logaddexp(total, more)


def _score(program: Program, block: tuple[Any, ...], base: Any | None, points: Tensor) -> Aggregate:
    """Return the log of the sum of a block's posterior densities at some points."""
    (name,), size = program.latents, program.count(block)
    dim = program.dim_of(name, program.plate.dim)
    values = points.unsqueeze(dim)
    values = values.expand(*values.shape[:dim], size, *values.shape[values.dim() + dim + 1 :])
    if base is None:
        return Aggregate(
            program.log_guide({name: values}, block, program.guide).double().logsumexp(1), None
        )
    terms = base.log_prob(values).double().movedim(dim, 1).reshape(len(points), size, -1)
    return Aggregate(terms.sum(2).logsumexp(1), terms.logsumexp(1))
