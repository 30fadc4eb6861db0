"""The types and bounds of options, said once, in the annotations of their data class."""

from __future__ import annotations

import math
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from pyro_bvae.core.errors import InputError

_LONGEST = 80  # characters of a value that is quoted
_WORDS: dict[Any, str] = {
    int: "an integer", float: "a number", bool: "True or False", str: "a string", Path: "a path",
    NoneType: "None",
}  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest number that an option may be, a note on its type.

    ``Annotated[int, Bounds(1, 100)]`` is a type that :func:`check_options` reads.

    Attributes:
        least: The smallest number.
        most: The largest; infinity itself is accepted only where this is infinity.
        above: Whether ``least`` itself is too small.
    """

    least: float
    most: float = math.inf
    above: bool = False

    def reaches(self, value: float) -> bool:
        """Return whether a number is not too small; NaN is."""
        return value > self.least if self.above else value >= self.least


class OptionType(NamedTuple):
    """The type of an option, taken apart.

    Attributes:
        kinds: The types of its value, or of each of its values.
        many: Whether it has any number of values.
        notes: All that its annotation says beside the type.
    """

    kinds: tuple[Any, ...]
    many: bool
    notes: tuple[Any, ...]

    @classmethod
    def of(cls, hint: Any) -> OptionType:
        """Return the type that an annotation says."""
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        many = get_origin(kind) is tuple
        kind = get_args(kind)[0] if many else kind
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        return cls(kinds, many, tuple(notes))

    @property
    def bounds(self) -> Bounds | None:
        """The bounds of its numbers, if it has any."""
        return next((note for note in self.notes if isinstance(note, Bounds)), None)

    def wanted(self, value: object) -> str:
        """Return the values that are accepted instead of one, in words."""
        numbers = isinstance(value, int | float) and self.bounds is not None
        kinds = [kind for kind in self.kinds if not (numbers and kind is NoneType)]
        return " or ".join(_in_words(kind, self.bounds) for kind in kinds)

    def check(self, name: str, value: Any) -> None:
        """Raise unless a value, or one of many, is of this type and within its bounds.

        Raises:
            InputError: with the value, and those that are accepted.
        """
        kinds, bounds = (*self.kinds, int) if float in self.kinds else self.kinds, self.bounds
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if fits and bounds is not None and isinstance(value, int | float):
            fits = bounds.reaches(value) and (value != math.inf or bounds.most == math.inf)
            if fits and value > bounds.most:
                limit = bounds.most if float not in kinds else f"{bounds.most:g}"
                raise InputError(f"'{name}' must be at most {limit}, got {quoted(value)}")
        if not fits:
            raise InputError(f"'{name}' must be {self.wanted(value)}, got {quoted(value)}")


@cache
def option_types(options: type) -> dict[str, OptionType]:
    """Return the types of a data class of options, by the names of its fields."""
    hints = get_type_hints(options, include_extras=True)
    return {name: OptionType.of(hint) for name, hint in hints.items()}


def check_options(options: Any) -> None:
    """Raise unless the options of a data class, and of those in it, are of their type and bounds.

    Raises:
        InputError: with the option, its value, and the values it may have.
    """
    own: Any = type(options)
    for name, kind in option_types(own).items():
        value = getattr(options, name)
        if is_dataclass(value):
            check_options(value)
        elif kind.many and not isinstance(value, tuple | list):
            words = f"a tuple, each entry {kind.wanted(value)}"
            raise InputError(f"'{name}' must be {words}, got {quoted(value)}")
        elif set(kind.kinds) <= _WORDS.keys():
            for entry in value if kind.many else (value,):
                kind.check(name, entry)


def quoted(value: object) -> str:
    """Return a value as a message quotes it, the beginning of a long one."""
    try:
        text = repr(value)
    except ValueError:  # of an integer of more digits than Python writes
        return "an integer of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _in_words(kind: Any, bounds: Bounds | None) -> str:
    """Return a type and the lower end of its bounds, in words."""
    if bounds is None or kind not in (int, float):
        return _WORDS.get(kind, str(kind))
    if kind is int:
        words = {0: "a non-negative integer", 1: "a positive integer"}
        return words.get(int(bounds.least), f"an integer from {bounds.least}")
    sign = "positive" if bounds.above else "non-negative"
    return sign if math.isinf(bounds.most) else f"{sign} and finite"
