"""Wrong values at every public door: ``python -m tests.reliability.doors [NAME ...]``.

The table is generated from the public names, the annotations of their arguments, and one right call
of each (``RIGHT``). A row passes if the call returns the numbers of the right one, or raises one
:class:`~pyro_bvae.InputError` of one line.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import math
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor, nn

import pyro_bvae
from pyro_bvae import BetaVAE, InputError
from pyro_bvae.core.atomic_files import WriteError
from pyro_bvae.datasets import Dataset, Splits
from tests.reliability.right_calls import RIGHT, Workshop

ROOT = Path(pyro_bvae.__file__).parent
ROOMS = ("", "datasets", "evaluation", "latents", "plots", "posteriors", "report", "runs",
         "training")  # fmt: skip
SECONDS, CHARACTERS = 5, 1000
# Functions without a right call: downloads, process groups, and functions of no argument.
EXCEPT = {
    "mnist",
    "fashion_mnist",
    "kmnist",
    "process_group",
    "available",
    "reparametrize",
    "fisher_rao",
    "local_posterior",
}
SAME = object()


class Row(NamedTuple):
    """One wrong value at one argument of a public function.

    Attributes:
        name: The function.
        argument: The argument.
        label: The wrong value in words.
        value: The wrong value.
        twin: A value whose numbers are to be returned in its place, the right one by default.
    """

    name: str
    argument: str
    label: str
    value: Any
    twin: Any = SAME

    def __str__(self) -> str:
        return f"{self.name}({self.argument}={self.label})"


def public_functions() -> dict[str, Callable[..., Any]]:
    """Return the public functions of the rooms by name; a second of a name with its room."""
    found: dict[str, Callable[..., Any]] = {}
    for room in ROOMS:
        for stub in (
            sorted((ROOT / room).rglob("__init__.pyi")) if room else [ROOT / "__init__.pyi"]
        ):
            package = ".".join(("pyro_bvae", *stub.parent.relative_to(ROOT).parts))
            for node in ast.parse(stub.read_text(encoding="utf-8")).body:
                for alias in getattr(node, "names", ()):
                    value = getattr(import_module(package), alias.asname or alias.name)
                    if inspect.isfunction(value):
                        same = found.get(alias.name, value) is value
                        found[alias.name if same else f"{room}.{alias.name}"] = value
    named = {f"vae.{name}": getattr(BetaVAE, name) for name in Workshop.methods}
    return {name: f for name, f in {**found, **named}.items() if name not in EXCEPT}


FUNCTIONS = public_functions()


# -- wrong values ---------------------------------------------------------------------------------


class Odd:
    """An object of no use."""


def counts(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    number = right if isinstance(right, int) else 2
    yield from (
        ("text", str(number)),
        ("a negative", -3),
        ("a fraction", 2.5),
        ("a list", [number]),
    )
    yield from (("NaN", math.nan), ("infinity", math.inf), ("an object", Odd()))
    yield from (("far too many", 10**15), ("an array", np.array([number, number])))
    if isinstance(right, int) and not isinstance(right, bool):
        yield from (
            ("of NumPy", np.int64(number), number),
            ("a tensor", torch.tensor(number), number),
        )
    if not optional:
        yield "None", None


def numbers(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("text", "0.5"), ("NaN", math.nan), ("a list", [0.5]), ("an object", Odd()))
    yield from (("an array", np.ones(2)), ("a complex", 1j))
    if isinstance(right, float):
        yield "of NumPy", np.float64(right), right
        yield "a tensor", torch.tensor(right, dtype=torch.double), right
    if not optional:
        yield "None", None


def flags(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("text", "yes"), ("a list", []), ("an object", Odd()), ("two", 2))
    if isinstance(right, bool):
        yield "of NumPy", np.bool_(right), right
    if not optional:
        yield "None", None


def texts(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("a number", 5), ("a list", ["a"]), ("bytes", b"a"), ("an object", Odd()))
    yield from (("a line break", "no\nsuch\nname"), ("a long one", "long" * 10_000))
    if not optional:
        yield "None", None


def paths(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("a number", 5), ("a list", ["a"]), ("bytes", b"a"), ("an object", Odd()))
    yield from (
        ("nothing there", "nowhere/at/all"),
        ("NUL", "a\0b"),
        ("a long one", "long" * 2_000),
        ("below a file", "a file/b"),
    )
    if isinstance(right, str | Path):
        yield from (("text", str(right), right), ("a path", Path(right), right))
    if not optional:
        yield "None", None


def data(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("text", "data"), ("a dict", {"x": 1}), ("an object", Odd()), ("a number", 3.5))
    yield from (("a class", Dataset), ("text in an array", np.array([["a", "b"], ["c", "d"]])))
    yield from (("ragged", [[1.0, 2.0], [3.0]]), ("an empty list", []), ("a generator", iter([1])))
    yield "objects", np.array([[Odd(), None]], dtype=object)
    if not optional:
        yield "None", None
    x = torch.as_tensor(right.x if isinstance(right, Dataset) else right)
    whole = x if x.dim() else x[None]
    array = whole.detach().numpy()
    kept: Any = whole if isinstance(right, Dataset) else right
    yield from (("an array", array, kept), ("of doubles", whole.to(torch.double), kept))
    yield from (("big-endian", array.astype(array.dtype.newbyteorder(">")), kept),)
    yield from (("a gradient", whole.clone().float().requires_grad_(), whole.float()),)
    yield from (("a list of numbers", array.tolist(), kept), ("sparse", whole.to_sparse(), kept))
    yield from (("complex", whole + 1j), ("without storage", whole.to("meta")))
    yield "backwards", array[::-1], whole.flip(0)
    yield "masked", np.ma.masked_array(array), kept
    yield from (("no data", whole[:0]), ("one datum", whole[0]))
    yield from (
        ("integers", whole.long(), whole.long().float()),
        ("booleans", whole > 0, (whole > 0).float()),
    )
    yield "infinity", whole.float().masked_fill(torch.ones_like(whole, dtype=torch.bool), math.inf)
    if whole.dim() == 2:
        yield "a table", pd.DataFrame(array), kept
        yield "a table of text", pd.DataFrame({"a": ["b"]})
        yield "of SciPy", scipy.sparse.csr_matrix(array), kept
        yield "no features", whole[:, :0]
        yield "one feature more", torch.cat([whole, whole[:, :1]], 1)
        if whole.shape[1] % 2 == 0:
            yield "images", whole.reshape(len(whole), 1, 2, -1), kept
            yield "two of them", torch.stack([whole, whole])
    if isinstance(right, Dataset):
        yield "splits", Splits(right, None, right, "both")


def modules(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("a class", BetaVAE), ("another module", nn.Linear(4, 2)), ("text", "vae"))
    yield from (("a tensor", torch.zeros(3, 4)), ("an object", Odd()), ("a number", 3))
    yield "a function of another kind", len
    if not optional:
        yield "None", None


def sequences(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("a number", 5), ("text", "a"), ("objects", [Odd()]), ("an object", Odd()))
    yield from (("Nones", [None]), ("bytes", b"a"))
    if isinstance(right, list | tuple) and right:
        yield "a list", list(right), right
        if isinstance(right[0], int | float):
            yield "an array", np.array(right), right
            yield "a tensor", torch.tensor(right), right
    if not optional:
        yield "None", None


def functions(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("a number", 5), ("text", "a"), ("an object", Odd()))
    if not optional:
        yield "None", None


def objects(right: Any, optional: bool) -> Iterator[tuple[Any, ...]]:
    yield from (
        ("a number", 5),
        ("text", "a"),
        ("a dict", {}),
        ("an object", Odd()),
        ("a list", []),
    )
    if isinstance(right, object) and right is not None and not inspect.isfunction(right):
        yield "a class", type(right)
    if not optional:
        yield "None", None


_DATA = {"data", "x", "y", "z", "real", "samples", "codes", "factors", "images", "means", "points"}
_DATA |= {"held_out", "validation", "observations", "truths", "inside", "outside", "values", "kl"}
_DATA |= {"first", "second", "labels", "weight"}


# Values that are no mistake here: a seed may be large, and codes may have any leading shape.
_STRANGE = ("another module", "a function of another kind")
_MEANT: set[tuple[str, ...]] = {("seed", "far too many")}
_MEANT |= {("factor_classes", "factors", label) for label in ("no data", "infinity")}
_MEANT |= {("from_factors", "images", label) for label in ("one feature more", "images")}
_MEANT |= {("codes", "one feature more"), ("factors", "one feature more")}
_MEANT |= {("with_beta", "data", "one feature more"), ("check_during", "rows", "a list")}
_MEANT |= {("with_beta", "data", "two of them")}
_MEANT |= {("check_before", "x", label) for label in ("infinity", "two of them")}
_MEANT |= {("audit", name, label) for name in ("model", "guide") for label in _STRANGE}
_MEANT |= {("audit", "args", "one feature more")}
_MEANT |= {(name, "args", "two of them") for name in ("evaluate", "inference_gaps")}
_MEANT |= {
    ("invert", "noise", "a number"),
    ("calibrate", "noise", "a number"),
    ("start_chains", "y", "no data"),
}
_MEANT |= {("is_sweep", "directory", label) for label in ("nothing there", "below a file")}
_MEANT |= {("predictive_check", "statistics", label) for label in ("a dict", "a list")}
_MEANT |= {("rank_correlation", name, "one feature more") for name in ("first", "second")}
_MEANT |= {("score", "data", "None"), ("stacking_weights", "log_densities", "one feature more")}
_MEANT |= {("start_chains", "y", "one datum"), ("render_sprites", "factors", "no data")}
_MEANT |= {("vae.decode", "z", label) for label in ("no data", "one datum", "two of them")}


def kind_of(argument: str, annotation: str) -> Callable[[Any, bool], Iterator[tuple[Any, ...]]]:
    """Return the wrong values for an argument, by its annotation and its name."""
    plain = annotation.replace(" | None", "").strip("'")
    table = {"int": counts, "float": numbers, "bool": flags, "str": texts}
    if argument in ("vae", "model", "guide"):
        return modules
    if plain in table:
        return table[plain]
    if "Path" in plain:
        return paths
    if plain in ("Tensor", "Values", "Data") or (
        argument in _DATA and not plain.startswith(("Callable", "Sequence"))
    ):
        return data
    if plain.startswith(("Sequence", "tuple")):
        return sequences
    if plain.startswith("Callable"):
        return functions
    if "float" in plain:
        return numbers
    return objects


def rows_of(name: str, workshop: Workshop) -> Iterator[Row]:
    """Yield the rows of a public function."""
    function = FUNCTIONS[name]
    signature = inspect.signature(function)
    given = bound(name, workshop)
    for argument, parameter in signature.parameters.items():
        if argument == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        annotation = str(parameter.annotation)
        optional = "None" in annotation
        if parameter.kind is parameter.VAR_POSITIONAL:
            if not isinstance(next(iter(given.arguments.get(argument, ())), None), Tensor):
                continue
            right, wrong = given.arguments[argument][0], data
        else:
            right = given.arguments.get(argument, parameter.default)
            wrong = kind_of(argument, annotation)
            if wrong is data and not isinstance(right, Tensor | np.ndarray | Dataset | list):
                wrong = objects
        for label, value, *twin in wrong(right, optional):
            is_meant = (argument, label) in _MEANT or (name, argument, label) in _MEANT
            yield Row(name, argument, label, value, *([value] if is_meant else twin))
    if "guide" in signature.parameters:
        vae = workshop.vae
        yield Row(name, "model, guide", "a module of both", (vae,))
        yield Row(name, "model, guide", "a module twice", (vae, vae))
        yield Row(name, "model, guide", "the model alone", (vae.model,), SAME)
        if name != "audit":  # which reports them
            unbound = BetaVAE.model, BetaVAE.guide
            yield Row(name, "model, guide", "functions of a class", unbound)


# -- calls ----------------------------------------------------------------------------------------


def bound(name: str, workshop: Workshop) -> inspect.BoundArguments:
    """Return the arguments of the right call of a function."""
    args, kwargs = RIGHT[name](workshop)
    return inspect.signature(FUNCTIONS[name]).bind(*args, **kwargs)


def call(name: str, workshop: Workshop, argument: str = "", value: Any = None) -> Any:
    """Call a function rightly, or with one value in the place of the right one."""
    given = bound(name, workshop)
    if argument == "model, guide":
        return FUNCTIONS[name](*value, *given.args[2:], **given.kwargs)
    if argument:
        parameter = given.signature.parameters[argument]
        if parameter.kind is parameter.VAR_POSITIONAL:
            value = (value, *given.arguments[argument][1:])
        given.arguments[argument] = value
    return FUNCTIONS[name](*given.args, **given.kwargs)


def flat(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the numbers and texts of a result."""
    if isinstance(value, Tensor):
        yield value.detach().double().numpy() if value.numel() else np.zeros(0)
    elif isinstance(value, np.ndarray | pd.DataFrame | pd.Series):
        yield np.asarray(value)
    elif dataclasses.is_dataclass(value) and depth < 6:
        for field in dataclasses.fields(value):
            if not field.name.startswith("seconds"):
                yield from flat(getattr(value, field.name), depth + 1)
    elif isinstance(value, Mapping):
        for key in value:
            if key != "seconds":
                yield from flat(value[key], depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from flat(part, depth + 1)
    elif isinstance(value, nn.Module):
        yield from (parameter.detach().double().numpy() for parameter in value.parameters())
    elif isinstance(value, float | int | str):
        yield value


def equal(one: Any, other: Any) -> bool:
    """Whether two results hold the same numbers, to the rounding of float32."""
    left, right = list(flat(one)), list(flat(other))
    if type(one).__name__ == "Figure" or len(left) != len(right):
        return type(one) is type(other) and len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        numeric = all(np.asarray(part).dtype.kind in "biuf" for part in (a, b))
        if numeric and not (
            np.shape(a) == np.shape(b)
            and np.allclose(np.asarray(a, float), np.asarray(b, float), 1e-4, 1e-6, equal_nan=True)
        ):
            return False
    return True


class TooSlow(BaseException):
    """A row took longer than it may."""


def _stop(*_: Any) -> None:
    raise TooSlow


def outcome(row: Row, workshop: Workshop, seconds: float = SECONDS) -> tuple[str, str]:
    """Return ``same``, ``refused``, or the fault of a row, with its message."""
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call(row.name, workshop, row.argument, row.value)
    except (InputError, WriteError) as error:
        text = str(error)
        short = "\n" not in text and len(text) <= CHARACTERS
        return ("refused" if short else "long"), text
    except TooSlow:
        return "slow", f"{seconds} s"
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if row.twin is SAME:
            expected = call(row.name, workshop)
        else:
            try:
                expected = call(row.name, workshop, row.argument, row.twin)
            except InputError as error:
                return "other", f"accepted, where its twin is refused: {error}"
    try:
        is_same = equal(result, expected)
    except TypeError:  # a result that has no numbers
        is_same = False
    return ("same", "") if is_same else ("other", repr(result)[:200])


def main(names: list[str]) -> int:
    """Print the rows that fail, and the counts; return the number of failures."""
    counts_of, started = Counter[str](), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir("."):
        workshop = Workshop(Path(folder))
        for name in names or sorted(FUNCTIONS):
            for row in rows_of(name, workshop):
                verdict, text = outcome(row, workshop)
                counts_of[verdict] += 1
                if verdict not in ("same", "refused"):
                    print(f"{verdict:<6}{row}: {' '.join(text.split())[:200]}", flush=True)
    print(dict(counts_of), f"of {counts_of.total()} rows in {time.perf_counter() - started:.0f} s")
    return counts_of.total() - counts_of["same"] - counts_of["refused"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
