"""Private names of torch and Pyro that rooms above need, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

__all__ = [
    "HAS_ONEDNN",
    "dims_of",
    "fused_adam",
    "is_capturing",
    "is_deterministic",
    "is_hooked",
    "is_transformed",
    "keystr",
    "mask_of",
    "onednn_linear",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "version_of",
    "with_dims",
]

#: Adam's update of many tensors at once, in place, without the rest of ``optimizer.step``.
fused_adam = torch._fused_adam_
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Map ``(*, D)`` to ``(*, F)`` by oneDNN, and apply one of its activations on the way."""
    mapped: Tensor = torch.ops.mkldnn._linear_pointwise(
        x.contiguous(), weight, bias, activation, [], ""
    )
    return mapped


def is_capturing() -> bool:
    """Whether this thread's operations are being recorded as a graph.

    Work that is done piece by piece for a processor's cache is in vain then.
    """
    if torch.compiler.is_compiling():
        return True
    by_make_fx = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return by_make_fx is not None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor is inside a transform of ``torch.func``, such as ``vmap``."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def is_hooked(*modules: nn.Module) -> bool:
    """Whether a hook sees the input or output of a module."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def mask_of(distribution: Any) -> Any:
    """Return the mask of Pyro's ``MaskedDistribution``."""
    return distribution._mask


def is_deterministic(site: Any) -> bool:
    """Whether a site is one of ``pyro.deterministic``."""
    return bool(site.get("infer", {}).get("_deterministic"))


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to."""
    return int(tensor._version)


def dims_of(term: Tensor) -> str:
    """Return the names of the dimensions of a packed tensor of Pyro's, one letter each."""
    return str(term._pyro_dims)  # type: ignore[attr-defined]


def with_dims(term: Tensor, dims: str) -> Tensor:
    """Return a tensor as a packed one of Pyro's, with a letter for each dimension."""
    term = term[...]  # a tensor of its own: the names are an attribute
    term._pyro_dims = dims  # type: ignore[attr-defined]
    return term
