"""Looks of sprites: a look turns the grey image of a sprite into one with three channels.

Any function ``(grey (H, W), generator) -> (3, H, W)`` is a look, with all its randomness from the
generator; each image has a generator of its own. These are after the variants of dSprites in
Locatello et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_bvae.core.errors import InputError

Look = Callable[[Tensor, torch.Generator], Tensor]

# Knots of a texture along each side of the image: blots about as large as a sprite.
_KNOTS = 5


def coloured(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sprite in one colour on black; red, green and blue are uniform over [0.5, 1]."""
    return (0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator)) * grey


def on_noise(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Return the white sprite on noise: every number of the background is uniform over [0, 1]."""
    return torch.rand(3, *grey.shape, generator=generator).maximum(grey)


def on_texture(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sprite as a negative of a smooth coloured texture, another one in each image."""
    knots = torch.rand(1, 3, _KNOTS, _KNOTS, generator=generator)
    texture = interpolate(knots, size=tuple(grey.shape), mode="bilinear", align_corners=True)[0]
    return negative(grey, texture)


def on_patches(picture: Tensor) -> Look:
    """Return the look of sprites as negatives of a picture, each of a random patch of it.

    Args:
        picture: Colours in [0, 1], ``(3, H, W)``, at least as large as the images in height and
            width.

    Raises:
        InputError: for another shape or other colours, and at the first image that is larger than
            the picture.
    """
    if picture.ndim != 3 or len(picture) != 3 or not bool(((picture >= 0) & (picture <= 1)).all()):
        raise InputError(
            "'picture' must be colours in [0, 1] of shape (3, H, W), got shape "
            f"{tuple(picture.shape)}"
        )

    def look(grey: Tensor, generator: torch.Generator) -> Tensor:
        room = [whole - part + 1 for whole, part in zip(picture.shape[1:], grey.shape, strict=True)]
        if min(room) < 1:
            raise InputError(
                f"'picture' must be at least {tuple(grey.shape)}, got {tuple(picture.shape[1:])}"
            )
        top, left = (int(torch.randint(places, (), generator=generator)) for places in room)
        height, width = grey.shape
        return negative(grey, picture[:, top : top + height, left : left + width])

    return look


def negative(grey: Tensor, background: Tensor) -> Tensor:
    """Return a background ``(3, H, W)`` with colours inverted where the sprite ``(H, W)`` is."""
    return torch.lerp(background, 1 - background, grey)
