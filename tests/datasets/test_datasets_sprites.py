"""Rendered sprites against the factors they were rendered from."""

import math

import numpy as np
import pytest
import torch

from pyro_bvae import datasets
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import (
    ORIENTATION_PERIODS,
    SPRITE_FACTORS,
    FactorSpace,
    LazyDataset,
    SpriteTable,
    registry,
    render_sprites,
    sprites,
)
from pyro_bvae.datasets.factors.space import level_correlation
from pyro_bvae.datasets.images import sprite_styles as sprite_looks
from pyro_bvae.datasets.images.sprite_renderer import _ellipse

SQUARE, ELLIPSE, HEART = range(3)
SIZES = (32, 64)


def render(*rows, size=64):
    return render_sprites(torch.tensor(rows), size).view(-1, size, size)


def correlated(correlation):
    return sprites(3, 0, 1, correlation=correlation)


def centroids(images):
    """Return the centroid of each image in pixels, (N, 2): x to the right, y down."""
    grid = torch.arange(images.shape[-1]) + 0.5
    mass = images.sum((1, 2))
    return (
        torch.stack([(images.sum(1) * grid).sum(1), (images.sum(2) * grid).sum(1)], dim=1)
        / mass[:, None]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
@pytest.mark.parametrize("orientation", [0, 7])
def test_centroid_moves_linearly_with_the_position(shape, orientation, size):
    positions = [(i, 31 - i) for i in range(32)]
    images = render(*((shape, 5, orientation, x, y) for x, y in positions), size=size)
    expected = torch.tensor(positions) / 31 * 0.48 * size + 0.26 * size
    # a soft edge misplaces the centroid by far less than the step between two positions, 0.0155 *
    # size
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
    # of the ellipse, whose long axis is level at first; second moments give the axis of a turned
    # one
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
    assert torch.allclose(
        image, render((HEART, 5, 0, 16, 15))[0].flip(1), atol=1e-4
    )  # and symmetric
    notch = image[rows.min(), 30:33].max()
    assert notch < 0.5  # between its lobes


@pytest.mark.parametrize("size", SIZES)
def test_all_lie_wholly_inside_and_have_no_holes(size):
    corners = [(0, 0), (0, 31), (31, 0), (31, 31), (13, 16)]
    rows = [
        (shape, scale, k, x, y)
        for shape in range(3)
        for scale in (0, 5)
        for k in range(40)
        for x, y in corners
    ]
    images = render(*rows, size=size)
    assert images.min() == 0 and images.max() == 1
    frame = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert frame.max() == 0
    centres = ((0.26 + 0.48 * torch.tensor(rows)[:, 3:] / 31) * size).long()
    assert (images[torch.arange(len(rows)), centres[:, 1], centres[:, 0]] == 1).all()


def test_pixel_in_the_very_centre_of_an_ellipse():
    centre = torch.zeros(1, 1)
    assert (
        _ellipse(centre, centre, torch.full((1, 1), 0.2)).item() <= -0.09
    )  # half its short axis or more


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
    assert not torch.equal(
        splits.train.factors, sprites(300, 40, 50, size=32, seed=4).train.factors
    )
    assert sprites(5, 0, 5, size=32).validation is None


def test_by_name():
    splits = datasets.load("sprites-32", validation=0.005)
    assert (
        splits.train.num_features == 1024
        and len(splits.validation) == 40
        and splits.name == "sprites-32"
    )


LOOKS = [
    sprite_looks.coloured,
    sprite_looks.on_noise,
    sprite_looks.on_texture,
    sprite_looks.on_patches(torch.linspace(0, 1, 3 * 90 * 80).view(3, 90, 80)),
]


def correlation_and_error(indices, first, second):
    """Return the sample correlation of two columns, and its standard error from its influence
    function."""
    a, b = (
        (column - column.mean()) / column.std(correction=0)
        for column in indices[:, [first, second]].double().T
    )
    value = (a * b).mean()
    influence = a * b - value * (a**2 + b**2) / 2
    return value.item(), (influence.std() / len(a) ** 0.5).item()


@pytest.mark.parametrize("pair", [("x", "y"), ("shape", "scale"), ("orientation", "shape")])
@pytest.mark.parametrize("planted", [-0.85, 0.0, 0.5, 0.8])
def test_planted_correlations_are_recovered_and_margins_stay_uniform(pair, planted):
    drawn = SPRITE_FACTORS.sample(40_000, correlation={pair: planted}, seed=3)
    columns = [SPRITE_FACTORS.names.index(name) for name in pair]
    for first in range(5):
        for second in range(first):
            value, error = correlation_and_error(drawn, first, second)
            expected = planted if {first, second} == set(columns) else 0.0
            assert abs(value - expected) < 4 * error, (first, second)
    for column, size in zip(drawn.T, SPRITE_FACTORS.sizes, strict=True):
        counts = torch.bincount(column, minlength=size)
        assert len(counts) == size
        expected = len(drawn) / size
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < size - 1 + 5 * (2 * (size - 1)) ** 0.5


def test_several_correlations_at_once():
    wanted = {
        ("x", "y"): 0.6,
        ("y", "scale"): 0.5,
        ("scale", "x"): 0.4,
        ("shape", "orientation"): -0.7,
    }
    drawn = SPRITE_FACTORS.sample(40_000, correlation=wanted)
    for (first, second), planted in wanted.items():
        value, error = correlation_and_error(
            drawn, *(SPRITE_FACTORS.names.index(name) for name in (first, second))
        )
        assert abs(value - planted) < 4 * error


@pytest.mark.parametrize("normal", [-0.7, 0.3, 0.9])
def test_correlation_of_levels_against_closed_forms(normal):
    # two levels each: the quadrant probability of a bivariate normal; many levels: Pearson's
    # formula
    assert level_correlation(normal, 2, 2) == pytest.approx(
        2 / math.pi * math.asin(normal), abs=1e-4
    )
    assert level_correlation(normal, 400, 300) == pytest.approx(
        6 / math.pi * math.asin(normal / 2), abs=1e-4
    )
    assert level_correlation(normal, 3, 40) == pytest.approx(
        level_correlation(normal, 40, 3), abs=1e-4
    )


def test_fixed_factors_stay_and_the_others_vary():
    fixed = {"shape": 0, "x": 7}
    drawn = SPRITE_FACTORS.sample(2000, fixed=fixed, correlation={("y", "scale"): 0.8})
    assert (drawn[:, 0] == 0).all() and (drawn[:, 3] == 7).all()
    value, error = correlation_and_error(drawn, 1, 4)
    assert abs(value - 0.8) < 4 * error
    assert SPRITE_FACTORS.count(fixed) == 6 * 40 * 32
    every = SPRITE_FACTORS.distinct(6 * 40 * 32, fixed=fixed)
    assert (
        len(every.unique(dim=0)) == 6 * 40 * 32
        and (every[:, 0] == 0).all()
        and (every[:, 3] == 7).all()
    )
    splits = sprites(20, 4, 8, size=32, fixed={"shape": 2, "scale": 1, "orientation": 9, "x": 3})
    assert (
        len(
            torch.cat(
                [splits.train.factors, splits.validation.factors, splits.test.factors]
            ).unique(dim=0)
        )
        == 32
    )
    assert set(splits.train.labels.tolist()) == {2}


def test_values_of_levels():
    values = SPRITE_FACTORS.values_of(torch.tensor([[1, 0, 10, 0, 31], [2, 5, 39, 31, 0]]))
    expected = torch.tensor([[1, 0.5, math.pi / 2, 0, 1], [2, 1.0, 2 * math.pi * 39 / 40, 1, 0]])
    assert torch.allclose(values, expected)
    assert SPRITE_FACTORS.names == ("shape", "scale", "orientation", "x", "y")
    assert SPRITE_FACTORS.count() == math.prod(SPRITE_FACTORS.sizes) == 737_280
    small = FactorSpace({"a": (1.0, 2.0), "b": (0.0, 1.0, 5.0)})
    assert small.distinct(6).unique(dim=0).tolist() == [[i, j] for i in range(2) for j in range(3)]


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_each_shape_repeats_after_its_period_and_not_before(shape):
    turned = render(*((shape, 5, k, 15, 15) for k in range(40)))
    period = ORIENTATION_PERIODS[shape]
    assert torch.allclose(turned, turned.roll(period, 0), atol=1e-4)
    assert all((turned[0] - turned[k]).abs().max() > 0.2 for k in range(1, period))


def test_correlated_splits_render_their_factors():
    splits = sprites(3000, 0, 1000, size=32, correlation={("x", "y"): 0.9}, seed=1)
    for part in (splits.train, splits.test):
        value, error = correlation_and_error(part.factors, 3, 4)
        assert abs(value - 0.9) < 4 * error
        assert torch.equal(part.x, render_sprites(part.factors, 32))
    again = sprites(3000, 0, 1000, size=32, correlation={("x", "y"): 0.9}, seed=1)
    assert torch.equal(again.train.factors, splits.train.factors)


@pytest.mark.parametrize("look", [None, *LOOKS])
def test_rendered_in_the_batch_is_rendered_at_once(look):
    dense, lazy = (
        sprites(70, 5, 9, size=32, look=look, lazy=lazy, seed=2) for lazy in (False, True)
    )
    assert isinstance(lazy.train, LazyDataset) and lazy.train.image_shape == dense.train.image_shape
    assert torch.equal(lazy.train.dense().x, dense.train.x) and torch.equal(
        lazy.test.x, dense.test.x
    )
    assert torch.equal(lazy.train[[40, 3]].x, dense.train.x[[40, 3]])
    batches = [part.train.batches(32, seed=0, epoch=1) for part in (dense, lazy)]
    for (x, _), (same, _) in zip(*batches, strict=True):
        assert torch.equal(x, same)


def test_the_whole_grid_takes_no_memory_until_it_is_asked_for():
    splits = sprites(737_280 - 20, 10, 10, lazy=True)
    assert len(splits.train) == 737_260 and splits.train.num_features == 4096
    x, _ = next(splits.train.batches(16, seed=0, epoch=0))
    assert x.shape == (16, 4096) and x.dtype == torch.float32


@pytest.mark.parametrize("look", LOOKS)
def test_looks_are_images_of_three_channels_that_show_the_sprite(look):
    splits = sprites(200, 0, 3, size=32, look=look)
    data = splits.train
    assert data.image_shape == (3, 32, 32) and data.x.shape == (200, 3072)
    assert data.x.min() >= 0 and data.x.max() <= 1
    assert torch.equal(data.x, sprites(200, 0, 3, size=32, look=look).train.x)
    assert not torch.equal(data.x, sprites(200, 0, 3, size=32, look=look, seed=1).train.x)
    factors = torch.tensor([[HEART, 5, 0, 15, 15]]).repeat(3, 1)
    first, later = (
        torch.from_numpy(SpriteTable(factors, 32, look, start=i)[np.arange(3)]) for i in (0, 3)
    )
    assert not any(torch.allclose(a, b) for a in first for b in later)  # parts look different too
    assert (
        len({tuple(row[:3].tolist()) + tuple(row.mean(0, keepdim=True).tolist()) for row in data.x})
        == 200
    )


def test_looks_do_what_they_say():
    factors = torch.tensor([[HEART, 5, 0, 15, 15]]).repeat(300, 1)
    grey = render_sprites(factors[:1], 32).view(32, 32)
    inside, outside = grey == 1, grey == 0

    def images(look):
        table = SpriteTable(factors, 32, look)
        return torch.from_numpy(table[np.arange(300)]).view(300, 3, 32, 32)

    coloured = images(sprite_looks.coloured)
    colours = coloured[:, :, inside]
    assert (coloured[:, :, outside] == 0).all() and (colours == colours[:, :, :1]).all()
    assert (
        colours.min() >= 0.5 and abs(colours[:, :, 0].mean() - 0.75) < 4 * 0.5 / (12 * 900) ** 0.5
    )
    noise = images(sprite_looks.on_noise)
    other_rows = SpriteTable(factors, 32, sprite_looks.on_noise, start=10)
    assert torch.equal(torch.from_numpy(other_rows[np.arange(5)]), noise[10:15].flatten(1))
    background = noise[:, :, outside]
    assert (noise[:, :, inside] == 1).all()
    assert abs(background.mean() - 0.5) < 4 / (12 * background.numel()) ** 0.5
    neighbours = torch.corrcoef(
        torch.stack([background[:, 0, :-1].flatten(), background[:, 0, 1:].flatten()])
    )[0, 1]
    assert abs(neighbours) < 4 / (background[:, 0].numel()) ** 0.5
    # a texture is smooth outside the sprite, and inverted within
    texture = images(sprite_looks.on_texture)
    assert (texture[:, :, 0, 1:] - texture[:, :, 0, :-1]).abs().max() <= 1 / 7
    picture = torch.full((3, 40, 50), 0.2)
    assert torch.allclose(images(sprite_looks.on_patches(picture))[0], 0.2 + 0.6 * grey)
    places = torch.arange(40 * 50).view(1, 40, 50).expand(3, 40, 50) / 2000
    corners = (images(sprite_looks.on_patches(places))[:, 0, 0, 0] * 2000).round().long()
    assert {int(c) // 50 for c in corners} == set(range(9)) and {
        int(c) % 50 for c in corners
    } == set(range(19))


def test_looks_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_NUM_SPRITES", 50)
    splits = datasets.load("sprites-coloured", validation=0.1)
    assert splits.train.image_shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sprites(size=28), "'size' must be 32 or 64, got 28"),
        (lambda: render_sprites(torch.zeros(1, 5), 128), "'size' must be 32 or 64, got 128"),
        (lambda: sprites(0, 0, 1), "must be at least 1"),
        (
            lambda: sprites(700_000, 30_000, 10_000),
            "at most 737280 together, .* got 700000, 30000 and 10000",
        ),
        (
            lambda: sprites(30, 2, 1, fixed=dict(shape=0, scale=0, orientation=0, x=0)),
            "at most 32 together",
        ),
        (lambda: sprites(fixed={"shpe": 0}), "unknown factor 'shpe'. Did you mean 'shape'"),
        (
            lambda: sprites(fixed={"shape": 3}),
            "'fixed' must give 'shape' an index from 0 to 2, got 3",
        ),
        (lambda: sprites(fixed={"x": 0.5}), "'fixed' must give 'x' an index from 0 to 31, got 0.5"),
        (lambda: correlated({("x", "z"): 0.5}), "unknown factor 'z'"),
        (
            lambda: correlated({"xy": 0.5}),
            r"pairs of factors as keys, such as \('x', 'y'\), got 'xy'",
        ),
        (lambda: correlated({("x", "x"): 0.5}), r"pairs of factors as keys, .* got \('x', 'x'\)"),
        (
            lambda: correlated({("x", "y"): 0.5, ("y", "x"): 0.5}),
            "must name a pair once, got 'y' and 'x' twice",
        ),
        (
            lambda: correlated({("x", "y"): 1.5}),
            "'correlation' of 'x' and 'y' must lie between -0.99.* got 1.5",
        ),
        (
            lambda: correlated({("shape", "x"): 0.96}),
            "must lie between -0.942.* as far as 3 and 32 levels go, got 0.96",
        ),
        (lambda: correlated({("x", "y"): math.nan}), "must lie between .* got nan"),
        (
            lambda: correlated({("x", "y"): 0.9, ("y", "scale"): 0.9, ("x", "scale"): -0.5}),
            "'correlation' must be positive definite, .*smallest eigenvalue of the copula -0",
        ),
        (
            lambda: sprites(fixed={"x": 3}, correlation={("x", "y"): 0.5}),
            "'correlation' must be of factors that vary, and 'x' is fixed, at 3",
        ),
        (lambda: SPRITE_FACTORS.sample(0), "'num' must be a positive integer, got 0"),
        (lambda: FactorSpace({"a": (0.0,)}).distinct(2), "'num' must be at most 1, .* got 2"),
        (
            lambda: FactorSpace({"a": (0.0,), "b": (0.0, 1.0)}).sample(
                2, correlation={("a", "b"): 0.1}
            ),
            "between -0 and 0",
        ),
        (
            lambda: sprites(2, 0, 1, look=lambda grey, generator: grey),
            r"'look' must give images of shape \(3, 64, 64\)",
        ),
        (
            lambda: sprite_looks.on_patches(torch.ones(64, 64)),
            r"'picture' must be colours .* got shape \(64, 64\)",
        ),
        (lambda: sprite_looks.on_patches(torch.full((3, 64, 64), 255.0)), r"colours in \[0, 1\]"),
        (
            lambda: sprites(2, 0, 1, look=sprite_looks.on_patches(torch.ones(3, 64, 60))),
            r"'picture' must be at least \(64, 64\), got \(64, 60\)",
        ),
        (lambda: render_sprites(torch.zeros(5)), r"'factors' must have shape \(N, 5\), got \(5,\)"),
        (
            lambda: render([0, 6, 0, 0, 0]),
            "factor 'scale' must be an index from 0 to 5, got 6 at row 0",
        ),
        (
            lambda: render([0, 0, 0, 0, -1]),
            "factor 'y' must be an index from 0 to 31, got -1 at row 0",
        ),
        (lambda: render([0.5, 0, 0, 0, 0]), "factor 'shape' must be an index from 0 to 2, got 0.5"),
        (
            lambda: render([math.nan, 0, 0, 0, 0]),
            "factor 'shape' must be an index from 0 to 2, got nan",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
