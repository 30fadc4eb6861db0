"""Training data of all kinds, as batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.inputs.data import as_data, is_table, named
from pyro_bvae.core.protocols import Batch, Batches
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.training.distributed import Ranks

Check = Callable[[Tensor, Context | None], None]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def first(data: Batches, batch_size: int, seed: int) -> Batch:
    """Return the first batch of the first epoch.

    Raises:
        InputError: if every entry of that epoch is missing.
    """
    batches = iter(data.batches(batch_size, seed=seed, epoch=0))
    batch = next(batches)
    if all(bool(torch.isnan(x).all()) for x, _ in itertools.chain([batch], batches)):
        raise InputError("'data' must have an observed entry, got NaN alone")
    return batch


class Ready:
    """Makes batches ready for a model: in its type, on its device, and checked."""

    def __init__(self, dtype: torch.dtype, device: torch.device, check: Check) -> None:
        self.dtype, self.device, self.check = dtype, device, check

    def __call__(
        self, x: Tensor, context: Context | None, index: int, *, checked: bool = False
    ) -> Batch:
        """Return the batch of this index ready; ``checked`` if it has been seen before."""
        x = x.to(self.device, self.dtype)
        if context is not None:
            context = context.to(self.device, self.dtype)
        if not checked:
            try:
                self.check(x, context)
            except InputError as error:
                raise InputError(f"batch {index}: {error}") from error
        return x, context


class LoaderBatches:
    """A torch loader, or any iterable with a length, whose items are ``x`` or start with it.

    The loader decides on batch size and order; data are flattened, and checked as they come. Items
    that hold a :class:`~pyro_bvae.Context` pass it on.
    """

    def __init__(self, loader: Iterable[Any], ready: Ready) -> None:
        self.loader, self.ready = loader, ready

    def num_batches(self, batch_size: int) -> int:
        """Return the length of the loader."""
        return len(self.loader)  # type: ignore[arg-type]

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the loader's batches; a shuffling one draws from the global generator."""
        if isinstance(sampler := getattr(self.loader, "sampler", None), DistributedSampler):
            sampler.set_epoch(epoch)  # which everybody forgets
        for index, item in enumerate(self.loader):
            several = isinstance(item, list | tuple) and not isinstance(item, Context)
            x, *others = item if several else [item]
            context = next((part for part in others if isinstance(part, Context)), None)
            if not isinstance(x, Tensor) or x.dim() < 2:
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise InputError(
                    f"a loader's items must be, or start with, a tensor (B, D), got {got}"
                )
            yield self.ready(x.flatten(1), context, index)


class LazyBatches:
    """Data with batches of their own and not all in memory, such as lazy ones.

    Batches are checked as they come, until an epoch has shown all the data there are; with
    ``checks_all``, for data of which an epoch shows a part, in every epoch.
    """

    def __init__(self, data: Batches, ready: Ready, *, checks_all: bool = False) -> None:
        self.data, self.ready, self.checked, self.checks_all = data, ready, False, checks_all

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        return self.data.num_batches(batch_size)

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        for index, (x, context) in enumerate(self.data.batches(batch_size, seed=seed, epoch=epoch)):
            yield self.ready(x, context, index, checked=self.checked or not len(x))
        self.checked = not self.checks_all


class Shares:
    """Data of which each process takes its share of every batch of one process alone.

    Args:
        data: The data, of which each process has all.
        ranks: The processes.
    """

    def __init__(self, data: Batches, ranks: Ranks) -> None:
        self.data, self.ranks = data, ranks

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        return self.data.num_batches(batch_size)

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield this process's share of each batch; that of a short batch may be empty."""
        for x, context in self.data.batches(batch_size, seed=seed, epoch=epoch):
            rows = self.ranks.share(x.shape[0])
            yield x[rows], context and context.take(rows)


class Joined:
    """Batches of which the last, too short for a layer of the model, joins the one before it.

    Batch norm, for one, learns nothing from one datum. Whatever order data have, they keep.

    Args:
        data: The batches.
        short: Whether the last batch is too short; None where its size is unknown, as of a loader:
            it is then if it has one datum.
    """

    def __init__(self, data: Batches, short: bool | None) -> None:
        self.data, self.short = data, short

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has, at most."""
        return self.data.num_batches(batch_size) - bool(self.short)

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        held: list[Batch] = []
        for batch in self.data.batches(batch_size, seed=seed, epoch=epoch):
            held.append(batch)
            if len(held) > 2:
                yield held.pop(0)
        if len(held) == 2 and (self.short or (self.short is None and len(held[1][0]) == 1)):
            held = [_together(*held)]
        yield from held


def _together(one: Batch, other: Batch) -> Batch:
    (x, context), (y, also) = one, other
    if context is None or also is None:
        return torch.cat([x, y]), None
    parts = (
        None if a is None or b is None else torch.cat([a, b])
        for a, b in zip(context, also, strict=True)
    )
    return torch.cat([x, y]), Context(*parts)


def joined(data: Batches, batch_size: int, first: int, ranks: Ranks) -> Batches:
    """Return data in batches of which no process gets a single datum.

    Args:
        data: The data, as :func:`as_batches` has made them ready.
        batch_size: Data in a batch of all processes.
        first: Data in the first batch, the batch size of a loader.
        ranks: The processes.

    Raises:
        InputError: if there are batches of one datum that cannot be joined.
    """
    count = _count(data)
    least = 2 if count is None else 2 * ranks.size
    batches = {"'batch_size'": first if count is None else batch_size}
    sizes = batches if count is None else {**batches, "the number of data": count}
    for name, number in sizes.items():
        if number < least:
            each = f" for {ranks.size} processes" if ranks.size > 1 else ""
            raise InputError(
                f"{name} must be at least {least}{each}, got {number}:"
                " a layer of the model, such as batch norm, learns from no datum alone"
            )
    own = shared(data, ranks)
    if count is None:
        return Joined(own, None)
    if not _is_short(count, batch_size, least):
        return own
    return Shares(Joined(data, True), ranks) if isinstance(own, Shares) else Joined(own, True)


def may_be_single(data: Batches, batch_size: int, ranks: Ranks, vae: nn.Module) -> bool:
    """Return whether a process may get a batch of one datum that the model cannot learn from."""
    least, count = 2 * ranks.size, _count(data)
    if count is None:  # of a loader: known layers alone
        return any(isinstance(module, _BATCH_NORMS) for module in vae.modules())
    return min(batch_size, count) < least or _is_short(count, batch_size, least)


def _count(data: Batches) -> int | None:
    """Return how many data there are, where batches of any size can be made of them."""
    data = data.data if isinstance(data, LazyBatches) else data
    return len(data) if isinstance(data, Dataset | LazyDataset) else None


def _is_short(count: int, batch_size: int, least: int) -> bool:
    return 0 < count % batch_size < least


def shared(data: Batches, ranks: Ranks) -> Batches:
    """Return the share of one process in data that :func:`as_batches` has made ready.

    Rows of a table are looked up by the process whose they are alone. A loader gives each process
    its items: under ``torchrun`` it has to have a ``DistributedSampler``, whose batch size is
    that of one process, and which repeats data to make the shares equal except with
    ``drop_last=True``.

    Args:
        data: The data.
        ranks: The processes.

    Raises:
        InputError: for a torch loader that would give all data to each process.
    """
    if ranks.size == 1:
        return data
    if isinstance(data, LoaderBatches):
        loader = data.loader
        if isinstance(loader, DataLoader) and isinstance(
            loader.sampler, RandomSampler | SequentialSampler
        ):
            raise InputError(
                "a loader must give each process its share: give the DataLoader a"
                " torch.utils.data.DistributedSampler, got a"
                f" {type(loader.sampler).__name__}, or give fit the data"
            )
        return data
    if isinstance(data, LazyBatches) and isinstance(data.data, LazyDataset):
        return LazyBatches(data.data.shared(ranks.share), data.ready, checks_all=True)
    return Shares(data, ranks)


def num_steps(data: Batches, batch_size: int, ranks: Ranks) -> int:
    """Return how many batches an epoch has.

    Raises:
        InputError: if it is not as many for each process.
    """
    counts = ranks.gather(data.num_batches(batch_size))
    if len(set(counts)) > 1:
        raise InputError(
            f"a loader must have as many batches in each process, got {', '.join(map(str, counts))}"
        )
    return counts[0]


def as_batches(
    data: Any, dtype: torch.dtype, device: torch.device, check: Check | None = None
) -> Batches:
    """Return data as batches on a device.

    Args:
        data: A tensor ``(N, D)``, a :class:`~pyro_bvae.datasets.Dataset`, a
            :class:`~pyro_bvae.datasets.LazyDataset` or any object with its methods
            ``num_batches`` and ``batches``, a ``torch.utils.data.Dataset`` whose items are ``x`` or
            start with it, an array mapped from a file, or a loader.
        dtype: Floating type of the model.
        device: Device of the model.
        check: Raises for data that the model cannot explain; runs by batch on lazy data.

    Raises:
        InputError: for anything else, or no data.
    """
    if is_table(data):
        data = Dataset(as_data("x", data))
    if isinstance(data, Dataset):
        data = data.to(device=device, dtype=dtype)
        if check is not None:
            seen = data.binarized(0) if data.stochastic_binarization else data
            check(seen.x, seen.context)
        return data
    if isinstance(data, np.memmap):
        data = LazyDataset(data, dtype=dtype)
    elif isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__len__"):
        data = LazyDataset.of_items(data, dtype)
    ready = Ready(dtype, device, check or (lambda x, context: check_finite("x", x)))
    if isinstance(data, Batches) and not isinstance(data, type):
        return LazyBatches(data, ready)
    if hasattr(data, "__iter__") and hasattr(data, "__len__") and not isinstance(data, np.ndarray):
        if len(data) == 0:
            raise InputError("empty data set: the loader has no batches")
        return LoaderBatches(data, ready)
    raise InputError(
        "'data' must be a tensor (N, D), a Dataset or a torch DataLoader with a length, got"
        f" {named(data)}"
    )
