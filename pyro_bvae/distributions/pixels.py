"""Pixels, scored in fewer passes over memory than the stock distribution takes."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class GreyBernoulli(dist.Bernoulli):
    """A Bernoulli whose log density is also evaluated between 0 and 1: the cross-entropy of grey pixels.

    On greys it is a loss and no normalised density; on 0 and 1 it is the Bernoulli. It draws 0 and 1.
    """

    support = constraints.unit_interval


# Pixels that are scored at a time on a CPU: what is made of them then stays in its cache.
_PIXELS = 2**19


class Pixels(dist.Independent):  # type: ignore[misc]
    r"""Independent :class:`GreyBernoulli` pixels, scored in fewer operations where no gradient is asked for.

    .. math::
        \log p(x) = \log \prod_d \operatorname{sigmoid}(|l_d|) - \tfrac12 \sum_d [|l_d| - (2 x_d - 1) l_d]

    for logits l. The factors lie in [1/2, 1], so that one logarithm serves as many as cannot underflow, and nothing
    large cancels between the two sums: the result is that of the usual formula to rounding, also for extreme logits.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, summed over the pixels."""
        logits = self.base_dist.logits
        wants_gradient = torch.is_grad_enabled() and (logits.requires_grad or value.requires_grad)
        if wants_gradient or self.reinterpreted_batch_ndims != 1 or logits.dim() < 2:
            return super().log_prob(value)
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        logits, signs = torch.broadcast_tensors(logits, 1 - 2 * value)
        step = len(logits) if logits.is_cuda else max(1, _PIXELS * len(logits) // max(1, logits.numel()))
        return torch.cat([_score(*parts) for parts in zip(logits.split(step), signs.split(step), strict=True)])


def _score(logits: Tensor, signs: Tensor) -> Tensor:
    """Return the log density of pixels x, ``(*, D)`` to ``(*)``, given ``1 - 2 x``."""
    sizes = logits.abs()
    surplus = torch.addcmul(sizes, signs, logits).sum(-1)
    return _log_product(sizes.sigmoid_()) - surplus / 2


def _log_product(factors: Tensor) -> Tensor:
    """Return the log of the product of factors in [1/2, 1] over the last dimension."""
    size, most = factors.shape[-1], int(-math.log2(torch.finfo(factors.dtype).tiny))
    groups = max(1, math.ceil(size / most))
    whole, rest = factors.split([size - size % groups, size % groups], -1)
    return whole.unflatten(-1, (groups, -1)).prod(-1).log_().sum(-1) + rest.log().sum(-1)
