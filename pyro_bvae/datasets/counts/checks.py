"""Counts: the checks of a table of them, and the size factor that is computed from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import MISMATCH, as_numbers
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset

#: A value this near to a whole number is one, but for rounding; the readers then round it.
COUNT_TOLERANCE = 1e-4

_FAULTS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("finite", lambda values: ~np.isfinite(values)),
    ("non-negative", lambda values: values < 0),
    (
        "whole numbers, neither normalised nor logarithms",
        lambda values: np.abs(values - np.rint(values)) > COUNT_TOLERANCE,
    ),
)


@public
def check_counts(
    x: Any,
    name: str = "x",
    *,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    first_row: int = 0,
) -> None:
    """Raise unless a table holds counts: finite, non-negative, whole to :data:`COUNT_TOLERANCE`.

    Args:
        x: A tensor, an array or a sparse matrix, shape ``(N, D)``.
        name: The name of the table in the error.
        row_names: Names of the rows, for the error.
        column_names: Names of the columns, for the error.
        first_row: Number of the first row, where ``x`` is one block of a longer table.

    Raises:
        InputError: with index and value of the first entry that is no count, or if a sparse matrix
            is not sound.
    """
    check_block(x, name, row_names=row_names, column_names=column_names, first_row=first_row)


def check_block(
    x: Any, name: str, *, row_names: Any = None, column_names: Any = None, first_row: int = 0
) -> None:
    """Raise as :func:`check_counts` does, without a look at the names, of which a file has many."""
    if hasattr(x, "check_format"):
        check_sparse(x, name)
    sparse = x.tocsr() if hasattr(x, "tocsr") else None
    table = x if sparse is not None or isinstance(x, np.ndarray) else as_numbers(x)
    if table is MISMATCH or table.ndim != 2:
        raise InputError(f"'{name}' must hold counts, a table (N, D), got {type(x).__name__}")
    values = _array(table) if sparse is None else sparse.data
    if values.dtype.kind not in "biuf":
        raise InputError(f"'{name}' must hold counts, got type {values.dtype}")
    for wanted, is_bad in _FAULTS:
        result = is_bad(values)
        if result.any():
            where = int(np.argmax(result))
            row, column = (
                np.unravel_index(where, values.shape) if sparse is None else _place(sparse, where)
            )
            shown = f"got {values.flat[where]:g} at index {(first_row + int(row), int(column))}"
            names = _named("row", row_names, first_row + int(row)) + _named(
                "column", column_names, int(column)
            )
            raise InputError(f"counts in '{name}' must be {wanted}, {shown}{names}")


def check_sparse(matrix: Any, name: str) -> None:
    """Raise unless a SciPy matrix by rows or columns is one: pointers, column numbers, no repeats.

    Args:
        matrix: The matrix.
        name: Its name in the error.

    Raises:
        InputError: naming the fault.
    """
    with readable("sound sparse matrix", f"'{name}'"):
        matrix.check_format(full_check=True)
        ordered = matrix if matrix.has_sorted_indices else matrix.sorted_indices()
        if not ordered.has_canonical_format:
            raise ValueError("it has several values at one place; sum_duplicates() would add them")


def observed_size_factor(totals: Tensor, row_names: Sequence[str] | None = None) -> Tensor:
    """Return the total counts of each datum as its size factor, ``(N,)`` to ``(N, 1)``.

    Raises:
        InputError: for a datum without any count, whose size factor would be zero.
    """
    empty = totals <= 0
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise InputError(
            f"a size factor must be positive, but row {row}{_named('', row_names, row)} has no "
            "count at all: "
            "leave such data out, as min_counts=1 does, or do without the size factor"
        )
    return totals.unsqueeze(1)


@public
def with_size_factor(data: Dataset) -> Dataset:
    r"""Return counts with the total of each datum as its size factor, :math:`l_n = \sum_d x_{nd}`.

    The size factor is computed from x, so evidence is that of x given its total.

    Raises:
        InputError: if x holds no counts, or a datum none at all.
    """
    check_counts(data.x)
    size_factor = observed_size_factor(data.x.double().sum(1).to(data.x.dtype))
    return replace(data, context=(data.context or Context())._replace(size_factor=size_factor))


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _place(sparse: Any, where: int) -> tuple[int, int]:
    """Return row and column of a stored value of a CSR matrix."""
    return int(np.searchsorted(sparse.indptr, where, side="right")) - 1, int(sparse.indices[where])


def _named(kind: str, names: Sequence[str] | None, index: int) -> str:
    return "" if names is None else f" ({f'{kind} ' if kind else ''}'{names[index]}')"
