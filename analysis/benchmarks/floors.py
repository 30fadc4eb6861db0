"""The least that a measurement can take.

The matrix products of the rows that it sent through the networks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import networks, seconds
from pyro_bvae import BetaVAE
from pyro_bvae.networks import MLP

BLOCKS = (128, 1024, 4096)
# Blocks that are multiplied to learn how long a row takes.
TRIES = 4


class Rows:
    """How many rows a network was given, with and without a gradient to follow."""

    def __init__(self) -> None:
        self.plain, self.followed = 0, 0

    def note(self, module: Any, given: Any, out: Tensor) -> None:
        """Count the rows of one call; a forward hook."""
        rows = out.shape[:-1].numel()
        if out.requires_grad:
            self.followed += rows
        else:
            self.plain += rows


@contextmanager
def counted(*modules: MLP) -> Iterator[list[Rows]]:
    """Count the rows that networks are given in the body."""
    counts = [Rows() for _ in modules]
    hooks = [
        module.register_forward_hook(rows.note)
        for module, rows in zip(modules, counts, strict=True)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@functools.cache
def seconds_a_row(sizes: tuple[int, ...], device: str, *, backward: bool) -> float:
    """Return how long a row's products take, in the fastest blocks and precision.

    Args:
        sizes: Of the layers, from the input's.
        device: Where.
        backward: Whether to go back to the input too; not to the weights, which a measurement
            leaves alone.
    """
    before = torch.get_float32_matmul_precision()
    results = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        for block in BLOCKS:
            multiply = products(sizes, block, device, backward)
            multiply()
            results.append(min(seconds(multiply, device) for _ in range(TRIES)) / block)
    torch.set_float32_matmul_precision(before)
    return min(results)


def products(sizes: tuple[int, ...], block: int, device: str, backward: bool) -> Callable[[], None]:
    """Return the products of a block of rows, into the same memory again and again."""
    values = [torch.randn(block, size, device=device) for size in sizes]
    weights = [torch.randn(out, size, device=device) for size, out in itertools.pairwise(sizes)]

    def multiply() -> None:
        for layer, weight in enumerate(weights):
            torch.mm(values[layer], weight.T, out=values[layer + 1])
        if backward:
            for layer, weight in reversed(list(enumerate(weights))):
                torch.mm(values[layer + 1], weight, out=values[layer])

    return torch.no_grad()(multiply)


def sizes_of(network: MLP) -> tuple[int, ...]:
    """Return the sizes of a network's layers, from the input's."""
    linear = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    return (linear[0].in_features, *(layer.out_features for layer in linear))


def floor_of(vae: BetaVAE, call: Callable[[], object], device: str) -> float:
    """Run a measurement once, and return the seconds of the matrix products that it asked of encoder and decoder."""
    both = networks(vae)
    with counted(*both) as counts:
        call()
    total = 0.0
    for network, rows in zip(both, counts, strict=True):
        sizes = sizes_of(network)
        total += rows.plain * seconds_a_row(sizes, device, backward=False)
        total += rows.followed * seconds_a_row(sizes, device, backward=True)
    return total


def pairs_floor(points: int, data: int, latents: int, device: str) -> float:
    """Return the seconds of what q(z) at many points of many data is made of.

    For the joint density one product of the points with the data's natural parameters, ``(points, 2
    L)`` by ``(2 L, data)``, and one exponential a pair; block after block into the same memory.
    """
    rows, columns = min(256, points), min(2048, data)
    point, parameter = (
        torch.randn(rows, 2 * latents, device=device),
        torch.randn(2 * latents, columns, device=device),
    )
    out = torch.empty(rows, columns, device=device)

    def tile() -> None:
        torch.mm(point, parameter, out=out)
        out.clamp_(max=0.0).exp_()

    tile()
    return min(seconds(tile, device) for _ in range(TRIES)) * points * data / (rows * columns)
