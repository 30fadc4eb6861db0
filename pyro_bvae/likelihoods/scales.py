"""Scales of a likelihood: from the decoder's output to a location and a scale for each feature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.networks.standardize import check_scaling


@public
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


@public
class LearnedScale(nn.Module):
    r"""A learned scale, :math:`\sigma = \text{floor} + \operatorname{softplus}(s)`.

    Args:
        num_features: None for one scale shared by all features, or D for one for each.
        initial: Where the scale starts, above the floor.
        floor: The least scale, in the data's units, so that a constant feature keeps a finite
            density.
    """

    parameters_per_feature = 1

    def __init__(
        self, num_features: int | None = None, initial: float = 0.5, floor: float = 1e-2
    ) -> None:
        super().__init__()
        if not (0 < floor < initial and math.isfinite(initial)):
            raise InputError(
                f"'floor' and 'initial' must satisfy 0 < floor < initial, got {floor} and {initial}"
            )
        self.floor = floor
        above = initial - floor
        raw = math.log(math.expm1(above)) if above < 30 else above  # to rounding
        self.raw_scale = nn.Parameter(torch.full((num_features or 1,), raw))

    @property
    def scale(self) -> Tensor:
        """The scale, shape ``(1,)`` or ``(D,)``."""
        return self.floor + softplus(self.raw_scale)

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale."""
        return parameters, self.scale.expand_as(parameters)


@public
class DecoderScale(nn.Module):
    """A scale for each datum and feature, from the second half of the decoder's output.

    Args:
        floor: The least scale, in the data's units, so that a constant feature keeps a finite
            density.
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


@public
class StandardizedScale(nn.Module):
    r"""A location and a scale in the data's units, from those of standardized data.

    .. math::
        x = m + s \, u, \qquad \mu^x_d = m_d + s_d \, \mu^u_d, \quad \sigma^x_d = s_d \, \sigma^u_d

    The affine image of a normal, Laplace or Student-t feature is one of its own family, so that
    :math:`\log p(x) = \log p(u) - \sum_d \log s_d`, over the observed features, is in the density
    already; means and draws are in the data's units.

    Args:
        scale: The scale of standardized data; its floor, too, is in standard deviations.
        mean: m, shape ``(D,)``.
        deviation: s, positive, shape ``(D,)``.

    Raises:
        InputError: for a mean and a deviation that cannot be used.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, scale: FixedScale | LearnedScale | DecoderScale, mean: Tensor, deviation: Tensor
    ) -> None:
        super().__init__()
        check_scaling(mean, deviation)
        self.inner = scale
        self.register_buffer("mean", mean.detach().double().clone())
        self.register_buffer("deviation", deviation.detach().double().clone())

    @property
    def parameters_per_feature(self) -> int:
        """Number of decoder outputs for each feature."""
        return self.inner.parameters_per_feature

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale."""
        loc, scale = self.inner(parameters)
        deviation = self.deviation.to(loc)
        return self.mean.to(loc) + deviation * loc, deviation * scale


Scale = FixedScale | LearnedScale | DecoderScale | StandardizedScale
