"""Tables in ``.csv`` and ``.tsv`` files: a header, a datum a row, a feature a column."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_bytes, listed
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import WHOLE, check_parts, encode_labels

if TYPE_CHECKING:
    import pandas as pd

LABEL_COLUMNS = ("label", "labels")
_NAMES_SHOWN = 20
_KIND = "readable csv file"
_CHUNK = 1 << 20
# Bytes of memory for each byte of text: "0," becomes a float64, two float32 and one more in a part.
_EXPANSION = 10


def read_csv(
    path: Path,
    *,
    split_column: str | None = None,
    missing: bool = False,
    features: Sequence[str] = (),
) -> dict[str, Dataset]:
    """Read a table with a header; column ``label`` or ``labels`` is labels, all others features.

    Of ``features``, where any are given, those that are there are read, and no other column.

    ``split_column`` names a column that says train, validation or test; it is no feature then.
    With ``missing``, an empty field and its spellings in pandas (NaN, NA, ...) are entries that
    were not observed.
    """
    _check_text(path)
    columns = _header(path)
    if split_column is not None and split_column not in columns:
        raise InputError(
            f"'split_column' must be one of the columns {_shown(columns)}, got '{split_column}'"
        )
    label_column = next(
        (name for name in LABEL_COLUMNS if name in columns and name != split_column), None
    )
    others = [name for name in columns if name not in (label_column, split_column)]
    features = [name for name in others if not features or name in set(features)]
    frame = _frame(path, split_column)
    if list(frame.columns) != columns:
        raise InputError(f"the names of the columns cannot be told apart: {_shown(columns)}")
    if not features or frame.empty:
        raise InputError(f"empty data set: {len(features)} feature columns and {len(frame)} rows")
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    if label_column is not None:
        labels, label_names = encode_labels(_label_values(frame[label_column]))
    if missing and frame[columns[-1]].isna().any():
        _check_widths(path, len(columns))
    x = np.stack([_numbers(frame[name], name, missing) for name in features], axis=1)
    whole = Dataset(
        torch.from_numpy(x), labels=labels, label_names=label_names, missing=missing,
        feature_names=tuple(features),
    )  # fmt: skip
    if split_column is None:
        return {WHOLE: whole}
    part_of = frame[split_column].fillna("").str.strip().to_numpy(dtype=str)
    results = sorted(set(part_of.tolist()))
    check_parts(results, f"the values in column '{split_column}'")
    return {part: whole[part_of == part] for part in results}


def _open(path: Path) -> IO[bytes]:
    is_packed = path.suffix.lower() == ".gz"
    return cast("IO[bytes]", gzip.open(path, "rb") if is_packed else path.open("rb"))


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows as text."""
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield from csv.reader(text, delimiter=_delimiter(path))


def _delimiter(path: Path) -> str:
    return "\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ","


def _check_text(path: Path) -> None:
    """Raise unless the file is text without NUL that fits into memory, whatever it unpacks to."""
    size, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    with readable(_KIND), _open(path) as file:
        for chunk in iter(partial(file.read, _CHUNK), b""):
            if not size and chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError("it is UTF-16 text; save it as UTF-8")
            if b"\0" in chunk:
                raise ValueError(f"byte {size + chunk.index(0) + 1} is NUL, which no text has")
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise ValueError(f"it is not UTF-8 text; save it as that ({error})") from error
            size += len(chunk)
            check_bytes(_EXPANSION * size, "this table")


def _check_widths(path: Path, width: int) -> None:
    """Raise for a row that ends before its last column, whose entry is not taken as missing."""
    with readable(_KIND):
        for number, row in enumerate(_rows(path)):
            if row and len(row) != width:
                raise ValueError(f"row {number} has {len(row)} fields, the header {width}")


def _header(path: Path) -> list[str]:
    """Return the names of the columns, checked: a missing header would silently take a datum."""
    with readable(_KIND):
        columns = next(_rows(path), [])
    if not columns:
        raise InputError("empty data set: the first row must name the columns, and is empty")
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        raise InputError(
            f"columns must be separated by commas, or by tabs in a .tsv file, got the header "
            f"{columns[0]!r}"
        )
    counted = [[str(i) for i in range(start, start + len(columns))] for start in (0, 1)]
    if all(_is_number(column) for column in columns) and columns not in counted:
        raise InputError(f"the first row must name the columns, got the numbers {_shown(columns)}")
    for position, name in enumerate(columns):
        if not name.strip():
            raise InputError(
                f"column {position + 1} has no name; name it, or leave it out (pandas: "
                "to_csv(index=False))"
            )
        if name in columns[:position]:
            raise InputError(f"the names of the columns must differ, got '{name}' twice")
    return columns


def _frame(path: Path, text_column: str | None) -> pd.DataFrame:
    import pandas as pd

    types = {} if text_column is None else {text_column: "str"}
    with readable(_KIND):
        warnings.simplefilter("error", pd.errors.ParserWarning)  # of fields it would drop
        return pd.read_csv(
            path, sep=_delimiter(path), index_col=False, dtype=types, low_memory=False,
            encoding="utf-8-sig",
        )  # fmt: skip


def _numbers(column: pd.Series, name: str, missing: bool) -> np.ndarray:
    """Return one column as float32, ``(N,)``; NaN only where entries may be missing."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    text = (numbers.isna() & column.notna()).to_numpy()
    if text.any():
        row = int(text.argmax())
        raise InputError(
            f"column '{name}' must be numbers, got {str(column.iloc[row])!r} in row {row + 1}; "
            "name it 'label' if it holds classes, or leave it out"
        )
    with np.errstate(over="ignore"):
        values = numbers.to_numpy(dtype=np.float32, na_value=np.nan)
    bad = np.isinf(values) if missing else ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        hint = "; missing=True takes it as missing" if np.isnan(values[row]) else ""
        raise InputError(
            f"values must be finite, got {values[row]} in row {row + 1}, column '{name}'{hint}"
        )
    return values


def _label_values(column: pd.Series) -> np.ndarray:
    """Return numbers as numbers and everything else as text; a missing label is an error."""
    import pandas as pd

    missing = column.isna().to_numpy()
    if missing.any():
        raise InputError(f"column '{column.name}' has no label in row {int(missing.argmax()) + 1}")
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy()
    return column.to_numpy(dtype=object).astype(str)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(columns: list[str]) -> str:
    return listed(columns, _NAMES_SHOWN)
