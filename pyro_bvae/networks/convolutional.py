"""Convolutions between images and features, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.networks.linear import check_sizes
from pyro_bvae.networks.mlp import MLP


def _stages(image_shape: Sequence[int]) -> tuple[int, tuple[int, ...], tuple[int, int]]:
    """Return the channels of the image, those of the stages, and the size after the last stage.

    Each stage halves the image: two of them at least, and more as long as both sides are even and
    stay at 4 or above, from 64 or 32 pixels to 4 and from 28 to 7, where an MLP takes over.
    """
    if len(image_shape) != 3 or any(size < 1 or size % 4 for size in image_shape[1:]):
        raise InputError(
            "'image_shape' must be (channels, height, width) with height and width divisible by 4,"
            f" such as 28, 32, 64 or 100, got {tuple(image_shape)}"
        )
    check_sizes(channels=image_shape[0])
    channels, height, width = image_shape
    count = 2
    while height % 2 ** (count + 1) == width % 2 ** (count + 1) == 0 and (
        min(height, width) >= 4 * 2 ** (count + 1)
    ):
        count += 1
    narrow = count // 2
    widths = (32,) * narrow + (64,) * (count - narrow)
    return channels, widths, (height // 2**count, width // 2**count)


@public
class ConvolutionalEncoder(nn.Module):
    r"""Strided convolutions from an image to features, then one hidden layer.

    Args:
        image_shape: ``(C, H, W)``, H and W divisible by 4; the input is flat, ``D = C H W``.
        out_features: Size F of the output.
        hidden: Width of the layer between the convolutions and the output.
        extra_features: Number E of features, such as covariates, that follow the pixels in the
            input and enter after the convolutions.
        activation: Makes the module after each layer but the last.

    Shape:
        ``(*, D + E)`` to ``(*, F)``.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        hidden: int = 256,
        extra_features: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        channels, widths, last = _stages(image_shape)
        check_sizes(out_features=out_features, hidden=hidden)
        self.image_shape = tuple(image_shape)
        self.num_pixels = channels * image_shape[1] * image_shape[2]
        self.in_features, self.out_features = self.num_pixels + extra_features, out_features
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((channels, *widths)):
            convolution = nn.Conv2d(size_in, size_out, kernel_size=4, stride=2, padding=1)
            layers += [convolution, activation()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        features = widths[-1] * last[0] * last[1]
        self.head = MLP(features + extra_features, out_features, (hidden,), activation)

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
        image_shape: ``(C, H, W)``, H and W divisible by 4.
        parameters_per_pixel: Number P of parameters that the likelihood wants for each pixel; the
            output holds all first parameters, then all second ones, and so on.
        hidden: Width of the layer between the input and the convolutions.
        activation: Makes the module after each layer but the last.

    Shape:
        ``(*, L)`` to ``(*, P C H W)``.
    """

    def __init__(
        self,
        in_features: int,
        image_shape: Sequence[int],
        parameters_per_pixel: int = 1,
        hidden: int = 256,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        channels, widths, last = _stages(image_shape)
        check_sizes(
            in_features=in_features, parameters_per_pixel=parameters_per_pixel, hidden=hidden
        )
        self.in_features = in_features
        self.out_features = parameters_per_pixel * channels * image_shape[1] * image_shape[2]
        self.stem = nn.Sequential(
            MLP(in_features, widths[-1] * last[0] * last[1], (hidden,), activation), activation()
        )
        self.stem_shape = (widths[-1], *last)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((*widths[::-1], channels * parameters_per_pixel)):
            layers += [
                nn.ConvTranspose2d(size_in, size_out, kernel_size=4, stride=2, padding=1),
                activation(),
            ]
        self.convolutions = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*, L)`` to ``(*, P C H W)``."""
        images = self.convolutions(self.stem(z).reshape(-1, *self.stem_shape))
        return images.reshape(*z.shape[:-1], self.out_features)
