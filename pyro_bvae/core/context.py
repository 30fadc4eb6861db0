"""The context of a datum: observed and not modelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_bvae.core.errors import InputError, check_finite


class Context(NamedTuple):
    """Size factors and covariates, observed and not modelled, one row per datum.

    Encoder, decoder and likelihood see the same context; ``None`` in its place is the unconditional
    model.

    Attributes:
        size_factor: Exposure of each datum, positive, shape ``(N, 1)``. If it was computed from
            ``x``, evidence is conditional on it.
        covariates: Conditions or batch indicators, shape ``(N, C)``.
    """

    size_factor: Tensor | None = None
    covariates: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor | None]) -> Context:
        """Return the context with a function applied to each part there is."""
        return Context(*(None if part is None else function(part) for part in self))

    def take(self, rows: slice | Tensor) -> Context:
        """Return the context of some of the data."""
        return self.map(lambda part: part[rows])

    def to(self, *args: Any, **kwargs: Any) -> Context:
        """Return the context on a device, in a dtype, or as another tensor is, as ``Tensor.to``."""
        return self.map(lambda part: part.to(*args, **kwargs))


def arguments(x: Tensor, context: Context | None) -> tuple[Any, ...]:
    """Return the arguments of a part, a model or a guide, without a context that is None."""
    return (x,) if context is None else (x, context)


def check_context(context: Context, num_data: int) -> None:
    """Raise unless a context has a row for each datum: another shape would broadcast.

    Raises:
        InputError: naming the field, with its shape, or the index of a value that cannot be used.
    """
    for field, wanted in (("size_factor", f"({num_data}, 1)"), ("covariates", f"({num_data}, *)")):
        values = getattr(context, field)
        if values is None:
            continue
        if not isinstance(values, Tensor):
            raise InputError(
                f"'context.{field}' must be a tensor of shape {wanted}, got {type(values).__name__}"
            )
        if values.dim() != 2 or (field == "size_factor" and values.shape[1] != 1):
            raise InputError(
                f"'context.{field}' must have shape {wanted}, got {tuple(values.shape)}"
            )
        if values.shape[0] != num_data:
            raise InputError(f"'context.{field}' must have {num_data} rows, got {values.shape[0]}")
        check_finite(f"context.{field}", values)
    size = context.size_factor
    if size is not None and not bool((size > 0).all()):
        row = int((size <= 0).nonzero()[0, 0])
        raise InputError(
            f"'context.size_factor' must be positive, got {size[row, 0].item()} at row {row}"
        )


def check_contexts(args: Any) -> None:
    """Raise unless every context among arguments has a row for each datum of the first tensor.

    Raises:
        InputError: as :func:`check_context`.
    """
    leaves = tree_leaves(args, is_leaf=lambda leaf: isinstance(leaf, Context))
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0), None)
    for leaf in leaves:
        if isinstance(leaf, Context) and first is not None:
            check_context(leaf, first.shape[0])


def with_covariates(inputs: Tensor, context: Context | None, size: int | None = None) -> Tensor:
    """Append the covariates, if there are any, to the features of ``inputs``.

    Args:
        inputs: Shape ``(*, N, D)``.
        context: The context of the N data, or None.
        size: How many inputs the network takes, D + C; None if it does not say.

    Returns:
        Shape ``(*, N, D + C)``, or ``inputs`` itself without covariates.

    Raises:
        InputError: if the network takes another number.
    """
    covariates = None if context is None else context.covariates
    count = 0 if covariates is None else covariates.shape[-1]
    own = inputs.shape[-1]
    if size is not None and own + count != size:
        given = "none" if covariates is None else f"{count}"
        raise InputError(
            f"the network takes {size} inputs, got {own}"
            if size < own
            else f"'context.covariates' must have {size - own} columns, got {given}: the network"
            f" takes {size} inputs, {own} of them without the covariates"
        )
    if covariates is None:
        return inputs
    covariates = covariates.to(inputs).expand(*inputs.shape[:-1], count)
    return torch.cat([inputs, covariates], dim=-1)
