"""Likelihoods of real-valued features around the decoder's output."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import DiagonalNormal
from pyro_bvae.likelihoods.scales import FixedScale, Scale


@public
class _LocationScale(nn.Module):
    """A likelihood whose decoder gives locations, and whose scale is a part of its own."""

    support = constraints.real

    def __init__(self, scale: float | Scale = 1.0) -> None:
        super().__init__()
        self.scale = scale if isinstance(scale, nn.Module) else FixedScale(scale)

    @property
    def parameters_per_feature(self) -> int:
        """Number of decoder outputs for each feature."""
        return self.scale.parameters_per_feature


class NormalLikelihood(_LocationScale):
    r"""Independent normal features around the decoder's output.

    :math:`\log p(x \mid z) = -\sum_d [ (x_d - \mu_d)^2 / 2 \sigma_d^2 + \log \sigma_d + \tfrac12
    \log 2\pi ]`. With a fixed scale this is the mean squared error with its :math:`\sigma^2` made
    explicit: a plain sum of squares is :math:`\sigma^2 = 1/2`, and scaling the error by c is
    scaling β by 1/c.

    Args:
        scale: A positive number for a fixed scale, or one of :class:`FixedScale`,
            :class:`LearnedScale` (shared, or one for each feature) and :class:`DecoderScale` (one
            for each datum and feature).

    Shape:
        ``(*, D)``, or ``(*, 2 D)`` with :class:`DecoderScale`, to a distribution with batch shape
        ``(*)`` and event shape ``(D,)``.
    """

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return DiagonalNormal.of(*self.scale(parameters))


class LaplaceLikelihood(_LocationScale):
    r"""Independent Laplace features: the mean absolute error, with its scale made explicit.

    :math:`\log p(x \mid z) = -\sum_d [ |x_d - \mu_d| / b_d + \log 2 b_d ]`, with variance :math:`2
    b^2`. Outliers weigh by their distance, not by its square.

    Args:
        scale: The scale :math:`b`, as :class:`NormalLikelihood` takes it.

    Shape:
        That of :class:`NormalLikelihood`.
    """

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return dist.Laplace(*self.scale(parameters)).to_event(1)


@public
class StudentTLikelihood(_LocationScale):
    r"""Independent Student-t features, which bear outliers (Lange et al. 1989).

    .. math::
        \log p(x \mid z) = \sum_d \Big[ \log \frac{\Gamma((\nu + 1) / 2)}{\Gamma(\nu / 2) \sqrt{\nu
        \pi} \, s_d}
            - \frac{\nu + 1}{2} \log \Big( 1 + \frac{(x_d - \mu_d)^2}{\nu s_d^2} \Big) \Big]

    Args:
        scale: The scale :math:`s`, as :class:`NormalLikelihood` takes it; the variance is
            :math:`s^2 \nu / (\nu - 2)`.
        df: Degrees of freedom :math:`\nu`, above 1, so that there is a mean.

    Shape:
        That of :class:`NormalLikelihood`.
    """

    def __init__(self, scale: float | Scale = 1.0, df: float = 4.0) -> None:
        super().__init__(scale)
        if not (df > 1 and math.isfinite(df)):
            raise InputError(f"'df' must be above 1, so that there is a mean, and finite, got {df}")
        self.df = float(df)

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return dist.StudentT(self.df, *self.scale(parameters)).to_event(1)
