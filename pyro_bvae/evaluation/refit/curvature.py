r"""Curvature of a posterior's log density, from its gradients at draws.

In unconstrained coordinates, f is the logarithm of :math:`p(x|z)^{1/\beta}\, p(z)`: the objective
at β is β times the mean of f less :math:`\log q`. Its second derivative in the mean of q is the
mean of f's, by the identities of Bonnet and Price, and a linear function fitted to the gradients of
f has that for its slope.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.internals import tree_leaves, tree_map
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.program import Function, Program

#: More coordinates than these are taken as uncorrelated; rows that are evaluated at a time.
MOST_CORRELATED, ROWS = 64, 16_384
# Draws behind the gain of a step, at least and for each coordinate, and the least curvature, in
# units of the guide's.
_GAIN_DRAWS, _PER_COORDINATE, _LEAST_CURVATURE = 256, 4, 0.01
# Draws behind the mean of a guide that does not say it, and numbers that are held at a time.
_MEAN_DRAWS, _MEAN_NUMBERS = 8192, 2**24


def rows_of(program: Program, args: tuple[Any, ...], index: Tensor) -> tuple[Any, ...]:
    """Return the arguments for some data of a block, by their places in it."""
    sliced = iter(
        isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == program.num_data
        for leaf in tree_leaves(program.args)
    )
    rows: tuple[Any, ...] = tree_map(lambda leaf: leaf[index] if next(sliced) else leaf, args)
    return rows


class Target:
    """The log density f at vectors of a block of data, counted in evaluations.

    Args:
        program: The program.
        args: The arguments of the block.
        beta: Weight of the KL in the objective.

    Raises:
        InputError: for a latent whose support has no bijection from the real numbers, or depends on
            other latents.
    """

    def __init__(self, program: Program, args: tuple[Any, ...], beta: float) -> None:
        self.program, self.args, self.beta = program, args, beta
        self.coordinates = Coordinates(program, args)
        self.num_data = program.count(args)
        self.cost = 0

    def rows(self, index: Tensor) -> Target:
        """Return f of some of the data, by their places in the block."""
        return Target(self.program, rows_of(self.program, self.args, index), self.beta)

    def _some(self, vectors: Tensor) -> Tensor:
        values, log_jacobian = self.coordinates.unflatten(vectors)
        latent, observed = self.program.log_joint(values, self.args)
        return observed / self.beta + latent + log_jacobian

    def _parts(self, vectors: Tensor) -> tuple[Tensor, ...]:
        self.cost += len(vectors)
        return vectors.split(max(1, ROWS // self.num_data))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return f at ``(K, B, d)``, shape ``(K, B)``, float64; minus infinity where it is NaN."""
        with torch.no_grad():
            values = torch.cat([self._some(part) for part in self._parts(vectors)])
        return torch.nan_to_num(values.double(), nan=-math.inf, posinf=-math.inf)

    def gradient(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return f and its gradient at ``(K, B, d)``, ``(K, B)`` and ``(K, B, d)``, float64."""
        values, gradients = [], []
        for part in self._parts(vectors.detach()):
            leaf = part.clone().requires_grad_()
            with torch.enable_grad():
                value = self._some(leaf)
                gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
            values.append(value.detach())
        value = torch.nan_to_num(torch.cat(values).double(), nan=-math.inf, posinf=-math.inf)
        return value, torch.nan_to_num(torch.cat(gradients).double(), 0.0, 0.0, 0.0)


def push(factors: Tensor, noise: Tensor) -> Tensor:
    """Return a covariance's factor, or standard deviations, times a noise ``(*, S, B, d)``."""
    if factors.dim() == 3:
        return factors * noise
    return torch.einsum("sbij,...sbj->...sbi", factors, noise)


def pull(factors: Tensor, gradient: Tensor) -> Tensor:
    """Return the transpose of a factor times a gradient ``(*, S, B, d)``."""
    return (
        factors * gradient
        if factors.dim() == 3
        else torch.einsum("sbij,...sbi->...sbj", factors, gradient)
    )


def log_det(factors: Tensor) -> Tensor:
    """Return the log determinants of factors, ``(S, B)``."""
    return factors.log().sum(-1) if factors.dim() == 3 else torch.linalg.slogdet(factors)[1]


def noises(size: int, least: int) -> Tensor:
    """Return antithetic noises ``(K, d)`` of mean 0 and covariance I exactly, K at least ``least``.

    Up to 64 coordinates they lie on randomly turned axes, at a normal's radii: means of cubic
    functions are exact.
    """
    from scipy.stats import chi2

    if size > MOST_CORRELATED:
        half = torch.randint(2, (max(least // 2, MOST_CORRELATED // 2), size)).double() * 2 - 1
        return torch.cat([half, -half])
    turns = math.ceil(least / (2 * size))
    squares = chi2.ppf((np.arange(turns) + 0.5) / turns, size)
    parts = []
    for square in squares * size / squares.mean():
        axes = math.sqrt(square) * torch.linalg.qr(torch.randn(size, size, dtype=torch.double))[0]
        parts += [axes, -axes]
    return torch.cat(parts)


class Linear(NamedTuple):
    """The gradient of f as a linear function over normals: ``intercept + slope @ noise``."""

    values: Tensor  # (S, B): the mean of f
    intercept: Tensor  # (S, B, d)
    slope: Tensor  # (S, B, d, d), or its diagonal


def linearize(
    target: Target, locs: Tensor, factors: Tensor, noise: Tensor, dtype: torch.dtype
) -> Linear:
    """Fit a linear function to the gradient of f, ``(S, B)``, at noises ``(K, d)``."""
    shape = (len(noise), *locs.shape)
    vectors = locs + push(factors, noise[:, None, None].to(locs).expand(shape))
    values, gradients = target.gradient(vectors.flatten(0, 1).to(dtype))
    values, gradients = values.unflatten(0, shape[:2]), gradients.unflatten(0, shape[:2])
    whitened = pull(factors, gradients)
    if factors.dim() == 3:
        slope = (whitened * noise[:, None, None].to(locs)).mean(0)
    else:
        slope = torch.einsum("ksbi,kj->sbij", whitened, noise.to(locs)) / len(noise)
        slope = (slope + slope.mT) / 2
    return Linear(values.mean(0), whitened.mean(0), slope)


class Gain(NamedTuple):
    """The gain of a Newton step of the guide's mean, ``(B,)`` in nats, its error and draws."""

    gain: Tensor
    error: Tensor
    draws: int


def newton_gain(program: Program, args: tuple[Any, ...], guide: Function, beta: float) -> Gain:
    r"""Return each datum's gain in objective over β by a move of the guide's mean.

    .. math:: \tfrac12\, g^\top \Lambda^{-1} g, \qquad g = \mathbb{E}_q[\nabla f],
        \quad \Lambda = -\mathbb{E}_q[\nabla^2 f],

    both of a linear function fitted to the gradients at draws, and without the noise of g. It is
    the same in any units.

    Raises:
        InputError: as :class:`Target`.
    """
    target = Target(program, args, beta)
    count = max(_GAIN_DRAWS, _PER_COORDINATE * min(target.coordinates.size, MOST_CORRELATED))
    with torch.no_grad():
        drawn = target.coordinates.flatten(program.draw(count, args, guide).values)
        mean = _mean(target, guide)
    _, uphill = target.gradient(drawn)
    vectors = drawn.double()
    centre, scale = vectors.mean(0), vectors.std(0).clamp(min=1e-300)
    noise, slopes = (vectors - centre) / scale, scale * uphill
    slope = _slope(noise, slopes - slopes.mean(0))
    fitted = _times(slope, noise)
    gradient = slopes.mean(0) + _times(slope, (mean - centre) / scale)
    left = slopes - slopes.mean(0) - fitted
    if slope.dim() == 2:
        lambdas = -slope
    else:
        lambdas, axes = torch.linalg.eigh(-(slope + slope.mT) / 2)
        gradient, left = _times(axes.mT, gradient), _times(axes.mT, left)
    root = lambdas.clamp(min=_LEAST_CURVATURE).rsqrt()
    gradient, left = root * gradient, root * left
    variance = left.square().mean(0) / count
    gain = (gradient.square() - variance).sum(-1) / 2
    along = (left * gradient).sum(-1).square().mean(0) / count
    # Of the noise's own square, as if its coordinates were independent.
    return Gain(gain, (along + variance.square().sum(-1) / 2).sqrt(), 2 * count)


def _mean(target: Target, guide: Function) -> Tensor:
    """Return the mean of a guide's vectors, ``(B, d)``, float64, without decoding."""
    program, places = target.program, target.coordinates.places.values()
    exact = getattr(guide, "normal_parameters", lambda: None)()
    if exact is not None and all(place.is_identity for place in places):
        return target.coordinates.flatten(
            {name: part[0].unsqueeze(0) for name, part in exact.items()}
        )[0].double()
    count = max(1, min(_MEAN_DRAWS, _MEAN_NUMBERS // (target.num_data * target.coordinates.size)))
    if program.vectorized:
        values = program.propose(count, target.args, guide)[0]
    else:
        draws = [program.propose(None, target.args, guide)[0] for _ in range(count)]
        values = {name: torch.stack([draw[name] for draw in draws]) for name in program.latents}
    return target.coordinates.flatten(values).double().mean(0)


def _slope(noise: Tensor, gradients: Tensor) -> Tensor:
    """Return each datum's matrix that fits gradients by draws ``(K, B, d)``, or its diagonal."""
    if noise.shape[-1] > MOST_CORRELATED:
        return (gradients * noise).sum(0) / noise.square().sum(0).clamp(min=1e-30)
    inner, outer = (torch.einsum("kbi,kbj->bij", noise, part) for part in (noise, gradients))
    ridge = 1e-9 * len(noise) * torch.eye(noise.shape[-1]).to(inner)
    return torch.linalg.solve(inner + ridge, outer).mT


def _times(slope: Tensor, vectors: Tensor) -> Tensor:
    return slope * vectors if slope.dim() == 2 else torch.einsum("bij,...bj->...bi", slope, vectors)
