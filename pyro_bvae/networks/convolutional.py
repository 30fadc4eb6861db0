"""Convolutions between images and features, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.networks.linear import check_sizes
from pyro_bvae.networks.mlp import MLP

# Channels from the image side to the latent side. Each stage halves the image, from 64 or 32 pixels
# to 4 and from 28 to 7, where an MLP takes over.
_STAGES: dict[int, tuple[int, ...]] = {28: (32, 64), 32: (32, 64, 64), 64: (32, 32, 64, 64)}


def _stages(image_shape: Sequence[int]) -> tuple[int, tuple[int, ...], int]:
    """Return the channels of the image, those of the stages, and the side of the last stage."""
    if len(image_shape) != 3 or image_shape[1] != image_shape[2] or image_shape[1] not in _STAGES:
        sizes = ", ".join(str(size) for size in _STAGES)
        raise InputError(
            f"'image_shape' must be (channels, side, side) with a side of {sizes}, got"
            f" {tuple(image_shape)}"
        )
    channels, side, _ = image_shape
    check_sizes(channels=channels)
    return channels, _STAGES[side], side // 2 ** len(_STAGES[side])


@public
class ConvolutionalEncoder(nn.Module):
    r"""Strided convolutions from an image to features, then one hidden layer.

    Args:
        image_shape: ``(C, H, W)`` with ``H = W`` of 28, 32 or 64; the input is flat, ``D = C H W``.
        out_features: Size F of the output.
        hidden: Width of the layer between the convolutions and the output.
        extra_features: Number E of features, such as covariates, that follow the pixels in the
            input and enter after the convolutions.

    Shape:
        ``(*, D + E)`` to ``(*, F)``.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        hidden: int = 256,
        extra_features: int = 0,
    ) -> None:
        super().__init__()
        channels, widths, side = _stages(image_shape)
        check_sizes(out_features=out_features, hidden=hidden)
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


@public
class ConvolutionalDecoder(nn.Module):
    r"""The mirror image of :class:`ConvolutionalEncoder`, from features to an image.

    Args:
        in_features: Size L of the input.
        image_shape: ``(C, H, W)`` with ``H = W`` of 28, 32 or 64.
        parameters_per_pixel: Number P of parameters that the likelihood wants for each pixel; the
            output holds all first parameters, then all second ones, and so on.
        hidden: Width of the layer between the input and the convolutions.

    Shape:
        ``(*, L)`` to ``(*, P C H W)``.
    """

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        parameters_per_pixel: int = 1,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        channels, widths, side = _stages(image_shape)
        check_sizes(
            in_features=in_features, parameters_per_pixel=parameters_per_pixel, hidden=hidden
        )
        self.in_features = in_features
        self.out_features = parameters_per_pixel * channels * image_shape[1] * image_shape[2]
        self.stem = nn.Sequential(
            MLP(in_features, widths[-1] * side**2, hidden=(hidden,)), nn.SiLU()
        )
        self.stem_shape = (widths[-1], side, side)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((*widths[::-1], channels * parameters_per_pixel)):
            layers += [
                nn.ConvTranspose2d(size_in, size_out, kernel_size=4, stride=2, padding=1),
                nn.SiLU(),
            ]
        self.convolutions = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*, L)`` to ``(*, P C H W)``."""
        images = self.convolutions(self.stem(z).reshape(-1, *self.stem_shape))
        return images.reshape(*z.shape[:-1], self.out_features)
