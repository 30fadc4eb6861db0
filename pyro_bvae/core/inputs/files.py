"""Files from outside: whether they can be opened, their size, and the errors of libraries."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_bvae.core.errors import InputError, check_bytes, one_line

# Bytes of Python objects that a byte of a text such as JSON may become.
_EXPANSION = 20


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a path, with ~ for a home.

    Raises:
        InputError: if it is none, or the home of an unknown user.
    """
    try:
        return Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"'path' must be the path of a file or folder, got {path!r}") from error


def check_file(path: Path) -> os.stat_result:
    """Return the status of a regular file that may be read.

    Raises:
        InputError: if there is none, or a folder, a device or a pipe in its place, or it may not be
            read.
    """
    status = status_of(path)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device")
        raise InputError(f"this is a {kind}, and a regular file is needed")
    if not os.access(path, os.R_OK):
        raise InputError("the file may not be read: permission denied")
    return status


def status_of(path: Path) -> os.stat_result:
    """Return the status of a file or folder.

    Raises:
        InputError: if there is none, or its path is a loop, too long, or holds a NUL.
    """
    try:
        return path.stat()
    except FileNotFoundError as error:
        link = " at the end of this symbolic link" if path.is_symlink() else ""
        raise InputError(f"there is no such file or folder{link}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"this path cannot be followed: {reason}") from error


@contextmanager
def readable(kind: str, subject: str = "this") -> Iterator[None]:
    """Make one line of whatever a library raises while it reads a file, and ignore its warnings.

    Damaged files bring forth exceptions of every class, which no library lists. The body is to be
    the library's call and little else, so that no defect of this package is taken for damage.

    Args:
        kind: The file as it should be, such as "readable npy file of numbers".
        subject: The file in the message.

    Raises:
        InputError: in place of any exception.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"{subject} is not a {kind}: {reason}") from error


def check_text(path: Path) -> None:
    """Raise unless a file of text, such as JSON, can be read as a whole.

    Raises:
        InputError: if it is no regular file, may not be read, or is too large for memory.
    """
    try:
        size = check_file(path).st_size
        check_bytes(_EXPANSION * size, "its content")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
