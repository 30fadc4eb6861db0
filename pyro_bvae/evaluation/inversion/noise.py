r"""Noise of an observation: from :math:`A(x)` to a distribution of y.

Any callable ``noise(signal)`` that returns a distribution with event shape ``(M,)`` is a noise, and
may draw parameters of its own by ``pyro.sample``. Two methods more let it meet a decoder's whole
:math:`p(x|z)` and not only its mean: ``marginal(likelihood, operator)``, the distribution of y with
x integrated out, and ``restore(likelihood, operator, y)``, a draw of x given z and y.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import (
    DiagonalNormal,
    FullRankNormal,
    NegativeBinomialCounts,
    PoissonCounts,
    ZeroInflatedNegativeBinomialCounts,
)
from pyro_bvae.evaluation.inversion.operators import LinearOperator
from pyro_bvae.program.sites import unwrapped

# The site of a scale that is inferred.
NOISE_SITE = "noise_scale"


@public
class NormalNoise:
    r"""Independent normal noise, :math:`y \sim \mathcal{N}(A(x), s^2 I)`.

    With a normal likelihood, :math:`x \sim \mathcal{N}(\mu(z), S(z))`, and a linear operator both
    steps are closed forms,

    .. math:: y \mid z \sim \mathcal{N}(A \mu, A S A^\top + s^2 I),

    and draws of x given z and y are exact: a draw of x and y, moved by :math:`S A^\top (A S A^\top
    + s^2 I)^{-1}` times the residual of y (Matheron's rule; Wilson et al. 2020).

    Args:
        scale: s, positive; None has it inferred, as site ``noise_scale``.
        width: Of the half-normal prior of an inferred scale, in the units of y.

    Raises:
        InputError: for a scale or a width that is not positive and finite.
    """

    def __init__(self, scale: float | None = None, *, width: float = 1.0) -> None:
        for name, value in (("scale", scale), ("width", width)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"'{name}' of the noise must be positive and finite, got {value}")
        self.scale, self.width = scale, float(width)

    def __call__(self, signal: Tensor) -> dist.Distribution:
        """Return the distribution of y given :math:`A(x)`."""
        return DiagonalNormal.of(*torch.broadcast_tensors(signal, self._scale(signal)))

    def marginal(self, likelihood: Any, operator: Any) -> dist.Distribution:
        """Return the distribution of y with x integrated out.

        Raises:
            InputError: if the likelihood is not normal, or the operator not linear.
        """
        normal, linear = _normal(likelihood), _linear(operator)
        loc = linear(normal.mean)
        scale = self._scale(loc)
        if linear.disjoint:
            variance = normal.variance @ linear.matrix.to(loc).mT.square() + scale.square()
            return DiagonalNormal.of(loc, variance.sqrt())
        return FullRankNormal(loc, scale_tril=_factor(normal.variance, linear, scale))

    def restore(self, likelihood: Any, operator: Any, y: Tensor) -> Tensor:
        """Draw x given z and y, ``(*, D)``; raises as :meth:`marginal`."""
        normal, linear = _normal(likelihood), _linear(operator)
        x = normal.sample()
        matrix, scale = linear.matrix.to(x), self._scale(x)
        seen = linear(x)
        off = y - seen - scale * torch.randn_like(seen)
        if linear.disjoint:
            weights = off / (normal.variance @ matrix.mT.square() + scale.square())
        else:
            weights = torch.cholesky_solve(
                off.unsqueeze(-1), _factor(normal.variance, linear, scale)
            ).squeeze(-1)
        return x + normal.variance * (weights @ matrix)

    def _scale(self, like: Tensor) -> Tensor:
        """Return the scale with a dimension for the features, drawn where it is inferred."""
        if self.scale is not None:
            return like.new_tensor([self.scale])
        drawn: Tensor = pyro.sample(NOISE_SITE, dist.HalfNormal(like.new_tensor(self.width)))
        return drawn.unsqueeze(-1)


@public
class CountThinning:
    r"""Each count is kept with probability p, :math:`y_m \sim \mathrm{Binomial}(x_m, p)`.

    A model of a shallower sequencing.

    Poisson, negative binomial and zero-inflated negative binomial counts of mean :math:`\mu`,
    thinned, are such counts of mean :math:`p \mu`, with the same dispersion and the same losses;
    the lost counts are drawn exactly too. The operator has to pick features as they are
    (:class:`Mask`), since thinning takes whole counts.

    Args:
        probability: p, above 0 and at most 1.

    Raises:
        InputError: for a probability outside.
    """

    def __init__(self, probability: float) -> None:
        if not 0 < probability <= 1:
            raise InputError(f"'probability' must be above 0 and at most 1, got {probability}")
        self.probability = float(probability)

    def __call__(self, signal: Tensor) -> dist.Distribution:
        """Return the distribution of the kept counts; raises for values that are no counts."""
        if bool(((signal != signal.round()) | (signal < 0)).any()):
            raise InputError(
                "CountThinning takes whole counts of x, not means; leave 'signal' at DrawnSignal()"
            )
        return dist.Binomial(signal, signal.new_tensor(self.probability)).to_event(1)

    def marginal(self, likelihood: Any, operator: Any) -> dist.Distribution:
        """Return the distribution of y with x integrated out.

        Raises:
            InputError: for a likelihood that is not of counts, or an operator that does more than
                pick features.
        """
        counts, linear = _counts(likelihood), _picking(operator)
        log_mean = linear(counts.log_mean) + math.log(self.probability)
        if isinstance(counts, PoissonCounts):
            return PoissonCounts(log_mean).to_event(1)
        theta = linear(counts.dispersion.expand(counts.batch_shape))
        if isinstance(counts, ZeroInflatedNegativeBinomialCounts):
            gate = linear(counts.gate_logits.expand(counts.batch_shape))
            return ZeroInflatedNegativeBinomialCounts(log_mean, theta, gate).to_event(1)
        return NegativeBinomialCounts(log_mean, theta).to_event(1)

    def restore(self, likelihood: Any, operator: Any, y: Tensor) -> Tensor:
        """Draw x given z and y, ``(*, D)``: kept counts, lost ones, and unseen features."""
        counts, linear = _counts(likelihood), _picking(operator)
        x, p = counts.sample(), self.probability
        rate = linear(counts.log_mean).exp()
        if isinstance(counts, NegativeBinomialCounts):
            theta = linear(counts.dispersion.expand(counts.batch_shape))
            # The rate behind a count is gamma distributed, and y has told something of it.
            rate = torch.distributions.Gamma(
                theta + y, theta / rate + p, validate_args=False
            ).sample()
        unseen = torch.poisson((1 - p) * rate)
        if isinstance(counts, ZeroInflatedNegativeBinomialCounts):
            gate = linear(counts.gate_logits.expand(counts.batch_shape))
            mean = linear(counts.log_mean).exp()
            log_odds = gate + theta * torch.log1p(
                p * mean / theta
            )  # of lost against kept, where y is 0
            lost = (y == 0) & (torch.rand_like(unseen) < torch.sigmoid(log_odds))
            unseen = unseen.masked_fill(lost, 0)
        x[..., linear.index] = y + unseen
        return x


def as_noise(noise: Any, y: Tensor | None = None) -> Any:
    """Return the noise that an argument stands for.

    Args:
        noise: A positive number s is ``NormalNoise(s)``; ``"infer"`` is normal noise of inferred
            scale, with a half-normal prior as wide as the standard deviation of y; a callable is
            itself.
        y: The observation, of which the width is taken; None where there is none.

    Raises:
        InputError: for anything else.
    """
    if noise == "infer" and isinstance(noise, str) and y is not None:
        width = float(y.double().std()) if y.numel() > 1 else 0.0
        return NormalNoise(width=width if width > 0 and math.isfinite(width) else 1.0)
    real = isinstance(noise, Real) and not isinstance(noise, bool)
    number = float(noise) if real or (isinstance(noise, Tensor) and noise.numel() == 1) else None
    positive = number is not None and number > 0 and math.isfinite(number)
    if not positive and (number is not None or not callable(noise)):
        inferred = "'infer'" if y is not None else "NormalNoise(width=...)"
        got = shown(noise) if number is None else number
        raise InputError(
            f"'noise' must be a positive number, {inferred}, or go from A(x) to a distribution of"
            f" y, got {got}"
        )
    return noise if number is None else NormalNoise(number)


def _factor(variance: Tensor, linear: LinearOperator, scale: Tensor) -> Tensor:
    """Return the Cholesky factor of the covariance of y given z, ``(*, M, M)``."""
    matrix = linear.matrix.to(variance)
    covariance = (matrix * variance.unsqueeze(-2)) @ matrix.mT
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor: Tensor = torch.linalg.cholesky(covariance + scale.unsqueeze(-1).square() * identity)
    return factor


def _linear(operator: Any) -> LinearOperator:
    if not isinstance(operator, LinearOperator):
        raise InputError(
            f"x is integrated out for a LinearOperator, got {type(operator).__name__}; take"
            " MeanSignal()"
        )
    return operator


def _picking(operator: Any) -> LinearOperator:
    if not isinstance(operator, LinearOperator) or operator.index is None:
        raise InputError(
            "CountThinning needs an operator that picks features, a Mask, got"
            f" {type(operator).__name__}"
        )
    return operator


def _normal(likelihood: Any) -> Any:
    base = unwrapped(likelihood)
    if not isinstance(base, torch.distributions.Normal):
        raise InputError(
            f"x is integrated out for a normal likelihood, got {type(base).__name__}; take"
            " MeanSignal()"
        )
    return base


def _counts(likelihood: Any) -> Any:
    base = unwrapped(likelihood)
    if not isinstance(base, (PoissonCounts, NegativeBinomialCounts)):
        raise InputError(f"CountThinning needs a likelihood of counts, got {type(base).__name__}")
    return base
