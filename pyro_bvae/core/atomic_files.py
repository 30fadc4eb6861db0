"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pyro_bvae.core.errors import InputError

#: The file in a run directory that lists its files with their digests.
SUMS = "digests.sha256"


class WriteError(OSError):
    """A file could not be written; an older one is as it was."""

    def __init__(self, path: Path, error: OSError) -> None:
        kept = "; the file there is untouched" if path.exists() else ""
        super().__init__(f"cannot write {path}: {error.strerror or error}{kept}")


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not there.

    Raises:
        WriteError: if that cannot be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` when the body ends, and leaves no trace when it raises.

    It is for files of a person's choice; those of a run are written with their digests, by
    :func:`~pyro_bvae.core.disk.digests.write_files`, and not replaced by others.

    Raises:
        InputError: if a run lists the file.
        WriteError: if the file system does not take the file: a full disk, a directory that may
            only be read.
    """
    _check_unlisted(path)
    with _part(path, mode) as (stream, part):
        yield stream
    put_in_place(part, path)


def _check_unlisted(path: Path) -> None:
    for run in path.absolute().parents[:2]:
        name = path.absolute().relative_to(run).as_posix()
        with suppress(OSError):
            if os.fsencode(f"  {name}\n") in (run / SUMS).read_bytes():
                raise InputError(f"{path} is a file of the run in {run}: choose another name")


def write_part(path: Path, content: bytes | memoryview) -> Path:
    """Write a file beside ``path``, on the disk when this returns, for :func:`put_in_place`.

    Raises:
        WriteError: if the file system does not take the file.
    """
    with _part(path, "wb") as (stream, part):
        stream.write(content)
    return part


def put_in_place(part: Path, path: Path) -> None:
    """Give a file of :func:`write_part` the name ``path``.

    Raises:
        WriteError: if that cannot be done; the part is removed.
    """
    try:
        part.replace(path)
    except OSError as error:
        discard(part)
        raise WriteError(path, error) from error


def remove_parts(directory: Path) -> None:
    """Remove the partial files of killed processes from a directory."""
    for part in directory.glob(".*.part"):
        discard(part)


def discard(part: Path) -> None:
    """Remove a partial file, if it is there and can be removed."""
    with suppress(OSError):  # the first error is the one to report
        part.unlink(missing_ok=True)


@contextmanager
def _part(path: Path, mode: str) -> Iterator[tuple[IO[Any], Path]]:
    """Open a new file beside ``path``, which is removed when the body raises."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise WriteError(path, error) from error
    part = Path(name)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream, part
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o644)
    except OSError as error:
        discard(part)
        raise WriteError(path, error) from error
    except BaseException:
        discard(part)
        raise
