"""Checkpoints are whole or not there, and reading one executes nothing."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_bvae.core import atomic_files as files
from pyro_bvae.core.errors import InputError
from pyro_bvae.training import checkpoint_path, load_checkpoint, load_weights, save_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return checkpoint_path(tmp_path / "run", "last")


def state(value: float = 1.0) -> dict[str, object]:
    return {"model": {"weight": torch.full((3,), value)}, "history": [{"epoch": 1}]}


def test_a_checkpoint_reads_back(path: Path) -> None:
    save_checkpoint(path, state(2.5))
    read = load_checkpoint(path)
    assert path.name == "last.pt"
    assert path.parent.name == "checkpoints"
    assert torch.equal(read["model"]["weight"], torch.full((3,), 2.5))
    assert read["history"] == [{"epoch": 1}]
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


class Unwritable:
    """Raises half way through being saved."""

    def __reduce__(self) -> object:
        raise OSError("no space left on device")


def test_a_failing_write_leaves_the_earlier_checkpoint_and_no_stray_file(path: Path) -> None:
    save_checkpoint(path, state(1.0))
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {**state(2.0), "more": Unwritable()})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_a_write_that_is_cut_short_leaves_the_earlier_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(path, state(1.0))

    def power_cut(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, state(2.0))
    assert torch.equal(load_checkpoint(path)["model"]["weight"], torch.ones(3))
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_the_first_write_that_fails_leaves_nothing(path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {"more": Unwritable()})
    assert list(path.parent.iterdir()) == []


def test_readers_never_see_a_part_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with files.atomic_write(path) as stream:
        stream.write("ne")
        stream.flush()
        assert path.read_text() == "old"
        stream.write("w")
    assert path.read_text() == "new"


def test_a_missing_checkpoint_is_one_clear_line(path: Path) -> None:
    with pytest.raises(InputError, match=r"^there is no checkpoint at .*last\.pt$"):
        load_checkpoint(path)


@pytest.mark.parametrize("size", [3, 100_000])  # the reader fails differently on large files
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float, size: int) -> None:
    path = tmp_path / "copy.pt"  # of no run, which would know its digest
    save_checkpoint(path, {"model": {"weight": torch.ones(size)}})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        InputError, match=r"cannot be read as a checkpoint: it is truncated or of another origin$"
    ):
        load_checkpoint(path)


FOREIGN = {
    "text": b"hello, world\n",
    "page": b"<html><body>404</body></html>",
    "zip": b"PK\x03\x04",
    "bytes": bytes(range(256)),
    "pickle 0": pickle.dumps([1, 2], protocol=0),
    "pickle 5": pickle.dumps({"a": [1, 2]}, protocol=5),
    # Both make the reader of torch pop from an empty stack or run out of bytes.
    "cut pickle": b"\x80\x02X\x02",
    "empty stack": b"\x80\x02a.",
}


@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_files_are_refused(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(FOREIGN[content])
    with pytest.raises(
        InputError, match=r"cannot be read as a checkpoint|is not a checkpoint of pyro_bvae"
    ):
        load_checkpoint(path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.write_text, (self.mark, "executed")


@pytest.mark.parametrize("kind", ["pickle", "torch", "disguised"])
def test_code_in_a_checkpoint_is_not_executed(path: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    path.parent.mkdir(parents=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif kind == "torch":
        torch.save({"model": Bomb(mark)}, path)
    else:
        save_checkpoint(path, {"model": Bomb(mark)})
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()
    # The bomb is a real one: a reader that unpickles sets it off.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.read_text() == "executed"


def test_a_file_of_torch_that_is_no_checkpoint_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for content in ({"weight": torch.ones(2)}, [1, 2], torch.ones(3)):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"last\.pt is not a checkpoint of pyro_bvae$"):
            load_checkpoint(path)


def test_another_version_is_refused(path: Path) -> None:
    save_checkpoint(path, {**state(), "version": 99})
    with pytest.raises(InputError, match=r"version 99, of another.*reads 1: upgrade"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_are_refused_in_one_line(path: Path) -> None:
    with pytest.raises(
        InputError, match=r"last\.pt does not fit this model: .*size mismatch for weight"
    ) as caught:
        load_weights(nn.Linear(2, 3), {"model": nn.Linear(3, 3).state_dict()}, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"does not fit this model: .*[Mm]issing key.*bias"):
        load_weights(nn.Linear(2, 3), {"model": nn.Linear(2, 3, bias=False).state_dict()}, path)
    for broken in ({}, {"model": 3}, {"model": [1, 2]}):
        with pytest.raises(InputError, match="does not fit this model"):
            load_weights(nn.Linear(2, 3), broken, path)


def test_weights_that_fit_are_put_in_place(path: Path) -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    save_checkpoint(path, {"model": source.state_dict()})
    load_weights(target, load_checkpoint(path), path)
    assert torch.equal(source.weight, target.weight)
    assert torch.equal(source.bias, target.bias)
