"""Rendered sprites against the factors they were rendered from."""

import math

import pytest
import torch

from pyro_bvae import datasets
from pyro_bvae.datasets import render_sprites, sprites
from pyro_bvae.datasets.sprites import _ellipse
from pyro_bvae.errors import InputError

SQUARE, ELLIPSE, HEART = range(3)
SIZES = (32, 64)


def render(*rows, size=64):
    return render_sprites(torch.tensor(rows), size).view(-1, size, size)


def centroids(images):
    """Return the centroid of each image in pixels, (N, 2): x to the right, y down."""
    grid = torch.arange(images.shape[-1]) + 0.5
    mass = images.sum((1, 2))
    return torch.stack([(images.sum(1) * grid).sum(1), (images.sum(2) * grid).sum(1)], dim=1) / mass[:, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
@pytest.mark.parametrize("orientation", [0, 7])
def test_centroid_moves_linearly_with_the_position(shape, orientation, size):
    positions = [(i, 31 - i) for i in range(32)]
    images = render(*((shape, 5, orientation, x, y) for x, y in positions), size=size)
    expected = torch.tensor(positions) / 31 * 0.48 * size + 0.26 * size
    # a soft edge misplaces the centroid by far less than the step between two positions, 0.0155 * size
    assert (centroids(images) - expected).abs().max() < 0.003 * size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", [0, 7])
def test_area_is_that_of_the_shape_and_grows_with_the_scale_squared(size, orientation):
    heart_side = 1 / (math.sqrt(2) * (1 + (math.pi / 2 + 2 / 3) / (4 + math.pi)))
    units = {SQUARE: 2.0, ELLIPSE: math.pi / 2, HEART: (4 + math.pi) * heart_side**2}
    for shape, unit in units.items():
        images = render(*((shape, scale, orientation, 15, 15) for scale in range(6)), size=size)
        radius = 0.22 * size * (0.5 + 0.1 * torch.arange(6))
        ratio = images.sum((1, 2)) / (unit * radius**2)
        assert (ratio - 1).abs().max() < (0.03 if size == 64 else 0.06), (shape, ratio)


def test_quarter_turns():
    upright, turned = render((SQUARE, 4, 3, 11, 20), (SQUARE, 4, 13, 11, 20))
    assert torch.allclose(upright, turned, atol=1e-4)
    half = render((ELLIPSE, 4, 3, 11, 20), (ELLIPSE, 4, 23, 11, 20))
    assert torch.allclose(half[0], half[1], atol=1e-4)
    for shape in (ELLIPSE, HEART):
        pair = render((shape, 4, 3, 11, 20), (shape, 4, 13, 11, 20))
        assert (pair[0] - pair[1]).abs().max() > 0.9


def test_orientation_turns_counter_clockwise():
    # of the ellipse, whose long axis is level at first; second moments give the axis of a turned one
    steps = [0, 2, 4, 6, 8]
    images = render(*((ELLIPSE, 5, k, 15, 15) for k in steps))
    grid = torch.arange(64) + 0.5
    for image, k, (x, y) in zip(images, steps, centroids(images), strict=True):
        right, up = grid[None, :] - x, y - grid[:, None]
        covariance = (image * right * up).sum()
        difference = (image * (right**2 - up**2)).sum()
        angle = 0.5 * torch.atan2(2 * covariance, difference)
        assert abs(angle.item() - 2 * math.pi * k / 40) < 0.01


def test_heart_stands_on_its_tip():
    image = render((HEART, 5, 0, 15, 15))[0]
    rows = (image > 0.5).nonzero()[:, 0]
    width = (image > 0.5).sum(1)
    assert width[rows.max()] <= 2 < width[rows.min() + 1]  # narrow below, wide above
    assert torch.allclose(image, render((HEART, 5, 0, 16, 15))[0].flip(1), atol=1e-4)  # and symmetric
    notch = image[rows.min(), 30:33].max()
    assert notch < 0.5  # between its lobes


@pytest.mark.parametrize("size", SIZES)
def test_all_lie_wholly_inside_and_have_no_holes(size):
    corners = [(0, 0), (0, 31), (31, 0), (31, 31), (13, 16)]
    rows = [(shape, scale, k, x, y) for shape in range(3) for scale in (0, 5) for k in range(40) for x, y in corners]
    images = render(*rows, size=size)
    assert images.min() == 0 and images.max() == 1
    frame = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert frame.max() == 0
    centres = ((0.26 + 0.48 * torch.tensor(rows)[:, 3:] / 31) * size).long()
    assert (images[torch.arange(len(rows)), centres[:, 1], centres[:, 0]] == 1).all()


def test_pixel_in_the_very_centre_of_an_ellipse():
    centre = torch.zeros(1, 1)
    assert _ellipse(centre, centre, torch.full((1, 1), 0.2)).item() <= -0.09  # half its short axis or more


def test_small_steps_show():
    images = render(*((SQUARE, 3, 0, x, 15) for x in range(32)), size=32)
    assert ((images[1:] - images[:-1]).abs().amax((1, 2)) > 0.2).all()


def test_splits_render_their_factors_and_share_no_image():
    splits = sprites(300, 40, 50, size=32, seed=3)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [300, 40, 50]
    for part in parts:
        assert torch.equal(part.x, render_sprites(part.factors, 32))
        assert torch.equal(part.labels, part.factors[:, 0])
        assert part.image_shape == (1, 32, 32)
        assert part.factor_names == ("shape", "scale", "orientation", "x", "y")
        assert part.label_names == ("square", "ellipse", "heart")
    rows = torch.cat([part.factors for part in parts])
    assert len(rows.unique(dim=0)) == 390
    for column, levels in enumerate((3, 6, 40, 32, 32)):
        assert set(rows[:, column].tolist()) <= set(range(levels))
        assert rows[:, column].unique().numel() == levels
    assert torch.equal(splits.train.factors, sprites(300, 40, 50, size=32, seed=3).train.factors)
    assert not torch.equal(splits.train.factors, sprites(300, 40, 50, size=32, seed=4).train.factors)
    assert sprites(5, 0, 5, size=32).validation is None


def test_by_name():
    splits = datasets.load("sprites-32", validation=0.005)
    assert splits.train.num_features == 1024 and len(splits.validation) == 40 and splits.name == "sprites-32"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sprites(size=28), "'size' must be 32 or 64, got 28"),
        (lambda: render_sprites(torch.zeros(1, 5), 128), "'size' must be 32 or 64, got 128"),
        (lambda: sprites(0, 0, 1), "must be at least 1"),
        (lambda: sprites(700_000, 30_000, 10_000), "at most 737280 together, got 700000, 10000 and 30000"),
        (lambda: render_sprites(torch.zeros(5)), r"'factors' must have shape \(N, 5\), got \(5,\)"),
        (lambda: render([0, 6, 0, 0, 0]), "factor 'scale' must be an index from 0 to 5, got 6 at row 0"),
        (lambda: render([0, 0, 0, 0, -1]), "factor 'y' must be an index from 0 to 31, got -1 at row 0"),
        (lambda: render([0.5, 0, 0, 0, 0]), "factor 'shape' must be an index from 0 to 2, got 0.5"),
        (lambda: render([math.nan, 0, 0, 0, 0]), "factor 'shape' must be an index from 0 to 2, got nan"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
