"""Squares, ellipses and hearts with known factors, after dSprites (Matthey et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.factors.space import Correlation, FactorSpace, Fixed
from pyro_bvae.datasets.images.sprite_styles import Look
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.seeds import LOOK_STREAM, stream_generator
from pyro_bvae.datasets.splits import Splits

SPRITE_FACTORS = FactorSpace(
    {
        "shape": (0.0, 1.0, 2.0),
        "scale": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "orientation": tuple(2 * math.pi * step / 40 for step in range(40)),
        "x": tuple(step / 31 for step in range(32)),
        "y": tuple(step / 31 for step in range(32)),
    }
)
SHAPES = ("square", "ellipse", "heart")
# Steps of orientation after which a square, an ellipse and a heart look the same: 90, 180 and 360
# degrees.
ORIENTATION_PERIODS = (10, 20, 40)
SIZES = (32, 64)

# In units of the image's width: the largest sprite just touches a circle of this radius, and
# centres keep a margin of a little more, so that every sprite with its soft edge lies inside the
# image.
_RADIUS = 0.22
_MARGIN = 0.26
_BLOCK = 64


@public
def sprites(
    num_train: int = 8000,
    num_validation: int = 1000,
    num_test: int = 2000,
    *,
    size: int = 64,
    seed: int = 0,
    fixed: Fixed | None = None,
    correlation: Correlation | None = None,
    look: Look | None = None,
    lazy: bool = False,
) -> Splits:
    """Draw combinations of the five factors and render them.

    Without correlations the combinations are distinct, so that none is in two parts; they may yet
    look the same, since a square repeats after a quarter of a turn (10 steps of orientation) and an
    ellipse after half of one (20). With correlations they are drawn independently of each other, by
    :meth:`FactorSpace.sample`, and one may be there twice.

    Args:
        num_train: Number of training images.
        num_validation: Number of validation images; 0 for none.
        num_test: Number of test images.
        size: Width and height, 32 or 64.
        seed: Of the combinations and the looks.
        fixed: Index of each factor that does not vary, such as ``{"shape": 0}``.
        correlation: Of pairs of factors' indices, such as ``{("x", "y"): 0.8}``; each factor stays
            uniform.
        look: Makes images with three channels, such as :func:`sprite_looks.coloured`; None for grey
            ones.
        lazy: Render training images anew in each batch, a :class:`LazyDataset`: all there are fit
            in no memory.

    Returns:
        x in [0, 1], ``(N, size * size)``, or ``(N, 3 * size * size)`` with a look, channels first;
        ``factors`` holds the indices of :func:`render_sprites`, long, ``(N, 5)``, whose values are
        ``SPRITE_FACTORS.values_of(factors)``; labels are the shapes.

    Raises:
        InputError: for numbers of images that cannot be had, and as of :meth:`FactorSpace.sample`.
    """
    _check_size(size)
    counts = [num_train, num_validation, num_test]
    combinations = _combinations(counts, fixed, correlation, seed)
    starts = (0, num_train, num_train + num_validation)
    first, *held_out = (
        SpriteTable(factors, size, look, seed, start)
        for factors, start in zip(combinations.split(counts), starts, strict=True)
    )
    train = _lazy(first) if lazy else _dense(first)
    validation, test = (_dense(table) if len(table.factors) else None for table in held_out)
    assert test is not None
    return Splits(
        train=train,
        validation=validation,
        test=test,
        name="sprites" if size == 64 else "sprites-32",
    )


@public
def render_sprites(factors: Tensor, size: int = 64) -> Tensor:
    """Render sprites from the indices of their factors.

    Args:
        factors: Integers, ``(N, 5)``: shape (square, ellipse, heart), scale (6 levels, 0.5 to 1),
            orientation (40 steps of a full turn, counter-clockwise; a square looks the same every
            10 steps and an ellipse every 20), x and y (32 positions each, of the centroid, from
            left to right and from top to bottom).
        size: Width and height, 32 or 64.

    Returns:
        Grey values in [0, 1] with soft edges, ``(N, size * size)``.

    Raises:
        InputError: for another size, and for an index that is no level of its factor.
    """
    _check_size(size)
    SPRITE_FACTORS.check(factors)
    factors = factors.long()
    images = torch.empty(len(factors), size * size)
    for shape, distance in enumerate(_DISTANCES):
        for rows in (factors[:, 0] == shape).nonzero().squeeze(1).split(_BLOCK):
            u, v, radius = _local_coordinates(factors[rows], size)
            # A pixel is lit by how far its centre lies inside the edge: a ramp one pixel wide.
            images[rows] = distance(u, v, radius).mul_(-size).add_(0.5).clamp_(0, 1)
    return images


@dataclass(frozen=True)
class SpriteTable:
    """Sprites that are rendered when their rows are asked for: a table for a :class:`LazyDataset`.

    Attributes:
        factors: Indices of :func:`render_sprites`, ``(N, 5)``.
        size: Width and height, 32 or 64.
        look: Makes images with three channels, or None.
        seed: Of the look.
        start: Number of the first row; the look of a row is a function of its number and the seed.
    """

    factors: Tensor
    size: int = 64
    look: Look | None = None
    seed: int = 0
    start: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1 if self.look is None else 3, self.size, self.size)

    @property
    def shape(self) -> tuple[int, int]:
        """Number N of images, and of features of each."""
        return len(self.factors), math.prod(self.image_shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Render some rows, ``(B, D)``."""
        grey = render_sprites(self.factors[torch.as_tensor(rows)], self.size)
        if self.look is None:
            return grey.numpy()
        images = np.empty((len(grey), self.shape[1]), dtype=np.float32)
        for image, pixels, row in zip(images, grey, rows, strict=True):
            generator = stream_generator(self.seed, self.start + int(row), LOOK_STREAM)
            seen = self.look(pixels.view(self.size, self.size), generator)
            if tuple(seen.shape) != self.image_shape:
                raise InputError(
                    f"'look' must give images of shape {self.image_shape}, got {tuple(seen.shape)}"
                )
            image[:] = seen.flatten().numpy()
        return images


def _local_coordinates(factors: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixel centres in each sprite's frame, ``(N, size²)``, and radii ``(N, 1)``."""
    _, scale, angle, x, y = SPRITE_FACTORS.values_of(factors).unsqueeze(2).unbind(1)  # (N, 1) each
    centre_x, centre_y = (_MARGIN + (1 - 2 * _MARGIN) * position for position in (x, y))
    pixels = (torch.arange(size) + 0.5) / size
    right = (pixels - centre_x).unsqueeze(1)  # (N, 1, size)
    up = (centre_y - pixels).unsqueeze(2)  # (N, size, 1)
    cos, sin = angle.cos().unsqueeze(2), angle.sin().unsqueeze(2)
    u = (cos * right + sin * up).flatten(1)
    v = (cos * up - sin * right).flatten(1)
    return u, v, _RADIUS * scale


def _square(u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance to a square's edge, negative inside; corners lie at the radius."""
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
    """Return the signed distance to a heart: a square on its tip, discs on its upper sides."""
    # With half side r, the centroid lies at (c, c) in the square's own axes, and the tip 1.857 r
    # below it.
    c = (math.pi / 2 + 2 / 3) / (4 + math.pi)
    half = radius / (math.sqrt(2) * (1 + c))
    s = (v + u) / math.sqrt(2) + c * half
    t = (v - u) / math.sqrt(2) + c * half
    lobes = torch.minimum(torch.hypot(s - half, t), torch.hypot(s, t - half)).sub_(half)
    return torch.minimum(_box(s, t, half), lobes)


_DISTANCES = (_square, _ellipse, _heart)


def _combinations(
    counts: list[int], fixed: Fixed | None, correlation: Correlation | None, seed: int
) -> Tensor:
    """Return the factors of all parts, ``(N, 5)``."""
    num_train, num_validation, num_test = counts
    if num_train < 1 or num_validation < 0 or num_test < 1:
        raise InputError(
            "'num_train' and 'num_test' must be at least 1, 'num_validation' at least 0, "
            f"got {num_train}, {num_test} and {num_validation}"
        )
    if correlation:
        return SPRITE_FACTORS.sample(sum(counts), fixed=fixed, correlation=correlation, seed=seed)
    total = SPRITE_FACTORS.count(fixed)
    if sum(counts) > total:
        raise InputError(
            f"'num_train', 'num_validation' and 'num_test' must be at most {total} together, the "
            "number of different "
            f"combinations, got {num_train}, {num_validation} and {num_test}"
        )
    return SPRITE_FACTORS.distinct(sum(counts), fixed=fixed, seed=seed)


def _dense(table: SpriteTable) -> Dataset:
    """Render a table."""
    return Dataset(
        x=torch.from_numpy(table[np.arange(len(table.factors))]),
        labels=table.factors[:, 0].clone(),
        factors=table.factors,
        image_shape=table.image_shape,
        factor_names=SPRITE_FACTORS.names,
        label_names=SHAPES,
    )


def _lazy(table: SpriteTable) -> LazyDataset:
    """Leave a table to be rendered."""
    data = LazyDataset(
        table,
        labels=table.factors[:, 0].clone(),
        factors=table.factors,
        factor_names=SPRITE_FACTORS.names,
        label_names=SHAPES,
    )
    data.image_shape = table.image_shape
    return data


def _check_size(size: int) -> None:
    if size not in SIZES:
        raise InputError(f"'size' must be 32 or 64, got {size!r}")
