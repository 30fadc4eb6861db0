"""Data in memory: a table of features, and the labels, factors and context of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.datasets.seeds import (
    FIXED_PIXEL_STREAM,
    ORDER_STREAM,
    PIXEL_STREAM,
    stream_generator,
)

Index = slice | Tensor | Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """N data in memory.

    Attributes:
        x: The data, floating and finite, shape ``(N, D)``; with ``missing``, NaN where an entry was
            not observed.
        context: Observed and not modelled, N rows.
        labels: Class of each datum, long, shape ``(N,)``.
        factors: Ground-truth factors, shape ``(N, F)``.
        image_shape: ``(C, H, W)`` where the features are pixels in that order, C * H * W = D.
        factor_names: F names, or none.
        label_names: The name of each class, or none.
        stochastic_binarization: ``x`` holds probabilities, and every epoch of :meth:`batches` draws
            0/1 from them. ``x`` itself stays grey: to evaluate, take :meth:`binarized`.
        missing: ``x`` may hold NaN for entries that were not observed, even for all of a datum.
        feature_names: D names, such as the columns of a table or genes, or none.
        index: Which row of its source each datum is: numbers, or names such as those of cells and
            files, ``(N,)``; by default its number here.

    Raises:
        InputError: if a shape, a type or a value cannot be used.
    """

    x: Tensor
    context: Context | None = None
    labels: Tensor | None = None
    factors: Tensor | None = None
    image_shape: tuple[int, int, int] | None = None
    factor_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    stochastic_binarization: bool = False
    missing: bool = False
    feature_names: tuple[str, ...] = ()
    index: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        _check_x(self.x, self.missing)
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self)))
        _check_companions(self)
        _check_index(self.index, len(self))
        if self.stochastic_binarization:
            _check_probabilities(self.x)

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        """D, the number of features."""
        return self.x.shape[1]

    def __getitem__(self, index: Index) -> Dataset:
        """Return the data of a slice, of integers ``(M,)`` or of a boolean mask ``(N,)``."""
        rows = self._rows(index)
        return replace(
            self,
            x=self.x[rows],
            context=_context_rows(self.context, rows),
            labels=None if self.labels is None else self.labels[rows],
            factors=None if self.factors is None else self.factors[rows],
            index=self.index[rows.cpu().numpy()],
        )

    def _rows(self, index: Index) -> Tensor:
        if isinstance(index, slice):
            return torch.arange(len(self), device=self.x.device)[_positive(index, len(self))]
        rows = torch.as_tensor(index)
        if rows.ndim != 1 or rows.is_floating_point():
            raise InputError(
                f"a Dataset is indexed by a slice, integers or a mask, got {index!r}; "
                "iterate over it with batches(batch_size, seed=..., epoch=...)"
            )
        if rows.dtype == torch.bool:
            if len(rows) != len(self):
                raise InputError(
                    f"a mask over {len(self)} data must have as many entries, got {len(rows)}"
                )
            rows = rows.nonzero().squeeze(1)
        outside = (rows < -len(self)) | (rows >= len(self))
        if bool(outside.any()):
            raise InputError(
                f"index {rows[outside][0].item()} is outside a data set of {len(self)}"
            )
        return rows.to(self.x.device, torch.long) % len(self)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Dataset:
        """Return the data on a device; ``dtype`` applies to floating tensors."""

        def move(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        context = self.context and self.context.map(move)
        x = self.x.to(device=device, dtype=dtype)
        return replace(
            self, x=x, context=context, labels=move(self.labels), factors=move(self.factors)
        )

    def dense(self) -> Dataset:
        """Return the data themselves, as they are dense; a :class:`LazyDataset` makes a copy."""
        return self

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches an epoch has."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"'batch_size' must be a positive integer, got {batch_size!r}")
        if drop_last and batch_size > len(self):
            raise InputError(
                f"'batch_size' {batch_size} with drop_last leaves no batch of {len(self)} data"
            )
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Context | None]]:
        """Return one epoch of batches ``(x (B, D), context)``; the last may be short.

        Order and stochastic pixels are a pure function of ``(seed, epoch)`` and the same on every
        device.
        """
        count = self.num_batches(batch_size, drop_last=drop_last)
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=stream_generator(seed, epoch, ORDER_STREAM))
        pixels = stream_generator(seed, epoch, PIXEL_STREAM)
        return self._batches(order.to(self.x.device).split(batch_size)[:count], pixels)

    def _batches(
        self, parts: Sequence[Tensor], pixels: torch.Generator
    ) -> Iterator[tuple[Tensor, Context | None]]:
        for rows in parts:
            x = self.x.index_select(0, rows)
            if self.stochastic_binarization:
                x = _bernoulli(x, pixels)
            yield x, _context_rows(self.context, rows)

    def binarized(self, seed: int, *, part: int = 0) -> Dataset:
        """Return the data with every pixel drawn once, 1 with probability x, for each ``part``."""
        _check_probabilities(self.x)
        x = _bernoulli(self.x, stream_generator(seed, part, FIXED_PIXEL_STREAM))
        return replace(self, x=x, stochastic_binarization=False)

    def masked(self, observed: Tensor) -> Dataset:
        """Return the data with NaN where ``observed``, boolean ``(N, D)``, is False."""
        if observed.dtype != torch.bool or observed.shape != self.x.shape:
            raise InputError(
                f"'observed' must be boolean of the shape of 'x', {tuple(self.x.shape)}, got "
                f"{observed.dtype}"
                f" {tuple(observed.shape)}"
            )
        return replace(self, x=self.x.masked_fill(~observed, torch.nan), missing=True)

    def dynamically_binarized(self) -> Dataset:
        """Return the data with pixels to be drawn anew in every epoch of :meth:`batches`."""
        return replace(self, stochastic_binarization=True)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Return the data of several parts, one after the other; all must have the same companions."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def whole(*own: Tensor | None) -> Tensor | None:
        return torch.cat([each for each in own if each is not None]) if own[0] is not None else None

    contexts = [part.context or Context() for part in parts]
    return replace(
        first,
        x=torch.cat([part.x for part in parts]),
        context=first.context and Context(*map(whole, *contexts)),
        labels=whole(*(part.labels for part in parts)),
        factors=whole(*(part.factors for part in parts)),
        index=np.concatenate([part.index for part in parts]),
    )


def _check_x(x: Tensor, missing: bool) -> None:
    if not isinstance(x, Tensor):
        raise InputError(
            f"'x' must be a torch tensor, got {type(x).__name__}; use torch.as_tensor(x)"
        )
    shape = tuple(x.shape)
    if x.ndim != 2:
        raise InputError(
            f"'x' must have shape (N, D), got {shape}; flatten each datum, as x.flatten(1) does"
        )
    if not x.is_floating_point():
        raise InputError(
            f"'x' must be floating, got {x.dtype}; use x.float(), and / 255 for pixels"
        )
    if 0 in shape:
        raise InputError(f"empty data set: 'x' has shape {shape}, at least (1, 1) is needed")
    _check_values(x, missing)


def _check_values(x: Tensor, missing: bool) -> None:
    unseen = torch.isnan(x)
    if not bool(unseen.any()):
        check_finite("x", x)
        return
    if not missing:
        index = tuple(int(i) for i in unseen.nonzero()[0])
        raise InputError(
            f"'x' must be finite, got nan at index {index}; missing=True takes it as missing"
        )
    check_finite("x", x.masked_fill(unseen, 0))


def _check_companions(data: Dataset) -> None:
    n, d = data.x.shape
    if not isinstance(data.context, Context | None):
        raise InputError(f"'context' must be a Context or None, got {type(data.context).__name__}")
    size_factor, covariates = data.context or (None, None)
    for name, tensor, dim in (
        ("labels", data.labels, 1),
        ("factors", data.factors, 2),
        ("context.size_factor", size_factor, 2),
        ("context.covariates", covariates, 2),
    ):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.device != data.x.device:
            raise InputError(f"'{name}' must be a torch tensor on {data.x.device}, as 'x' is")
        if tensor.ndim != dim or len(tensor) != n:
            wanted = f"({n},)" if dim == 1 else f"({n}, *)"
            raise InputError(
                f"'{name}' must have shape {wanted} as 'x' has {n} rows, got {tuple(tensor.shape)}"
            )
        check_finite(name, tensor)
    if data.labels is not None and data.labels.dtype != torch.long:
        raise InputError(
            f"'labels' must be torch.int64, got {data.labels.dtype}; use labels.long()"
        )
    if data.labels is not None and data.label_names:
        outside = (data.labels < 0) | (data.labels >= len(data.label_names))
        if bool(outside.any()):
            raise InputError(
                f"'label_names' must name every label from 0, got {len(data.label_names)} names "
                f"and label {data.labels[outside][0].item()}"
            )
    if size_factor is not None and (size_factor.shape[1] != 1 or not bool((size_factor > 0).all())):
        raise InputError(f"'context.size_factor' must be positive, of shape ({n}, 1)")
    if data.feature_names and len(data.feature_names) != d:
        raise InputError(
            f"'feature_names' must name the {d} features of 'x', got {len(data.feature_names)} "
            "names"
        )
    names = data.factor_names
    if names and (data.factors is None or len(names) != data.factors.shape[1]):
        raise InputError(
            f"'factor_names' must name every column of 'factors', got {len(names)} names"
        )
    if data.image_shape is not None and (len(data.image_shape) != 3 or prod(data.image_shape) != d):
        raise InputError(
            f"'image_shape' must be (C, H, W) with C * H * W = {d}, got {data.image_shape}"
        )


def _check_index(index: np.ndarray, count: int) -> None:
    if not isinstance(index, np.ndarray) or index.dtype.kind not in "iU":
        kind = getattr(index, "dtype", type(index).__name__)
        raise InputError(f"'index' must be an array of whole numbers or of text, got {kind}")
    if index.shape != (count,):
        raise InputError(
            f"'index' must have shape ({count},) as 'x' has {count} rows, got {index.shape}"
        )


def _check_probabilities(x: Tensor) -> None:
    bad = (x < 0) | (x > 1)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"'x' must lie in [0, 1] to be binarized, got {x[index].item()} at index {index}"
        )


def _bernoulli(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 0/1 pixels from uniforms made on the CPU: the same on every device; NaN stays NaN."""
    uniform = torch.rand(probabilities.shape, generator=generator)
    pixels = (uniform.to(probabilities.device) < probabilities).to(probabilities.dtype)
    return torch.where(torch.isnan(probabilities), probabilities, pixels)


def _context_rows(context: Context | None, rows: Tensor) -> Context | None:
    return context and context.map(lambda part: part.index_select(0, rows))


def _positive(index: slice, length: int) -> slice:
    """Return the slice unless its step is negative, which tensors do not know."""
    if index.indices(length)[2] < 0:
        raise InputError(f"a Dataset takes slices with a positive step, got {index}")
    return index
