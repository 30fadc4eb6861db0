"""Likelihoods of pixels, and of other features with bounds."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import (
    PIXEL_LEVELS,
    ContinuousBernoulliPixels,
    DiscretizedLogistic,
    GreyBernoulli,
    NumberedCategories,
    Pixels,
    grey_levels,
)


class BernoulliLikelihood(nn.Module):
    r"""Independent Bernoulli pixels with the decoder's output as logits.

    :math:`\log p(x \mid z) = \sum_d x_d \log \pi_d + (1 - x_d) \log(1 - \pi_d)`, with
    :math:`\pi = \operatorname{sigmoid}(\text{parameters})`. Greys in [0, 1] are accepted, as the
    field does with MNIST; the sum is then the cross-entropy loss, not a normalised density over
    greys: binarise for evidence that can be compared with other likelihoods.

    Shape:
        ``(*, D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.
    """

    support = constraints.unit_interval
    parameters_per_feature = 1

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return Pixels(GreyBernoulli(logits=parameters), 1)


class ContinuousBernoulliLikelihood(nn.Module):
    r"""Independent greys in [0, 1] with the normalised density that the cross-entropy lacks.

    :math:`\log p(x \mid z) = \sum_d [ x_d l_d - \log \int_0^1 e^{l_d t} dt ]` for the decoder's
    outputs l (Loaiza-Ganem and Cunningham 2019).

    Shape:
        ``(*, D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.
    """

    support = constraints.unit_interval
    parameters_per_feature = 1

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return ContinuousBernoulliPixels(parameters).to_event(1)


class DiscretizedLogisticLikelihood(nn.Module):
    r"""8-bit pixels as bins of a logistic variable (Kingma et al. 2016).

    .. math::
        \log p(x \mid z) = \sum_d \log \Big[ \operatorname{sigmoid} \frac{x_d + \delta - \mu_d}{s_d}
            - \operatorname{sigmoid} \frac{x_d - \delta - \mu_d}{s_d} \Big], \qquad \delta = 1/510,

    where the outermost bins reach to infinity. The data are grey levels k/255, and the evidence is
    that of a discrete
    variable: nats, never positive, and comparable between models of 8-bit pixels. The decoder's
    outputs are :math:`\mu`, then :math:`s` by a softplus plus 1/2550.

    Shape:
        ``(*, 2 D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.
    """

    support = grey_levels
    parameters_per_feature = 2
    floor = 0.1 / (PIXEL_LEVELS - 1)

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        loc, raw_scale = parameters.chunk(2, dim=-1)
        return DiscretizedLogistic(loc, self.floor + softplus(raw_scale)).to_event(1)


@public
class CategoricalLikelihood(nn.Module):
    r"""Independent categories 0 to C - 1 with the decoder's outputs as logits.

    :math:`\log p(x \mid z) = \sum_d \log \operatorname{softmax}(l_d)_{x_d}`. Its mean, which
    reconstructions show, is :math:`\sum_c c \, p_c`.

    Args:
        num_categories: C, at least 2.

    Shape:
        ``(*, C D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        if not isinstance(num_categories, int) or num_categories < 2:
            raise InputError(f"'num_categories' must be an integer from 2, got {num_categories!r}")
        self.parameters_per_feature = num_categories
        self.support = constraints.integer_interval(0, num_categories - 1)

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        logits = parameters.unflatten(-1, (self.parameters_per_feature, -1)).transpose(-1, -2)
        return NumberedCategories(logits=logits).to_event(1)
