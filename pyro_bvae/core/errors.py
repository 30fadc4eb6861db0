"""The one exception for input that cannot be used, and the sentences that go with it."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


#: The environment variable with the bytes of memory that reading data may take.
MAX_BYTES_VARIABLE = "PYRO_BVAE_MAX_BYTES"
_MOST_CHARACTERS = 1000
_MOST_KNOWN = 30  # names of a list in an error
_LONGEST_NAME = 80  # characters of a name that is shown in full
# Begins the table of all sites that Pyro appends to the error of a program.
_TRACE = re.compile(r"\s*Trace Shapes:")


class InputError(ValueError):
    """The input cannot be used; the message quotes it and lists the values that can.

    The message is one line of at most 1,000 characters: a longer one is cut in its middle. The
    command line prints it and exits with status 2; everything else is a defect and keeps its
    traceback.
    """

    def __init__(self, message: object = "") -> None:
        text = _TRACE.split(str(message), 1)[0]
        super().__init__(one_line(text, _MOST_CHARACTERS))


class AbsentDataError(InputError):
    """The data cannot be used, since they are not there."""


class SupportError(InputError):
    """A number of the data lies outside the likelihood's support.

    Args:
        support: The support.
        value: The number.
        index: Row and feature.
    """

    def __init__(self, support: object, value: float, index: tuple[int, ...]) -> None:
        self.support, self.value, self.index = support, value, index
        super().__init__(
            f"'x' must lie in the likelihood's support, {support}, got {value} at index {index}"
        )


def one_line(text: str, most: int = 300) -> str:
    """Return a text in one line of printable characters, cut in its middle where it is longer."""
    text = re.sub(r"\s*[\r\n\v\f]\s*", " ", _cut(text.strip(), 2 * most))
    return _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), most)


def _cut(text: str, most: int) -> str:
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - tail - 5]} ... {text[-tail:]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is in no list, with the nearest one that is."""
    names = sorted(known)
    nearest = _nearest(name, names)
    hint = "" if nearest is None else f" Did you mean '{nearest}'?"
    shown = listed(names, _MOST_KNOWN) or "none"
    return InputError(f"unknown {kind} '{_shortened(name)}'.{hint} Known: {shown}.")


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the name that is meant by an abbreviation, a beginning or a typing error, if any."""
    short = "".join(_words(name))
    candidates = {other: _words(other) for other in names if len(other) <= _LONGEST_NAME}
    if not 2 <= len(short) <= _LONGEST_NAME:
        return None
    for is_meant in (
        lambda words: "".join(words) == short,
        lambda words: len(words) > 1 and _abbreviates(short, words),
        lambda words: "".join(words).startswith(short) or short in words,
    ):
        if fitting := [other for other, words in candidates.items() if is_meant(words)]:
            return min(fitting, key=len)
    joined = {"".join(words): other for other, words in candidates.items()}
    close = difflib.get_close_matches(short, joined, n=1, cutoff=0.65)
    return joined[close[0]] if close else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.casefold()) if word]


def _abbreviates(short: str, words: Sequence[str]) -> bool:
    """Return whether a text is made of a beginning of every word: nb of negative-binomial."""
    if not words:
        return not short
    return any(
        words[0].startswith(short[:count]) and _abbreviates(short[count:], words[1:])
        for count in range(1, min(len(short), len(words[0])) + 1)
    )


def listed(names: Sequence[object], most: int = 5) -> str:
    """Return names in a row, the first few where there are many, and how many there are.

    Names of many characters are cut.
    """
    shown = ", ".join(_shortened(str(name)) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def max_bytes() -> int:
    """Return the bytes of memory that reading data may take.

    They are ``$PYRO_BVAE_MAX_BYTES``, such as 32e9, or half of the memory that is free.

    Raises:
        InputError: if the variable is no positive number.
    """
    if not (given := os.environ.get(MAX_BYTES_VARIABLE)):
        return _free_bytes() // 2
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not (limit >= 1):
        raise InputError(
            f"{MAX_BYTES_VARIABLE} must be a positive number of bytes, such as 32e9, got '{given}'"
        )
    return int(min(limit, 2.0**63))


def _free_bytes() -> int:
    """Return the memory that is free, at most that of a container; 16 GB where no file says it."""
    amounts = []
    for path, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s*(\d+) kB", 1024),
        ("/sys/fs/cgroup/memory.max", r"(\d+)", 1),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"(\d+)", 1),
    ):
        with suppress(OSError):
            if result := re.search(pattern, Path(path).read_text(encoding="ascii")):
                amounts.append(int(result[1]) * unit)
    return min(amounts, default=16 * 10**9)


def check_bytes(needed: int, subject: str) -> None:
    """Raise if something needs more memory than reading data may take.

    Args:
        needed: Bytes.
        subject: The thing that needs them, for the error.

    Raises:
        InputError: with both numbers, and the variable that raises the limit.
    """
    limit = max_bytes()
    if needed > limit:
        raise InputError(
            f"{subject} needs {byte_size(needed)} of memory, more than the limit of "
            f"{byte_size(limit)} (half of the free memory, or ${MAX_BYTES_VARIABLE}, which may "
            "be set higher)"
        )


def byte_size(count: int) -> str:
    """Return a number of bytes in words, such as 1.5 GB."""
    value, units = float(min(count, 10**24)), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def choices(table: Mapping[str, Any], last: str = " or ") -> str:
    """Return the names of a table in a row, each with the note of its entry, if it has one."""
    notes = ((name, getattr(entry, "note", "")) for name, entry in table.items())
    *names, final = [f"{name} ({note})" if note else name for name, note in notes]
    return f"{', '.join(names)}{last}{final}"


def check_count(name: str, value: int) -> None:
    """Raise unless a number of something is a positive integer.

    Raises:
        InputError: with the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"'{name}' must be a positive integer, got {value!r}")


def check_beta(beta: float | Tensor) -> None:
    """Raise unless every entry of β is a finite number of at least zero.

    Raises:
        InputError: if β is negative, infinite, NaN, or not a number.
    """
    got: Any = beta
    if hasattr(beta, "isfinite"):  # a tensor, whose library need not be imported for numbers
        bad = got[~(got.isfinite() & (got >= 0))]
        if not bad.numel():
            return
        got = bad[0].item()
    elif isinstance(beta, Real) and math.isfinite(beta) and beta >= 0:
        return
    raise InputError(f"'beta' must be non-negative and finite, got {got}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise if a tensor holds NaN or Inf, naming the index of the first.

    Raises:
        InputError: with the index and the value.
    """
    if not values.is_floating_point():
        return
    bad = ~values.isfinite()
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise InputError(f"'{name}' must be finite, got {values[index].item()} at index {index}")
