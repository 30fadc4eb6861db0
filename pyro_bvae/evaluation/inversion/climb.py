r"""Modes of posteriors: many points climb at once, and those that arrive at one place are one mode.

All is done in unconstrained coordinates u, and measured in nats, or in units of a mode's own
curvature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.evaluation.marginal.hmc import Path

# A climb ends where a Newton step would gain less than this many nats; a mode is known where it
# would gain fewer.
_LEAST_GAIN, _MOST_GAIN = 1e-3, 0.05
_MOST_STEPS = 100
# Points nearer than this, in standard deviations of a mode, have arrived at the same one.
_SAME = 1.0
# Modes have at least this dip between them, in nats, at one of so many points of the line that
# joins them.
_LEAST_DIP, _ON_A_LINE = 0.25, 9
_MOST_MODES = 8


class Modes(NamedTuple):
    """The modes of N posteriors, the heaviest first, each as a normal of its height and curvature.

    Attributes:
        points: Where the modes are, ``(M, N, d)``.
        factors: Cholesky factors of the inverse curvatures, ``(M, N, d, d)``.
        log_masses: Laplace's approximation of each one's mass, ``(M, N)``; minus infinity where
            there is no such mode.
        heights: Their log densities, ``(M, N)``.
    """

    points: Tensor
    factors: Tensor
    log_masses: Tensor
    heights: Tensor


class Climbs(NamedTuple):
    """Where climbs began and ended, ``(S, N, d)``, with the log densities there, ``(S, N)``."""

    ends: Tensor
    first: Tensor
    last: Tensor


def find_modes(path: Path, starts: Tensor, scale: Tensor) -> tuple[Modes, Climbs]:
    """Climb from every start, gather the ends into modes, and return both.

    Args:
        path: The log joint density, as two parts.
        starts: Where the climbs start, ``(S, N, d)``.
        scale: Of each coordinate under the prior, ``(N, d)``: no step is longer.
    """
    climbs, settled = _climb(path, starts, scale)
    # A climb that has not arrived is no mode, unless none has arrived.
    settled = settled | ~settled.any(0)
    values = torch.where(settled & torch.isfinite(climbs.last), climbs.last, -math.inf)
    return _gather(path, climbs.ends, values, scale), climbs


def _value_and_gradient(path: Path, vectors: Tensor) -> tuple[Tensor, Tensor]:
    vectors = vectors.detach().requires_grad_()
    with torch.enable_grad():
        latent, observed = path(vectors)
        value = latent + observed
        (gradient,) = torch.autograd.grad(value.sum(), vectors)
    return torch.nan_to_num(value.detach(), nan=-math.inf), torch.nan_to_num(
        gradient, 0.0, 0.0, 0.0
    )


def _climb(path: Path, vectors: Tensor, scale: Tensor) -> tuple[Climbs, Tensor]:
    """Return the climbs, and whether they have arrived: BFGS with a line search, all at once."""
    inverse = torch.diag_embed(scale.square()).expand(*vectors.shape, vectors.shape[-1]).clone()
    value, gradient = _value_and_gradient(path, vectors)
    first = value
    step = torch.ones_like(value)
    for _ in range(_MOST_STEPS):
        direction = (inverse @ gradient.unsqueeze(-1)).squeeze(-1)
        direction = direction / (direction / scale).norm(dim=-1, keepdim=True).clamp(min=1)
        slope = (direction * gradient).sum(-1)
        if bool(((slope / 2 < _LEAST_GAIN) | (step < 1e-8)).all()):
            break
        trial = vectors + step.unsqueeze(-1) * direction
        there, steeper = _value_and_gradient(path, trial)
        rounding = 8 * torch.finfo(value.dtype).eps * value.abs()
        better = (there >= value + 1e-4 * step * slope - rounding) & (slope / 2 >= _LEAST_GAIN)
        inverse = _learned(inverse, trial - vectors, gradient - steeper)
        vectors = torch.where(better.unsqueeze(-1), trial, vectors)
        gradient = torch.where(better.unsqueeze(-1), steeper, gradient)
        value = torch.where(better, there, value)
        step = torch.where(better, (3 * step).clamp(max=1), 0.3 * step)
    gain = (gradient * (inverse @ gradient.unsqueeze(-1)).squeeze(-1)).sum(-1) / 2
    return Climbs(vectors, first, value), gain < _MOST_GAIN


def _learned(inverse: Tensor, moved: Tensor, change: Tensor) -> Tensor:
    """Return the inverse curvatures ``(S, N, d, d)`` after a step that shows a positive one."""
    product = (moved * change).sum(-1)
    fit = (
        torch.isfinite(product)
        & (product > 1e-10 * moved.norm(dim=-1) * change.norm(dim=-1))
        & (product > 0)
    )
    rho = torch.where(fit, 1 / product.where(fit, torch.ones_like(product)), 0.0)[..., None, None]
    eye = torch.eye(moved.shape[-1], dtype=moved.dtype, device=moved.device)
    left = eye - rho * moved.unsqueeze(-1) * change.unsqueeze(-2)
    return left @ inverse @ left.mT + rho * moved.unsqueeze(-1) * moved.unsqueeze(-2)


def _gather(path: Path, points: Tensor, values: Tensor, scale: Tensor) -> Modes:
    """Take the highest end of each problem as a mode, with all ends about it, in turn."""
    left, size = values.clone(), points.shape[-1]
    results: list[Tensor] = []
    factors: list[Tensor] = []
    masses: list[Tensor] = []
    heights: list[Tensor] = []
    for _ in range(_MOST_MODES):
        if results and not bool(torch.isfinite(left).any()):
            break
        height, place = left.max(0)
        point = points.gather(0, place[None, :, None].expand(1, -1, size))[0]
        factor = _inverse_root(path, point, scale)
        distance = torch.linalg.solve_triangular(
            factor, (points - point).unsqueeze(-1), upper=False
        ).squeeze(-1)
        left = left.masked_fill(distance.norm(dim=-1) < _SAME, -math.inf)
        # The end itself goes too, whatever rounding says of its distance to itself.
        left = left.scatter(0, place.unsqueeze(0), -math.inf)
        results.append(point)
        heights.append(height)
        factors.append(factor)
        masses.append(
            height
            + size / 2 * math.log(2 * math.pi)
            + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
    modes = Modes(
        torch.stack(results), torch.stack(factors), torch.stack(masses), torch.stack(heights)
    )
    order = modes.log_masses.argsort(0, descending=True)
    modes = Modes(
        modes.points.gather(0, order[..., None].expand_as(modes.points)),
        modes.factors.gather(0, order[..., None, None].expand_as(modes.factors)),
        modes.log_masses.gather(0, order),
        modes.heights.gather(0, order),
    )
    return _told_apart(path, modes)


def _told_apart(path: Path, modes: Modes) -> Modes:
    """Leave out modes that hardly a dip parts from a heavier one, as ripples of a decoder."""
    log_masses = modes.log_masses.clone()
    along = torch.linspace(0, 1, _ON_A_LINE + 2, dtype=log_masses.dtype, device=log_masses.device)[
        1:-1, None, None
    ]
    for index in range(1, len(log_masses)):
        for heavier in range(index):
            line = modes.points[heavier] + along * (modes.points[index] - modes.points[heavier])
            with torch.no_grad():
                latent, observed = path(line)
            least = torch.minimum(modes.heights[index], modes.heights[heavier])
            dip = least - torch.nan_to_num(latent + observed, nan=-math.inf).amin(0)
            same = (dip < _LEAST_DIP) & torch.isfinite(log_masses[heavier])
            log_masses[index] = log_masses[index].masked_fill(same, -math.inf)
    return modes._replace(log_masses=log_masses)


def _inverse_root(path: Path, points: Tensor, scale: Tensor) -> Tensor:
    """Return Cholesky factors of the inverse curvature at ``(N, d)``, within ten of the scale."""
    curvature = torch.nan_to_num(_curvature(path, points, scale), 0.0, 0.0, 0.0)
    curvature = curvature * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    values, axes = torch.linalg.eigh((curvature + curvature.mT) / 2)
    covariance = (axes / values.clamp(min=0.01).unsqueeze(-2)) @ axes.mT
    jitter = torch.finfo(values.dtype).eps * torch.eye(
        len(values[0]), dtype=values.dtype, device=values.device
    )
    factor, failed = torch.linalg.cholesky_ex(covariance + jitter)
    factor = torch.where(
        (failed == 0)[..., None, None], factor, torch.eye(len(values[0])).to(factor)
    )
    return scale.unsqueeze(-1) * factor


def _curvature(path: Path, points: Tensor, scale: Tensor) -> Tensor:
    """Return minus the Hessian at points ``(N, d)``, by central differences, ``(N, d, d)``."""
    step = torch.finfo(points.dtype).eps ** (1 / 3) * scale
    shifts = torch.diag_embed(step).movedim(0, 1)  # (d, N, d)
    _, ahead = _value_and_gradient(path, points + shifts)
    _, behind = _value_and_gradient(path, points - shifts)
    return ((behind - ahead) / (2 * step.T.unsqueeze(-1))).movedim(0, 1)
