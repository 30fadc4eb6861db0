"""Directories that are made for files, and go again if the files do not come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_bvae.core.atomic_files import make_directory


@contextmanager
def making(directory: Path) -> Iterator[None]:
    """Make a directory and those above it; if they are empty when the body ends, they go again.

    Raises:
        WriteError: if it cannot be made.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    make_directory(directory)
    try:
        yield
    finally:
        with suppress(OSError):  # of a directory that is not empty
            for path in made:
                path.rmdir()
