"""The kinds of values that an annotation admits, and the conversions whose meaning is plain."""

from __future__ import annotations

import builtins
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.inputs.data import (
    MISMATCH,
    Values,
    as_numbers,
    as_tensor,
    is_abstract,
    is_array,
    listing,
    shown,
)

#: The largest count that an argument may be; seeds have no limit.
LARGEST_COUNT = 10**9
# The ranges of arguments whose functions say them too.
_RANGES = {
    "seed": "a non-negative integer",
    "beta": "non-negative and finite",
    "training_beta": "non-negative and finite",
}


# Functions whose class is often given in their place: NormalNoise for NormalNoise(0.1).
_PARTS = frozenset(
    [
        "prior",
        "decoder",
        "encoder",
        "operator",
        "noise",
        "method",
        "holes",
        "signal",
        "proposal",
        "make_untrained",
    ]
)


@dataclass(frozen=True)
class Kind:
    """The values that an annotation admits.

    Args:
        words: The kind, as it ends "must be".
        convert: From a value to one of the kind, or to ``MISMATCH``.
    """

    words: str
    convert: Callable[[Any], Any]

    def check(self, name: str, value: Any) -> Any:
        """Return a value as one of this kind.

        Raises:
            InputError: naming the argument, if it is none.
        """
        from pyro_bvae.core.errors import InputError

        result, is_whole = self.convert(value), "integer" in self.words
        if result is MISMATCH:
            words = _RANGES.get(name, self.words)
            raise InputError(f"'{name}' must be {words}, got {shown(value)}")
        if type(result) is int and result > LARGEST_COUNT and is_whole and name != "seed":
            raise InputError(f"'{name}' must be at most {LARGEST_COUNT:,}, got {shown(value)}")
        return result


def kinds_of(function: Callable[..., Any]) -> dict[str, Kind]:
    """Return the kind of each argument of a function whose annotation says one."""
    variables: dict[str, Any] = function.__globals__  # type: ignore[attr-defined]
    names, kinds = _Names(variables), {}
    for name, parameter in inspect.signature(function).parameters.items():
        if (text := parameter.annotation) is parameter.empty:
            continue
        kind = _kind(eval(text, variables, names) if isinstance(text, str) else text)
        if kind is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if function.__name__ == "__init__" and not kind.words.startswith("a sequence"):
            # Classes say by themselves which values they take.
            kind = replace(kind, convert=functools.partial(_or_itself, kind))
        elif kind is _PLAIN[int] and isinstance(parameter.default, int) and parameter.default > 0:
            kind = replace(kind, words="a positive integer")
        if name == "device" and not function.__module__.startswith("pyro_bvae.runs"):
            kind = Kind("a device that torch can use here, such as 'cpu'", _device)
        if name in _PARTS:
            kind = replace(kind, convert=functools.partial(_made, kind))
        kinds[name] = kind
    return kinds


class _Names(dict[str, Any]):
    """The names of annotations that are imported for type checkers alone."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = known

    def __missing__(self, name: str) -> Any:
        if name in self.known or hasattr(builtins, name):
            raise KeyError(name)  # the evaluation goes on to look there
        return _Named(name)


@dataclass(frozen=True)
class _Named:
    """A class that is known by its name, since its library is imported on first use."""

    name: str

    def __getattr__(self, name: str) -> _Named:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name)

    def __getitem__(self, item: Any) -> _Named:
        return self

    def __or__(self, other: Any) -> Any:
        return typing.Any

    __ror__ = __or__

    def convert(self, value: Any) -> Any:
        names = {kind.__name__ for kind in type(value).__mro__}
        return value if self.name in names else MISMATCH


def _kind(annotation: Any) -> Kind | None:
    """Return the kind of an annotation, or None where any value will do."""
    if isinstance(annotation, _Named):
        return Kind(_a(annotation.name), annotation.convert)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind, words = _kind(arguments[0]), arguments[1]
        return replace(kind, words=words) if kind and isinstance(words, str) else kind
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin is typing.Literal:
        words = " or ".join(map(repr, arguments))
        return Kind(words, lambda value: _among(arguments, value))
    return _class(annotation if origin is None else origin, arguments)


def _class(kind: Any, arguments: tuple[Any, ...]) -> Kind | None:
    """Return the kind of a class, an abstract one, a protocol."""
    if kind in (tuple, list, Sequence):
        return _sequence(kind, arguments)
    if kind in (Callable, os.PathLike):
        words, fits = ("a function", callable) if kind is Callable else ("a path", _is_path)
        return Kind(words, lambda value: value if fits(value) else MISMATCH)
    if not inspect.isclass(kind) or kind in (object, typing.Any, Iterable):
        return None
    if kind.__name__ in ("BetaVAE", "VAE"):  # a person's own module will do
        return Kind("a model such as a BetaVAE", _vae)
    if getattr(kind, "_is_protocol", False):
        names = [name for name in vars(kind) if name == "__call__" or not name.startswith("_")]
        fits = functools.partial(_has, names)
        return Kind(_a(kind.__name__), lambda value: _part(value, fits(value))) if names else None
    words = {"Module": "a module", "Mapping": "a mapping"}.get(kind.__name__, _a(kind.__name__))
    return Kind(words, functools.partial(_instance, kind))


def _union(members: tuple[Any, ...]) -> Kind | None:
    kinds = [_kind(member) for member in members]
    known = [kind for kind in kinds if kind is not None]
    # A function that takes data sets reads tables by itself, as its model wants them.
    reads_tables = Tensor in members and "a Dataset" in {kind.words for kind in known}
    if len(known) < len(kinds) or reads_tables:
        return None

    def convert(value: Any) -> Any:
        results = (kind.convert(value) for kind in known)
        return next((result for result in results if result is not MISMATCH), MISMATCH)

    return Kind(" or ".join(dict.fromkeys(kind.words for kind in known)), convert)


def _sequence(kind: type, arguments: tuple[Any, ...]) -> Kind | None:
    """Return the kind of a sequence of one kind of values, or None if they may be any."""
    members = [member for member in arguments if member is not Ellipsis]
    inner = [_kind(member) for member in members]
    if kind is tuple and inner and None not in inner and Ellipsis not in arguments:
        known = typing.cast("list[Kind]", inner)
        words = f"({', '.join(each.words.partition(' ')[2] or each.words for each in known)})"
        return Kind(words, lambda value: _entries(known, value))
    if not inner or None in inner:
        return None
    each = typing.cast("Kind", inner[0])
    words = f"a sequence of {each.words.partition(' ')[2] or each.words}s"
    return Kind(words, lambda value: _items(kind, each, value))


def _entries(kinds: list[Kind], value: Any) -> Any:
    """Return a sequence of as many entries as there are kinds, each converted, as a tuple."""
    value = listing(value)
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return MISMATCH
    entries = tuple(kind.convert(entry) for kind, entry in zip(kinds, value, strict=True))
    return MISMATCH if any(entry is MISMATCH for entry in entries) else entries


def _items(kind: type, each: Kind, value: Any) -> Any:
    """Return a sequence with its items converted, or itself where there is nothing to convert."""
    value = listing(value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | dict):
        return MISMATCH
    if isinstance(value, set | dict):
        value = list(value)
    items = [each.convert(item) for item in value]
    if any(item is MISMATCH for item in items):
        return MISMATCH
    if all(new is old for new, old in zip(items, value, strict=True)) and (
        kind is Sequence or isinstance(value, kind)
    ):
        return value
    return tuple(items) if kind is not list else items


def _instance(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else MISMATCH


def _made(kind: Kind, value: Any) -> Any:
    return _part(kind.convert(value), not isinstance(value, type))


def _has(names: list[str], value: Any) -> bool:
    return all(hasattr(value, name) for name in names)


def _part(value: Any, fits: bool) -> Any:
    """Return an object that fits, unless it is a class in the place of its instance."""
    return value if fits and not isinstance(value, type) else MISMATCH


def _vae(value: Any) -> Any:
    names = ("model", "guide", "decoder", "encoder", "parameters")
    return _part(value, all(callable(getattr(value, name, None)) for name in names))


def _among(choices: tuple[Any, ...], value: Any) -> Any:
    return value if any(type(value) is type(one) and value == one for one in choices) else MISMATCH


def _integer(value: Any) -> Any:
    """Return an integer of NumPy or torch as one of Python."""
    item = _item(value) if is_array(value) else value
    return int(item) if isinstance(item, Integral) and not isinstance(item, bool) else MISMATCH


def _or_itself(kind: Kind, value: Any) -> Any:
    """Return a value as one of a kind, or as it is."""
    result = kind.convert(value)
    return value if result is MISMATCH else result


def _number(value: Any) -> Any:
    if isinstance(value, Real):
        if type(value) in (float, int, bool):
            return value
        # Numbers of NumPy turn a tensor into an array; and a count and a share are two things.
        return int(value) if isinstance(value, Integral) else float(value)
    item = _item(value)
    return item if isinstance(item, Real) else MISMATCH


def _flag(value: Any) -> Any:
    item = _item(value) if is_array(value) or type(value).__name__ == "bool_" else value
    return bool(item) if isinstance(item, bool | int) and item in (0, 1) else MISMATCH


def _item(value: Any) -> Any:
    """Return the one number of an array without dimensions."""
    fits = is_array(value) and value.ndim == 0 and not is_abstract(value)
    return value.item() if fits else MISMATCH


def _text(value: Any) -> Any:
    if isinstance(value, torch.device):
        return str(value)
    return value if isinstance(value, str) and "\0" not in value else MISMATCH


def _tensor(value: Any) -> Any:
    """Return a tensor with its gradient, if it has one, and all its entries."""
    tensor = as_tensor(value)
    if tensor is MISMATCH or tensor.is_complex() or is_abstract(tensor):
        return MISMATCH
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _device(value: Any) -> Any:
    """Return the name of a device that there is, or None."""
    try:
        torch.empty(1, device=value)
    except (RuntimeError, AssertionError, TypeError):
        return MISMATCH
    return None if value is None else str(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike)


def _path(value: Any) -> Any:
    fits = isinstance(value, str | os.PathLike) and str(value) and "\0" not in str(value)
    return Path(value) if fits else MISMATCH


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"


_PLAIN: dict[Any, Kind] = {
    bool: Kind("True or False", _flag),
    int: Kind("an integer", _integer),
    float: Kind("a number", _number),
    str: Kind("a string", _text),
    None: Kind("None", functools.partial(_instance, type(None))),
    type(None): Kind("None", functools.partial(_instance, type(None))),
    Path: Kind("a path", _path),
    Tensor: Kind("a tensor of real numbers", _tensor),
    Values: Kind("finite numbers", as_numbers),
}
