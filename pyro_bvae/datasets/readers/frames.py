"""Data frames in memory as data."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import shown as in_words
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.labels import WHOLE
from pyro_bvae.datasets.readers.tables import Columns, parts_of, row_names, texts
from pyro_bvae.datasets.splits import Splits
from pyro_bvae.datasets.splits import split as split_at_random

if TYPE_CHECKING:
    import pandas as pd

_Name: TypeAlias = Annotated[Hashable, "the name of a column"]


@public
def from_dataframe(
    frame: Any,
    *,
    label: _Name | None = None,
    index: _Name | None = None,
    split: _Name | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    missing: bool = False,
    name: str = "table",
) -> Splits:
    """Return the rows of a data frame as training, validation and test parts.

    A column of numbers is a feature, and one of booleans a feature of 0 and 1. A column of
    categories or of text becomes an indicator, 0 or 1, of each class: ``colour=red``,
    ``colour=blue``; of categories in their order, of text in sorted order. Dates, and text that
    looks like numbers or has a class for nearly every row, are refused.

    Args:
        frame: A pandas ``DataFrame``, or one of another library with the interchange protocol of
            Arrow (``__arrow_c_stream__``, such as that of polars, which takes PyArrow) or the older
            one (``__dataframe__``). It is not changed.
        label: Column of labels, whose texts are the classes; by default ``label`` or ``labels``, if
            there is one.
        index: Column that names the rows, by names that differ; by default the rows have the names
            or numbers of a pandas frame's index, and their numbers in others.
        split: Column that says train, validation or test of each row.
        validation: Fraction or number of rows that validate, 0 for none; of no use with
            ``split``.
        test: Likewise, to test on.
        seed: Of the random split.
        missing: Take None, NaN and NA for entries that were not observed; of a class, all its
            indicators are missing.
        name: Name of the result.

    Returns:
        Parts with ``feature_names``, ``label_names`` and ``index``.

    Raises:
        InputError: naming the column, and the row, that cannot be used.
    """
    table = _pandas(frame)
    if table.columns.nlevels > 1:
        raise InputError(
            f"the columns must have one name each, got {table.columns.nlevels} levels of names; "
            "join them: frame.columns = ['_'.join(map(str, names)) for names in frame.columns]"
        )
    columns = Columns(label, index, split).among(list(table.columns))
    parts = parts_of(table, columns, missing, _index(table) if index is None else None)
    if WHOLE in parts:
        return split_at_random(parts[WHOLE], validation=validation, test=test, seed=seed, name=name)
    return Splits(parts["train"], parts.get("validation"), parts["test"], name)


def _pandas(frame: Any) -> pd.DataFrame:
    """Return a frame of any library as one of pandas."""
    import pandas as pd

    if isinstance(frame, pd.DataFrame):
        return frame
    is_arrow, is_older = (
        hasattr(frame, name) and not isinstance(frame, type | pd.Series)
        for name in ("__arrow_c_stream__", "__dataframe__")
    )
    if not is_arrow and not is_older:
        hint = "; collect() it" if hasattr(frame, "collect") else ""
        raise InputError(
            "'frame' must be a data frame of pandas, polars or another library with an interchange "
            f"protocol, got {in_words(frame)}{hint}"
        )
    with readable("data frame", "'frame'"):
        if is_arrow:
            try:
                import pyarrow
            except ImportError as error:
                if not is_older:
                    raise InputError(
                        f"a {type(frame).__module__.partition('.')[0]} data frame needs PyArrow: "
                        "pip install 'pyro-bvae[arrow]'"
                    ) from error
            else:
                table: pd.DataFrame = pyarrow.table(frame).to_pandas()
                return table
        return pd.api.interchange.from_dataframe(frame)


def _index(table: pd.DataFrame) -> np.ndarray | None:
    """Return the index of a frame as the names of its rows, or None where it numbers them."""
    import pandas as pd

    own = table.index
    if own.equals(pd.RangeIndex(len(own))):
        return None
    hint = "the index of the frame (reset_index(drop=True) numbers the rows)"
    if own.dtype.kind in "iu":
        return row_names(own.to_numpy(np.int64), hint)
    if own.nlevels > 1:
        own = pd.Index([", ".join(map(str, names)) for names in own])
    return row_names(texts(own.to_series(), "name", hint), hint)
