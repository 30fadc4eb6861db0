"""Affine maps, alone and in a row with their activations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pyro_bvae.core.capturing import is_capturing
from pyro_bvae.core.errors import check_count

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


# What oneDNN can do to an affine map's output before it is written. Only activations without
# settings of their own.
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
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), self.weight, self.bias, activation, [], ""
        )
        return mapped

    def can_fuse(self, x: Tensor) -> bool:
        """Whether oneDNN may compute the map: plain float32 tensors on the CPU, with no gradient to come."""
        tensors = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
        if (
            not _HAS_ONEDNN
            or is_capturing()
            or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors)
        ):
            return False
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return False
        if torch.is_autocast_enabled("cpu") or x.numel() == 0:
            return False
        return not any(
            torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors
        )


def in_turn(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply modules one after the other; a map and its activation in one pass where oneDNN has both."""
    rest = deque(modules)
    while rest:
        module = rest.popleft()
        activation = _FUSED.get(type(rest[0])) if rest else None
        if (
            activation
            and isinstance(module, Linear)
            and not _is_hooked(module, rest[0])
            and module.can_fuse(x)
        ):
            rest.popleft()
            x = module.fused(x, activation)
        else:
            x = module(x)
    return x


def _is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
