"""Affine maps, alone and in a row with their activations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import check_count
from pyro_bvae.core.internals import (
    HAS_ONEDNN,
    is_capturing,
    is_hooked,
    is_transformed,
    onednn_linear,
)

# Activations, without settings of their own, that oneDNN applies to an output before it
# is written.
_FUSED: dict[type, str] = {
    nn.SiLU: "swish",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


def check_sizes(**sizes: int) -> None:
    """Raise unless all sizes are positive integers."""
    for name, size in sizes.items():
        check_count(name, size)


class Linear(nn.Linear):
    r"""An affine map :math:`x W^\top + b` that oneDNN computes where no gradient is asked for.

    On the CPU and in float32 oneDNN adds the bias on the way, where PyTorch's own path first writes
    it to memory, and is up to twice as fast as MKL on processors that MKL does not know; the result
    is that of ``nn.Linear`` to rounding at the same :func:`torch.get_float32_matmul_precision`.
    Everywhere else this is ``nn.Linear``.

    Shape:
        ``(*, D)`` to ``(*, F)``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)``."""
        return self.fused(input, "none") if self.can_fuse(input) else super().forward(input)

    def fused(self, x: Tensor, activation: str) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)`` by oneDNN and apply one of its activations on the way."""
        return onednn_linear(x, self.weight, self.bias, activation)

    def can_fuse(self, x: Tensor) -> bool:
        """Whether oneDNN may compute the map: float32 on the CPU, with no gradient to come."""
        tensors = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
        if not HAS_ONEDNN or is_capturing() or torch.compiler.is_compiling():
            return False
        if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
            return False
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return False
        if torch.is_autocast_enabled("cpu") or x.numel() == 0:
            return False
        return not any(is_transformed(tensor) for tensor in tensors)


def in_turn(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply modules in turn; a map and its activation in one pass where oneDNN has both."""
    rest = deque(modules)
    while rest:
        module = rest.popleft()
        activation = _FUSED.get(type(rest[0])) if rest else None
        if (
            activation
            and isinstance(module, Linear)
            and not is_hooked(module, rest[0])
            and module.can_fuse(x)
        ):
            rest.popleft()
            x = module.fused(x, activation)
        else:
            x = module(x)
    return x
