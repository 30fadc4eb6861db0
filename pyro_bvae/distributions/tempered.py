"""Draws of lower or higher temperature."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch import distributions as torch_dist

from pyro_bvae.core.errors import InputError

# What has a location about which draws can be drawn together, whatever their shape.
_LOCATED = (
    torch_dist.Normal,
    torch_dist.Laplace,
    torch_dist.StudentT,
    torch_dist.Cauchy,
    torch_dist.MultivariateNormal,
    torch_dist.LowRankMultivariateNormal,
)


def sample_tempered(distribution: Any, temperature: float, sample_shape: torch.Size) -> Tensor:
    r"""Draw with the spread of a distribution scaled by a temperature T.

    .. math:: z = \mu + T \, (z' - \mu), \qquad z' \sim p,

    for a distribution of location :math:`\mu` (normal, Laplace, Student-t), whose variance becomes
    :math:`T^2` times its own. A flow is given its noise so, before it is transformed (Kingma and
    Dhariwal 2018). At T = 1 these are the distribution's own draws, at T = 0 the location, or
    its image under a flow.

    Args:
        distribution: The distribution of the draws.
        temperature: T, non-negative.
        sample_shape: How many draws.

    Returns:
        Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``.

    Raises:
        InputError: if T is negative or not finite, or, unless it is 1, if the distribution has no
            location.
    """
    if not isinstance(temperature, Real) or not math.isfinite(temperature) or temperature < 0:
        raise InputError(f"'temperature' must be non-negative and finite, got {temperature!r}")
    if temperature == 1:
        draws: Tensor = distribution.sample(sample_shape)
        return draws
    inner: Any = distribution
    while isinstance(inner, torch_dist.Independent):
        inner = inner.base_dist
    if isinstance(inner, _LOCATED):
        return inner.loc + temperature * (inner.sample(sample_shape) - inner.loc)
    if isinstance(inner, torch_dist.TransformedDistribution):
        draws = sample_tempered(inner.base_dist, temperature, sample_shape)
        for transform in inner.transforms:
            draws = transform(draws)
        return draws
    # A flow of Zuko in Pyro's adapter, whose transform leads to the noise.
    flow = getattr(inner, "dist", None)
    if hasattr(flow, "transform") and hasattr(flow, "base"):
        return flow.transform.inv(sample_tempered(flow.base, temperature, sample_shape))
    raise InputError(
        f"'temperature' must be 1 for a {type(inner).__name__}, which has no location to draw"
        " together about, got"
        f" {temperature}; normal, Laplace and Student-t priors and flows have one"
    )
