"""Precision: matrix products in full where numbers are compared, networks in half in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn

#: Number types of the parts' networks in training.
PRECISIONS = ("float32", "bf16")

_half: ContextVar[bool] = ContextVar("_half", default=False)


@contextmanager
def full_precision() -> Iterator[None]:
    """Run the body with matrix products in full float32, and restore the caller's precision."""
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
    """Run the parts' networks in bfloat16, if ``precision`` is ``bf16``, in this thread.

    Only networks: their outputs are brought back to their inputs' type, so that distributions,
    draws and densities, whose sums over features and data bfloat16 would spoil, are computed as
    always.
    """
    token = _half.set(precision == "bf16")
    try:
        yield
    finally:
        _half.reset(token)


def run_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """Apply a network of a part, in the precision that :func:`networks_in` asks for."""
    if not _half.get():
        outputs: Tensor = network(inputs)
        return outputs
    with torch.autocast(inputs.device.type, torch.bfloat16):
        halves: Tensor = network(inputs)
    return halves.to(inputs.dtype)


@cache
def _fast_products_are_exact() -> bool:
    """Whether this processor's fast way to float32 products has the error of its exact one."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(256, 512, generator=generator) for _ in range(2))
    exact = one.double() @ other.double().T
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        error = ((one @ other.T).double() - exact).norm() / exact.norm()
    finally:
        torch.set_float32_matmul_precision(before)
    return float(error) < 4 * torch.finfo(torch.float32).eps


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Run the body with float32 products on the CPU by oneDNN, where that is as exact.

    ``torch.set_float32_matmul_precision("medium")`` allows bfloat16, which processors without AMX
    do not use: there it only chooses another library, up to twice as fast. Where it does lose
    digits nothing is changed.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and before == "highest" and _fast_products_are_exact():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
