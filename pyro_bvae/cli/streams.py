"""Output that a terminal or a pipe takes: its encoding, and a reader that is gone."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# Exit status of a process whose reader is gone, as a shell gives it: 128 and the signal SIGPIPE.
BROKEN_PIPE = 141

_HANDLER = "pyro_bvae_plain"
# Characters in plain letters; all others lose their accents, or are escaped.
_PLAIN = {
    "α": "alpha", "β": "beta", "λ": "lambda", "σ": "sigma", "–": "-", "—": "-", "−": "-", "×": "x",
    "·": "*", "±": "+-", "≥": ">=", "≤": "<=", "…": "...", "’": "'", "‘": "'", "“": '"', "”": '"',
    "•": "*", "─": "-", "━": "-", "│": "|", "┃": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
    "├": "+", "┤": "+", "█": "#",
}  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks by plain letters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or _ascii(each) for each in lost), error.end


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()


codecs.register_error(_HANDLER, _plain)


@contextmanager
def plain_output() -> Iterator[None]:
    """Print characters that the encoding of the output lacks in plain letters, β as beta.

    Output that is closed goes nowhere.
    """
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, stack.enter_context(Path(os.devnull).open("w")))
                stack.callback(setattr, sys, name, None)
        stack.enter_context(_plain_errors())
        yield


@contextmanager
def _plain_errors() -> Iterator[None]:
    streams = [
        (stream, stream.errors)
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper)
    ]
    for stream, _ in streams:
        stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream, errors in streams:
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


def discard_output() -> None:
    """Send further output nowhere, so that nothing is raised when the process ends."""
    with Path(os.devnull).open("w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(nowhere.fileno(), stream.fileno())
