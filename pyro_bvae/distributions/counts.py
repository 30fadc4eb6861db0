r"""Distributions of counts by the logarithm of their mean: safe at zero and at large counts.

The log gamma functions of a count's density cancel each other where its arguments are large. Here
each is taken apart by Stirling's formula, :math:`\log \Gamma(a) = (a - \tfrac12) \log a - a +
\tfrac12 \log 2\pi + c(a)`. The large terms cancel on paper, and the logarithms of ratios near one
keep their digits. Densities and gradients are computed in float64 and rounded to the parameters'
type: a count less a float32's mean has too few digits left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_bvae.core.internals import is_capturing
from pyro_bvae.distributions.wide import wide

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Where the series of Stirling's remainder takes over: its next term is below 1e-12 there.
_LARGE = 8.0
# Smaller arguments are moved up so far by the recurrence of the gamma function.
_SHIFT = 8
# Counts that are scored at a time on a CPU: the terms of their densities then stay in its cache.
_COUNTS = 2**15


def _in_blocks(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Return functions of tensors that broadcast, in blocks of their first dimension."""
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    rows = max(1, _COUNTS * shape[0] // max(1, shape.numel())) if shape else 1
    whole = is_capturing() or any(tensor.is_cuda for tensor in tensors)
    if whole or not shape or rows >= shape[0]:
        return function(*tensors)
    split = [len(tensor.shape) == len(shape) and len(tensor) > 1 for tensor in tensors]
    blocks = []
    for start in range(0, shape[0], rows):
        size = min(rows, shape[0] - start)
        parts = (
            t.narrow(0, start, size) if long else t for t, long in zip(tensors, split, strict=True)
        )
        blocks.append(function(*parts))
    if isinstance(blocks[0], Tensor):
        return torch.cat(blocks)
    return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))


def _moved(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Return 1 where a is small, a raised by 8 there, and a and :math:`a (a + 7)` held below 8."""
    is_small, small = (a < _LARGE).to(a.dtype), a.clamp(max=_LARGE)
    return is_small, a + _SHIFT * is_small, small, small * (small + (_SHIFT - 1))


def _stirling_tail(a: Tensor) -> Tensor:
    """Return the series of the remainder of Stirling's formula for the log gamma function."""
    inverse = 1 / a
    square = inverse * inverse
    return inverse * (
        1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    )


def _remainder(a: Tensor) -> Tensor:
    r"""Return :math:`\log \Gamma(a) - a \log a + a - \tfrac12 \log 2\pi`, for a > 0."""
    is_small, far, small, pairs = _moved(a)
    log_far = far.log()
    log_product = (pairs * (pairs + 6) * (pairs + 10) * (pairs + 12)).log()
    moved = far * log_far - small * small.log() - _SHIFT - log_product
    return _stirling_tail(far) - 0.5 * log_far + torch.where(is_small > 0, moved, 0.0)


def _slope_remainder(a: Tensor) -> Tensor:
    r"""Return the digamma function less its logarithm, :math:`\psi(a) - \log a`, likewise."""
    is_small, far, small, pairs = _moved(a)
    steps = 1 / pairs + 1 / (pairs + 6) + 1 / (pairs + 10) + 1 / (pairs + 12)
    moved = torch.log1p(_SHIFT / small) - (2 * small + (_SHIFT - 1)) * steps
    inverse = 1 / far
    square = inverse * inverse
    tail = square * (
        1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132)))
    )
    return is_small * moved - 0.5 * inverse - tail


def _log_factorial(value: Tensor) -> Tensor:
    r"""Return :math:`\log x! + x`, in float64."""
    (value,) = wide(value)
    is_small, far, _, pairs = _moved(value + 1)
    log_product = (pairs * (pairs + 6) * (pairs + 10) * (pairs + 12)).log()
    return (
        (far - 0.5) * far.log()
        + _stirling_tail(far)
        - is_small * (log_product + _SHIFT)
        + (_HALF_LOG_2PI - 1)
    )


def _log_ratio(total: Tensor, expected: Tensor, difference: Tensor) -> Tensor:
    """Return the log of the ratio of two positive numbers whose difference is exact."""
    sign = 2 * (difference >= 0).to(difference.dtype) - 1
    return sign * torch.log1p(sign * difference / torch.minimum(total, expected))


def _dtype(log_mean: Tensor, *others: Tensor) -> torch.dtype:
    """Return the type of the result, as torch promotes it."""
    dtypes = [torch.result_type(log_mean, other) for other in others]
    return dtypes[0] if len(dtypes) == 1 else torch.promote_types(*dtypes)


def _negative_binomial(
    log_mean: Tensor, theta: Tensor, value: Tensor, own: Tensor, factorial: Tensor
) -> Tensor:
    dtype = _dtype(log_mean, theta, value)
    log_mean, theta, value = wide(log_mean, theta, value)
    mean, total = log_mean.exp(), value + theta
    rise = _log_ratio(total, theta + mean, value - mean)
    return (
        total * rise + value * log_mean - factorial + (_remainder(total.to(own.dtype)) - own)
    ).to(dtype)


def _slope_of_mean(log_mean: Tensor, theta: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    dtype = log_mean.dtype
    log_mean, theta, value, gradient = wide(log_mean, theta, value, gradient)
    mean = log_mean.exp()
    return (gradient * theta * ((value - mean) / (theta + mean))).to(dtype)


def _slopes(
    log_mean: Tensor, theta: Tensor, value: Tensor, own: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the slopes by the logarithm of the mean and by the dispersion."""
    dtype = log_mean.dtype
    log_mean, theta, value = wide(log_mean, theta, value)
    mean, total = log_mean.exp(), value + theta
    difference, expected = value - mean, theta + mean
    slope = difference / expected
    bend = (_log_ratio(total, expected, difference) - slope).to(own.dtype)
    of_theta = bend + (_slope_remainder(total.to(own.dtype)) - own)
    return gradient * (theta * slope).to(dtype), gradient * of_theta


class _NegativeBinomialLogProb(torch.autograd.Function):
    r"""The log probability with its gradients written out.

    .. math::
        \frac{\partial}{\partial \log \mu} = \theta s, \qquad
        \frac{\partial}{\partial \theta} = \log(1 + s) - s + [\psi(x + \theta) - \log(x + \theta)]
            - [\psi(\theta) - \log \theta], \qquad s = \frac{x - \mu}{\theta + \mu}
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_mean: Tensor, theta: Tensor, value: Tensor) -> Tensor:
        factorial = _in_blocks(_log_factorial, value)
        return _in_blocks(_negative_binomial, log_mean, theta, value, _remainder(theta), factorial)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        log_mean, theta, value = ctx.saved_tensors
        of_theta = None
        if ctx.needs_input_grad[1]:
            of_mean, of_theta = _in_blocks(
                _slopes, log_mean, theta, value, _slope_remainder(theta), *gradients
            )
            of_mean, of_theta = (
                of_mean.sum_to_size(log_mean.shape),
                of_theta.sum_to_size(theta.shape),
            )
        else:
            of_mean = _in_blocks(_slope_of_mean, log_mean, theta, value, *gradients).sum_to_size(
                log_mean.shape
            )
        return of_mean, None if of_theta is None else of_theta.to(theta.dtype), None


def _poisson(log_mean: Tensor, value: Tensor) -> Tensor:
    dtype = _dtype(log_mean, value)
    log_mean, value = wide(log_mean, value)
    return (value * log_mean + (value - log_mean.exp()) - _log_factorial(value)).to(dtype)


class Counts(dist.TorchDistribution):
    """A distribution over counts that is given by the logarithm of its mean.

    Parameters that depend on the features alone are not expanded over particles and data, so that
    their log gamma functions are computed once.
    """

    support = constraints.nonnegative_integer
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    _shared: tuple[str, ...] = ()

    def __init__(
        self, log_mean: Tensor, batch_shape: torch.Size, validate_args: bool | None = None
    ) -> None:
        self.log_mean = log_mean
        super().__init__(batch_shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Counts:
        """Return the distribution with a larger batch shape."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        batch_shape = torch.Size(batch_shape)
        for name in self._shared:
            setattr(new, name, getattr(self, name))
        Counts.__init__(new, self.log_mean.expand(batch_shape), batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """Means."""
        return self.log_mean.exp()


class PoissonCounts(Counts):
    r"""Poisson counts, :math:`\log p(x) = x \log \mu - \mu - \log x!`, of mean :math:`\mu`.

    Args:
        log_mean: Logarithm of the mean, any shape.
        validate_args: Whether values outside the support are refused.
    """

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, log_mean.shape, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = _in_blocks(_poisson, self.log_mean, value)
        return log_prob

    @property
    def variance(self) -> Tensor:
        """Variances, which are the means."""
        return self.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))


class NegativeBinomialCounts(Counts):
    r"""Negative binomial counts of mean :math:`\mu` and dispersion :math:`\theta`.

    .. math::
        p(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta) \, x!} \Big(\frac{\theta}{\theta +
        \mu}\Big)^\theta
               \Big(\frac{\mu}{\theta + \mu}\Big)^x,
        \qquad \operatorname{Var}(x) = \mu + \mu^2 / \theta,

    a Poisson whose rate is gamma distributed with mean :math:`\mu` and shape :math:`\theta`; for
    large :math:`\theta` the Poisson itself.

    Args:
        log_mean: Logarithm of the mean, any shape.
        dispersion: :math:`\theta`, positive; broadcasts with the mean.
        validate_args: Whether values outside the support are refused.
    """

    _shared: tuple[str, ...] = ("dispersion",)

    def __init__(
        self, log_mean: Tensor, dispersion: Tensor, validate_args: bool | None = None
    ) -> None:
        self.dispersion = dispersion
        shape = torch.broadcast_shapes(log_mean.shape, dispersion.shape)
        super().__init__(log_mean.expand(shape), shape, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = _NegativeBinomialLogProb.apply(self.log_mean, self.dispersion, value)
        return log_prob

    @property
    def variance(self) -> Tensor:
        """Variances."""
        mean = self.mean
        return mean + mean.square() / self.dispersion

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            gamma = torch.distributions.Gamma(
                self.dispersion, torch.ones_like(self.dispersion), validate_args=False
            )
            theta = gamma.expand(self.batch_shape).sample(
                shape[: len(shape) - len(self.batch_shape)]
            )
            return torch.poisson(theta / self.dispersion * self.log_mean.exp())


class ZeroInflatedNegativeBinomialCounts(NegativeBinomialCounts):
    r"""Negative binomial counts that are lost with probability :math:`\pi`.

    .. math::
        p(x) = \pi [x = 0] + (1 - \pi) \, p_{NB}(x), \qquad \mathbb{E} x = (1 - \pi) \mu, \quad
        \operatorname{Var}(x) = (1 - \pi) (\mu + \mu^2 / \theta + \pi \mu^2).

    Args:
        log_mean: Logarithm of the mean before the loss, any shape.
        dispersion: :math:`\theta`, positive; broadcasts with the mean.
        gate_logits: Logits of :math:`\pi`; broadcast with the mean.
        validate_args: Whether values outside the support are refused.
    """

    _shared: tuple[str, ...] = ("dispersion", "gate_logits")

    def __init__(
        self,
        log_mean: Tensor,
        dispersion: Tensor,
        gate_logits: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.gate_logits = gate_logits
        shape = torch.broadcast_shapes(log_mean.shape, gate_logits.shape)
        super().__init__(log_mean.expand(shape), dispersion, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        kept = logsigmoid(-self.gate_logits) + super()._log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), kept), kept)

    @property
    def mean(self) -> Tensor:
        """Means, losses counted."""
        return torch.sigmoid(-self.gate_logits) * self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variances, losses counted."""
        lost, mean = torch.sigmoid(self.gate_logits), self.log_mean.exp()
        return (1 - lost) * (mean + mean.square() * (1 / self.dispersion + lost))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts."""
        counts = super().sample(sample_shape)
        kept = torch.rand_like(counts) >= torch.sigmoid(self.gate_logits)
        return counts * kept
