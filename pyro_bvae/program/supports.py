"""Supports of distributions, outside which torch's log densities are finite too."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Independent,
    IndependentTransform,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)

from pyro_bvae.core.internals import mask_of

# The support of a mixture; before torch 2.8 it is that of its components.
_OF_MIXTURES: tuple[Any, ...] = tuple(
    filter(None, [getattr(constraints, "MixtureSameFamilyConstraint", None)])
)
# An angle's density repeats itself beyond one turn; torch gives the whole line as its support.
_ONE_TURN = constraints.interval(-math.pi, math.pi)
_ANGLES = (torch.distributions.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
# The error of a vector's sum beside 1: torch asks for a millionth, which rounding alone exceeds in
# long vectors.
_SUM_ERROR = 1e-5


def log_density(distribution: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the log density, minus infinity outside the support."""
    if isinstance(distribution, MixtureSameFamily) and _is_plain(
        distribution, MixtureSameFamily, "log_prob"
    ):
        parts = distribution.component_distribution
        if not is_unbounded(parts):
            terms = log_density(parts, value.unsqueeze(-1 - len(distribution.event_shape)))
            return torch.logsumexp(
                terms + distribution.mixture_distribution.logits.log_softmax(-1), -1
            )
    density: Tensor = distribution.log_prob(value, *args, **kwargs)
    within = inside(distribution, value)
    return density if within is None else torch.where(within, density, -math.inf)


def is_unbounded(distribution: Any) -> bool:
    """Whether the support of a distribution is the whole of its space."""
    if isinstance(distribution, _ANGLES):
        return False
    if isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        return is_unbounded(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return is_unbounded(distribution.component_distribution)
    if _is_transformed(distribution):
        parts = list(_parts(distribution.transforms))
        return is_unbounded(distribution.base_dist) and all(
            _is_everything(part.codomain) for part in parts
        )
    support = support_of(distribution)
    return support is None or _is_everything(support)


def is_angle(distribution: Any) -> bool:
    """Whether a density repeats itself every turn, so that a datum may lie in any of them."""
    while hasattr(distribution, "base_dist") and not isinstance(distribution, _ANGLES):
        distribution = distribution.base_dist
    return isinstance(distribution, _ANGLES)


def declares_its_support(distribution: Any) -> bool:
    """Whether a support is known by its constraint, without transforms or components."""
    while hasattr(distribution, "base_dist") and not isinstance(
        distribution, TransformedDistribution
    ):
        distribution = distribution.base_dist
    return not _is_transformed(distribution) and not (
        isinstance(distribution, MixtureSameFamily)
        and any(True for _ in bounds(distribution.support))
    )


def support_of(distribution: Any) -> Any | None:
    """Return the declared support, one turn for an angle, or None."""
    if isinstance(distribution, _ANGLES):
        event_dim = len(distribution.event_shape)
        return constraints.independent(_ONE_TURN, event_dim) if event_dim else _ONE_TURN
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        return None


def _is_everything(support: Any) -> bool:
    wrappers: tuple[Any, ...] = (type(constraints.real_vector), *_OF_MIXTURES)
    while isinstance(support, wrappers):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def _is_plain(distribution: Any, family: type, name: str) -> bool:
    """Whether a distribution has a method, or property, of a family and none of its own."""
    return getattr(type(distribution), name, None) is getattr(family, name)


def _is_transformed(distribution: Any) -> bool:
    """Whether a support has to be derived through transforms, as no family declares it."""
    return isinstance(distribution, TransformedDistribution) and _is_plain(
        distribution, TransformedDistribution, "support"
    )


def _parts(transforms: list[Transform]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _parts(transform.parts)
        else:
            yield transform


@functools.singledispatch
def inside(distribution: Any, value: Tensor) -> Tensor | None:
    """Return which values lie in the support, of the batch's shape, or None where all do.

    NaN is left to the density, which may take it for missing. Nothing is read from the tensors, so
    that the check can be compiled with the density that it goes with.
    """
    support = support_of(distribution)
    if support is None or _is_everything(support):
        return None
    return _whole(_check(support, value), _batch_dims(distribution, value))


def _batch_dims(distribution: Any, value: Tensor) -> int:
    """Return how many dimensions the log density of a value has."""
    return max(value.dim() - distribution.event_dim, len(distribution.batch_shape))


def _check(support: Any, value: Tensor) -> Tensor | None:
    """Return which values satisfy a constraint, or None where it cannot be asked."""
    missing = torch.isnan(value)
    if isinstance(support, type(constraints.simplex)):
        error = max(_SUM_ERROR, 10 * torch.finfo(value.dtype).eps * value.shape[-1])
        within = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < error)
    else:
        try:
            within = torch.as_tensor(support.check(value), dtype=torch.bool)
        except (NotImplementedError, ValueError):
            return None
    return within | (missing.flatten(-support.event_dim).any(-1) if support.event_dim else missing)


def _whole(within: Tensor | None, num_dims: int) -> Tensor | None:
    """Reduce an answer to its first dimensions: an event lies in a support when all of it does."""
    return (
        within if within is None or within.dim() <= num_dims else within.flatten(num_dims).all(-1)
    )


@inside.register
def _(distribution: Independent, value: Tensor) -> Tensor | None:
    return _whole(inside(distribution.base_dist, value), _batch_dims(distribution, value))


@inside.register
def _(distribution: ExpandedDistribution, value: Tensor) -> Tensor | None:
    return inside(distribution.base_dist, value)


@inside.register
def _(distribution: dist.MaskedDistribution, value: Tensor) -> Tensor | None:
    within = inside(distribution.base_dist, value)
    unseen = ~torch.as_tensor(mask_of(distribution), dtype=torch.bool, device=value.device)
    return None if within is None else within | unseen


@inside.register
def _(distribution: MixtureSameFamily, value: Tensor) -> Tensor | None:
    within = inside(
        distribution.component_distribution, value.unsqueeze(-1 - len(distribution.event_shape))
    )
    return None if within is None else within.any(-1)


@inside.register
def _(distribution: TransformedDistribution, value: Tensor) -> Tensor | None:
    if not _is_transformed(distribution):
        return inside.dispatch(object)(distribution, value)
    if is_unbounded(distribution):
        return None
    num_dims = _batch_dims(distribution, value)
    answers: list[Tensor | None] = []
    for transform in reversed(list(_parts(distribution.transforms))):
        answers.append(
            None if _is_everything(transform.codomain) else _check(transform.codomain, value)
        )
        value = transform.inv(value)
    answers.append(inside(distribution.base_dist, value))
    known = [part for answer in answers if (part := _whole(answer, num_dims)) is not None]
    return functools.reduce(torch.logical_and, known) if known else None


# -- maps from the reals
# ------------------------------------------------------------------------------------------


def bijection_of(distribution: Any) -> Transform:
    """Return Pyro's bijection from the real numbers to the support of a distribution.

    Raises:
        NotImplementedError: where there is none; a mixture has one if all its components have one
            support.
    """
    if isinstance(distribution, dist.MaskedDistribution | ExpandedDistribution):
        return bijection_of(distribution.base_dist)
    if isinstance(distribution, Independent):
        inner, count = bijection_of(distribution.base_dist), distribution.reinterpreted_batch_ndims
        return IndependentTransform(inner, count) if count else inner
    if _is_transformed(distribution) and not is_unbounded(distribution):
        return ComposeTransform([bijection_of(distribution.base_dist), *distribution.transforms])
    return _bijection_to(support_of(distribution))


def _bijection_to(support: Any) -> Transform:
    if isinstance(support, _OF_MIXTURES):
        support = support.base_constraint
        if any(True for _ in bounds(support)):
            raise NotImplementedError("the components have supports of their own")
        return _bijection_to(support)
    if support is None:
        raise NotImplementedError("no support is declared")
    return biject_to(support)


def bounds(support: Any) -> Iterator[Tensor]:
    """Yield the tensors that a support is made of, such as its ends."""
    for value in vars(support).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, constraints.Constraint):
            yield from bounds(value)
