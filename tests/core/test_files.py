"""Files are whole or not there, and a disk that does not take them is one clear line."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_bvae.core.atomic_files import WriteError, atomic_write, make_directory
from pyro_bvae.training import load_checkpoint, save_checkpoint

TOO_MUCH = """
import resource, signal, sys, torch
from pathlib import Path
from pyro_bvae.core.atomic_files import WriteError
from pyro_bvae.training import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(Path(sys.argv[1]), {"model": {"weight": torch.zeros(100_000)}})
except WriteError as error:
    print(error)
"""


def test_a_file_that_the_disk_does_not_take_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, {"model": {"weight": torch.ones(3)}})
    done = subprocess.run(
        [sys.executable, "-c", TOO_MUCH, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert (
        done.stdout.strip() == f"cannot write {path}: File too large; the file there is untouched"
    )
    assert done.stderr == ""
    assert torch.equal(load_checkpoint(path)["model"]["weight"], torch.ones(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_directory_that_may_not_be_written_is_said_in_one_line(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import tempfile

    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "metrics.csv"
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with (
        pytest.raises(WriteError, match=f"^cannot write {path}: {os.strerror(code)}$"),
        atomic_write(path),
    ):
        pass


def test_a_directory_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=r"cannot write .*file/run: Not a directory$"):
        make_directory(tmp_path / "file" / "run")


def test_what_raises_inside_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_write(tmp_path / "a") as stream:
        stream.write("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
