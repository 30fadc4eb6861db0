"""Normal distributions, scored in fewer passes over memory than the stock ones take."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor


def _compact(parameter: Tensor) -> Tensor:
    """Return a parameter without the copies that an expansion made along its batch dimensions."""
    for dim in range(parameter.dim() - 1):
        if parameter.stride(dim) == 0 and parameter.shape[dim] > 1:
            parameter = parameter.narrow(dim, 0, 1)
    return parameter


class DiagonalNormal(dist.Independent):  # type: ignore[misc]
    r"""Independent normals over the last dimension, as one event.

    .. math:: \log p(x) = -\tfrac12 \sum_d [(x_d - \mu_d) / \sigma_d]^2 - \sum_d \log \sigma_d -
        \tfrac D2 \log 2\pi

    It is ``Normal(loc, scale).to_event(1)``, to rounding. Logarithms of scales are taken before
    they are expanded over particles and data, and few terms are written to memory.
    """

    @classmethod
    def of(cls, loc: Tensor, scale: Tensor) -> DiagonalNormal:
        """Return the distribution of means ``(*, D)`` and positive scales of like shape."""
        return cls(dist.Normal(loc, scale), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of ``(*, D)``, shape ``(*)``."""
        base = self.base_dist
        if self.reinterpreted_batch_ndims != 1:
            return super().log_prob(value)
        if base._validate_args:
            base._validate_sample(value)
        loc, scale = _compact(base.loc), _compact(base.scale)
        distance = ((value - loc) / scale).square().sum(-1)
        scale = scale.to(
            distance.dtype
        )  # data in float64 have sums in float64, whatever the parameters' type
        log_prob = -0.5 * distance - (
            scale.log().sum(-1) + self.event_shape[0] * 0.5 * math.log(2 * math.pi)
        )
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
