"""Tables in ``.csv`` and ``.tsv`` files: a header, a datum a row, a feature a column."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from pyro_bvae.core.errors import InputError, check_bytes
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.readers.tables import Columns, parts_of, shown

if TYPE_CHECKING:
    import pandas as pd

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_KIND = "readable csv file"
_CHUNK = 1 << 20
# Bytes of memory for each byte of text: "0," becomes a float64, two float32 and one more in a part.
_EXPANSION = 10
# Rows that say which of two delimiters it is.
_ROWS_SEEN = 20
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*")
_THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2},\d{3}\s*")


def read_csv(
    path: Path,
    *,
    columns: Columns | None = None,
    missing: bool = False,
    features: Sequence[str] = (),
) -> dict[str, Dataset]:
    """Read a table with a header, whose columns are features but for those that are named.

    The header says whether commas, semicolons, tabs or bars are between the fields. Numbers may
    have decimal commas where commas are not the delimiter. Labels and the names of rows are read
    as text.

    Args:
        path: The file.
        columns: The columns of labels, by default ``label`` or ``labels``, of row names and of
            parts.
        missing: Take an empty field and its spellings in pandas (NaN, NA, ...) for entries that
            were not observed.
        features: The features to read, where any are given, as far as they are there; no other
            column is read then, and ``columns`` as far as they are there.

    Raises:
        InputError: if the table cannot be read, or cannot be read in one way.
    """
    _check_text(path)
    with readable(_KIND):
        delimiter = _delimiter(path)
    header = _header(path, delimiter)
    names = [name.strip() for name in header]
    columns = (columns or Columns()).among(names, "_column", features)
    others, known = set(columns.given.values()), set(features)
    roles = [place for place, name in enumerate(names) if name in others]
    wanted = [
        place for place, name in enumerate(names)
        if name not in others and (not known or name in known)
    ]  # fmt: skip
    frame = _frame(path, delimiter, header, roles, wanted)
    frame.columns = names  # type: ignore[assignment]
    if missing and frame[names[-1]].isna().any():
        _check_widths(path, delimiter, len(names))
    return parts_of(frame.iloc[:, sorted(roles + wanted)], columns, missing)


def _open(path: Path) -> IO[bytes]:
    is_packed = path.suffix.lower() == ".gz"
    return cast("IO[bytes]", gzip.open(path, "rb") if is_packed else path.open("rb"))


def _rows(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows as text."""
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield from csv.reader(text, delimiter=delimiter)


def _delimiter(path: Path) -> str:
    """Return the delimiter of the header.

    Where several could be, the one that gives the first rows as many fields as the header.

    Raises:
        InputError: if none or several do.
    """
    first = {delimiter: _first_rows(path, delimiter) for delimiter in _DELIMITERS}
    candidates = [each for each, rows in first.items() if rows and len(rows[0]) > 1]
    if not candidates:
        return "\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ","
    fitting = candidates
    if len(candidates) > 1:
        fitting = [each for each in candidates if len({*map(len, first[each])}) == 1]
    elif len(rows := first[candidates[0]]) > 1 and all(len(row) == 1 for row in rows[1:]):
        fitting = []
    if len(fitting) == 1:
        return fitting[0]
    words = " or ".join(_DELIMITERS[each] for each in candidates)
    raise InputError(
        f"{words} could separate the columns: write the names that hold one of them in quotes"
    )


def _first_rows(path: Path, delimiter: str) -> list[list[str]]:
    """Return the header and the first rows that are not empty; none where they cannot be read."""
    try:
        header, *rows = islice(_rows(path, delimiter), _ROWS_SEEN)
    except (csv.Error, ValueError):
        return []
    return [header, *(row for row in rows if row)]


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


def _check_widths(path: Path, delimiter: str, width: int) -> None:
    """Raise for a row that ends before its last column, whose entry is not taken as missing."""
    with readable(_KIND):
        for number, row in enumerate(_rows(path, delimiter)):
            if row and len(row) != width:
                raise ValueError(f"row {number} has {len(row)} fields, the header {width}")


def _header(path: Path, delimiter: str) -> list[str]:
    """Return the names of the columns, checked: a missing header would silently take a datum."""
    with readable(_KIND):
        columns = next(_rows(path, delimiter), [])
    if not columns:
        raise InputError("empty data set: the first row must name the columns, and is empty")
    counted = [[str(i) for i in range(start, start + len(columns))] for start in (0, 1)]
    if all(_is_number(column) for column in columns) and columns not in counted:
        raise InputError(f"the first row must name the columns, got the numbers {shown(columns)}")
    for position, name in enumerate(columns):
        if not name.strip():
            raise InputError(
                f"column {position + 1} has no name; name it, or leave it out (pandas: "
                "to_csv(index=False))"
            )
    return columns


def _frame(
    path: Path, delimiter: str, header: list[str], roles: list[int], wanted: list[int]
) -> pd.DataFrame:
    """Return the table with text in the columns of some places, and numbers in those of others."""
    frame, decimal = _parsed(path, delimiter, header, roles, "."), "."
    texts = [frame.iloc[:, place] for place in _text(frame, wanted)]
    if delimiter != "," and _has_decimal_commas(texts):
        decimal = ","
        frame = _parsed(path, delimiter, header, roles, decimal)
    for place in _text(frame, wanted):
        name = header[place].strip()
        frame.isetitem(place, _numbers(frame.iloc[:, place], name, decimal))
    return frame


def _text(frame: pd.DataFrame, places: list[int]) -> list[int]:
    """Return those of some places whose columns have an entry that is no number."""
    kinds = [dtype.kind for dtype in frame.dtypes]
    return [place for place in places if kinds[place] not in "biuf"]


def _parsed(
    path: Path, delimiter: str, header: list[str], roles: list[int], decimal: str
) -> pd.DataFrame:
    import pandas as pd

    with readable(_KIND):
        warnings.simplefilter("error", pd.errors.ParserWarning)  # of fields it would drop
        frame = pd.read_csv(
            path, sep=delimiter, decimal=decimal, index_col=False, low_memory=False,
            converters=dict.fromkeys(roles, str), encoding="utf-8-sig",
        )  # fmt: skip
    if list(frame.columns) != header:
        raise InputError(f"the names of the columns cannot be told apart: {shown(header)}")
    return frame


def _has_decimal_commas(columns: Sequence[pd.Series]) -> bool:
    """Return whether numbers in columns with text have decimal commas.

    Raises:
        InputError: if the commas could all be separators of thousands.
    """
    entries = (entry for column in columns for entry in column if isinstance(entry, str))
    commas = [entry for entry in entries if _DECIMAL_COMMA.fullmatch(entry)]
    if commas and all(_THOUSANDS.fullmatch(entry) for entry in commas):
        entry = commas[0].strip()
        raise InputError(
            f"{entry!r} could be {entry.replace(',', '.')} or {entry.replace(',', '')}, as all "
            "numbers with a comma: write decimal points, and no separators of thousands"
        )
    return bool(commas)


def _numbers(column: pd.Series, name: str, decimal: str) -> pd.Series:
    """Return a column as numbers, NaN where there is no entry.

    Raises:
        InputError: with the first entry that is none, or has another decimal mark.
    """
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    text = (numbers.isna() & column.notna()).to_numpy()
    if decimal == ",":  # 1.234 might be thousands there
        text |= column.astype(str).str.contains(".", regex=False).to_numpy(bool)
    if text.any():
        row = int(text.argmax())
        entry = str(column.iloc[row])
        hint = "name it 'label_column' if it holds classes, 'index_column' if it names the rows"
        if re.fullmatch(r"[\d\s.,+-]+", entry):
            hint = "write all numbers with one decimal mark, and without separators of thousands"
        raise InputError(
            f"column '{name}' must be numbers, got {entry!r} in row {row + 1}; {hint}, or leave "
            "it out"
        )
    return numbers.astype(np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
