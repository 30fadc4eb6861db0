"""The memory that a run has of its data: names, the members of each part, and their fingerprints.

Data that come back are matched to it by name, and new data are read as it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.datasets.counts.anndata import CellFormat, CellSplits
from pyro_bvae.datasets.dataset import Dataset, joined
from pyro_bvae.datasets.labels import PARTS
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.splits import Splits

FORMAT = 1
# Rows of data larger than memory that have a fingerprint, and contexts that are kept.
_MOST_ROWS, _MOST_CONTEXTS = 1000, 100
_BLOCK = 4096
# Fingerprints that differ by less, in proportion, are alike; pictures are not decoded alike
# everywhere.
_TOLERANCE, _TOLERANCE_OF_PIXELS = 1e-6, 1e-3
_GOLDEN = 0.6180339887498949

Data = Dataset | LazyDataset


@dataclass(frozen=True, eq=False)
class Members:
    """The data of a part.

    Attributes:
        index: Which row of its source each datum is: numbers, or names, ``(N,)``.
        fingerprints: Those of all data, or, of data larger than memory, of some evenly spaced,
            ``(M,)``.
    """

    index: np.ndarray
    fingerprints: np.ndarray

    @classmethod
    def of(cls, data: Data) -> Members:
        """Return the members of a part."""
        rows = sampled(len(data), len(data) if isinstance(data, Dataset) else _MOST_ROWS)
        return cls(data.index, fingerprints(data, rows)[0])

    def changed(self, data: Data) -> int | None:
        """Return the number of the first datum that is not as it was; None for none."""
        rows = sampled(len(self.index), len(self.fingerprints))
        found, sizes = fingerprints(data, rows)
        allowed = _TOLERANCE if data.image_shape is None else _TOLERANCE_OF_PIXELS
        other = ~(np.abs(found - self.fingerprints) <= allowed * sizes + 1e-12)
        return int(rows[int(other.argmax())]) if other.any() else None


@dataclass(frozen=True, eq=False)
class DataRecord:
    """The properties of the data of a run, which outlive the data.

    Attributes:
        name: The name of the data.
        num_features: D.
        image_shape: ``(C, H, W)`` where the features are pixels.
        feature_names: D names, or none.
        label_names: The classes, or none.
        missing: Whether entries may be missing.
        num_categories: One more than the largest value of the training data in memory.
        contexts: The contexts of some of the test data; None for data without.
        cells: How cells are read; None for other data.
        parts: The members of each part.
    """

    name: str
    num_features: int
    image_shape: tuple[int, int, int] | None
    feature_names: tuple[str, ...]
    label_names: tuple[str, ...]
    missing: bool
    num_categories: int
    contexts: Context | None
    cells: CellFormat | None
    parts: Mapping[str, Members]

    @classmethod
    def of(cls, splits: Splits) -> DataRecord:
        """Return the record of the data of a run."""
        train, test = splits.train, splits.test
        some = test[:_MOST_CONTEXTS].context
        return cls(
            name=splits.name,
            num_features=train.num_features,
            image_shape=train.image_shape,
            feature_names=train.feature_names,
            label_names=train.label_names,
            missing=bool(getattr(train, "missing", False)),
            num_categories=num_categories(train),
            contexts=some,
            cells=splits.format if isinstance(splits, CellSplits) else None,
            parts={part: Members.of(data) for part, data in _parts(splits)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        simple = {**vars(self), "cells": None if self.cells is None else asdict(self.cells)}
        for name, values in (self.contexts or Context())._asdict().items():
            simple[name] = None if values is None else values.tolist()
        simple["parts"] = {
            part: {"index": own.index.tolist(), "fingerprints": own.fingerprints.tolist()}
            for part, own in self.parts.items()
        }
        del simple["contexts"]
        return {"format": FORMAT, **simple}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> DataRecord:
        """Return the record that JSON has.

        Raises:
            InputError: if a newer version of the package wrote it, or it is no record.
        """
        values = dict(saved)
        found = values.pop("format", None)
        if isinstance(found, int) and found > FORMAT:
            raise InputError(
                f"it was written by a newer version of pyro_bvae (format {found}; this one reads"
                f" up to {FORMAT}): upgrade pyro_bvae"
            )
        try:
            cells, shape = values["cells"], values["image_shape"]
            parts = {
                part: Members(np.array(own["index"]), np.array(own["fingerprints"], dtype=float))
                for part, own in values.pop("parts").items()
            }
            fields = [values.pop(name) for name in Context._fields]
            context = Context(*(None if each is None else torch.tensor(each) for each in fields))
            values["contexts"] = context if any(each is not None for each in fields) else None
            values["image_shape"] = None if shape is None else tuple(shape)
            for name in ("feature_names", "label_names"):
                values[name] = tuple(values[name])
            if cells is not None:
                values["cells"] = CellFormat(**{name: _tuples(own) for name, own in cells.items()})
            return cls(**values, parts=parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"it is no record of data: {error}") from error

    def matched(self, splits: Splits) -> Splits:
        """Return data that come back with the features and the members that they had.

        Raises:
            InputError: for other features or rows, with the first that differs.
        """
        names = [part for part, _ in _parts(splits)]
        parts = {part: self.features(data, exact=True) for part, data in _parts(splits)}
        if names == list(self.parts) and all(
            np.array_equal(parts[part].index, own.index) for part, own in self.parts.items()
        ):
            found = parts
        else:
            found = self._found(parts)
        chosen = {part: found.get(part) for part in PARTS}
        return replace(splits, **chosen)  # type: ignore[arg-type]

    def features(self, data: Data, *, exact: bool = False) -> Data:
        """Return data with the features in their order.

        Args:
            data: The data.
            exact: Refuse further features too.

        Raises:
            InputError: for other features, with the first that differs.
        """
        own, given = self.feature_names, data.feature_names
        if own and given and own != given and isinstance(data, Dataset):
            there = set(given)
            gone = [name for name in own if name not in there]
            more = [name for name in given if name not in set(own)]
            if gone or (exact and more):
                kind = f"feature '{gone[0]}' is not there" if gone else f"'{more[0]}' is new"
                raise InputError(
                    f"these are other features than those of the training: {kind}"
                    f" ({len(gone)} of {len(own)} are missing, {len(more)} are new)"
                )
            return in_order(data, own)
        if data.num_features != self.num_features or (
            self.image_shape is not None and data.image_shape not in (None, self.image_shape)
        ):
            raise InputError(
                f"the training data have {_sized(self.num_features, self.image_shape)}, got"
                f" {_sized(data.num_features, data.image_shape)}"
            )
        image_shape = self.image_shape or data.image_shape
        if isinstance(data, Dataset) and image_shape != data.image_shape:
            return replace(data, image_shape=image_shape)
        return data

    def classes(self, data: Data) -> Data:
        """Return data whose labels have the numbers of the run's classes, and of new ones after."""
        own, given = self.label_names, data.label_names
        if not isinstance(data, Dataset) or data.labels is None or not own or not given:
            return data
        names = (*own, *(name for name in given if name not in own))
        numbers = torch.tensor([names.index(name) for name in given], device=data.labels.device)
        return replace(data, labels=numbers[data.labels], label_names=names)

    def check(self, splits: Splits) -> None:
        """Raise unless the data of each part are those that they were.

        Raises:
            InputError: with the first datum that differs.
        """
        if self.label_names != splits.train.label_names:
            raise InputError(
                f"the classes were {listed(self.label_names)}, got"
                f" {listed(splits.train.label_names)}"
            )
        for part, data in _parts(splits):
            row = self.parts[part].changed(data)
            if row is not None:
                raise InputError(
                    f"{_named(self.parts[part].index[row])} of the {part} data is not as it was in"
                    " training: its values, its context or its label differ"
                )

    def part_of(self, data: Data) -> np.ndarray:
        """Return the part of the run in which each datum is: train, validation, test or new.

        Its label may be another one, or none.
        """
        result = np.full(len(data), "new", dtype="U10")
        if isinstance(data, LazyDataset):
            return result
        plain = replace(data, labels=None, label_names=())
        found, sizes = fingerprints(plain, np.arange(len(data)))
        columns = sum(
            part[:1].numel() for part in (data.x, *(data.context or ())) if part is not None
        )
        weight = float(_weights(columns + 1)[-1])
        labels = [*range(len(self.label_names))]
        if data.labels is not None and not labels:
            labels = data.labels.unique().tolist()
        allowed = _TOLERANCE if data.image_shape is None else _TOLERANCE_OF_PIXELS
        for part, own in self.parts.items():
            if len(own.index) != len(own.fingerprints):
                continue
            known = dict(zip(own.index.tolist(), own.fingerprints, strict=True))
            values = np.array([known.get(name, np.nan) for name in data.index.tolist()])
            for shift in (0.0, *(weight * label for label in labels)):
                result[np.abs(found + shift - values) <= allowed * (sizes + shift) + 1e-12] = part
        return result

    def _found(self, given: Mapping[str, Data]) -> dict[str, Data]:
        """Return the members of each part, wherever they are in the data that are given."""
        if not all(isinstance(data, Dataset) for data in given.values()):
            raise InputError("these are other rows than those of the training")
        whole = joined([data for data in given.values() if isinstance(data, Dataset)])
        known = np.concatenate([own.index for own in self.parts.values()])
        if whole.index.dtype.kind != known.dtype.kind:
            raise InputError(
                f"the rows of the training are known as {_named(known[0])}, got"
                f" {_named(whole.index[0])}"
            )
        where = {name: place for place, name in enumerate(whole.index.tolist())}
        gone = [name for name in known.tolist() if name not in where]
        more = set(where) - set(known.tolist())
        if gone or more:
            kind = (
                f"{_named(gone[0])} is not there" if gone else f"{_named(min(more))} is a new one"
            )
            raise InputError(
                f"these are other rows than those of the training: {kind} ({len(gone)} of"
                f" {len(known)} are missing, {len(more)} are new)"
            )
        if len(where) < len(whole) or len(set(known.tolist())) < len(known):
            raise InputError(
                "these are other rows than those of the training, and cannot be told apart by"
                " their numbers"
            )
        return {
            part: whole[torch.tensor([where[name] for name in own.index.tolist()])]
            for part, own in self.parts.items()
        }


def in_order(data: Dataset, names: Sequence[str]) -> Dataset:
    """Return data with the features of these names alone, in their order."""
    where = {name: place for place, name in enumerate(data.feature_names)}
    order = torch.tensor([where[name] for name in names], device=data.x.device)
    return replace(data, x=data.x[:, order], feature_names=tuple(names))


def num_categories(data: Data) -> int:
    """Return one more than the largest value of data in memory, and 2 of other data."""
    return int(torch.nan_to_num(data.x).max()) + 1 if isinstance(data, Dataset) else 2


def fingerprints(data: Data, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Return a number for each of some data, which changes with its values and their order.

    .. math:: h_n = \sum_d w_d x_{nd}, \quad w_d = 1 + (d g \bmod 1)

    with the golden ratio g, over the values, the context and the label.

    Args:
        data: The data.
        rows: Their numbers, ``(M,)``.

    Returns:
        The numbers, ``(M,)``, and those of the absolute values, by which differences are judged.
    """
    numbers, sizes = [], []
    for start in range(0, len(rows), _BLOCK):
        some = data[torch.from_numpy(rows[start : start + _BLOCK])].dense()
        context = [part for part in some.context or () if part is not None]
        labels = [] if some.labels is None else [some.labels.unsqueeze(1)]
        columns = [each.double().cpu() for each in (some.x, *context, *labels)]
        values = torch.cat(columns, 1).nan_to_num(-1.5)
        weights = _weights(values.shape[1])
        numbers.append(values @ weights)
        sizes.append(values.abs() @ weights)
    return _array(numbers), _array(sizes)


def _weights(count: int) -> Tensor:
    return 1 + (torch.arange(1, count + 1, dtype=torch.double) * _GOLDEN) % 1


def _tuples(value: Any) -> Any:
    """Return lists of JSON as tuples, of whichever depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _array(blocks: list[Tensor]) -> np.ndarray:
    return torch.cat(blocks).numpy() if blocks else np.empty(0)


def sampled(total: int, most: int) -> np.ndarray:
    """Return the numbers of so many data, evenly spaced."""
    return np.linspace(0, total - 1, min(total, most)).astype(np.int64)


def _parts(splits: Splits) -> Iterator[tuple[str, Data]]:
    for part in PARTS:
        data = getattr(splits, part)
        if data is not None:
            yield part, data


def _named(name: Any) -> str:
    """Return a row in words: rows of a file are counted from 1."""
    return f"row '{name}'" if isinstance(name, str) else f"row {int(name) + 1}"


def _sized(count: int, shape: tuple[int, int, int] | None) -> str:
    image = "" if shape is None else f", images of {shape[1]} x {shape[2]} pixels"
    return f"{count} features{image}"
