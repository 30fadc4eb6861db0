"""Squares, ellipses and hearts with known factors, rendered on the spot (after dSprites, Matthey et al., 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_bvae.datasets.base import Dataset, Splits
from pyro_bvae.datasets.streams import SYNTHESIS_STREAM, stream_generator
from pyro_bvae.errors import InputError

FACTOR_NAMES = ("shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (3, 6, 40, 32, 32)
SHAPES = ("square", "ellipse", "heart")
SIZES = (32, 64)

# In units of the image's width: the largest sprite just touches a circle of this radius, and centres keep a
# margin of a little more, so that every sprite with its soft edge lies inside the image.
_RADIUS = 0.22
_MARGIN = 0.26
_BLOCK = 64


def sprites(
    num_train: int = 8000, num_validation: int = 1000, num_test: int = 2000, *, size: int = 64, seed: int = 0
) -> Splits:
    """Draw distinct combinations of the five factors and render them.

    Args:
        num_train: Number of training images.
        num_validation: Number of validation images; 0 for none.
        num_test: Number of test images. No image is in two parts.
        size: Width and height, 32 or 64.
        seed: Of the combinations.

    Returns:
        x in [0, 1], ``(N, size * size)``; ``factors`` holds the indices of :func:`render_sprites`, long,
        ``(N, 5)``; labels are the shapes.
    """
    _check_size(size)
    counts = (num_train, num_validation, num_test)
    total = math.prod(FACTOR_SIZES)
    if num_train < 1 or num_validation < 0 or num_test < 1 or sum(counts) > total:
        raise InputError(
            f"'num_train' and 'num_test' must be at least 1, 'num_validation' at least 0, all at most {total} "
            f"together, got {num_train}, {num_test} and {num_validation}"
        )
    order = torch.randperm(total, generator=stream_generator(seed, 0, SYNTHESIS_STREAM))
    combinations = torch.stack(torch.unravel_index(order[: sum(counts)], FACTOR_SIZES), dim=1)
    train, validation, test = (_dataset(part, size) if len(part) else None for part in combinations.split(list(counts)))
    assert train is not None and test is not None
    return Splits(train=train, validation=validation, test=test, name="sprites" if size == 64 else "sprites-32")


def render_sprites(factors: Tensor, size: int = 64) -> Tensor:
    """Render sprites from the indices of their factors.

    Args:
        factors: Integers, ``(N, 5)``: shape (square, ellipse, heart), scale (6 levels, 0.5 to 1),
            orientation (40 steps of a full turn, counter-clockwise), x and y (32 positions each, of the centroid,
            from left to right and from top to bottom).
        size: Width and height, 32 or 64.

    Returns:
        Grey values in [0, 1] with soft edges, ``(N, size * size)``.
    """
    _check_size(size)
    _check_factors(factors)
    factors = factors.long()
    images = torch.empty(len(factors), size * size)
    for shape, distance in enumerate(_DISTANCES):
        for rows in (factors[:, 0] == shape).nonzero().squeeze(1).split(_BLOCK):
            u, v, radius = _local_coordinates(factors[rows], size)
            # A pixel is lit by how far its centre lies inside the edge: a ramp one pixel wide.
            images[rows] = distance(u, v, radius).mul_(-size).add_(0.5).clamp_(0, 1)
    return images


def _local_coordinates(factors: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixel centres in each sprite's frame (u right, v up), ``(N, size²)``, and its radius ``(N, 1)``."""
    scale = 0.5 + 0.5 * factors[:, 1:2] / (FACTOR_SIZES[1] - 1)
    angle = 2 * math.pi * factors[:, 2:3] / FACTOR_SIZES[2]
    centre_x, centre_y = (_MARGIN + (1 - 2 * _MARGIN) * factors[:, i : i + 1] / (FACTOR_SIZES[i] - 1) for i in (3, 4))
    pixels = (torch.arange(size) + 0.5) / size
    right = (pixels - centre_x).unsqueeze(1)  # (N, 1, size)
    up = (centre_y - pixels).unsqueeze(2)  # (N, size, 1)
    cos, sin = angle.cos().unsqueeze(2), angle.sin().unsqueeze(2)
    u = (cos * right + sin * up).flatten(1)
    v = (cos * up - sin * right).flatten(1)
    return u, v, _RADIUS * scale


def _square(u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance to a square's edge, negative inside; its corners lie at the radius."""
    return _box(u, v, radius / math.sqrt(2))


def _box(u: Tensor, v: Tensor, half: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()).sub_(half)


def _ellipse(u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Return the distance, to first order, to an ellipse twice as wide as high."""
    a, b = radius, radius / 2
    p, q = u / a, v / b
    level = torch.hypot(p, q).clamp_min_(1e-4)  # not 0 / 0 in the centre
    slope = torch.hypot(p / a, q / b).clamp_min_(1e-4)  # |gradient of level| * level
    return (level - 1) * level / slope


def _heart(u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance to a heart: a square on its tip, a disc on each of its upper sides."""
    # With half side r, the centroid lies at (c, c) in the square's own axes, and the tip 1.857 r below it.
    c = (math.pi / 2 + 2 / 3) / (4 + math.pi)
    half = radius / (math.sqrt(2) * (1 + c))
    s = (v + u) / math.sqrt(2) + c * half
    t = (v - u) / math.sqrt(2) + c * half
    lobes = torch.minimum(torch.hypot(s - half, t), torch.hypot(s, t - half)).sub_(half)
    return torch.minimum(_box(s, t, half), lobes)


_DISTANCES = (_square, _ellipse, _heart)


def _dataset(factors: Tensor, size: int) -> Dataset:
    return Dataset(
        x=render_sprites(factors, size),
        labels=factors[:, 0].clone(),
        factors=factors,
        image_shape=(1, size, size),
        factor_names=FACTOR_NAMES,
        label_names=SHAPES,
    )


def _check_size(size: int) -> None:
    if size not in SIZES:
        raise InputError(f"'size' must be 32 or 64, got {size!r}")


def _check_factors(factors: Tensor) -> None:
    if factors.ndim != 2 or factors.shape[1] != len(FACTOR_NAMES):
        raise InputError(f"'factors' must have shape (N, 5), got {tuple(factors.shape)}")
    bad = (factors < 0) | (factors >= torch.tensor(FACTOR_SIZES)) | (factors != factors.long())
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"factor '{FACTOR_NAMES[column]}' must be an index from 0 to {FACTOR_SIZES[column] - 1}, "
            f"got {factors[row, column].item()} at row {row}"
        )
