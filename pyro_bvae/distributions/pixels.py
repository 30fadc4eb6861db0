"""Distributions of pixels and categories."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_bvae.compiling import is_capturing


class GreyBernoulli(dist.Bernoulli):
    """A Bernoulli whose log density is also evaluated between 0 and 1: the cross-entropy of grey pixels.

    On greys it is a loss and no normalised density; on 0 and 1 it is the Bernoulli. It draws 0 and 1.
    """

    support = constraints.unit_interval


# Pixels that are scored at a time on a CPU: what is made of them then stays in its cache.
_PIXELS = 2**19


class Pixels(dist.Independent):  # type: ignore[misc]
    r"""Independent :class:`GreyBernoulli` pixels, scored in fewer operations where no gradient is asked for.

    .. math::
        \log p(x) = \log \prod_d \operatorname{sigmoid}(|l_d|) - \tfrac12 \sum_d [|l_d| - (2 x_d - 1) l_d]

    for logits l. The factors lie in [1/2, 1], so that one logarithm serves as many as cannot underflow, and nothing
    large cancels between the two sums: the result is that of the usual formula to rounding, also for extreme logits.
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
        step = len(logits) if logits.is_cuda else max(1, _PIXELS * len(logits) // max(1, logits.numel()))
        return torch.cat([_score(*parts) for parts in zip(logits.split(step), signs.split(step), strict=True)])


def _score(logits: Tensor, signs: Tensor) -> Tensor:
    """Return the log density of pixels x, ``(*, D)`` to ``(*)``, given ``1 - 2 x``."""
    sizes = logits.abs()
    surplus = torch.addcmul(sizes, signs, logits).sum(-1)
    return _log_product(sizes.sigmoid_()) - surplus / 2


def _log_product(factors: Tensor) -> Tensor:
    """Return the log of the product of factors in [1/2, 1] over the last dimension."""
    size, most = factors.shape[-1], int(-math.log2(torch.finfo(factors.dtype).tiny))
    groups = max(1, math.ceil(size / most))
    whole, rest = factors.split([size - size % groups, size % groups], -1)
    return whole.unflatten(-1, (groups, -1)).prod(-1).log_().sum(-1) + rest.log().sum(-1)


class ContinuousBernoulliPixels(dist.TorchDistribution):
    r"""The density :math:`p(x) = e^{l x} / \int_0^1 e^{l t} dt` on [0, 1] (Loaiza-Ganem and Cunningham 2019).

    Written in its natural parameter, so that it needs no probability that could round to 0 or 1.

    Args:
        logits: The parameters l, any shape.
        validate_args: Whether values outside the support are refused.
    """

    support = constraints.unit_interval
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    # Below this size of l the closed forms lose digits, and three terms of their series are exact to rounding.
    _small = 0.1

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulliPixels:
        """Return the distribution with a larger batch shape."""
        return ContinuousBernoulliPixels(self.logits.expand(torch.Size(batch_shape)), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        if self._validate_args:
            self._validate_sample(value)
        size = self.logits.abs()
        near, far = size.clamp(max=self._small), size.clamp(min=self._small)
        series = near * (-0.5 + near * (1 / 24 - near.square() / 2880))
        closed = (-torch.expm1(-far) / far).log()
        log_integral = self.logits.clamp(min=0) + torch.where(size < self._small, series, closed)
        return self.logits * value - log_integral

    @property
    def mean(self) -> Tensor:
        """Means."""
        size = self.logits.abs()
        near, far = self.logits.clamp(-self._small, self._small), size.clamp(min=self._small)
        series = 0.5 + near * (1 / 12 - near.square() / 720)
        closed = 1 / -torch.expm1(-far) - 1 / far
        return torch.where(size < self._small, series, torch.where(self.logits > 0, closed, 1 - closed))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw greys by the inverse of the distribution function."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            size = self.logits.abs().clamp(min=1e-5)  # less is uniform, to rounding
            from_one = -torch.log1p(uniform * torch.expm1(-size)) / size  # the distance from the likelier end
            return torch.where(self.logits > 0, 1 - from_one, from_one).clamp(0, 1)


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

    The difference of two sigmoids is taken as the product
    :math:`\operatorname{sigmoid}(a) \operatorname{sigmoid}(-b) (1 - e^{b - a})`,
    which neither cancels nor underflows.

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
        return DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of grey levels."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (PIXEL_LEVELS - 1)
        upper, lower = (value + half - self.loc) / self.scale, (value - half - self.loc) / self.scale
        below, above = logsigmoid(upper), logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-2 * half / self.scale))
        edge = torch.where(value < half, below, above)
        return torch.where((value < half) | (value > 1 - half), edge, inside)

    @property
    def mean(self) -> Tensor:
        """Locations, cut to [0, 1]: the means but for what the outermost bins cut off."""
        return self.loc.clamp(0, 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw grey levels."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            tiny = torch.finfo(self.loc.dtype).tiny
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(min=tiny)
            greys = self.loc + self.scale * torch.logit(uniform, eps=1e-7)
            return (greys * (PIXEL_LEVELS - 1)).round().clamp(0, PIXEL_LEVELS - 1) / (PIXEL_LEVELS - 1)


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
