"""Networks: tensor to tensor, with any leading batch dimensions.

Every network names what it takes and gives, ``in_features`` and ``out_features``, so that parts which do not fit
together are refused when they are put together. Data are flat; a convolutional network owns its reshape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_bvae.compilation.compiled_function import is_capturing
from pyro_bvae.core.errors import InputError, check_count

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# What oneDNN can do to an affine map's output before it is written. Only activations without settings of their own.
_FUSED: dict[type, str] = {nn.SiLU: "swish", nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_count(name, size)


class Linear(nn.Linear):
    r"""An affine map :math:`x W^\top + b` that oneDNN computes where no gradient is asked for.

    On the CPU and in float32 oneDNN adds the bias on the way, where PyTorch's own path first writes it to memory, and
    is up to twice as fast as MKL on processors that MKL does not know; the result is that of ``nn.Linear`` to rounding
    at the same :func:`torch.get_float32_matmul_precision`. Everywhere else this is ``nn.Linear``.

    Shape:
        ``(*, D)`` to ``(*, F)``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)``."""
        return self.fused(input, "none") if self.can_fuse(input) else super().forward(input)

    def fused(self, x: Tensor, activation: str) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)`` by oneDNN and apply one of its activations on the way."""
        mapped: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, activation, [], "")
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
        if torch.is_autocast_enabled("cpu") or is_capturing() or torch.compiler.is_compiling() or x.numel() == 0:
            return False
        return not any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def _in_turn(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply modules one after the other; a map and its activation in one pass where oneDNN has both."""
    rest = deque(modules)
    while rest:
        module = rest.popleft()
        activation = _FUSED.get(type(rest[0])) if rest else None
        if activation and isinstance(module, Linear) and not _is_hooked(module, rest[0]) and module.can_fuse(x):
            rest.popleft()
            x = module.fused(x, activation)
        else:
            x = module(x)
    return x


def _is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class MLP(nn.Module):
    r"""A multilayer perceptron: affine maps with an activation between them.

    Args:
        in_features: Size D of the last dimension of the input.
        out_features: Size F of the last dimension of the output.
        hidden: Widths of the hidden layers; empty for an affine map.
        activation: Makes the module between layers.
        bias: Whether the affine maps have a bias.

    Shape:
        ``(*, D)`` to ``(*, F)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (400, 400),
        activation: Callable[[], nn.Module] = nn.SiLU,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, out_features=out_features)
        for width in hidden:
            _check_sizes(hidden=width)
        self.in_features, self.out_features = in_features, out_features
        widths = (in_features, *hidden, out_features)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(widths):
            layers += [Linear(size_in, size_out, bias=bias), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)``."""
        return _in_turn(self.layers, x)


class ResidualMLP(nn.Module):
    r"""A deep perceptron of pre-activation residual blocks (He et al. 2016).

    .. math:: h_0 = W_0 x + b_0, \qquad h_i = h_{i-1} + B_i \, a(A_i \, a(h_{i-1})), \qquad y = W a(h_M) + b,

    biases of the blocks left out. The last map of a block starts at zero, so that every block starts as the identity
    and depth costs nothing at the start (Goyal et al. 2017).

    Args:
        in_features: Size D of the last dimension of the input.
        out_features: Size F of the last dimension of the output.
        hidden: Width of h and of the blocks.
        num_blocks: Number M of blocks.
        activation: Makes the activations a.

    Shape:
        ``(*, D)`` to ``(*, F)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int = 256,
        num_blocks: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, out_features=out_features, hidden=hidden, num_blocks=num_blocks)
        self.in_features, self.out_features = in_features, out_features
        self.stem = Linear(in_features, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, activation) for _ in range(num_blocks))
        self.activation = activation()
        self.head = Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)``."""
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.activation(h))


class _Block(nn.Module):
    """What one residual block adds to its input, and the input."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before, self.inner, self.between = activation(), Linear(width, width), activation()
        self.outer = Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(_in_turn((self.inner, self.between), self.before(h)))


# Channels from the image side to the latent side. Each stage halves the image, from 64 or 32 pixels to 4
# and from 28 to 7, where an MLP takes over.
_STAGES: dict[int, tuple[int, ...]] = {28: (32, 64), 32: (32, 64, 64), 64: (32, 32, 64, 64)}


def _stages(image_shape: Sequence[int]) -> tuple[int, tuple[int, ...], int]:
    """Return the channels of the image, those of the stages, and the side of the last stage."""
    if len(image_shape) != 3 or image_shape[1] != image_shape[2] or image_shape[1] not in _STAGES:
        sizes = ", ".join(str(size) for size in _STAGES)
        raise InputError(
            f"'image_shape' must be (channels, side, side) with a side of {sizes}, got {tuple(image_shape)}"
        )
    channels, side, _ = image_shape
    _check_sizes(channels=channels)
    return channels, _STAGES[side], side // 2 ** len(_STAGES[side])


class ConvolutionalEncoder(nn.Module):
    r"""Strided convolutions from an image to features, then one hidden layer.

    Args:
        image_shape: ``(C, H, W)`` with ``H = W`` of 28, 32 or 64; the input is flat, ``D = C H W``.
        out_features: Size F of the output.
        hidden: Width of the layer between the convolutions and the output.
        extra_features: Number E of features, such as covariates, that follow the pixels in the input and enter
            after the convolutions.

    Shape:
        ``(*, D + E)`` to ``(*, F)``.
    """

    def __init__(
        self, image_shape: Sequence[int], out_features: int, hidden: int = 256, extra_features: int = 0
    ) -> None:
        super().__init__()
        channels, widths, side = _stages(image_shape)
        _check_sizes(out_features=out_features, hidden=hidden)
        self.image_shape = tuple(image_shape)
        self.num_pixels = channels * image_shape[1] * image_shape[2]
        self.in_features, self.out_features = self.num_pixels + extra_features, out_features
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((channels, *widths)):
            layers += [nn.Conv2d(size_in, size_out, kernel_size=4, stride=2, padding=1), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.head = MLP(widths[-1] * side**2 + extra_features, out_features, hidden=(hidden,))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D + E)`` to ``(*, F)``."""
        pixels, extra = x[..., : self.num_pixels], x[..., self.num_pixels :]
        features = self.convolutions(pixels.reshape(-1, *self.image_shape))
        return self.head(torch.cat([features.reshape(*x.shape[:-1], -1), extra], dim=-1))


class ConvolutionalDecoder(nn.Module):
    r"""The mirror image of :class:`ConvolutionalEncoder`: transposed convolutions from features to an image.

    Args:
        in_features: Size L of the input.
        image_shape: ``(C, H, W)`` with ``H = W`` of 28, 32 or 64.
        parameters_per_pixel: Number P of parameters that the likelihood wants for each pixel; the output holds
            all first parameters, then all second ones, and so on.
        hidden: Width of the layer between the input and the convolutions.

    Shape:
        ``(*, L)`` to ``(*, P C H W)``.
    """

    def __init__(
        self, in_features: int, image_shape: Sequence[int], parameters_per_pixel: int = 1, hidden: int = 256
    ) -> None:
        super().__init__()
        channels, widths, side = _stages(image_shape)
        _check_sizes(in_features=in_features, parameters_per_pixel=parameters_per_pixel, hidden=hidden)
        self.in_features = in_features
        self.out_features = parameters_per_pixel * channels * image_shape[1] * image_shape[2]
        self.stem = nn.Sequential(MLP(in_features, widths[-1] * side**2, hidden=(hidden,)), nn.SiLU())
        self.stem_shape = (widths[-1], side, side)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((*widths[::-1], channels * parameters_per_pixel)):
            layers += [nn.ConvTranspose2d(size_in, size_out, kernel_size=4, stride=2, padding=1), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*, L)`` to ``(*, P C H W)``."""
        images = self.convolutions(self.stem(z).reshape(-1, *self.stem_shape))
        return images.reshape(*z.shape[:-1], self.out_features)
