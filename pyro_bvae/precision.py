"""Precision: matrix products in full where two ways to a number are compared, networks in half where one trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: What the networks of the parts can be run in while training.
PRECISIONS = ("float32", "bf16")

_half = False


@contextmanager
def full_precision() -> Iterator[None]:
    """Run the body with matrix products in full float32, and restore the caller's precision afterwards."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def networks_in(precision: str) -> Iterator[None]:
    """Run the networks of the package's parts in bfloat16 in the body, if ``precision`` is ``bf16``.

    Only networks: what they give is brought back to their input's type, so that distributions, draws and densities,
    whose sums over features and data bfloat16 would spoil, are computed as always.
    """
    global _half  # noqa: PLW0603
    before, _half = _half, precision == "bf16"
    try:
        yield
    finally:
        _half = before


def run_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """Apply a network of a part, in the precision that :func:`networks_in` asks for."""
    if not _half:
        outputs: Tensor = network(inputs)
        return outputs
    with torch.autocast(inputs.device.type, torch.bfloat16):
        halves: Tensor = network(inputs)
    return halves.to(inputs.dtype)
