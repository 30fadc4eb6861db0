"""The files of a run directory, and a new run that takes the place of an old one.

The first files of the new run are put together in a folder inside the directory, which is then
given another name. Until then the old run stands, and the folder of a killed process is removed;
from then on the new one does, and whoever writes next moves its files into place.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from pyro_bvae.core.atomic_files import WriteError, remove_parts
from pyro_bvae.core.disk.digests import SUMS, remove_files
from pyro_bvae.core.disk.lock import LOCK, hold
from pyro_bvae.core.errors import InputError

# Files and folders of a run: its own, and those that are made of it.
_FILES = (
    "config.json", "data.json", "improvement.json", "metrics.csv", SUMS, "checkpoints", "snapshots",
    "tensorboard",
)  # fmt: skip
_EVALUATION = ("evaluation.json", "evaluation.nc", "report.html")
_MADE = (*_FILES, *_EVALUATION, "latents")
_ON_NEW_DATA = "evaluation-*"  # as :func:`evaluation_files` names them

# Seconds after which a partial file is one that nobody writes to.
_IDLE = 60.0
# A new run before its first epoch, before the old files are removed, and before its own are moved.
_STAGED, _WHOLE, _MOVING = ".pyro-bvae-new", ".pyro-bvae-whole", ".pyro-bvae-moving"


@contextmanager
def writing(directory: Path, *, force: bool = False) -> Iterator[None]:
    """Hold a run directory, as :func:`~pyro_bvae.core.disk.lock.hold` does, to write its files.

    Before and after the body, traces of killed and failed processes are removed.

    Args:
        directory: The directory.
        force: Take the lock from the process that holds it.

    Raises:
        InputError: if another process or thread holds the lock.
        WriteError: if the directory cannot be made.
    """
    with hold(directory, force=force) as taken:
        if taken:
            settle(directory)
        try:
            yield
        finally:
            if taken:
                settle(directory)


def is_vacant(directory: Path) -> bool:
    """Return whether a directory is not there, or holds traces of killed processes alone."""
    traces = {LOCK, _STAGED, SUMS}
    return not directory.is_dir() or all(
        path.name in traces or path.name.endswith(".part") for path in directory.iterdir()
    )


def staged(directory: Path) -> Path:
    """Return the folder for the first files of a run that takes the place of another."""
    return directory / _STAGED


def replace_run(directory: Path) -> None:
    """Put the files in the folder of :func:`staged` in the place of the run in a directory.

    Raises:
        WriteError: if the file system does not take them.
    """
    try:
        (directory / _STAGED).rename(directory / _WHOLE)
        settle(directory)
    except OSError as error:
        raise WriteError(directory, error) from error


def settle(directory: Path) -> None:
    """Finish a replacement that has begun, and remove traces of killed processes."""
    whole, moving = directory / _WHOLE, directory / _MOVING
    if whole.is_dir():
        for path in (*(directory / name for name in _MADE), *directory.glob(_ON_NEW_DATA)):
            _remove(path)
        whole.rename(moving)
    if moving.is_dir():
        for path in moving.iterdir():
            path.rename(directory / path.name)
        moving.rmdir()
    _remove(directory / _STAGED)
    is_run = any((directory / name).exists() for name in ("config.json", "checkpoints"))
    if not (is_run or is_vacant(directory)):
        return
    for folder in ("", "checkpoints", "snapshots"):
        remove_parts(directory / folder)
    # Commands of latents hold no lock: only files that nobody is writing to are traces.
    for part in (directory / "latents").glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _IDLE:
                part.unlink()


def check_settled(directory: Path) -> None:
    """Raise if a run is taking the place of another, so that its files are not in place.

    Raises:
        InputError: with the way out.
    """
    if _is_unsettled(directory):
        raise InputError(
            f"{directory} is being overwritten; if the process was killed, 'pyro-bvae train "
            f"--resume --output {directory}' goes on with the new run"
        )


def finish_replacement(directory: Path, *, force: bool = False) -> None:
    """Move the files of a new run into place, if the process that was doing so was killed.

    Args:
        directory: The run directory.
        force: Take the lock from the process that holds it.

    Raises:
        InputError: if another process holds the lock.
    """
    if _is_unsettled(directory):
        with writing(directory, force=force):
            pass


def remove_evaluation(directory: Path) -> None:
    """Remove the evaluation of a run and its page."""
    on_new = [path.name for path in directory.glob(_ON_NEW_DATA)]
    remove_files(directory, [*_EVALUATION, *on_new])


def evaluation_files(directory: Path, data: str | PathLike[str] | None = None) -> tuple[Path, Path]:
    """Return the paths of an evaluation, JSON and netCDF, of a run on its own or on new data."""
    name = "evaluation" if data is None else f"evaluation-{Path(data).name.split('.')[0]}"
    return directory / f"{name}.json", directory / f"{name}.nc"


def _is_unsettled(directory: Path) -> bool:
    return any((directory / name).is_dir() for name in (_WHOLE, _MOVING))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
