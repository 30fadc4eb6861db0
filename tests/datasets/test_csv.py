"""Csv files as people write them: one table in many spellings is read as the same data."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Splits, from_path

VALUES = np.array([[i + 0.25, -i * 1.5, i % 3] for i in range(12)])
NAMES = ["height, cm", "weight", "n;o"]
CELLS = [f"c{i:02}" for i in range(12)]
KINDS = [("01", "1", "NA", "None")[i % 4] for i in range(12)]


def text(delimiter: str, decimal: str = ".") -> str:
    """Return the table with names of rows and classes, whose names of columns are in quotes."""
    rows = [["cell", *(f'"{name}"' for name in NAMES), "kind"]]
    for cell, values, kind in zip(CELLS, VALUES, KINDS, strict=True):
        rows.append([cell, *(f"{value:.2f}".replace(".", decimal) for value in values), kind])
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


def read(path: Path, **options: object) -> Splits:
    return from_path(path, **{"label_column": "kind", "index_column": "cell", **options})  # type: ignore[arg-type]


def check(splits: Splits) -> None:
    """Check that the data are the table's, row by row."""
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(name for part in parts for name in part.index) == CELLS  # type: ignore[union-attr]
    for part in parts:
        assert part is not None and part.labels is not None
        assert part.feature_names == tuple(NAMES)
        assert part.label_names == ("01", "1", "NA", "None")
        rows = [CELLS.index(name) for name in part.index]
        assert torch.equal(part.x, torch.from_numpy(VALUES[rows]).float())
        assert [part.label_names[label] for label in part.labels] == [KINDS[row] for row in rows]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.gz"])
@pytest.mark.parametrize(
    ("delimiter", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ","), ("|", ",")]
)
def test_one_table_in_many_spellings(
    delimiter: str, decimal: str, suffix: str, mark: str, tmp_path: Path
) -> None:
    content = (mark + text(delimiter, decimal)).encode()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    check(read(path))


def test_lines_end_as_they_do_on_windows_and_fields_have_space_around_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(text(",").replace(",", " , ").replace('" ', '"').encode())
    crlf = text(",").replace("\n", "\r\n\r\n").encode()
    (tmp_path / "crlf.csv").write_bytes(crlf)
    check(read(tmp_path / "crlf.csv"))
    (tmp_path / "x.csv").write_text("a , b, label\n" + "1 , 2, u\n3, 4 , v \n" * 6)
    data = from_path(tmp_path / "x.csv").train
    assert data.feature_names == ("a", "b") and data.label_names == ("u", "v")


@pytest.mark.parametrize(
    ("labels", "names", "values"),
    [
        (["10", "9", "2"], (), [10, 9, 2]),
        (["-1", "0", "3"], (), [-1, 0, 3]),
        (["1.0", "2.0", "3.0"], (), [1, 2, 3]),
        (["1.0", "1", "2"], ("1", "1.0", "2"), [1, 0, 2]),
        (["01", "1", "2"], ("01", "1", "2"), [0, 1, 2]),
        (["01", "02", "03"], ("01", "02", "03"), [0, 1, 2]),
        (["nan", "NaN", "None"], ("NaN", "None", "nan"), [2, 0, 1]),
        (["1e3", "2", "3"], ("1e3", "2", "3"), [0, 1, 2]),
        (["9007199254740993", "2", "3"], ("2", "3", "9007199254740993"), [2, 0, 1]),
        (["True", "False", "0.5"], ("0.5", "False", "True"), [2, 1, 0]),
    ],
)
def test_labels_are_read_as_text(
    labels: list[str], names: tuple[str, ...], values: list[int], tmp_path: Path
) -> None:
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "x.csv").write_text("a,label\n" + rows)
    splits = from_path(tmp_path / "x.csv", validation=0, test=1)
    found = {
        int(row): int(label)
        for part in (splits.train, splits.test)
        for row, label in zip(part.index, part.labels, strict=True)  # type: ignore[arg-type]
    }
    assert splits.train.label_names == names
    assert [found[row] for row in range(3)] == values


def test_a_table_of_thousands_of_columns(tmp_path: Path) -> None:
    names = [f"gene|{i:06}" for i in range(20_000)]  # a header longer than the fields of csv
    values = np.arange(3 * 20_000).reshape(3, -1) % 7
    rows = [";".join(names), *(";".join(map(str, row)) for row in values)]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    splits = from_path(tmp_path / "x.csv", validation=0, test=1)
    assert splits.train.feature_names == tuple(names)
    assert torch.equal(splits.test.x, torch.from_numpy(values[splits.test.index]).float())


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("A|1,B|2\n1,2\n", ","),
        ("A,1;B,2\n1,5;2\n3;4\n", ";"),
        ("A;1\tB;2\n1,5\t2\n", "\t"),
        ('"A;1"\n1\n', ""),
        ("A B\n1\n", ""),
    ],
)
def test_a_delimiter_that_is_in_the_names_too(content: str, delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content + "5" + (delimiter and f"{delimiter}6") + "\n")
    data = from_path(tmp_path / "x.csv", validation=0, test=1).train
    header = content.splitlines()[0]
    names = header.split(delimiter) if delimiter else [header.strip('"')]
    assert data.feature_names == tuple(names)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("a,b\n1,2\n", {"index_column": "c"}, "'index_column' must be one of the columns a, b, got 'c'"),
        ("a,b\n1,2\n", {"label_column": "c"}, "'label_column' must be one of the columns a, b, got 'c'"),
        ("a,b\n1,2\n", {"label_column": "b", "index_column": "b"},
         "'label_column' and 'index_column' must be two columns, got 'b' for both"),
        ("a,b\n1,2\n", {"split_column": "b", "index_column": "b"}, "must be two columns, got 'b'"),
        ("a,b\n1,x\n2,y\n3,x\n4,y\n5,x\n", {"index_column": "b"},
         "column 'b' must name every row differently, got 'x' in rows 1 and 3; 3 rows have the name"),
        ("a,b\n1,x\n2, \n", {"index_column": "b"}, "column 'b' has no name in row 2"),
        ("a,b\n1,x\n2,\n", {"label_column": "b"}, "column 'b' has no label in row 2"),
        ("a,b\n1,x\n", {"label_column": "b", "index_column": "a"}, "empty data set: 0 feature columns"),
        ("a, a\n1,2\n", {}, "the names of the columns must differ, got 'a' twice"),
        ("a,b\n1,\"1,5\"\n", {}, "column 'b' must be numbers, got '1,5' in row 1; write all numbers"),
        ("a;b\n1;1.234,5\n", {}, "column 'b' must be numbers, got '1.234,5' in row 1; write all numbers"),
        ("a;b\n-1,500;1,234\n", {}, "'-1,500' could be -1.500 or -1500"),
        ("a,b\n1,red\n", {}, "name it 'label_column' if it holds classes, 'index_column' if it names"),
        ("a;b\n1.234;2,5\n", {}, "column 'a' must be numbers, got '1.234' in row 1; write all numbers"),
        ("A|1\n5\n6\n", {}, "bars could separate the columns: write the names that hold one"),
        ("a b;c,d\n1;2,3\n", {}, "commas or semicolons could separate the columns"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_line(
    content: str, options: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        from_path(path, **options)  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_tables_are_for_tables(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 2)))
    for name in ("label_column", "index_column"):
        with pytest.raises(InputError, match=f"'{name}' is for csv files, got 'a'"):
            from_path(tmp_path / "x.npy", **{name: "a"})  # type: ignore[arg-type]
