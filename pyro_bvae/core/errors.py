"""The one exception for input that cannot be used, and the sentences that go with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class InputError(ValueError):
    """The input cannot be used; the message quotes it and lists the values that can.

    The command line prints it as one line and exits with status 2; everything else is a defect and
    keeps its traceback.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is in no list, with the nearest one that is."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return InputError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")


def listed(names: Sequence[object], most: int = 5) -> str:
    """Return names in a row, the first few where there are many, and how many there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


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
