"""What ``fit`` takes as data, seen as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.context import Context
from pyro_bvae.datasets import Dataset
from pyro_bvae.errors import InputError, check_finite

Batch = tuple[Tensor, Context | None]
Check = Callable[[Tensor, Context | None], None]


class Batches(Protocol):
    """Data in batches whose order is a function of seed and epoch."""

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        ...

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        ...


class LoaderBatches:
    """A torch loader, or any iterable with a length, whose items are ``x`` or start with it.

    The loader decides on batch size and order; data are flattened, and checked as they come. Items that hold a
    :class:`~pyro_bvae.Context` pass it on.
    """

    def __init__(self, loader: Iterable[Any], dtype: torch.dtype, device: torch.device, check: Check | None) -> None:
        self.loader, self.dtype, self.device, self.check = loader, dtype, device, check

    def num_batches(self, batch_size: int) -> int:
        """Return the length of the loader."""
        return len(self.loader)  # type: ignore[arg-type]

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the loader's batches; a shuffling loader takes its order from the global generator, which is seeded."""
        for item in self.loader:
            parts = item if isinstance(item, list | tuple) and not isinstance(item, Context) else [item]
            context = next((part for part in parts if isinstance(part, Context)), None)
            if not isinstance(parts[0], Tensor) or parts[0].dim() < 2:
                shown = tuple(parts[0].shape) if isinstance(parts[0], Tensor) else type(parts[0]).__name__
                raise InputError(f"a loader's items must be, or start with, a tensor (B, D), got {shown}")
            x = parts[0].to(self.dtype).flatten(1)
            check_finite("x", x)
            if self.check is not None:
                self.check(x, context)
            yield x.to(self.device), self._moved(context)

    def _moved(self, context: Context | None) -> Context | None:
        if context is None:
            return None
        return Context(*(None if part is None else part.to(self.device, self.dtype) for part in context))


def as_batches(data: Any, dtype: torch.dtype, device: torch.device, check: Check | None = None) -> Batches:
    """Return data as batches on a device.

    Args:
        data: A tensor ``(N, D)``, a :class:`~pyro_bvae.datasets.Dataset`, or a loader.
        dtype: Floating type of the model.
        device: Device of the model.
        check: Raises for data that the model cannot explain; a loader's are checked batch by batch.

    Raises:
        InputError: for anything else, or no data.
    """
    if isinstance(data, Tensor):
        data = Dataset(data)
    if isinstance(data, Dataset):
        data = data.to(device=device, dtype=dtype)
        if check is not None:
            check(data.x, data.context)
        return data
    if hasattr(data, "__iter__") and hasattr(data, "__len__") and not isinstance(data, np.ndarray):
        if len(data) == 0:
            raise InputError("empty data set: the loader has no batches")
        return LoaderBatches(data, dtype, device, check)
    raise InputError(
        f"'data' must be a tensor (N, D), a Dataset or a torch DataLoader with a length, got {type(data).__name__}"
    )
