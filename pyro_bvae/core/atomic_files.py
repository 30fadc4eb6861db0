"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


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

    Raises:
        WriteError: if the file system does not take the file: a full disk, a directory that may
            only be read.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        _discard(name)
        if isinstance(error, WriteError):  # of another file, written in the body
            raise
        raise WriteError(path, error) from error
    except BaseException:
        _discard(name)
        raise


def remove_parts(directory: Path) -> None:
    """Remove the partial files of killed processes from a directory."""
    for part in directory.glob(".*.part"):
        _discard(str(part))


def _discard(name: str) -> None:
    with suppress(OSError):  # the first error is the one to report
        Path(name).unlink(missing_ok=True)
