"""Columns of ``obs`` as covariates: indicators of categories, standardised numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_bytes, listed, unknown_name
from pyro_bvae.datasets.labels import encode_labels

if TYPE_CHECKING:
    from anndata import AnnData

# Combinations of categories over which cells of unseen ones are averaged at most.
_MOST_COMBINATIONS = 100

#: A column and its values in the order of the covariates.
Categories = tuple[str, tuple[str, ...]]
#: A column, its mean and its standard deviation over the training cells.
Scale = tuple[str, float, float]


def column(adata: AnnData, name: str, rows: np.ndarray) -> np.ndarray:
    """Return a column of ``obs`` at some rows: numbers as numbers, everything else as text.

    Raises:
        InputError: if there is no such column, with those there are, or one of the cells has no
            value in it.
    """
    if name not in adata.obs.columns:
        raise unknown_name("obs column", name, map(str, adata.obs.columns))
    result = adata.obs[name].iloc[rows]
    gaps = result.isna().to_numpy()
    if gaps.any():
        cell = result.index[int(gaps.argmax())]
        raise InputError(
            f"obs column '{name}' has no value for {int(gaps.sum())} cells, the first is '{cell}'"
        )
    values = np.asarray(result)
    return values if values.dtype.kind in "biuf" else values.astype(str)


def categories_of(
    adata: AnnData, names: Sequence[str], rows: np.ndarray
) -> tuple[tuple[Categories, ...], tuple[tuple[float, ...], ...]]:
    """Return the values of each column at the training cells, and the share of each value."""
    found, shares = [], []
    for name in names:
        values, counts = np.unique(column(adata, name, rows), return_counts=True)
        found.append((name, tuple(values.astype(str).tolist())))
        shares.append(tuple((counts / counts.sum()).tolist()))
    return tuple(found), tuple(shares)


def scales_of(adata: AnnData, names: Sequence[str], rows: np.ndarray) -> tuple[Scale, ...]:
    """Return mean and standard deviation of each column over the training cells.

    Raises:
        InputError: for a column that holds no numbers, or the same one for all cells.
    """
    scales = []
    for name in names:
        values = _numbers(adata, name, rows)
        mean, deviation = float(values.mean()), float(values.std())
        if not deviation > 1e-12 * max(1.0, abs(mean)):
            raise InputError(
                f"obs column '{name}' is {mean:g} for all training cells, and so tells nothing:"
                " leave it out of the continuous columns"
            )
        scales.append((name, mean, deviation))
    return tuple(scales)


def covariates_of(
    adata: AnnData,
    rows: np.ndarray,
    categories: Sequence[Categories],
    scales: Sequence[Scale],
    assumed: Mapping[str, str],
) -> Tensor | None:
    """Return the covariates of some cells, ``(N, C)``; None for no columns.

    Args:
        adata: The cells.
        rows: Their rows.
        categories: The categorical columns.
        scales: The continuous ones.
        assumed: By column, the value that cells of an unseen one are taken to have.

    Raises:
        InputError: for a category that is neither known nor assumed to be another.
    """
    width = sum(len(values) for _, values in categories) + len(scales)
    names = ", ".join([name for name, _ in categories] + [name for name, _, _ in scales])
    check_bytes(5 * len(rows) * width, f"obs columns {names} of {len(rows):,} cells as covariates")
    parts = [
        _indicators(adata, rows, name, values, assumed.get(name)) for name, values in categories
    ]
    for name, mean, deviation in scales:
        numbers = (_numbers(adata, name, rows) - mean) / deviation
        parts.append(torch.from_numpy(numbers).float()[:, None])
    return torch.cat(parts, 1) if parts else None


def combinations(
    adata: AnnData,
    rows: np.ndarray,
    categories: Sequence[Categories],
    shares: Sequence[Sequence[float]],
) -> list[tuple[dict[str, str], float]]:
    """Return the values that unseen categories of some cells may stand for, with their shares.

    One entry without values where no category is unseen; else one for each combination of the
    values of the columns that have unseen ones.

    Raises:
        InputError: for more than a hundred combinations.
    """
    tables = []
    for place, (name, values) in enumerate(categories):
        if np.isin(column(adata, name, rows).astype(str), values).all():
            continue
        weights = shares[place] if shares else [1 / len(values)] * len(values)
        tables.append([(name, value, share) for value, share in zip(values, weights, strict=True)])
    if math.prod(map(len, tables)) > _MOST_COMBINATIONS:
        raise InputError(
            f"cells of unseen categories would be averaged over {math.prod(map(len, tables)):,}"
            f" combinations, more than {_MOST_COMBINATIONS}: annotate fewer columns at a time"
        )
    return [
        ({name: value for name, value, _ in chosen}, math.prod(share for _, _, share in chosen))
        for chosen in itertools.product(*tables)
    ]


def _indicators(
    adata: AnnData, rows: np.ndarray, name: str, known: tuple[str, ...], assumed: str | None
) -> Tensor:
    """Return indicators of the values of a column, ``(N, B)``."""
    values = column(adata, name, rows).astype(str)
    indicators = values[:, None] == np.array(known)
    unseen = ~indicators.any(1)
    if unseen.any() and assumed is not None:
        indicators[unseen] = np.array(known) == assumed
    elif unseen.any():
        row = int(unseen.argmax())
        raise InputError(
            f"batch '{values[row]}' of cell '{adata.obs_names[rows[row]]}' in obs column '{name}'"
            f" is not among those of the training cells: {listed(known, 20)}"
        )
    return torch.from_numpy(indicators).float()


def _numbers(adata: AnnData, name: str, rows: np.ndarray) -> Any:
    """Return a column of numbers, float64."""
    values = column(adata, name, rows)
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"obs column '{name}' must hold numbers to be continuous, got '{values[0]}'; a column"
            " of text is a categorical one"
        )
    numbers = values.astype(float)
    if not np.isfinite(numbers).all():
        raise InputError(
            f"obs column '{name}' must be finite, got {numbers[~np.isfinite(numbers)][0]}"
        )
    return numbers


def labels_of(adata: AnnData, name: str, rows: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels of a column of ``obs`` at some rows, and the classes."""
    try:
        return encode_labels(column(adata, name, rows))
    except InputError as error:
        raise InputError(f"obs column '{name}': {error}") from error
