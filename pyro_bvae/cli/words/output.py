"""The output of a command: text, one JSON object with ``--json``, or nothing with ``--quiet``."""

from __future__ import annotations

import io
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import Any, NamedTuple

from pyro_bvae.core.errors import one_line

_content: ContextVar[dict[str, Any] | None] = ContextVar("content", default=None)


class Output(NamedTuple):
    """The form of the output.

    Attributes:
        json: One JSON object on standard output in place of text.
        quiet: No text and no progress; errors and warnings stay.
    """

    json: bool = False
    quiet: bool = False


def output_of(words: Sequence[str]) -> tuple[list[str], Output]:
    """Return a command line without ``--json`` and ``--quiet``, and which of them stand in it."""
    end = words.index("--") if "--" in words else len(words)
    flags = {"--json", "--quiet"} & set(words[:end])
    rest = [word for word in words[:end] if word not in flags]
    return [*rest, *words[end:]], Output("--json" in flags, "--quiet" in flags)


def report(**content: Any) -> None:
    """Add to the JSON object of the command that runs; text has it in its own words."""
    if (held := _content.get()) is not None:
        held.update(content)


def written(*paths: Any) -> None:
    """Print the files that a command wrote."""
    print(f"written: {', '.join(map(str, paths))}")
    report(written=list(paths))


@contextmanager
def printing(output: Output, command: str) -> Iterator[None]:
    """Print in a form: the JSON object appears when the command has ended well."""
    if not (output.json or output.quiet):
        yield
        return
    real, text, content = sys.stderr, io.StringIO(), dict[str, Any]()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {one_line(str(message), 1000)}", file=real)

    token = _content.set(content)
    try:
        with warnings.catch_warnings(), redirect_stdout(text), redirect_stderr(io.StringIO()):
            warnings.showwarning = show
            yield
    finally:
        _content.reset(token)
    if output.json:
        lines = text.getvalue().splitlines()
        print(json.dumps({"command": command, **_plain(content), "text": lines}, indent=2))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, bool | int | None | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
