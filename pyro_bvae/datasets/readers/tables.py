"""Tables of named columns as data: features, and the columns of classes, row names and parts."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import combinations
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_bytes, listed
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import PARTS, WHOLE, check_parts, encode_text

if TYPE_CHECKING:
    import pandas as pd

LABEL_COLUMNS = ("label", "labels")
_NAMES_SHOWN = 20
# Text that is a number or a date: a class of such a name would be a mistake.
_LIKE_A_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\d[\d.,:/\s'%TZ-]*")
# Classes of a column of text that are many for its rows, and so are names or free text.
_MANY_CLASSES = 10


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are no features, None where there is none.

    Attributes:
        label: The class of each row.
        index: The name of each row.
        split: The part of each row: train, validation or test.
    """

    label: Hashable | None = None
    index: Hashable | None = None
    split: Hashable | None = None

    @property
    def given(self) -> dict[str, Hashable]:
        """The columns that there are, by their roles."""
        return {role: name for role, name in vars(self).items() if name is not None}

    def among(
        self, names: Sequence[Hashable], ending: str = "", features: Sequence[Hashable] = ()
    ) -> Columns:
        """Return these columns of a table, with ``label`` or ``labels`` if no other is named.

        Args:
            names: The names of all columns.
            ending: Of the arguments' names in messages.
            features: The features, where they are known: a column of another use may then be
                absent.

        Raises:
            InputError: if there is no such column, or one has two meanings or a name of another.
        """
        known = set[Hashable]()
        for name in names:
            if name in known:
                raise InputError(f"the names of the columns must differ, got '{name}' twice")
            known.add(name)
        if features:
            there = {role: name for role, name in self.given.items() if name in known}
            return Columns(**there)._with_label(known - set(features))
        given = self.given
        for role, name in given.items():
            if name not in known:
                raise InputError(
                    f"'{role}{ending}' must be one of the columns {shown(names)}, got {name!r}"
                )
        for one, other in combinations(given, 2):
            if given[one] == given[other]:
                raise InputError(
                    f"'{one}{ending}' and '{other}{ending}' must be two columns, got "
                    f"{given[one]!r} for both"
                )
        return self._with_label(known)

    def _with_label(self, names: set[Hashable]) -> Columns:
        """Return these columns with one of the usual names for the label, if it has none."""
        if self.label is not None:
            return self
        usual = (name for name in LABEL_COLUMNS if name in names - set(self.given.values()))
        return replace(self, label=next(usual, None))


def parts_of(
    frame: pd.DataFrame, columns: Columns, missing: bool, index: np.ndarray | None = None
) -> dict[str, Dataset]:
    """Return the data of a table, by parts if it has a column of them.

    Args:
        frame: The table, without two columns of a name.
        columns: Its columns that are no features.
        missing: Take entries that are not there as missing.
        index: The names of the rows, ``(N,)``, where no column has them; by default numbers.

    Raises:
        InputError: naming the column, and the row, that cannot be used.
    """
    others = set(columns.given.values())
    names = [name for name in frame.columns if name not in others]
    if not names or frame.empty:
        raise InputError(f"empty data set: {len(names)} feature columns and {len(frame)} rows")
    features = [_features(frame[name], str(name), missing) for name in names]
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    if columns.label is not None:
        source = f"column '{columns.label}'"
        labels, label_names = encode_text(texts(frame[columns.label], "label", source))
    if columns.index is not None:
        source = f"column '{columns.index}'"
        index = row_names(texts(frame[columns.index], "name", source), source)
    elif index is None:
        index = np.arange(len(frame))
    feature_names = tuple(name for own, _ in features for name in own)
    if len(set(feature_names)) < len(feature_names):
        twice = next(name for name in feature_names if feature_names.count(name) > 1)
        raise InputError(f"the names of the features must differ, got '{twice}' twice")
    whole = Dataset(
        torch.from_numpy(np.concatenate([values for _, values in features], axis=1)),
        labels=labels, label_names=label_names, missing=missing, feature_names=feature_names,
        index=index,
    )  # fmt: skip
    if columns.split is None:
        return {WHOLE: whole}
    given = frame[columns.split].astype(object)
    part_of = given.where(given.notna(), "").astype(str).str.strip().to_numpy(str)
    results = sorted(set(part_of.tolist()))
    check_parts(results, f"the values in column '{columns.split}'")
    return {part: whole[part_of == part] for part in PARTS if part in results}


def shown(names: Sequence[Hashable]) -> str:
    """Return the names of columns in a row, the first where there are many."""
    return listed(names, _NAMES_SHOWN)


def texts(column: pd.Series, kind: str, source: str) -> np.ndarray:
    """Return the entries of a column as text without space around it, ``(N,)``.

    Args:
        column: The column.
        kind: An entry, in a message.
        source: The column, in a message.

    Raises:
        InputError: if one is missing or empty.
    """
    gaps = column.isna().to_numpy(bool)
    entries = ["" if gap else str(entry).strip() for entry, gap in zip(column, gaps, strict=True)]
    if "" in entries:
        raise InputError(f"{source} has no {kind} in row {entries.index('') + 1}")
    longest = max(map(len, entries), default=0)
    check_bytes(4 * longest * len(entries), f"{source} as text")
    return np.array(entries, dtype=str)


def row_names(names: np.ndarray, source: str) -> np.ndarray:
    """Return the names of rows, ``(N,)``, that tell them apart.

    Raises:
        InputError: if two are alike.
    """
    distinct, places, counts = np.unique(names, return_inverse=True, return_counts=True)
    if (counts > 1).any():
        first = int((counts[places] > 1).argmax())
        second = int(np.flatnonzero(names == names[first])[1])
        raise InputError(
            f"{source} must name every row differently, got '{names[first]}' in rows {first + 1} "
            f"and {second + 1}; {len(names) - len(distinct)} rows have the name of an earlier one"
        )
    return names


def _features(column: pd.Series, name: str, missing: bool) -> tuple[list[str], np.ndarray]:
    """Return the features that a column makes: their names, and numbers ``(N, F)``."""
    import pandas as pd

    dtype, types = column.dtype, pd.api.types
    if isinstance(dtype, pd.CategoricalDtype):
        return _indicators(column, list(dtype.categories), name, missing)
    is_number = types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype)
    if is_number and not types.is_complex_dtype(dtype):
        return [name], numbers(column, name, missing)[:, None]
    seen = column.dropna()
    if all(isinstance(entry, str) for entry in seen) and len(seen):
        classes = sorted(set(seen))
        _check_classes(column, classes, name)
        return _indicators(column, classes, name, missing)
    if all(isinstance(entry, Real | Decimal | np.bool_) for entry in seen):
        with readable("column of finite numbers", f"'{name}'"):
            column = column.where(column.notna(), np.nan).astype(float)
        return [name], numbers(column, name, missing)[:, None]
    kinds = sorted({type(entry).__name__ for entry in seen})
    got = f"entries of type {listed(kinds)}" if str(dtype) == "object" else str(dtype)
    raise InputError(
        f"column '{name}' must be numbers, booleans or classes as text, got {got}; convert it, or "
        "leave it out"
    )


def _check_classes(column: pd.Series, classes: list[str], name: str) -> None:
    """Raise unless the texts of a column are few, and no numbers."""
    for text in classes:
        if _LIKE_A_NUMBER.fullmatch(text):
            raise InputError(
                f"column '{name}' is text, and {text[:60]!r} in row {_row(column == text)} looks "
                "like a number or a date: convert it, or make it a category"
            )
    if len(classes) > max(_MANY_CLASSES, len(column) // 2):
        raise InputError(
            f"column '{name}' has {len(classes)} different texts in {len(column)} rows, which are "
            "no classes: give it as 'index' if it names the rows, make it a category, or leave it "
            "out"
        )


def _indicators(
    column: pd.Series, classes: list[Any], name: str, missing: bool
) -> tuple[list[str], np.ndarray]:
    """Return an indicator of each class, 0 or 1, and ``name=class`` as its name."""
    import pandas as pd

    check_bytes(5 * len(column) * len(classes), f"{len(classes):,} classes of column '{name}'")
    codes = pd.Categorical(column, categories=classes).codes
    gaps = codes < 0
    if gaps.any() and not missing:
        raise InputError(
            f"column '{name}' has no class in row {_row(gaps)}; missing=True takes it as missing"
        )
    values = (codes[:, None] == np.arange(len(classes))).astype(np.float32)
    values[gaps] = np.nan
    return [f"{name}={each}" for each in classes], values


def numbers(column: pd.Series, name: str, missing: bool) -> np.ndarray:
    """Return a column of numbers as float32, ``(N,)``; NaN only where entries may be missing.

    Raises:
        InputError: with the row that is not finite.
    """
    with np.errstate(over="ignore"):  # numbers too large for float32 are reported as infinite
        values = column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
    bad = np.isinf(values) if missing else ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        hint = "; missing=True takes it as missing" if np.isnan(values[row]) else ""
        raise InputError(
            f"values must be finite, got {values[row]} in row {row + 1}, column '{name}'{hint}"
        )
    return values


def _row(mask: Any) -> int:
    """Return the number of the first row of a mask, from 1."""
    return int(np.asarray(mask, dtype=bool).argmax()) + 1
