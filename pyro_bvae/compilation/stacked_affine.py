"""Affine maps of stacked networks, whose gradients are written as the weights lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Weights of a map from which copying its gradient costs more than going through a function of one's
# own.
_LARGE = 2**14


def products(one: Tensor, other: Tensor) -> Tensor:
    """Return the products of R pairs of matrices, one by one, which is faster for large ones."""
    if one.is_cuda:
        return torch.bmm(one, other)
    result = one.new_empty(len(one), one.shape[1], other.shape[2])
    for into, left, right in zip(result, one, other, strict=True):
        torch.mm(left, right, out=into)
    return result


class StackedAffine(torch.autograd.Function):
    r"""R affine maps, :math:`x_r W_r^\top + b_r`.

    x has shape ``(R, N, D)``, W ``(R, F, D)`` and b ``(R, F)``.

    The gradient of W comes as a contiguous tensor. Of a batched product with :math:`W^\top`, which
    vmap makes of an affine map, it comes transposed and is copied on its way into
    ``W.grad``: a fifth of a step of large networks.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map each replica's rows."""
        mapped = products(x, weight.mT)
        return mapped if bias is None else mapped.add_(bias.unsqueeze(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs that the gradients need."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, W and b."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            products(gradient, weight) if of_x else None,
            products(gradient.mT, x) if of_weight else None,
            gradient.sum(1) if of_bias else None,
        )


class _Affine(torch.autograd.Function):
    """An affine map that is several where it is vectorised over."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError("it is for vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, int]:
        """Map the rows of all replicas."""
        x, weight, bias = (
            tensor if tensor is None or dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims, strict=True)
        )
        assert x is not None and weight is not None
        mapped: Tensor = StackedAffine.apply(x.flatten(1, -2), weight, bias)
        return mapped.unflatten(1, x.shape[1:-1]), 0


class AffineMaps(TorchFunctionMode):  # type: ignore[misc]
    """Replaces large affine maps, vectorised in the body, by :class:`StackedAffine`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's, or its replacement."""
        if func is not torch.nn.functional.linear or not _pays(*args, **(kwargs or {})):
            return func(*args, **(kwargs or {}))
        return _affine(*args, **(kwargs or {}))


def _affine(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    mapped: Tensor = _Affine.apply(input, weight, bias)
    return mapped


def _pays(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a map is large, vectorised over in rows and weights, and in no lower precision."""
    if weight.numel() < _LARGE or input.dim() < 2 or torch.is_autocast_enabled(input.device.type):
        return False
    return all(
        torch._C._functorch.is_batchedtensor(t) for t in (input, weight, bias) if t is not None
    )
