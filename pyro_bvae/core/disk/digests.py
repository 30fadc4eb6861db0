"""Files of a run that do not change unseen: ``digests.sha256`` has the SHA-256 digest of each.

It lies in the run directory and has the lines of ``sha256sum``, whose ``--check`` reads it too, and
a last one with the digest of those above. A digest is written before its file: one line for the old
content and one for the new stand side by side until the file is in place. A process that is killed
in between leaves one of the two, and never a file that looks damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from pyro_bvae.core.atomic_files import SUMS, discard, make_directory, put_in_place, write_part
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.files import check_file

# Folders of a run directory whose files it lists, by their endings, and files from before it lists
# any.
_FOLDERS = {".pt": "checkpoints", ".png": "snapshots"}
_EARLIER = (
    "config.json", "metrics.csv", "evaluation.json", "evaluation.nc", "report.html",
    "checkpoints/*.pt", "snapshots/epoch-*.png",
)  # fmt: skip
_LAST = "# sha256 of the lines above: "
# The digest of a file that is not there yet.
_ABSENT = "0" * 64

# The digests that the content of a file may have, by its name.
Digests = dict[str, tuple[str, ...]]


def write_files(files: Mapping[Path, bytes | memoryview], *, begin: bool = False) -> None:
    """Write files of a run directory, each whole or not at all, and their digests.

    Args:
        files: Contents, in the order of writing, of files of one run.
        begin: Begin ``digests.sha256`` where there is none, with the files that are there. Without
            it a directory that has none goes on without.

    Raises:
        WriteError: if the file system does not take the files; each is the old or the new one.
        InputError: if ``digests.sha256`` is damaged.
    """
    contents = {place_of(path)[1]: content for path, content in files.items()}
    (run,) = {place_of(path)[0] for path in files}
    parts: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            make_directory(path.parent)
            parts[path] = write_part(path, content)
        with _locked(run):
            listed = _listed(run)
            if listed is None and begin:
                listed = {name: (_digest_of(run / name),) for name in _earlier(run)}
            if listed is None:
                _put(parts)
                return
            once = {id(content): sha256(content).hexdigest() for content in contents.values()}
            new = {name: (once[id(content)],) for name, content in contents.items()}
            old = {name: _present(run / name, listed.get(name, ())) for name in new}
            _write_sums(run, listed | {name: old[name] + new[name] for name in new})
            _put(parts)
            _write_sums(run, listed | new)
    finally:
        for part in parts.values():
            discard(part)


def read_file(path: Path) -> bytes:
    """Return the content of a file of a run directory, the same that the run wrote.

    A directory without ``digests.sha256``, such as one of version 0.1.0, has its files read as they
    are.

    Raises:
        InputError: if the content is another one, or the file is gone.
        FileNotFoundError: if the run wrote no such file either.
    """
    run, name = place_of(path)
    looked_at: bytes | None = None
    while True:
        sums = _bytes_of(run / SUMS)
        content = _bytes_of(path)
        if sums is None:
            if content is None:
                raise FileNotFoundError(path)
            return content
        permitted = _parse(run, sums).get(name, ())
        if content is None and (not permitted or _ABSENT in permitted):
            raise FileNotFoundError(path)
        if content is not None and sha256(content).hexdigest() in permitted:
            return content
        if sums == looked_at:  # else a process has written the file in between: look again
            raise changed(path, _reason(content, permitted))
        looked_at = sums


def _reason(content: bytes | None, permitted: tuple[str, ...]) -> str:
    if not permitted:
        return f"{SUMS} does not list it"
    return "it is gone" if content is None else ""


def changed(path: Path, reason: str = "") -> InputError:
    """Return the error for a file that is not as the run wrote it."""
    return InputError(
        f"{path} was changed or damaged since the run wrote it{reason and f': {reason}'}; "
        "restore it from a copy of the run"
    )


def check_sums(path: Path, named: object) -> None:
    """Raise unless the file of digests lies where a file of the run says so.

    Args:
        path: The file of the run.
        named: The name that is in it, ``digests.sha256``; None in a file of version 0.1.0.

    Raises:
        InputError: if the digests are gone.
    """
    sums = place_of(path)[0] / SUMS
    if named is not None and not sums.is_file():
        raise InputError(
            f"{path} cannot be checked, since {SUMS} of its run is gone: restore it from a copy of "
            "the run"
        )


def changed_files(run: Path) -> list[str]:
    """Return the names of the files of a run directory that are not as it wrote them, or gone.

    Raises:
        InputError: if ``digests.sha256`` is damaged.
    """
    names = []
    for name in _listed(run) or {}:
        try:
            read_file(run / name)
        except FileNotFoundError:
            continue
        except (InputError, OSError):  # one that may not be read, or a directory
            names.append(name)
    return names


def remove_files(run: Path, names: Iterable[str]) -> None:
    """Remove files of a run directory, and their digests.

    Raises:
        WriteError: if the file system does not take the other digests.
        InputError: if ``digests.sha256`` is damaged.
    """
    if not run.is_dir():
        return
    names = set(names)
    with _locked(run):
        listed = _listed(run)
        for name in names:
            (run / name).unlink(missing_ok=True)
        left = {name: listed[name] for name in listed.keys() - names} if listed else {}
        if left and left != listed:
            _write_sums(run, left)
        elif not left:  # no file is left whose digest it has
            (run / SUMS).unlink(missing_ok=True)


def place_of(path: Path) -> tuple[Path, str]:
    """Return the run directory that a file belongs to, and its name there."""
    name = path.absolute().parent.name
    if name != _FOLDERS.get(path.suffix):
        return path.parent, path.name
    run = path.parent.parent if path.parent.name else path.absolute().parent.parent
    return run, f"{name}/{path.name}"


def _put(parts: Mapping[Path, Path]) -> None:
    for path, part in parts.items():
        put_in_place(part, path)


def _present(path: Path, listed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the digests of the content that is about to be replaced, without those of no use."""
    if not path.exists():
        return (_ABSENT,)
    if len(listed) == 1:
        return listed
    digest = _digest_of(path)  # of which of several, a killed process has not said
    return (digest,) if digest in listed else listed


def _digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _earlier(run: Path) -> list[str]:
    """Return the names of the files that a run has from before it lists digests."""
    found = (path for pattern in _EARLIER for path in run.glob(pattern))
    return [path.relative_to(run).as_posix() for path in found if path.is_file()]


def _bytes_of(path: Path) -> bytes | None:
    try:
        path.stat()
        check_file(path)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


# -- digests.sha256


def _listed(run: Path) -> Digests | None:
    """Return the digests of a run directory, None if it has none."""
    sums = _bytes_of(run / SUMS)
    return None if sums is None else _parse(run, sums)


def _parse(run: Path, sums: bytes) -> Digests:
    """Return the digests by name; the file has to be, byte for byte, the one that has them."""
    digests: dict[str, tuple[str, ...]] = {}
    with suppress(ValueError):
        for line in sums.decode("utf-8").splitlines()[:-1]:
            digest, name = line.split("  ", 1)
            digests[name] = (*digests.get(name, ()), digest)
    if _rendered(digests) != sums:
        raise changed(run / SUMS)
    return digests


def _rendered(digests: Digests) -> bytes:
    """Return the content of ``digests.sha256``."""
    lines = [f"{digest}  {name}\n" for name in sorted(digests) for digest in digests[name]]
    above = "".join(lines).encode("utf-8")
    return above + f"{_LAST}{sha256(above).hexdigest()}\n".encode()


def _write_sums(run: Path, digests: Digests) -> None:
    put_in_place(write_part(run / SUMS, _rendered(digests)), run / SUMS)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep other processes from writing digests at the same time, where the system can."""
    try:
        import fcntl

        handle = os.open(run, os.O_RDONLY)
    except (ImportError, OSError):  # of a system without such locks
        yield
        return
    try:
        with suppress(OSError):  # of a file system without them
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
