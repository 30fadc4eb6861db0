"""The arguments of a program: the tensors among them, and those that are sliced with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.internals import tree_leaves, tree_map

# Data whose values are checked at a time.
_CHECKED = 512


def check_in_parts(check_data: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Check few data at a time to save memory, and all at once to name a refused one."""
    size = next((leaf.shape[0] for leaf in tensors(args)), 0)
    try:
        for start in range(0, max(size, 1), _CHECKED):
            check_data(*take(args, size, slice(start, start + _CHECKED)))
    except InputError:
        check_data(*args)


def take(args: tuple[Any, ...], size: int, index: slice | Tensor) -> tuple[Any, ...]:
    """Return arguments with every tensor of that first size indexed."""

    def take_one(leaf: Any) -> Any:
        return (
            leaf[index]
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            else leaf
        )

    return tree_map(take_one, args)


def tensors(args: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors among arguments that have a first size."""
    return [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 0]


@contextmanager
def naming_missing_values(args: tuple[Any, ...]) -> Iterator[None]:
    """Name the first number that is none, where a program stops at it.

    Raises:
        InputError: instead of the program's own error, if an argument has such a number.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        for number, leaf in enumerate(tensors(args), start=1):
            lost = (~torch.isfinite(leaf)).flatten(1).any(1) if leaf.dim() > 1 else ~leaf.isfinite()
            if bool(lost.any()):
                row = int(lost.long().argmax())
                text = str(error).split("\n", 1)[0]
                raise InputError(
                    f"tensor {number} of the arguments has numbers that are NaN or infinite, first"
                    f" in row {row}, where the program stops: {text}; leave such rows out, or mask"
                    " them in model and guide"
                ) from error
        raise
