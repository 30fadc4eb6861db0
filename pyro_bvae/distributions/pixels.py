"""Distributions of pixels and categories."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_bvae.core.internals import is_capturing


class GreyBernoulli(dist.Bernoulli):
    """A Bernoulli with the cross-entropy of grey pixels, between 0 and 1, as its log density.

    On greys it is a loss and no normalised density; on 0 and 1 it is the Bernoulli. It draws 0 and
    1.
    """

    support = constraints.unit_interval


# Pixels that are scored at a time on a CPU: what is made of them then stays in its cache.
_PIXELS = 2**19


class Pixels(dist.Independent):  # type: ignore[misc]
    r"""Independent :class:`GreyBernoulli` pixels, in fewer operations where no gradient is needed.

    .. math::
        \log p(x) = \log \prod_d \operatorname{sigmoid}(|l_d|) - \tfrac12 \sum_d [|l_d| - (2 x_d -
        1) l_d]

    for logits l. The factors lie in [1/2, 1], so that one logarithm serves as many as cannot
    underflow, and nothing large cancels between the two sums: the result is that of the usual
    formula to rounding, also for extreme logits.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, summed over the pixels."""
        logits = self.base_dist.logits
        wants_gradient = torch.is_grad_enabled() and (logits.requires_grad or value.requires_grad)
        if wants_gradient or self.reinterpreted_batch_ndims != 1 or logits.dim() < 2:
            return super().log_prob(value)
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        logits, signs = torch.broadcast_tensors(logits, 1 - 2 * value)
        if is_capturing():  # a compiler makes one loop of it
            return _score(logits, signs)
        step = (
            len(logits)
            if logits.is_cuda
            else max(1, _PIXELS * len(logits) // max(1, logits.numel()))
        )
        return torch.cat(
            [_score(*parts) for parts in zip(logits.split(step), signs.split(step), strict=True)]
        )


def _score(logits: Tensor, signs: Tensor) -> Tensor:
    """Return the log density of pixels x, ``(*, D)`` to ``(*)``, given ``1 - 2 x``."""
    sizes = logits.abs()
    surplus = torch.addcmul(sizes, signs, logits).sum(-1)
    # The product of factors in [1/2, 1], in groups that do not underflow.
    factors, most = sizes.sigmoid_(), int(-math.log2(torch.finfo(sizes.dtype).tiny))
    size = factors.shape[-1]
    groups = max(1, math.ceil(size / most))
    whole, rest = factors.split([size - size % groups, size % groups], -1)
    log_product = whole.unflatten(-1, (groups, -1)).prod(-1).log_().sum(-1) + rest.log().sum(-1)
    return log_product - surplus / 2


class ContinuousBernoulliPixels(dist.TorchDistribution):
    r"""The density :math:`p(x) = e^{l x} / \int_0^1 e^{l t} dt` on [0, 1] (Loaiza-Ganem 2019).

    Written in its natural parameter, so that it needs no probability that could round to 0 or 1.

    Args:
        logits: The parameters l, any shape.
        validate_args: Whether values outside the support are refused.
    """

    support = constraints.unit_interval
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    # Below this size of l the closed forms lose digits, and four terms of their series are exact to
    # rounding.
    _small = 0.1

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulliPixels:
        """Return the distribution with a larger batch shape."""
        return ContinuousBernoulliPixels(
            self.logits.expand(torch.Size(batch_shape)), self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        if self._validate_args:
            self._validate_sample(value)
        size, near, far = self._parts(self._small)
        square = near.square()
        # About the middle, an even function of l: the slope at 0 is x - 1/2, where an absolute
        # value has none.
        series = near * (value - 0.5) - square * (
            1 / 24 - square * (1 / 2880 - square * (1 / 181440 - square / 9676800))
        )
        # From the likelier end: the distance to it has all its digits.
        closed = (
            -size * torch.where(self.logits > 0, 1 - value, value)
            - (-torch.expm1(-far) / far).log()
        )
        return torch.where(size < self._small, series, closed)

    @property
    def mean(self) -> Tensor:
        """Means."""
        size, near, far = self._parts(self._small)
        square = near.square()
        series = 0.5 + near * (
            1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600))
        )
        closed = 1 / -torch.expm1(-far) - 1 / far
        closed = torch.where(self.logits > 0, closed, 1 - closed)
        return torch.where(size < self._small, series, closed)

    @property
    def variance(self) -> Tensor:
        """Variances."""
        size, near, far = self._parts(1.0)
        square = near.square()
        inner = 1 / 172800 - square * (
            1 / 5322240 - square * (691 / 118879488000 - square / 5748019200)
        )
        series = 1 / 12 - square * (1 / 240 - square * (1 / 6048 - square * inner))
        closed = 1 / far.square() - (-far).exp() / torch.expm1(-far).square()
        return torch.where(size < 1, series, closed)

    def _parts(self, border: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the size of l, l where small, and its size elsewhere, all with slopes."""
        size = self.logits.abs()
        is_small = size < border
        return size, torch.where(is_small, self.logits, 0.0), torch.where(is_small, border, size)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw greys by the inverse of the distribution function."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            size = self.logits.abs().clamp(min=1e-5)  # less is uniform, to rounding
            from_one = (
                -torch.log1p(uniform * torch.expm1(-size)) / size
            )  # the distance from the likelier end
            return torch.where(self.logits > 0, 1 - from_one, from_one).clamp(0, 1)


# Pixels whose levels are summed over at a time, and levels of all pixels at a time in a graph.
_EDGES, _EDGES_OF_A_GRAPH = 2**12, 15

#: Grey levels of a pixel of 8 bits.
PIXEL_LEVELS = 256


class _GreyLevels(constraints.Constraint):
    """Multiples of 1/255 from 0 to 1, to float32's rounding."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        levels = value * (PIXEL_LEVELS - 1)
        return ((levels - levels.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return "grey levels k/255 of 8 bits"


#: The values that a pixel of 8 bits takes when it is divided by 255.
grey_levels = _GreyLevels()


class DiscretizedLogistic(dist.TorchDistribution):
    r"""Grey levels k/255 with the probability that a logistic variable falls into their bin.

    The difference of two sigmoids is taken as the product :math:`\operatorname{sigmoid}(a)
    \operatorname{sigmoid}(-b) (1 - e^{b - a})`, which neither cancels nor underflows.

    Args:
        loc: Locations, any shape.
        scale: Scales, positive, of the same shape.
        validate_args: Whether values outside the support are refused.
    """

    support = grey_levels
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return the distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(
            self.loc.expand(shape), self.scale.expand(shape), self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of grey levels."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (PIXEL_LEVELS - 1)
        # At the edge of a bin the location cancels all digits of a float32's half width but those
        # that follow.
        first = float(np.float32(half))
        apart, rest = value - self.loc, half - first
        upper, lower = (apart + first + rest) / self.scale, (apart - first - rest) / self.scale
        below, above = logsigmoid(upper), logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-2 * half / self.scale))
        edge = torch.where(value < half, below, above)
        return torch.where((value < half) | (value > 1 - half), edge, inside)

    @property
    def mean(self) -> Tensor:
        r"""Means, :math:`\frac{1}{255} \sum_{k=1}^{255} P(255 x \ge k)`."""
        return self._over_levels(lambda edges, loc: torch.ones_like(edges))

    @property
    def variance(self) -> Tensor:
        """Variances, by the same sum about the level nearest the mean: no large squares cancel."""
        mean = self.mean
        centre = mean.detach()
        second = self._over_levels(lambda edges, centre: 2 * (edges - centre), centre)
        # The sum starts from the square of the distance of level 0 from the centre.
        return (second + centre.square() - (mean - centre).square()).clamp(min=0)

    def _over_levels(
        self, weigh: Callable[[Tensor, Tensor], Tensor], centre: Tensor | None = None
    ) -> Tensor:
        """Return the sum over the levels' edges of weighted probabilities above, over 255."""
        edges = (
            torch.arange(PIXEL_LEVELS - 1, dtype=self.loc.dtype, device=self.loc.device) + 0.5
        ) / (PIXEL_LEVELS - 1)
        rows = [part.flatten() for part in torch.broadcast_tensors(self.loc, self.scale)]
        about = torch.zeros_like(rows[0]) if centre is None else centre.flatten()
        if is_capturing():  # a graph takes few edges at a time, since it is one of any rows
            sums = (
                (weigh(some, about.unsqueeze(-1)) * _above(some, *rows)).sum(-1)
                for some in edges.split(_EDGES_OF_A_GRAPH)
            )
            whole = torch.stack(list(sums)).sum(0) / (PIXEL_LEVELS - 1)
            return whole.reshape(self.batch_shape)
        blocks = []
        for loc, scale, middle in zip(*(row.split(_EDGES) for row in (*rows, about)), strict=True):
            above = _above(edges, loc, scale)
            blocks.append((weigh(edges, middle.unsqueeze(-1)) * above).sum(-1) / (PIXEL_LEVELS - 1))
        return torch.cat(blocks).reshape(self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw grey levels."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            tiny = torch.finfo(self.loc.dtype).tiny
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(
                min=tiny
            )
            greys = self.loc + self.scale * torch.logit(uniform, eps=1e-7)
            return (greys * (PIXEL_LEVELS - 1)).round().clamp(0, PIXEL_LEVELS - 1) / (
                PIXEL_LEVELS - 1
            )


def _above(edges: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the probabilities of values above edges, ``(M,)`` rows to ``(M, edges)``."""
    return ((loc.unsqueeze(-1) - edges) / scale.unsqueeze(-1)).sigmoid()


class NumberedCategories(dist.Categorical):
    """Pyro's categorical, whose mean and variance are those of the category's number."""

    @property
    def mean(self) -> Tensor:
        """The mean number of the category."""
        return (self.probs * self._numbers()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the category's number."""
        return (self.probs * (self._numbers() - self.mean.unsqueeze(-1)).square()).sum(-1)

    def _numbers(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw categories, as floating numbers like the data."""
        return super().sample(torch.Size(sample_shape)).to(self.probs.dtype)
