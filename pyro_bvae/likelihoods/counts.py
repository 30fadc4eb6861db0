r"""Likelihoods of counts: a rate from the decoder, a size factor from the context, a dispersion.

The mean is :math:`\mu = s \rho`: s is the size factor of the datum, 1 without one, and :math:`\rho`
comes from the decoder, by :class:`SoftmaxRate` or :class:`ExpRate`. Where s was computed from x, as
an observed library size is, the evidence is conditional on it: :math:`\log p(x \mid s)`, and
comparable only between models that are given the same s.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import (
    NegativeBinomialCounts,
    PoissonCounts,
    ZeroInflatedNegativeBinomialCounts,
)

# Bounds on logarithms of means and dispersions. Beyond them a float32 has no digits for a count,
# and a negative binomial is a Poisson, or all zeros.
_MOST_LOG_MEAN, _MOST_LOG_DISPERSION = 30.0, 15.0


def _bounded(logarithm: Tensor, least: float | None, most: float) -> Tensor:
    """Return a logarithm within bounds, with a slope beyond them that leads back."""
    return logarithm.clamp(least, most).detach() + (logarithm - logarithm.detach())


def _log_size(context: Context | None, like: Tensor) -> Tensor | float:
    """Return the log of the size factors, ``(N, 1)``, or 0."""
    if context is None or context.size_factor is None:
        return 0.0
    return context.size_factor.to(like).log()


class SoftmaxRate(nn.Module):
    r"""Means that share the size factor, :math:`\mu = s \operatorname{softmax}(\eta)`."""

    def forward(self, outputs: Tensor, context: Context | None = None) -> Tensor:
        r"""Return :math:`\log \mu` of ``(*, D)`` outputs."""
        return _bounded(outputs.log_softmax(-1) + _log_size(context, outputs), None, _MOST_LOG_MEAN)


class ExpRate(nn.Module):
    r"""Means of their own, :math:`\mu = s e^\eta`, at most :math:`e^{30}`."""

    def forward(self, outputs: Tensor, context: Context | None = None) -> Tensor:
        r"""Return :math:`\log \mu` of ``(*, D)`` outputs."""
        return _bounded(outputs + _log_size(context, outputs), None, _MOST_LOG_MEAN)


@public
class LearnedDispersion(nn.Module):
    r"""A learned dispersion :math:`\theta`: shared, for each feature, or for each and batch.

    Args:
        num_features: None for one dispersion shared by all features, or D for one for each.
        num_batches: B, if each batch has dispersions of its own; the context's first B covariates
            say which, one-hot.
        initial: Where it starts. The variance is :math:`\mu + \mu^2 / \theta`.
    """

    parameters_per_feature = 1

    def __init__(
        self, num_features: int | None = None, num_batches: int | None = None, initial: float = 1.0
    ) -> None:
        super().__init__()
        for name, value in (("num_features", num_features), ("num_batches", num_batches)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"'{name}' must be a positive integer or None, got {value!r}")
        if not (initial > 0 and math.isfinite(initial)):
            raise InputError(f"'initial' must be positive and finite, got {initial}")
        self.num_batches = num_batches
        shape = (num_features or 1,) if num_batches is None else (num_batches, num_features or 1)
        self.log_dispersion = nn.Parameter(torch.full(shape, math.log(initial)))

    def forward(self, parameters: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        r"""Return the other parameters, and :math:`\theta`."""
        log_dispersion: Tensor = self.log_dispersion
        if self.num_batches is not None:
            covariates = None if context is None else context.covariates
            if covariates is None or covariates.shape[-1] < self.num_batches:
                got = "none" if covariates is None else f"{covariates.shape[-1]}"
                raise InputError(
                    f"a dispersion for each of {self.num_batches} batches wants as many covariates,"
                    f" got {got}"
                )
            log_dispersion = covariates[..., : self.num_batches].to(log_dispersion) @ log_dispersion
        return parameters, _dispersion(log_dispersion)

    @property
    def dispersion(self) -> Tensor:
        """The dispersions, shape ``(1,)``, ``(D,)`` or ``(B, D)``."""
        return _dispersion(self.log_dispersion)


class DecoderDispersion(nn.Module):
    """A dispersion for each datum and feature, from the second part of the decoder's output."""

    parameters_per_feature = 2

    def forward(self, parameters: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Return the other parameters, and the dispersion."""
        outputs, log_dispersion = parameters.chunk(2, dim=-1)
        return outputs, _dispersion(log_dispersion)


def _dispersion(log_dispersion: Tensor) -> Tensor:
    return _bounded(log_dispersion, -_MOST_LOG_DISPERSION, _MOST_LOG_DISPERSION).exp()


Rate = SoftmaxRate | ExpRate
Dispersion = LearnedDispersion | DecoderDispersion


class _CountLikelihood(nn.Module):
    support = constraints.nonnegative_integer

    def __init__(self, rate: Rate | None) -> None:
        super().__init__()
        self.rate = ExpRate() if rate is None else rate


@public
class PoissonLikelihood(_CountLikelihood):
    r"""Independent Poisson counts, :math:`\log p(x|z) = \sum_d x_d \log \mu_d - \mu_d - \log x_d!`.

    Mean and variance are :math:`\mu`.

    Args:
        rate: From the decoder's output to the mean: :class:`ExpRate`, or :class:`SoftmaxRate` with
            size factors.

    Shape:
        ``(*, D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.
    """

    parameters_per_feature = 1

    def __init__(self, rate: Rate | None = None) -> None:
        super().__init__(rate)

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return PoissonCounts(self.rate(parameters, context)).to_event(1)


@public
class NegativeBinomialLikelihood(_CountLikelihood):
    r"""Independent negative binomial counts, of variance :math:`\mu + \mu^2 / \theta`.

    .. math::
        \log p(x \mid z) = \sum_d \log \frac{\Gamma(x_d + \theta_d)}{\Gamma(\theta_d) \, x_d!}
            + \theta_d \log \frac{\theta_d}{\theta_d + \mu_d} + x_d \log \frac{\mu_d}{\theta_d +
            \mu_d}

    the usual model of UMI counts (Lopez et al. 2018). :math:`1 / \theta` is elsewhere called the
    dispersion.

    Args:
        num_features: D for a dispersion for each feature; None for a shared one. Void where
            ``dispersion`` is given.
        dispersion: :class:`LearnedDispersion` or :class:`DecoderDispersion`.
        rate: From the decoder's output to the mean: :class:`ExpRate`, or :class:`SoftmaxRate` with
            size factors.

    Shape:
        ``(*, D)``, or ``(*, 2 D)`` with :class:`DecoderDispersion`, to a distribution with batch
        shape ``(*)`` and event shape ``(D,)``.
    """

    def __init__(
        self,
        num_features: int | None = None,
        *,
        dispersion: Dispersion | None = None,
        rate: Rate | None = None,
    ) -> None:
        super().__init__(rate)
        self.dispersion = LearnedDispersion(num_features) if dispersion is None else dispersion

    @property
    def parameters_per_feature(self) -> int:
        """Number of decoder outputs for each feature."""
        return self.dispersion.parameters_per_feature

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        outputs, dispersion = self.dispersion(parameters, context)
        return NegativeBinomialCounts(self.rate(outputs, context), dispersion).to_event(1)


class ZeroInflatedNegativeBinomialLikelihood(NegativeBinomialLikelihood):
    r"""Negative binomial counts that are lost with a probability :math:`\pi`.

    :math:`p(x) = \pi [x = 0] + (1 - \pi) p_{NB}(x)`, with mean :math:`(1 - \pi) \mu` and variance
    :math:`(1 - \pi) (\mu + \mu^2 / \theta + \pi \mu^2)`. The last part of the decoder's output are
    the logits of :math:`\pi`.

    Args:
        num_features: As :class:`NegativeBinomialLikelihood` takes it.
        dispersion: Likewise.
        rate: Likewise, to the mean before the loss.

    Shape:
        ``(*, 2 D)``, or ``(*, 3 D)`` with :class:`DecoderDispersion`, to a distribution with batch
        shape ``(*)`` and event shape ``(D,)``.
    """

    @property
    def parameters_per_feature(self) -> int:
        """Number of decoder outputs for each feature."""
        return self.dispersion.parameters_per_feature + 1

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        num_features = parameters.shape[-1] // self.parameters_per_feature
        rest, gate_logits = parameters.split(
            [parameters.shape[-1] - num_features, num_features], dim=-1
        )
        outputs, dispersion = self.dispersion(rest, context)
        return ZeroInflatedNegativeBinomialCounts(
            self.rate(outputs, context), dispersion, gate_logits
        ).to_event(1)
