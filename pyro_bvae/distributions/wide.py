"""Arithmetic in float64 inside a density whose parameters are float32."""

from __future__ import annotations

from torch import Tensor


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in float64, but for those on a device that has none."""
    return tuple(tensor if tensor.device.type == "mps" else tensor.double() for tensor in tensors)
