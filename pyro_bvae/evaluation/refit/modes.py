r"""The modes of each datum's posterior, as normals in unconstrained coordinates.

The density is that of the objective at β, :math:`p(x|z)^{1/\beta}\, p(z)`, whose logarithm is f.
From each place a point first climbs f; a normal around it then takes damped Newton steps of natural
gradients (Khan and Rue 2023): with averages over the normal, its precision goes to
:math:`-\mathbb{E}[\nabla^2 f]` and its mean moves by :math:`\Sigma\, \mathbb{E}[\nabla f]`, both
from gradients alone (Price 1958). No step knows a unit of the guide.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import seeded
from pyro_bvae.evaluation.refit.curvature import (
    MOST_CORRELATED,
    ROWS,
    Linear,
    Target,
    linearize,
    log_det,
    noises,
    pull,
    push,
)
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.program import Program

# Draws of prior and guide behind their places and scales, and other data's codes that are tried.
_DRAWS, _CODES = 128, 16
# Steps of the points that climb, and their first, least and largest size, in units of the prior's
# scale.
_CLIMBS, _STEP_SIZES = 30, (0.02, 1e-6, 0.3)
# Scale of a normal around a point that has climbed, in the same units; the gradients of f behind a
# mean, at least, and the draws behind the last one.
_POINT, _LEAST, _LAST = 0.02, 16, 64
# The part of a normal's scale that its averages are over.
_HALF = 0.5
# Evaluations of each normal. By a step it grows at most by the inverse root of the second number.
_STEPS, _LEAST_PRECISION = 10, 1e-3
# Modes are apart by so many of their scales, with a dip of so many nats along every path that was
# tried, and the smaller has at least this share of the mass of the largest.
_APART, _DIP, _SHARE = 2.5, 0.3, 0.01
# Points on the path between two modes, and the steps by which it climbs sideways to where the dip
# is least.
_PATH, _PATH_STEPS = 7, 20


class Modes(NamedTuple):
    """Normals at the ends of all searches, in descending order of the mass they find.

    Attributes:
        coordinates: The coordinates of the block.
        locs: Their means, ``(S, B, d)``, float64.
        factors: Their covariances' factors, ``(S, B, d, d)``; in many dimensions standard
            deviations, ``(S, B, d)``.
        values: The bound of f's log integral that each gives, ``(S, B)``, minus infinity where a
            search was lost.
        distinct: Which are modes of their own with a share of the mass, ``(S, B)``; the first
            always.
        num_codes: How many other data's codes were tried.
        cost: Evaluations of the decoder for each datum.
    """

    coordinates: Coordinates
    locs: Tensor
    factors: Tensor
    values: Tensor
    distinct: Tensor
    num_codes: int
    cost: int

    @property
    def counts(self) -> Tensor:
        """The number of modes of each datum, ``(B,)``."""
        return self.distinct.sum(0)

    @property
    def looked(self) -> str:
        """Where the searches started, in words."""
        codes = f" and {self.num_codes} other data's codes" if self.num_codes else ""
        return f"the encoder's answer{',' if codes else ' and'} the prior{codes}"

    def scales(self, *, conditional: bool) -> Tensor:
        """Return the scale of each coordinate, ``(S, B, d)``, given the others or not."""
        if self.factors.dim() == self.locs.dim():
            return self.factors
        if conditional:
            return torch.linalg.inv(self.factors).square().sum(-2).rsqrt()
        return self.factors.square().sum(-1).sqrt()


def find_modes(
    program: Program, args: tuple[Any, ...], beta: float, num_starts: int, seed: int
) -> Modes | None:
    """Search each datum's posterior for modes, from guide, prior and other data's codes.

    Args:
        program: The program.
        args: The arguments of the block.
        beta: Weight of the KL in the objective.
        num_starts: Places beside the guide's answer, at least 1.
        seed: Seed of the block's noise.

    Returns:
        The modes; None where the latents have no coordinates.
    """
    try:
        target = Target(program, args, beta)
    except InputError:
        return None
    with seeded(seed, 0):
        guide, prior = (_draws(target, function) for function in (program.guide, program.model))
        dtype = guide.dtype
        guide, prior = guide.double(), prior.double()
        unit = _spread(prior)
        points, num_codes = _places(target, guide.mean(0), prior, num_starts, dtype)
        points = _climb(target, points, unit, dtype)
        results = _settle(
            target, torch.cat([guide.mean(0)[None], points]), guide.std(0), unit, dtype
        )
    order = results.values.argsort(0, descending=True)
    locs, factors, values = (_taken(part, order) for part in results)
    distinct = _distinct(target, locs, factors, values, dtype)
    cost = target.cost + 4 * _DRAWS
    return Modes(target.coordinates, locs, factors, values, distinct, num_codes, cost)


def _draws(target: Target, function: Any) -> Tensor:
    size = max(1, ROWS // target.num_data)
    with torch.no_grad():
        return torch.cat(
            [
                target.coordinates.flatten(
                    target.program.draw(min(size, _DRAWS - done), target.args, function).values
                )
                for done in range(0, _DRAWS, size)
            ]
        )


def _spread(draws: Tensor) -> Tensor:
    """Return a scale of draws ``(K, B, d)`` that a heavy tail leaves alone, ``(B, d)``."""
    low, high = (draws.quantile(level, 0) for level in (0.16, 0.84))
    return ((high - low) / 2).clamp(min=1e-12)


def _taken(part: Tensor, order: Tensor) -> Tensor:
    """Return ``(K, B, ...)`` in the order of each datum, ``(S, B)``."""
    return part.gather(
        0,
        order.reshape(*order.shape, *[1] * (part.dim() - 2)).expand(*order.shape, *part.shape[2:]),
    )


def _places(
    target: Target, code: Tensor, prior: Tensor, num_starts: int, dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Return the starts of the climbs, ``(S, B, d)``, and the number of other data's codes.

    Of draws of the prior, other data's codes and the guide's answer mirrored in the prior, those
    farthest from any that is likelier: the peaks of a density among its points (Rodriguez and Laio
    2014).
    """
    mirrored = 2 * prior.median(0).values - code
    num_codes = min(_CODES, len(code) - 1)
    shifts = (1 + torch.randperm(len(code) - 1)[:num_codes]).tolist() if num_codes else []
    pool = torch.cat(
        [torch.stack([code, mirrored, *(code.roll(shift, 0) for shift in shifts)]), prior]
    )
    likely = target(pool.to(dtype))
    order = likely.argsort(dim=0, descending=True, stable=True)
    pool = _taken(pool, order)
    scaled = (pool / _spread(prior)).movedim(1, 0)
    likelier = torch.ones(len(pool), len(pool), dtype=torch.bool, device=pool.device).tril(-1)
    lengths = torch.where(likelier, torch.cdist(scaled, scaled), math.inf).amin(-1)
    lengths = torch.where(
        (order == 0).T, -1.0, lengths
    )  # the guide's answer is a start in any case
    return _taken(pool, lengths.T.argsort(0, descending=True)[:num_starts]), num_codes


def _climb(target: Target, points: Tensor, unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Move points uphill by the signs of the gradient (Riedmiller and Braun 1993).

    A step grows while its sign stays and shrinks where it turns: no long first step leaves a small
    mode.
    """
    moved = torch.zeros_like(points)
    first, least, most = _STEP_SIZES
    climber = torch.optim.Rprop([moved], lr=first, etas=(0.5, 1.3), step_sizes=(least, most))
    for _ in range(_CLIMBS):
        moved.grad = -unit * target.gradient((points + unit * moved).to(dtype))[1]
        climber.step()
    return points + unit * moved


class _Normals(NamedTuple):
    """Normals ``(S, B)`` and the bounds that they give."""

    locs: Tensor
    factors: Tensor
    values: Tensor


def _step(normals: _Normals, results: Linear, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and factors after a damped step."""
    rate = rate.unsqueeze(-1)
    if normals.factors.dim() == 3:
        precision = 1 - rate + rate * (-results.slope).abs().clamp(min=_LEAST_PRECISION)
        moved = results.intercept / precision
        factors = normals.factors * precision.rsqrt()
    else:
        curvatures, axes = torch.linalg.eigh(-results.slope)
        precision = 1 - rate + rate * curvatures.abs().clamp(min=_LEAST_PRECISION)
        moved = torch.einsum("sbij,sbj,sbkj,sbk->sbi", axes, 1 / precision, axes, results.intercept)
        factors = normals.factors @ (axes * precision.rsqrt().unsqueeze(-2))
    return normals.locs + rate * push(normals.factors, moved), factors


def _settle(
    target: Target, points: Tensor, code_scale: Tensor, unit: Tensor, dtype: torch.dtype
) -> _Normals:
    """Fit normals from points by damped steps; none is taken that lowers the bound.

    Averages are over half of each scale, which no neighbouring mode reaches, so the bound is of
    that scale too.
    """
    size = points.shape[-1]
    scales = (_POINT * unit).expand_as(points).clone()
    scales[0] = code_scale.clamp(min=1e-30)
    factors = scales if size > MOST_CORRELATED else torch.diag_embed(scales)
    best = _Normals(points, factors, points.new_full(points.shape[:2], -math.inf))
    trial, rate, results = best, points.new_ones(points.shape[:2]), None
    noise = noises(size, _LEAST)
    for _ in range(_STEPS):
        half = linearize(target, trial.locs, _HALF * trial.factors, noise, dtype)
        here = Linear(half.values, half.intercept / _HALF, half.slope / _HALF**2)
        value = here.values + _HALF**2 * log_det(trial.factors)
        better = value >= best.values
        best = _Normals(
            *(_where(better, *pair) for pair in zip((*trial[:2], value), best, strict=True))
        )
        results = (
            here
            if results is None
            else Linear(*(_where(better, *pair) for pair in zip(here, results, strict=True)))
        )
        rate = torch.where(better, (2 * rate).clamp(max=1.0), rate / 4)
        trial = best._replace(
            **dict(zip(("locs", "factors"), _step(best, results, rate), strict=True))
        )
    # By draws that no step has seen: a normal that reaches over a valley may have missed it.
    draws = (
        torch.randn(_LAST // 2, 1, 1, size, dtype=torch.double).to(points).expand(-1, *points.shape)
    )
    last = best.locs + push(best.factors, torch.cat([draws, -draws]))
    values = target(last.flatten(0, 1).to(dtype)).unflatten(0, (_LAST, -1)).mean(0)
    constant = size / 2 * math.log(2 * math.pi * math.e)
    return best._replace(
        values=torch.nan_to_num(values + log_det(best.factors) + constant, nan=-math.inf)
    )


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.reshape(*chosen.shape, *[1] * (one.dim() - chosen.dim())), one, other)


def _distinct(
    target: Target, locs: Tensor, factors: Tensor, values: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the normals that are modes of their own with a share of mass, ``(S, B)``."""
    heavy = values >= values[0] + math.log(_SHARE)
    distinct = heavy.clone()
    distinct[0] = True
    pairs = torch.combinations(torch.arange(len(locs)))
    first, second = pairs.unbind(1)
    if factors.dim() == 3:
        variance = (factors[first].square() + factors[second].square()) / 2
        lengths = ((locs[second] - locs[first]).square() / variance).sum(-1).sqrt()
    else:
        covariance = (factors[first] @ factors[first].mT + factors[second] @ factors[second].mT) / 2
        between = (locs[second] - locs[first]).unsqueeze(-1)
        lengths = (
            (between * torch.linalg.solve(covariance, between)).sum((-2, -1)).clamp(min=0).sqrt()
        )
    apart = heavy[first] & heavy[second] & (lengths > _APART)
    if bool(apart.any()):
        tried, rows = (apart.any(dim).nonzero()[:, 0] for dim in (1, 0))
        if not target.program.sliceable:
            rows = torch.arange(target.num_data, device=rows.device)
        some, one, other = target.rows(rows), first[tried], second[tried]
        starts, ends = ((locs[side][:, rows], factors[side][:, rows]) for side in (one, other))
        apart[tried[:, None], rows] &= _dips(some, *starts, *ends, dtype) > _DIP
        target.cost += math.ceil(some.cost * len(rows) / target.num_data)
    for row, earlier, later in zip(apart, first.tolist(), second.tolist(), strict=True):
        distinct[later] &= ~distinct[earlier] | row
    return distinct


def _dips(
    target: Target,
    start: Tensor,
    start_factors: Tensor,
    end: Tensor,
    end_factors: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Return how far f falls on the way between means, ``(P, B)``, below the lower of them.

    The points of a straight path climb at a right angle to it, so that a bent ridge is no dip.
    """
    size = len(start)
    fractions = torch.linspace(0, 1, _PATH + 2, dtype=torch.double)[1:-1].to(start)
    points = start + fractions[:, None, None, None] * (end - start)
    factors = _where(
        log_det(start_factors) < log_det(end_factors), start_factors, end_factors
    )  # the narrower
    inverse = 1 / factors if factors.dim() == 3 else torch.linalg.inv(factors)
    along = push(inverse, end - start)
    along = along / along.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    best = points.new_full(points.shape[:-1], -math.inf)
    trial, uphill, rate = points, torch.zeros_like(points), torch.ones_like(best)
    for _ in range(_PATH_STEPS):
        values, gradients = (
            part.unflatten(0, (_PATH, size))
            for part in target.gradient(trial.flatten(0, 1).to(dtype))
        )
        better = values >= best
        best, points = _where(better, values, best), _where(better, trial, points)
        sideways = pull(factors, gradients)
        sideways = sideways - (sideways * along).sum(-1, keepdim=True) * along
        sideways = sideways / sideways.norm(dim=-1, keepdim=True).clamp(min=1.0)
        uphill = _where(better, sideways, uphill)
        rate = torch.where(better, (1.5 * rate).clamp(max=1.0), rate / 4)
        trial = points + rate.unsqueeze(-1) * push(factors, uphill)
    ends = target(torch.cat([start, end]).to(dtype))
    return torch.minimum(*ends.split(size)) - best.amin(0)
