"""Rows of a file in shuffled blocks, read by a thread while others are in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")

# Rows in a block; near rows of a file are often alike, and many blocks are mixed.
_BLOCK = 256


def groups(rows: Tensor, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield the places of N rows in groups of one size, the last of which may be smaller.

    With a generator they are shuffled: blocks of rows that are neighbours in the file come in
    random order, and the rows of each group of blocks are mixed. Rows that fit into one group come
    in a plain permutation.

    Args:
        rows: Numbers of the rows in the file, ``(N,)``.
        size: Rows in a group.
        generator: Of the order; None for the order as it is.
    """
    if generator is None:
        yield from torch.arange(len(rows)).split(size)
    elif len(rows) <= size:
        yield torch.randperm(len(rows), generator=generator)
    else:
        blocks = torch.argsort(rows).split(_BLOCK)
        order = torch.randperm(len(blocks), generator=generator).tolist()
        for group in torch.cat([blocks[place] for place in order]).split(size):
            yield group[torch.randperm(len(group), generator=generator)]


def read_ahead(read: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """Yield the rows of each part, while a thread reads those of the next.

    Args:
        read: From a part to its rows.
        parts: The parts in order.
    """
    with ThreadPoolExecutor(1, "pyro_bvae_reader") as reader:
        waiting: Future[Result] | None = None
        for part in parts:
            following = reader.submit(read, part)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
