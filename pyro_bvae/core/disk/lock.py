"""A lock on a directory: one process writes its files, and its name stands in the lock.

It is a lock of the operating system on the open file ``.pyro-bvae.lock``: it ends with its process,
however that ends. On a file system without such locks the file itself is the lock, until the
process that it names has ended.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pyro_bvae.core.atomic_files import WriteError
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError

#: The name of the file.
LOCK = ".pyro-bvae.lock"

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_HOLDER = re.compile(r"process (\d+) on (\S+) since .+")
# The open files of the locks that this process holds, by directory and thread.
_held: dict[tuple[Path, int], int] = {}


@contextmanager
def hold(directory: Path, *, force: bool = False) -> Iterator[bool]:
    """Hold a directory, which is made if it is not there, while the body runs.

    The body is given whether the lock was taken by this call: a thread that holds it already goes
    on, and so does one that may not write to the directory. The lock leaves no trace, nor does the
    directory if it was made and is empty.

    Args:
        directory: The directory.
        force: Take the lock from the process that holds it.

    Raises:
        InputError: if another process or thread holds the lock.
        WriteError: if the directory cannot be made.
    """
    with making(directory):
        key = (directory.resolve(), threading.get_ident())
        taken = None if key in _held else _take(directory, force)
        if taken is not None:
            _held[key] = taken
        try:
            yield taken is not None
        finally:
            if taken is not None and _held.pop(key, None) is not None:  # a forked child has none
                if _is_at(taken, key[0] / LOCK):
                    with suppress(OSError):  # of another person's file
                        (key[0] / LOCK).unlink()
                os.close(taken)


def check_held(directory: Path) -> None:
    """Raise if another process has taken the lock from this thread.

    Raises:
        InputError: with the name of the process.
    """
    taken = _held.get((directory.resolve(), threading.get_ident()))
    lock = directory / LOCK
    if taken is not None and lock.exists() and not _is_at(taken, lock):
        holder = lock.read_text(encoding="utf-8") or "another process"
        raise InputError(f"{directory} was taken over by {holder}: this process stops")


def _take(directory: Path, force: bool) -> int | None:
    """Return the open file of a lock that is now held, None where nothing may be written."""
    lock = directory / LOCK
    while True:
        try:
            opened = _open(lock)
        except OSError as error:
            if error.errno in _READ_ONLY:
                return None
            raise WriteError(lock, error) from error
        holder = os.read(opened, 1000).decode("utf-8", "replace")
        free = _try_lock(opened)
        if free is None:
            free = not _is_alive(holder)
        if free and _is_at(opened, lock):
            break
        os.close(opened)
        if free:  # its last holder removed the file in between
            continue
        if not force:
            raise InputError(
                f"{directory} is in use by {holder or 'another process'}: wait until it ends, or "
                "take it over with --force (force=True) if that process hangs or is long gone"
            )
        lock.unlink(missing_ok=True)
    with suppress(OSError):  # of a full disk: the lock then has no name
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        name = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        os.ftruncate(opened, 0)
        os.lseek(opened, 0, os.SEEK_SET)
        os.write(opened, name.encode("utf-8"))
    return opened


def _open(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return os.open(lock, os.O_RDONLY)  # that of another person


def _try_lock(opened: int) -> bool | None:
    """Return whether a file is now locked, None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # of Windows
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of a file system without locks
        return None
    return True


def _is_alive(holder: str) -> bool:
    """Return whether the process that a lock names may be running still."""
    match = _HOLDER.fullmatch(holder)
    if match is None:
        return False
    if match[2] != socket.gethostname() or os.name == "nt":
        return True  # as far as can be seen from here
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # that of another person
        return True
    return True


def _is_at(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except OSError:
        return False


def _leave_to_parent() -> None:
    """Close the files in a forked child, so that its parent's locks do not live as long as it."""
    for opened in _held.values():
        os.close(opened)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
