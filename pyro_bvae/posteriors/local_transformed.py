r"""A local posterior through fixed transforms, for latents of other supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    r"""A local posterior through fixed transforms: :math:`z = T(v)`, :math:`v \sim q_n(v)`.

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


def _unfixed(base: torch.distributions.TransformedDistribution) -> str | None:
    """Return the first transform that has parameters, by name."""
    return next((type(part).__name__ for part in base.transforms if not _is_fixed(part)), None)


def why_not_local(base: Any) -> str | None:
    """Return why a distribution has no local version, or None if it has one.

    Args:
        base: The distribution without its :class:`~torch.distributions.Independent` wrappers.
    """
    version = local_posterior.dispatch(type(base))
    if version is local_posterior.dispatch(object):
        return "needs 'local_guide' for a local refit"
    if version is not local_posterior.dispatch(torch.distributions.TransformedDistribution):
        return None
    if name := _unfixed(base):
        return f"goes through a {name} with parameters, and needs 'local_guide' for a local refit"
    return why_not_local(_inner(base))


def _inner(base: torch.distributions.TransformedDistribution) -> Any:
    inner = base.base_dist
    while isinstance(inner, torch.distributions.Independent):
        inner = inner.base_dist
    return inner


@local_posterior.register
def _(base: torch.distributions.TransformedDistribution, event_dim: int) -> nn.Module:
    if name := _unfixed(base):
        raise InputError(
            f"no local version of a guide through a {name} is known, which has parameters; pass"
            " 'local_guide'"
        )
    return LocalTransformedPosterior(local_posterior(_inner(base), event_dim), base.transforms)
