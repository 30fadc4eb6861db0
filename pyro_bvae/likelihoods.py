r"""Likelihoods: modules from the decoder's output to a distribution over the data, :math:`p(x \mid z)`.

A likelihood says how many parameters it wants for each feature (``parameters_per_feature``), which values it can
explain (``support``), and owns what it needs beyond the decoder's output, such as a scale. A new one is one class
with these two attributes and a ``forward``.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_bvae.context import Context
from pyro_bvae.distributions import DiagonalNormal, GreyBernoulli, Pixels
from pyro_bvae.errors import InputError


class BernoulliLikelihood(nn.Module):
    r"""Independent Bernoulli pixels with the decoder's output as logits.

    :math:`\log p(x \mid z) = \sum_d x_d \log \pi_d + (1 - x_d) \log(1 - \pi_d)`, with
    :math:`\pi = \operatorname{sigmoid}(\text{parameters})`. Greys in [0, 1] are accepted, as the field does with MNIST;
    the sum is then the cross-entropy loss, not a normalised density over greys: binarise for evidence that can be
    compared with other likelihoods.

    Shape:
        ``(*, D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.
    """

    support = constraints.unit_interval
    parameters_per_feature = 1

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        return Pixels(GreyBernoulli(logits=parameters), 1)


class FixedScale(nn.Module):
    """A scale that is given: one number, or one for each feature."""

    parameters_per_feature = 1
    scale: Tensor

    def __init__(self, scale: float | Tensor = 1.0) -> None:
        super().__init__()
        value = torch.as_tensor(scale, dtype=torch.double)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise InputError(f"'scale' must be positive and finite, got {scale}")
        self.register_buffer("scale", value)  # in float64, whatever the model is or becomes

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale."""
        return parameters, self.scale.to(parameters).expand_as(parameters)


class LearnedScale(nn.Module):
    r"""A scale that is learned with the decoder, :math:`\sigma = \text{floor} + \operatorname{softplus}(s)`.

    Args:
        num_features: None for one scale shared by all features, or D for one for each.
        initial: Where the scale starts, above the floor.
        floor: The least scale, in the data's units, so that a constant feature keeps a finite density.
    """

    parameters_per_feature = 1

    def __init__(self, num_features: int | None = None, initial: float = 0.5, floor: float = 1e-2) -> None:
        super().__init__()
        if not (0 < floor < initial and math.isfinite(initial)):
            raise InputError(f"'floor' and 'initial' must satisfy 0 < floor < initial, got {floor} and {initial}")
        self.floor = floor
        raw = math.log(math.expm1(initial - floor))
        self.raw_scale = nn.Parameter(torch.full((num_features or 1,), raw))

    @property
    def scale(self) -> Tensor:
        """The scale, shape ``(1,)`` or ``(D,)``."""
        return self.floor + softplus(self.raw_scale)

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale."""
        return parameters, self.scale.expand_as(parameters)


class DecoderScale(nn.Module):
    """A scale for each datum and feature, from the second half of the decoder's output.

    Args:
        floor: The least scale, in the data's units, so that a constant feature keeps a finite density.
    """

    parameters_per_feature = 2

    def __init__(self, floor: float = 1e-2) -> None:
        super().__init__()
        if not (floor > 0 and math.isfinite(floor)):
            raise InputError(f"'floor' must be positive, got {floor}")
        self.floor = floor

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale."""
        loc, raw_scale = parameters.chunk(2, dim=-1)
        return loc, self.floor + softplus(raw_scale)


class NormalLikelihood(nn.Module):
    r"""Independent normal features around the decoder's output.

    :math:`\log p(x \mid z) = -\sum_d [ (x_d - \mu_d)^2 / 2 \sigma_d^2 + \log \sigma_d + \tfrac12 \log 2\pi ]`.
    With a fixed scale this is the mean squared error with its :math:`\sigma^2` made explicit: a plain sum of squares
    is :math:`\sigma^2 = 1/2`, and scaling the error by c is scaling β by 1/c.

    Args:
        scale: A positive number for a fixed scale, or one of :class:`FixedScale`, :class:`LearnedScale` (shared, or
            one for each feature) and :class:`DecoderScale` (one for each datum and feature).

    Shape:
        ``(*, D)``, or ``(*, 2 D)`` with :class:`DecoderScale`, to a distribution with batch shape ``(*)`` and event
        shape ``(D,)``.
    """

    support = constraints.real

    def __init__(self, scale: float | FixedScale | LearnedScale | DecoderScale = 1.0) -> None:
        super().__init__()
        self.scale = scale if isinstance(scale, nn.Module) else FixedScale(scale)

    @property
    def parameters_per_feature(self) -> int:
        """Number of decoder outputs for each feature."""
        return self.scale.parameters_per_feature

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        loc, scale = self.scale(parameters)
        return DiagonalNormal.of(loc, scale)
