"""Data that become dense only in the batch: a sparse matrix, or a file larger than memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_bytes
from pyro_bvae.datasets.blocks import groups, read_ahead
from pyro_bvae.datasets.counts.checks import check_sparse
from pyro_bvae.datasets.dataset import Dataset, Index
from pyro_bvae.datasets.seeds import ORDER_STREAM, stream_generator

# Numbers that are made dense at a time, 40 MB in float32.
_MOST_NUMBERS = 10_000_000


class LazyDataset:
    """N data whose rows are looked up in a table, and made dense, only when a batch asks for them.

    It is a :class:`Dataset` of row numbers with a table to look them up in, so that indexing, order
    and companions are those of a :class:`Dataset` of the same data, and training on either gives
    the same weights. Evaluation takes all its data at once: give it some, made :meth:`dense`.

    Args:
        table: Any object of shape ``(N, D)`` whose rows ``table[numbers]`` are an array or a SciPy
            sparse matrix: a SciPy CSR matrix, an array, ``np.load(file, mmap_mode="r")``, a matrix
            in an open HDF5 file, or an ``AnnData``, backed or not. It is asked for rows in
            increasing order and without repeats. One with an attribute ``rows_at_once`` is asked
            for so many at a time, by a thread, ahead of the batches; where it has more rows, blocks
            of neighbours are shuffled and then the rows of so many of them.
        context: Observed and not modelled, N rows.
        labels: Class of each datum, long, shape ``(N,)``.
        factors: Ground-truth factors, shape ``(N, F)``.
        factor_names: F names, or none.
        label_names: The name of each class, or none.
        feature_names: D names, or none.
        index: Which row of its source each datum is, numbers or names, ``(N,)``.
        dtype: Floating type of the batches.

    Attributes:
        table: The table.
        dtype: Floating type of the batches.
        feature_names: D names, or none.
        device: Where the batches go; the companions stay where they are until then.

    Raises:
        InputError: if the table has no rows to be looked up, or is a sparse matrix that is not
            sound, or a companion cannot be used.
    """

    image_shape: tuple[int, int, int] | None = None

    def __init__(
        self,
        table: Any,
        *,
        context: Context | None = None,
        labels: Tensor | None = None,
        factors: Tensor | None = None,
        factor_names: tuple[str, ...] = (),
        label_names: tuple[str, ...] = (),
        feature_names: tuple[str, ...] = (),
        index: np.ndarray | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = tuple(getattr(table, "shape", ()))
        if len(shape) != 2 or not hasattr(table, "__getitem__"):
            shown = f"shape {shape}" if shape else type(table).__name__
            raise InputError(
                f"'table' must have shape (N, D) and rows that an index finds, got {shown}"
            )
        if 0 in shape:
            raise InputError(
                f"empty data set: 'table' has shape {shape}, at least (1, 1) is needed"
            )
        if not dtype.is_floating_point:
            raise InputError(f"'dtype' must be floating, got {dtype}")
        if feature_names and len(feature_names) != shape[1]:
            raise InputError(
                f"'feature_names' must name {shape[1]} features, got {len(feature_names)} names"
            )
        matrix = getattr(table, "X", table)  # of an AnnData
        if hasattr(matrix, "check_format"):
            check_sparse(matrix, "table")
        self.table, self.dtype, self.device = table, dtype, torch.device("cpu")
        self.feature_names = feature_names
        self._share: Callable[[int], slice] | None = None
        numbers = torch.arange(shape[0], dtype=torch.double).unsqueeze(1)
        index = np.arange(shape[0]) if index is None else index
        self._rows = Dataset(
            numbers, context, labels, factors, None, factor_names, label_names, index=index
        )

    @classmethod
    def of_items(cls, items: Any, dtype: torch.dtype = torch.float32) -> LazyDataset:
        """Return the items of a ``torch.utils.data.Dataset``, read when a batch needs them.

        Args:
            items: A dataset with a length, whose items are ``x`` or start with it; each is
                flattened.
            dtype: Floating type of the batches.

        Raises:
            InputError: if it is empty, or an item is something else.
        """
        return cls(_Items(items), dtype=dtype)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_features(self) -> int:
        """D, the number of features."""
        return int(self.table.shape[1])

    @property
    def x(self) -> Tensor:
        """The data made dense, ``(N, D)``, anew at every look: take few rows, ``data[:100].x``."""
        return self.dense().x

    @property
    def context(self) -> Context | None:
        """Observed and not modelled, N rows."""
        return self._moved(self._rows.context)

    @property
    def labels(self) -> Tensor | None:
        """Class of each datum, ``(N,)``."""
        return None if self._rows.labels is None else self._rows.labels.to(self.device)

    @property
    def factors(self) -> Tensor | None:
        """Ground-truth factors, ``(N, F)``."""
        return (
            None if self._rows.factors is None else self._rows.factors.to(self.device, self.dtype)
        )

    @property
    def factor_names(self) -> tuple[str, ...]:
        """The name of each factor, or none."""
        return self._rows.factor_names

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class, or none."""
        return self._rows.label_names

    @property
    def index(self) -> np.ndarray:
        """Which row of its source each datum is, numbers or names, ``(N,)``."""
        return self._rows.index

    @property
    def row_numbers(self) -> Tensor:
        """Which rows of the table these data are, long, ``(N,)``."""
        return self._rows.x[:, 0].long()

    def __getitem__(self, index: Index) -> LazyDataset:
        """Return the data of a slice, integers ``(M,)`` or a mask ``(N,)``; no row is looked up."""
        return self._with_rows(self._rows[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LazyDataset:
        """Return the data with batches on a device and in a floating type."""
        moved = self._with_rows(self._rows)
        moved.device = self.device if device is None else torch.device(device)
        moved.dtype = dtype or self.dtype
        return moved

    def dense(self) -> Dataset:
        """Return the data in memory."""
        count = len(self) * self.num_features
        check_bytes(count * self.dtype.itemsize, f"a dense copy of {count:,} numbers")
        numbers = self.row_numbers.numpy()
        x = torch.empty(len(self), self.num_features, dtype=self.dtype)
        size = max(1, _MOST_NUMBERS // self.num_features)
        for start in range(0, len(self), size):
            x[start : start + size] = self._look_up(numbers[start : start + size])
        return replace(self._rows, x=x, feature_names=self.feature_names).to(
            self.device, self.dtype
        )

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches an epoch has."""
        return self._rows.num_batches(batch_size, drop_last=drop_last)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Context | None]]:
        """Return one epoch of dense batches, as :meth:`Dataset.batches` does."""
        if getattr(self.table, "rows_at_once", None):
            count = self.num_batches(batch_size, drop_last=drop_last)
            return itertools.islice(self._read(batch_size, seed, epoch, shuffle), count)
        parts = self._rows.batches(
            batch_size, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last
        )
        own = (self._own(*part) for part in parts)
        return (
            (self._look_up(rows[:, 0].long().numpy()).to(self.device), self._moved(c))
            for rows, c in own
        )

    def _read(
        self, batch_size: int, seed: int, epoch: int, shuffle: bool
    ) -> Iterator[tuple[Tensor, Context | None]]:
        """Yield the batches of an epoch, whose rows are read many at a time."""
        generator = stream_generator(seed, epoch, ORDER_STREAM) if shuffle else None
        numbers, context = self.row_numbers, self._rows.context
        size = batch_size * max(1, self.table.rows_at_once // batch_size)

        def read(group: Tensor) -> tuple[list[Tensor], Any, list[np.ndarray]]:
            batches = group.split(batch_size)
            if self._share is not None:
                batches = tuple(part[self._share(len(part))] for part in batches)
            own = numbers[torch.cat(batches)].numpy()
            increasing, places = np.unique(own, return_inverse=True)
            rows = _matrix(self.table, increasing) if len(own) else None
            return list(batches), rows, np.split(places, np.cumsum([len(b) for b in batches])[:-1])

        for batches, rows, places in read_ahead(read, groups(numbers, size, generator)):
            for batch, own in zip(batches, places, strict=True):
                x = self._dense(rows, own) if len(own) else self._look_up(own)
                yield x.to(self.device), self._moved(context and context.take(batch))

    def _own(self, rows: Tensor, context: Context | None) -> tuple[Tensor, Context | None]:
        """Return this process's share of a batch."""
        if self._share is None:
            return rows, context
        own = self._share(len(rows))
        return rows[own], context and context.take(own)

    def shared(self, share: Callable[[int], slice]) -> LazyDataset:
        """Return data whose batches are a part of each batch of these: no other row is looked up.

        Args:
            share: From a number of rows to the slice of them that is wanted, which may be empty.
        """
        other = self._with_rows(self._rows)
        other._share = share
        return other

    def _with_rows(self, rows: Dataset) -> LazyDataset:
        other = copy.copy(self)
        other._rows = rows
        return other

    def _look_up(self, numbers: np.ndarray) -> Tensor:
        """Return rows of the table, ``(B, D)``: files want their numbers in increasing order."""
        if not len(numbers):
            return torch.empty(0, self.num_features, dtype=self.dtype)
        increasing, places = np.unique(numbers, return_inverse=True)
        return self._dense(_matrix(self.table, increasing), places)

    def _dense(self, rows: Any, places: np.ndarray) -> Tensor:
        """Return some rows, made dense, in the type of the batches."""
        result = rows[places]
        result = result.toarray() if hasattr(result, "toarray") else result
        floating = np.float64 if self.dtype == torch.double else np.float32
        return torch.from_numpy(result.astype(floating, copy=False)).to(self.dtype)

    def _moved(self, context: Context | None) -> Context | None:
        return context and context.to(self.device, self.dtype)


def _matrix(table: Any, numbers: np.ndarray) -> Any:
    """Return rows of a table, an array or a SciPy CSR matrix of numbers."""
    result = table[numbers]
    result = getattr(result, "X", result)  # of an AnnData
    result = result.tocsr() if hasattr(result, "tocsr") else np.asarray(result)
    if result.dtype.kind not in "biuf":
        raise InputError(f"'table' must hold numbers, got type {result.dtype}")
    return result


class _Items:
    """The items of a torch dataset as the rows of a table."""

    def __init__(self, items: Any) -> None:
        if len(items) == 0:
            raise InputError("empty data set: the torch Dataset has no items")
        self._items = items
        self.shape = (len(items), self._row(0).numel())

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Return rows, ``(B, D)``."""
        return torch.stack([self._row(int(number)) for number in numbers]).numpy()

    def _row(self, number: int) -> Tensor:
        item = self._items[number]
        x = item[0] if isinstance(item, tuple | list) else item
        if not isinstance(x, Tensor | np.ndarray):
            raise InputError(
                f"a torch Dataset's items must be, or start with, a tensor, got {type(x).__name__}"
            )
        return torch.as_tensor(x).flatten()
