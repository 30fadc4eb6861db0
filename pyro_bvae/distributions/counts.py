r"""Distributions of counts, by the logarithm of their mean: safe at zero, and at very large counts and dispersions.

The log gamma functions of a count's density cancel each other where its arguments are large, and in float32 nothing
is left. Here each is taken apart by Stirling's formula, :math:`\log \Gamma(a) = (a - \tfrac12) \log a - a + \tfrac12
\log 2\pi + c(a)`; what cancels is cancelled on paper, and the logarithms of ratios near one keep their digits.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_bvae.compiling import is_capturing

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# Where the series of Stirling's remainder takes over: its next term is below 1e-11 there.
_LARGE = 16.0
# Counts and dispersions up to here leave a float32 four digits of a nat by the textbook formula, which is faster.
_MODERATE = 200.0


def _remainder(a: Tensor) -> Tensor:
    """Return what Stirling's formula leaves of the log gamma function, c(a)."""
    small, large = a.clamp(max=_LARGE), a.clamp(min=_LARGE)
    exact = torch.lgamma(small) - (small - 0.5) * small.log() + small - _HALF_LOG_2PI
    inverse = 1 / large
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    return torch.where(a < _LARGE, exact, series)


def _log_ratio(numerator: Tensor, denominator: Tensor, difference: Tensor) -> Tensor:
    """Return the log of the ratio of two positive numbers whose difference is known to all its digits."""
    up = difference >= 0
    sign = torch.where(up, 1.0, -1.0).to(difference)
    return sign * torch.log1p(sign * difference / torch.where(up, denominator, numerator))


def _log_excess(log_mean: Tensor, mean: Tensor, value: Tensor) -> Tensor:
    r"""Return :math:`\log \mu / (x + 1)`, from the mean where it is near one and from its logarithm elsewhere."""
    far = log_mean - torch.log1p(value)
    near = far.abs() < 0.5
    next_value = (value + 1).expand_as(far)
    close = torch.where(near, mean, next_value)  # no ratio that could overflow where the other form is taken
    return torch.where(near, _log_ratio(close, next_value, close - next_value), far)


def _careful(log_mean: Tensor, theta: Tensor, value: Tensor) -> Tensor:
    """Return log probabilities of negative binomial counts, whatever their size."""
    mean, following, total = log_mean.exp(), value + 1, value + theta
    of_data = 0.5 * following.log() + _remainder(following) + _HALF_LOG_2PI - 1
    of_features = 0.5 * theta.log() - _remainder(theta)
    fixed = _remainder(total) - 0.5 * total.log() + of_features - of_data
    rise = _log_ratio(total, theta + mean, value - mean)
    return total * rise + value * _log_excess(log_mean, mean, value) + fixed


def _textbook(log_mean: Tensor, theta: Tensor, value: Tensor) -> Tensor:
    """Return log probabilities of moderate counts: what is of data or features alone is computed for them alone."""
    total = value + theta
    fixed = torch.lgamma(total) - torch.lgamma(theta) - torch.lgamma(value + 1) + theta * theta.log()
    return value * log_mean - total * (theta + log_mean.exp()).log() + fixed


def _is_moderate(theta: Tensor, value: Tensor) -> bool:
    """Whether counts and dispersions are small; not asked where the answer would have to be waited for."""
    plain = not any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in (theta, value))
    if not plain or theta.is_cuda or is_capturing() or torch.compiler.is_compiling() or value.numel() == 0:
        return False
    return float(value.amax()) < _MODERATE and float(theta.detach().amax()) < _MODERATE


class _NegativeBinomialLogProb(torch.autograd.Function):
    r"""The log probability with its gradients written out.

    .. math::
        \frac{\partial}{\partial \log \mu} = \theta \frac{x - \mu}{\theta + \mu}, \qquad
        \frac{\partial}{\partial \theta} = \psi(x + \theta) - \psi(\theta) - \log(1 + \mu / \theta)
            - \frac{x - \mu}{\theta + \mu}
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_mean: Tensor, theta: Tensor, value: Tensor, moderate: bool) -> Tensor:
        return (_textbook if moderate else _careful)(log_mean, theta, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        log_mean, theta, value = ctx.saved_tensors
        mean = log_mean.exp()
        slope = (value - mean) / (theta + mean)
        of_mean = of_theta = None
        if ctx.needs_input_grad[0]:
            of_mean = (gradient * theta * slope).sum_to_size(log_mean.shape)
        if ctx.needs_input_grad[1]:
            fixed = torch.digamma(value + theta) - torch.digamma(theta)
            of_theta = (gradient * (fixed - torch.log1p(mean / theta) - slope)).sum_to_size(theta.shape)
        return of_mean, of_theta, None, None


class Counts(dist.TorchDistribution):
    """A distribution over counts that is given by the logarithm of its mean.

    Parameters that depend on the features alone are not expanded over particles and data, so that their log gamma
    functions are computed once.
    """

    support = constraints.nonnegative_integer
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    _shared: tuple[str, ...] = ()

    def __init__(self, log_mean: Tensor, batch_shape: torch.Size, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        super().__init__(batch_shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Counts:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(Counts, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self._shared:
            setattr(new, name, getattr(self, name))
        Counts.__init__(new, self.log_mean.expand(batch_shape), batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _get_checked_instance(self, cls: Any, _instance: Any = None) -> Any:
        return type(self).__new__(type(self)) if _instance is None else _instance

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
    r"""Poisson counts, :math:`\log p(x) = x \log \mu - \mu - \log x!`; mean and variance are :math:`\mu`.

    Args:
        log_mean: Logarithm of the mean, any shape.
        validate_args: Whether values outside the support are refused.
    """

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, log_mean.shape, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        mean, following = self.log_mean.exp(), value + 1
        constant = 0.5 * following.log() + _HALF_LOG_2PI + _remainder(following)
        return value * _log_excess(self.log_mean, mean, value) + (following - mean) - constant

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
        p(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta) \, x!} \Big(\frac{\theta}{\theta + \mu}\Big)^\theta
               \Big(\frac{\mu}{\theta + \mu}\Big)^x,
        \qquad \operatorname{Var}(x) = \mu + \mu^2 / \theta,

    a Poisson whose rate is gamma distributed with mean :math:`\mu` and shape :math:`\theta`; for large
    :math:`\theta` the Poisson itself.

    Args:
        log_mean: Logarithm of the mean, any shape.
        dispersion: :math:`\theta`, positive; broadcasts with the mean.
        validate_args: Whether values outside the support are refused.
    """

    _shared: tuple[str, ...] = ("dispersion",)

    def __init__(self, log_mean: Tensor, dispersion: Tensor, validate_args: bool | None = None) -> None:
        self.dispersion = dispersion
        shape = torch.broadcast_shapes(log_mean.shape, dispersion.shape)
        super().__init__(log_mean.expand(shape), shape, validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        theta = self.dispersion
        log_prob: Tensor = _NegativeBinomialLogProb.apply(self.log_mean, theta, value, _is_moderate(theta, value))
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
            gamma = torch.distributions.Gamma(self.dispersion, torch.ones_like(self.dispersion), validate_args=False)
            theta = gamma.expand(self.batch_shape).sample(shape[: len(shape) - len(self.batch_shape)])
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
        self, log_mean: Tensor, dispersion: Tensor, gate_logits: Tensor, validate_args: bool | None = None
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
