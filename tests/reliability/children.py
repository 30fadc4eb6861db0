"""Runs on disk, and forked children of the test's process that write them and end as they please.

A forked child has all libraries ready, so that a run takes tenths of a second, and what kills it or
limits its files is no matter of the test's own process.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pyro_bvae.report import rendering
from pyro_bvae.runs import TrainConfig

# At β = 0 an evaluation refits no guide, which would be most of its time.
CONFIG = TrainConfig(
    beta=0.0,
    dataset="digits", hidden=(8,), latent_dim=2, epochs=2, warmup_epochs=0.0, batch_size=256,
    learning_rate=3e-2, likelihood="normal", likelihood_scale=0.3,
)  # fmt: skip
TINY = [
    "--hidden", "8", "--latent-dim", "2", "--epochs", "2", "--warmup-epochs", "0", "--batch-size",
    "256", "--learning-rate", "0.03", "--likelihood", "normal", "--likelihood-scale", "0.3",
]  # fmt: skip
QUICK = ["--num-samples", "20", "--num-data", "6"]
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
# Events of the interpreter that change a file system, before they do.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod")


@pytest.fixture(scope="module", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Have pages drawn in a tenth of the time, in the modules that import this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "DPI", 20)
        yield


def tree(root: Path) -> dict[str, bytes | None]:
    """Return the content of each file, and None for each folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def start(work: Callable[[], object], said: Path | int | None = None) -> int:
    """Fork a child that does some work, whose result is its exit status, and return its process id.

    Args:
        work: The work.
        said: File, or its number, of its output and errors.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        out = said if isinstance(said, int) else os.open(said or os.devnull, _NEW, 0o644)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        result = work()
        status = result if isinstance(result, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def end(child: int, timeout: float = 60.0) -> int:
    """Wait for a child, and return its exit status, or minus the signal that has ended it."""
    deadline = time.monotonic() + timeout
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"a child ran for more than {timeout} s")
        time.sleep(0.005)


def output_of(work: Callable[[], object]) -> tuple[int, str]:
    """Do some work in a child, and return its exit status and its output, errors among it."""
    ours, theirs = os.pipe()
    child = start(work, theirs)
    os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as stream:
        said = stream.read()
    return end(child), said


def killed_before(change: int, work: Callable[[], object], directory: Path) -> bool:
    """Do some work in a child that is killed before a change of a directory.

    Args:
        change: The number of the change, from 0.
        work: The work.
        directory: The directory.

    Returns:
        Whether there was such a change.
    """
    root, seen = str(directory), 0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
        if not (event in _CHANGES or writes):
            return
        if any(isinstance(arg, str | Path) and str(arg).startswith(root) for arg in args):
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    def watched() -> object:
        torch.set_num_threads(1)
        sys.addaudithook(watch)
        return work()

    status = end(start(watched, directory.parent / "said.txt"))
    assert status in (0, -signal.SIGKILL), (directory.parent / "said.txt").read_text()
    return status != 0


def traces(root: Path) -> list[str]:
    """Return the names of files and folders that a process leaves only if it is killed."""
    return sorted(path.name for path in root.rglob(".*"))
