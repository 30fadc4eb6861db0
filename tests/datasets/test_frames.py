"""Data frames of pandas and of other libraries: features, classes, names of rows, missing entries."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Splits, from_dataframe, from_path

N = 12


def frame() -> pd.DataFrame:
    """Return a table with a column of each kind."""
    return pd.DataFrame(
        {
            "age": np.arange(N),
            "height": np.linspace(0.0, 1.0, N),
            "colour": ["red", "blue", "red"] * 4,
            "size": pd.Categorical(["s", "l", "m"] * 4, categories=["s", "m", "l"]),
            "smokes": [True, False] * 6,
            "cell": [f"c{i:02}" for i in range(N)],
            "label": ["01", "1", "NA", "None"] * 3,
        }
    )


def gathered(splits: Splits) -> tuple[torch.Tensor, list[str], list[str]]:
    """Return the data of all parts by the names of the rows, with names and classes."""
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    names = [str(name) for part in parts for name in part.index]
    classes = [part.label_names[label] for part in parts for label in part.labels]  # type: ignore[union-attr]
    order = np.argsort(names)
    x = torch.cat([part.x for part in parts])  # type: ignore[misc]
    return x[order], [names[i] for i in order], [classes[i] for i in order]


def expected() -> torch.Tensor:
    """Return the features of the table, written out."""
    rows = np.arange(N)
    columns = [
        rows, np.linspace(0.0, 1.0, N), rows % 3 == 1, rows % 3 != 1, rows % 3 == 0, rows % 3 == 2,
        rows % 3 == 1, rows % 2 == 0,
    ]  # fmt: skip
    return torch.from_numpy(np.stack([column.astype(np.float32) for column in columns], 1))


FEATURES = (
    "age", "height", "colour=blue", "colour=red", "size=s", "size=m", "size=l", "smokes",
)  # fmt: skip


def test_mixed_columns() -> None:
    before = frame()
    splits = from_dataframe(before, index="cell")
    x, names, classes = gathered(splits)
    assert splits.train.feature_names == FEATURES
    assert torch.equal(x, expected())
    assert names == [f"c{i:02}" for i in range(N)]
    assert classes == ["01", "1", "NA", "None"] * 3
    assert (len(splits.train), len(splits.test), splits.name) == (10, 1, "table")
    pd.testing.assert_frame_equal(before, frame())


def test_the_index_of_the_frame_names_the_rows() -> None:
    by_cell = from_dataframe(frame().set_index("cell"))
    assert gathered(by_cell)[1] == [f"c{i:02}" for i in range(N)]
    assert torch.equal(gathered(by_cell)[0], expected())
    some = from_dataframe(frame().drop(columns="cell").iloc[[11, 4, 7, 5]], validation=0, test=1)
    rows = {
        int(row): int(x[0])
        for part in (some.train, some.test)
        for row, x in zip(part.index, part.x, strict=True)
    }  # type: ignore[call-overload]
    assert rows == {11: 11, 4: 4, 7: 7, 5: 5}
    two = frame().set_index(["label", "cell"])
    assert "01, c00" in [*from_dataframe(two).train.index, *from_dataframe(two).test.index]


def test_parts_of_its_own_and_another_label() -> None:
    table = frame().assign(part=["train", "test", "train", "validation"] * 3)
    splits = from_dataframe(
        table.drop(columns="label"), label="colour", index="cell", split="part", name="mine"
    )
    assert splits.train.label_names == ("blue", "red") and splits.name == "mine"
    assert list(splits.test.index) == ["c01", "c05", "c09"]
    assert splits.validation is not None and len(splits.validation) == 3
    assert "colour=red" not in splits.train.feature_names


def test_a_csv_file_is_read_as_its_frame(tmp_path: Path) -> None:
    table = frame().drop(columns=["colour", "size"])
    table.to_csv(tmp_path / "x.csv", index=False)
    left = from_path(tmp_path / "x.csv", index_column="cell", seed=3)
    right = from_dataframe(table, index="cell", seed=3)
    for one, other in ((left.train, right.train), (left.test, right.test)):
        assert one.feature_names == other.feature_names and one.label_names == other.label_names
        assert torch.allclose(one.x, other.x) and torch.equal(one.labels, other.labels)  # type: ignore[arg-type]
        assert list(one.index) == list(other.index)


MISSING: dict[str, Any] = {
    "float": ([1.0, None, 3.0] * 4, [1, None, 3]),
    "Int64": (pd.array([1, None, 3] * 4, dtype="Int64"), [1, None, 3]),
    "boolean": (pd.array([True, None, False] * 4, dtype="boolean"), [1, None, 0]),
    "objects": (pd.Series([True, pd.NA, 2] * 4, dtype=object), [1, None, 2]),
    "text": (["u", None, "v"] * 4, [[1, 0], [None, None], [0, 1]]),
    "category": (pd.Categorical(["u", None, "v"] * 4), [[1, 0], [None, None], [0, 1]]),
    "string": (pd.array(["u", None, "v"] * 4, dtype="string"), [[1, 0], [None, None], [0, 1]]),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_entries(kind: str) -> None:
    values, wanted = MISSING[kind]
    table = pd.DataFrame({"a": np.arange(N, dtype=float), "b": values, "label": ["x"] * N})
    x, *_ = gathered(
        from_dataframe(table.set_index(table.a.astype(int).map("{:02}".format)), missing=True)
    )
    rows = torch.tensor(np.array(wanted, dtype=float)).float().reshape(3, -1)
    assert torch.equal(x[:3, 1:].nan_to_num(-9), rows.nan_to_num(-9))
    with pytest.raises(InputError, match=r"in row 2.*missing=True takes it as missing"):
        from_dataframe(table)


@pytest.mark.parametrize("library", ["polars", "pyarrow", "interchange"])
def test_frames_of_other_libraries(library: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    given: Any = pyarrow.Table.from_pandas(frame())
    if library == "polars":
        polars = pytest.importorskip("polars")
        given = polars.from_arrow(given).with_columns(
            polars.col("size").cast(polars.Enum(["s", "m", "l"]))
        )
    elif library == "interchange":
        table = frame()
        given = type(
            "Frame", (), {"__dataframe__": lambda self, **options: table.__dataframe__(**options)}
        )()
    splits = from_dataframe(given, index="cell")
    assert splits.train.feature_names == FEATURES
    assert torch.equal(gathered(splits)[0], expected())


def test_missing_entries_of_polars() -> None:
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    table = polars.DataFrame(
        {
            "a": [1, None, 3],
            "b": [True, None, False],
            "c": ["u", None, "v"],
            "d": [0.5, 1.0, float("nan")],
        }
    )
    splits = from_dataframe(table, missing=True, validation=0, test=1)
    x = torch.cat([splits.train.x, splits.test.x])[
        np.argsort([*splits.train.index, *splits.test.index])
    ]
    nan = -9.0
    wanted = [[1, 1, 1, 0, 0.5], [nan, nan, nan, nan, 1.0], [3, 0, 0, 1, nan]]
    assert torch.equal(x.nan_to_num(nan), torch.tensor(wanted))
    words = "got LazyFrame; collect"
    with pytest.raises(InputError, match=words):
        from_dataframe(table.lazy())


def test_without_pyarrow_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    arrow_frame = type("Frame", (), {"__arrow_c_stream__": None})()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs PyArrow: pip install 'pyro-bvae\[arrow\]'"):
        from_dataframe(arrow_frame)


DATES = pd.date_range("2020-01-01", periods=N)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (DATES, "column 'z' must be numbers, booleans or classes as text, got datetime64"),
        (DATES - DATES[0], "got timedelta64"),
        ([1j] * N, "got complex128"),
        ([[1, 2]] * N, "got entries of type list"),
        ([1, "a"] * 6, "got entries of type int, str"),
        (["2020-01-01"] * N, "'2020-01-01' in row 1 looks like a number or a date"),
        (["x", "1,5"] * 6, "column 'z' is text, and '1,5' in row 2 looks like a number"),
        ([f"n{i}" for i in range(N)], "column 'z' has 12 different texts in 12 rows"),
        ([0.0, np.inf] * 6, "values must be finite, got inf in row 2, column 'z'"),
        ([1e300] * N, "got inf in row 1, column 'z'"),
        (pd.Series([10**400] * N, dtype=object), "'z' is not a column of finite numbers"),
    ],
)  # fmt: skip
def test_columns_that_are_refused(values: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dataframe(pd.DataFrame({"a": np.arange(N), "z": values}))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda f: f.iloc[:0], {}, "empty data set: 6 feature columns and 0 rows"),
        (lambda f: pd.DataFrame(), {}, "empty data set: 0 feature columns and 0 rows"),
        (lambda f: f.set_axis([*"abcdef", "a"], axis=1), {}, "columns must differ, got 'a' twice"),
        (lambda f: f.assign(**{"size=s": 1.0}), {"index": "cell"}, "the names of the features must differ, got 'size=s' twice"),
        (lambda f: pd.concat([f, f]), {}, "the index of the frame (reset_index(drop=True) numbers the rows) must name every row differently, got '0' in rows 1 and 13"),
        (lambda f: pd.concat([f, f]), {"index": "cell"}, "column 'cell' must name every row differently, got 'c00' in rows 1 and 13; 12 rows"),
        (lambda f: f.set_axis(pd.MultiIndex.from_product([["a"], range(7)]), axis=1), {}, "must have one name each, got 2 levels"),
        (lambda f: f, {"index": "cell", "label": "cell"}, "'label' and 'index' must be two columns, got 'cell' for both"),
        (lambda f: f, {"index": "cells"}, "'index' must be one of the columns age, height"),
        (lambda f: f, {"index": ["cell"]}, "'index' must be the name of a column or None, got list"),
        (lambda f: f.assign(label=[0.5, 1.0] * 6), {"index": "cell"}, "labels must be whole numbers or text, got 0.5"),
        (lambda f: f.assign(label=["u", None] * 6), {"index": "cell"}, "column 'label' has no label in row 2"),
        (lambda f: f.to_dict(), {}, "'frame' must be a data frame of pandas, polars or"),
        (lambda f: f["age"], {}, "'frame' must be a data frame of pandas, polars or"),
        (lambda f: pd.DataFrame, {}, "got the class DataFrame, not an instance"),
    ],
)  # fmt: skip
def test_frames_that_are_refused(change: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dataframe(change(frame()), **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_page_on_data_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "data.md"
    monkeypatch.chdir(tmp_path)
    for block in page.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(block.split("```")[0], {})
