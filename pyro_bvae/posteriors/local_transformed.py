r"""A local posterior through fixed transforms, such as the log-normal: for latents of other supports."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms as fixed

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.posteriors.local import local_posterior

# Transforms without parameters that a datum could have of its own.
_FIXED = (
    fixed.ExpTransform,
    fixed.SigmoidTransform,
    fixed.SoftplusTransform,
    fixed.TanhTransform,
    fixed.StickBreakingTransform,
    fixed.CorrCholeskyTransform,
)


class LocalTransformedPosterior(nn.Module):
    r"""A local posterior pushed through fixed transforms: :math:`z = T(v)` with :math:`v \sim q_n(v)`.

    A log-normal is a normal through the exponential. Only the base has parameters, those of its own
    family.

    Args:
        base: The local posterior of v.
        transforms: T, first to last, without parameters of their own.

    Shape:
        Any input to a distribution with the base's batch shape ``(N,)``. Reference: Kucukelbir et
        al. 2017.
    """

    def __init__(self, base: nn.Module, transforms: Sequence[fixed.Transform]) -> None:
        super().__init__()
        self.base = base
        self.transforms = list(transforms)

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        return dist.TransformedDistribution(self.base(x), self.transforms)

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the present member with its base moved by ``v -> shift + factor * v``."""
        self.base.restart(shift, factor)  # type: ignore[operator]

    def untransformed(self, values: Tensor) -> Tensor:
        """Return v for values of z."""
        for transform in reversed(self.transforms):
            values = transform.inv(values)
        return values


def _is_fixed(transform: fixed.Transform) -> bool:
    while isinstance(transform, fixed.IndependentTransform):
        transform = transform.base_transform
    if isinstance(transform, fixed.ComposeTransform):
        return all(_is_fixed(part) for part in transform.parts)
    if isinstance(transform, fixed.AffineTransform):
        return not any(
            isinstance(part, Tensor) and part.dim() > 0 for part in (transform.loc, transform.scale)
        )
    return isinstance(transform, _FIXED)


@local_posterior.register
def _(base: torch.distributions.TransformedDistribution, event_dim: int) -> nn.Module:
    names = [type(part).__name__ for part in base.transforms if not _is_fixed(part)]
    if names:
        raise InputError(
            f"no local version of a guide through a {names[0]} is known, which has parameters; pass 'local_guide'"
        )
    inner = base.base_dist
    while isinstance(inner, torch.distributions.Independent):
        inner = inner.base_dist
    return LocalTransformedPosterior(local_posterior(inner, event_dim), base.transforms)
