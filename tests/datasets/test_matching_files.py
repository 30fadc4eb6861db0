"""Tables and folders that come back in another spelling, and new ones beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets.matching import read_known, read_new
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.datasets.registry import DataOptions, read

ROWS = [(f"p{i}", 1.5 * i, -i, "01" if i % 2 else "1") for i in range(20)]


def write(path: Path, rows: list[tuple[str, float, int, str]], swapped: bool = False) -> None:
    if swapped:  # other places, delimiter and decimal mark, and a column of text
        lines = ["note;zinc;group;who;iron"]
        lines += [f"-;{c};{d};{a};{b}".replace(".", ",") for a, b, c, d in rows]
    else:
        lines = ["who,iron,zinc,group", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines))


def test_a_table_comes_back_by_the_names_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    options = DataOptions("file", path=str(path), index_column="who", label_column="group")
    write(path, ROWS)
    before = read(options, 0)
    record = DataRecord.of(before)
    lines = ["group;zinc;who;iron"]
    lines += [f"{d};{c};{a};{b}".replace(".", ",") for a, b, c, d in ROWS[::-1]]
    path.write_text("\n".join(lines))
    after = read_known(options, 0, record)
    for part in ("train", "validation", "test"):
        one, other = getattr(before, part), getattr(after, part)
        assert list(one.index) == list(other.index)
        assert torch.equal(one.x, other.x) and torch.equal(one.labels, other.labels)
    write(path, [*ROWS[:-1], ("p20", 0.0, 0, "1")])
    with pytest.raises(
        InputError, match=r"row 'p19' is not there \(1 of 20 are missing, 1 are new\)"
    ):
        read_known(options, 0, record)


def test_new_rows_of_a_table_need_its_features_alone(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", ROWS)
    options = DataOptions(
        "file", path=str(tmp_path / "x.csv"), index_column="who", label_column="group"
    )
    record = DataRecord.of(read(options, 0))
    write(tmp_path / "new.csv", ROWS[3:6], swapped=True)
    found = read_new(options, tmp_path / "new.csv", record)
    assert list(found.index) == ["p3", "p4", "p5"]
    assert found.feature_names == ("iron", "zinc")
    assert found.x.tolist() == [[4.5, -3], [6, -4], [7.5, -5]]
    (tmp_path / "few.csv").write_text("zinc,iron\n1,2\n")
    few = read_new(options, tmp_path / "few.csv", record)
    assert few.x.tolist() == [[2, 1]] and few.labels is None and few.index.tolist() == [0]
    np.save(tmp_path / "x.npy", np.ones((1, 2)))
    assert read_new(options, tmp_path / "x.npy", record).x.tolist() == [[1, 1]]
    (tmp_path / "other.csv").write_text("zinc,who\n1,2\n")
    with pytest.raises(InputError, match="feature 'iron' is not there"):
        read_new(options, tmp_path / "other.csv", record)


def test_a_feature_named_label_is_no_label_of_new_rows(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label,kind\n" + "".join(f"{i},u\n" for i in range(20)))
    options = DataOptions("file", path=str(tmp_path / "x.csv"), label_column="kind")
    record = DataRecord.of(read(options, 0))
    (tmp_path / "new.csv").write_text("label\n3\n")
    assert read_new(options, tmp_path / "new.csv", record).x.tolist() == [[3]]


@pytest.mark.filterwarnings("ignore:.*images are resized")
def test_new_pictures_get_the_size_and_the_colour_of_the_run(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "old").mkdir(exist_ok=True)
        Image.new("L", (9 + number, 12), 9 * number).save(tmp_path / "old" / f"{number}.png")
    options = DataOptions("file", path=str(tmp_path / "old"), image_size=8, colour="rgb")
    splits = read(options, 0)
    record = DataRecord.of(splits)
    again = read_known(options, 0, record)
    assert list(again.test.index) == list(splits.test.index)
    (tmp_path / "new").mkdir()
    Image.new("RGBA", (30, 50), (255, 0, 0, 255)).save(tmp_path / "new" / "red.png")
    found = read_new(options, tmp_path / "new", record)
    assert found.image_shape == (3, 8, 8) and found.index.tolist() == ["red.png"]
    assert found.x.reshape(3, 64).mean(1).tolist() == pytest.approx([1, 0, 0])
