"""The one exception for input that cannot be used, and the sentences that go with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor


class InputError(ValueError):
    """A person's input cannot be used; the message names the value and those accepted.

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
    if isinstance(beta, Tensor):
        bad = ~(torch.isfinite(beta) & (beta >= 0))
        if bool(bad.any()):
            raise InputError(
                f"'beta' must be non-negative and finite, got {beta[bad].flatten()[0].item()}"
            )
    elif not isinstance(beta, Real) or not math.isfinite(beta) or beta < 0:
        raise InputError(f"'beta' must be non-negative and finite, got {beta}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise if a tensor holds NaN or Inf, naming the index of the first.

    Raises:
        InputError: with the index and the value.
    """
    if not values.is_floating_point():
        return
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise InputError(f"'{name}' must be finite, got {values[index].item()} at index {index}")
