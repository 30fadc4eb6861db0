"""Results in the latent space, and their files: ``.npz`` of arrays, ``.csv`` of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError

#: Endings of files that hold numbers.
SUFFIXES = (".npz", ".csv")

# Text at whose beginning a spreadsheet sees a formula, and text that is a number.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

Array = np.ndarray[Any, np.dtype[Any]]


def check_suffix(path: Path, known: Sequence[str]) -> None:
    """Raise unless a file's name ends as one of those that can be written.

    Raises:
        InputError: with the path and its possible endings.
    """
    if path.suffix.lower() not in known:
        raise InputError(f"'output' must end in {' or '.join(known)}, got {path}")


def as_arrays(named: Mapping[str, Tensor | Sequence[Any] | None]) -> dict[str, Array]:
    """Return tensors and sequences as arrays by name, without those that are None or empty."""
    arrays = {
        name: values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        for name, values in named.items()
        if values is not None
    }
    return {name: array for name, array in arrays.items() if array.size}


def columns_of(names: str | Sequence[str], matrix: Array) -> dict[str, Array]:
    """Return the columns of a matrix ``(N, C)`` by name: ``z0``, ``z1``, ... for the name ``z``."""
    listed = [f"{names}{i}" for i in range(matrix.shape[1])] if isinstance(names, str) else names
    return {name: matrix[:, i] for i, name in enumerate(listed)}


def write_numbers(
    path: str | Path, arrays: Mapping[str, Array], columns: Callable[[], Mapping[str, Array]]
) -> None:
    """Write arrays to an ``.npz``, or columns of one length to a ``.csv``, whole or not at all.

    Names and labels in a ``.csv`` that a spreadsheet would take for a formula, such as ``=1+1``,
    begin with an apostrophe.

    Args:
        path: Where to, in a directory that is made if it is not there.
        arrays: The contents of an ``.npz``.
        columns: Returns the contents of a ``.csv``.

    Raises:
        InputError: if the path ends in neither.
    """
    import pandas as pd

    path = Path(path)
    check_suffix(path, SUFFIXES)
    if path.suffix.lower() == ".npz":
        with making(path.parent), atomic_write(path, "wb") as stream:
            np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
    else:
        texts = {_as_text(name): _as_texts(values) for name, values in columns().items()}
        with making(path.parent), atomic_write(path) as stream:
            pd.DataFrame(texts).to_csv(stream, index=False, lineterminator="\n")


def _as_texts(values: Array) -> Any:
    """Return a column whose texts are no formulas."""
    if values.dtype.kind not in "OUS":
        return values
    return [_as_text(value) if isinstance(value, str) else value for value in values.tolist()]


def _as_text(text: str) -> str:
    """Return a text that a spreadsheet takes for a text, or for a number, in one cell."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # which is put in quotes everywhere
    formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


@dataclass(frozen=True, eq=False)
class Traversal:
    """The decoder's output at a code of which one latent after another is moved.

    Attributes:
        latents: Index of each of the R latents moved.
        values: The values that each of them is given, shape ``(R, S)``.
        z: The codes, shape ``(R, S, L)``.
        x: The decoder's means at the codes, shape ``(R, S, D)``.
        kl: KL between guide and prior of each of them, mean over the data in nats, shape ``(R,)``;
            None without data, or where guide or prior is no product of dimensions.
        feature_names: D names, or none.
    """

    latents: tuple[int, ...]
    values: Tensor
    z: Tensor
    x: Tensor
    kl: Tensor | None = None
    feature_names: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz``, or to a ``.csv`` with a row for each latent and step."""
        arrays = as_arrays(
            {name: getattr(self, name) for name in ("latents", "values", "z", "x", "kl")}
        )
        write_numbers(path, arrays, lambda: self._columns(arrays))

    def _columns(self, arrays: dict[str, Array]) -> dict[str, Array]:
        latent = np.repeat(arrays["latents"], self.values.shape[1])
        both = _codes_and_data(arrays, self.feature_names)
        return {"latent": latent, "value": arrays["values"].ravel(), **both}


@dataclass(frozen=True, eq=False)
class Interpolation:
    """The decoder's output at the codes between one datum and another, for P pairs.

    Attributes:
        start: The data at the beginning, shape ``(P, D)``.
        end: The data at the end, shape ``(P, D)``.
        z: The codes, shape ``(P, S, L)``; the first and the last are those of the two data.
        x: The decoder's means at the codes, shape ``(P, S, D)``.
        feature_names: D names, or none.
    """

    start: Tensor
    end: Tensor
    z: Tensor
    x: Tensor
    feature_names: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz``, or to a ``.csv`` with a row for each pair and step."""
        arrays = as_arrays({name: getattr(self, name) for name in ("start", "end", "z", "x")})
        write_numbers(path, arrays, lambda: self._columns(arrays))

    def _columns(self, arrays: dict[str, Array]) -> dict[str, Array]:
        pair, step = np.indices(arrays["z"].shape[:2])
        both = _codes_and_data(arrays, self.feature_names)
        return {"pair": pair.ravel(), "step": step.ravel(), **both}


@dataclass(frozen=True, eq=False)
class Embedding:
    """The codes of N data, with their labels and factors.

    Attributes:
        means: Posterior means of the latents, shape ``(N, L)``.
        scales: Posterior standard deviations, shape ``(N, L)``, or None.
        labels: Class of each datum, shape ``(N,)``, or None.
        factors: Ground-truth factors, shape ``(N, F)``, or None.
        label_names: The name of each class, or none.
        factor_names: F names, or none.
        index: Which row of its source each datum is, numbers or names, ``(N,)``, or None.
        split: The part of each datum, ``(N,)``, or None.
    """

    means: Tensor
    scales: Tensor | None = None
    labels: Tensor | None = None
    factors: Tensor | None = None
    label_names: tuple[str, ...] = ()
    factor_names: tuple[str, ...] = ()
    index: Array | None = None
    split: Array | None = None

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` with the names above, or to a ``.csv``; any other ending raises.

        A ``.csv`` has the columns ``index``, ``split``, ``z0``, ``z1``, ..., ``scale0``, ...,
        ``label``, ``label_name`` and the factors' names, as far as they are known.
        """
        arrays = as_arrays(vars(self))
        write_numbers(path, arrays, lambda: self._columns(arrays))

    def joined(self, other: Embedding) -> Embedding:
        """Return the codes of these data and of others, which have the same companions."""

        def both(name: str) -> Any:
            own, theirs = getattr(self, name), getattr(other, name)
            if own is None or theirs is None:
                return None
            return torch.cat([own, theirs]) if isinstance(own, Tensor) else np.append(own, theirs)

        names = ("means", "scales", "labels", "factors", "index", "split")
        return replace(self, **{name: both(name) for name in names})

    def _columns(self, arrays: dict[str, Array]) -> dict[str, Array]:
        known = ("index", "split")
        columns: dict[str, Array] = {name: arrays[name] for name in known if name in arrays}
        columns |= columns_of("z", arrays["means"])
        if self.scales is not None:
            columns |= columns_of("scale", arrays["scales"])
        if self.labels is not None:
            columns["label"] = arrays["labels"]
            if self.label_names:
                columns["label_name"] = arrays["label_names"][arrays["labels"]]
        if self.factors is not None:
            columns |= columns_of(self.factor_names or "factor", arrays["factors"])
        return columns


def _codes_and_data(arrays: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """Return the columns of codes ``(R, S, L)`` and data ``(R, S, D)``."""
    z, x = (arrays[name].reshape(-1, arrays[name].shape[-1]) for name in ("z", "x"))
    return {**columns_of("z", z), **columns_of(names or "x", x)}
