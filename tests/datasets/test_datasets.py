"""Datasets in memory: order, binarization, splitting, checks of what is given, and the names to
load by."""

import math

import numpy as np
import pytest
import torch

from pyro_bvae import datasets
from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, LazyDataset, Splits, split, stream_generator, stream_seed

NAMES = tuple(f"class {i}" for i in range(50))


def numbered(n=50, d=3, **kwargs):
    """Return data whose first feature is the number of the row."""
    x = torch.arange(n, dtype=torch.float32).unsqueeze(1).repeat(1, d)
    return Dataset(x=x, **kwargs)


def grey(n=4000, level=0.3):
    return Dataset(x=torch.full((n, 5), level))


def epoch_x(data, seed=0, epoch=0, batch_size=16, **kwargs):
    return torch.cat([x for x, _ in data.batches(batch_size, seed=seed, epoch=epoch, **kwargs)])


class TestOrder:
    def test_is_a_function_of_seed_and_epoch(self):
        data = numbered()
        first = epoch_x(data, seed=3, epoch=2)
        torch.rand(7)  # the global generator has no part in it
        assert torch.equal(first, epoch_x(data, seed=3, epoch=2))
        assert not torch.equal(first, epoch_x(data, seed=3, epoch=3))
        assert not torch.equal(first, epoch_x(data, seed=4, epoch=2))

    def test_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        epoch_x(grey().dynamically_binarized())
        assert torch.equal(before, torch.get_rng_state())

    def test_does_not_depend_on_the_batch_size(self):
        data = numbered()
        assert torch.equal(epoch_x(data, batch_size=7), epoch_x(data, batch_size=50))

    @pytest.mark.parametrize("batch_size", [1, 7, 50, 60])
    def test_visits_every_datum_once(self, batch_size):
        data = numbered()
        batches = [x for x, _ in data.batches(batch_size, seed=0, epoch=0)]
        assert len(batches) == data.num_batches(batch_size) == math.ceil(50 / batch_size)
        assert torch.cat(batches)[:, 0].sort().values.tolist() == list(range(50))

    def test_drop_last_leaves_full_batches(self):
        data = numbered()
        batches = [x for x, _ in data.batches(16, seed=0, epoch=0, drop_last=True)]
        assert [len(x) for x in batches] == [16, 16, 16]
        assert data.num_batches(16, drop_last=True) == 3

    def test_without_shuffling_is_the_order_of_the_data(self):
        data = numbered()
        assert torch.equal(epoch_x(data, shuffle=False), data.x)

    def test_context_goes_with_its_datum(self):
        rows = torch.arange(50.0).unsqueeze(1)
        data = numbered(context=Context(size_factor=rows + 1, covariates=rows * 2))
        for x, context in data.batches(16, seed=1, epoch=0):
            assert torch.equal(context.size_factor, x[:, :1] + 1)
            assert torch.equal(context.covariates, x[:, :1] * 2)

    def test_positions_are_uniform_over_epochs(self):
        data = numbered(n=10)
        epochs = 2000
        first = torch.stack([epoch_x(data, epoch=epoch)[0, 0] for epoch in range(epochs)])
        counts = torch.bincount(first.long(), minlength=10).double()
        standard_error = math.sqrt(epochs * 0.1 * 0.9)
        assert (counts - epochs / 10).abs().max() < 5 * standard_error

    @pytest.mark.parametrize("batch_size", [0, -1, 2.5])
    def test_batch_size_is_checked_before_the_first_batch(self, batch_size):
        with pytest.raises(InputError, match="'batch_size' must be a positive integer, got"):
            numbered().batches(batch_size, seed=0, epoch=0)

    def test_drop_last_that_would_leave_nothing(self):
        with pytest.raises(InputError, match="leaves no batch of 50 data"):
            numbered().batches(51, seed=0, epoch=0, drop_last=True)


class TestStreams:
    def test_differ_in_each_number(self):
        seeds = {
            stream_seed(seed, epoch, stream)
            for seed in range(5)
            for epoch in range(5)
            for stream in range(5)
        }
        assert len(seeds) == 125

    def test_generator_begins_at_the_seed(self):
        expected = torch.rand(3, generator=torch.Generator().manual_seed(stream_seed(1, 2, 3)))
        assert torch.equal(torch.rand(3, generator=stream_generator(1, 2, 3)), expected)

    @pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
    def test_seed_must_be_a_word(self, seed):
        with pytest.raises(
            InputError, match=r"'seed' must be an integer from 0 to 4294967295, got"
        ):
            stream_generator(seed, 0, 0)


class TestBinarization:
    def test_dynamic_pixels_have_the_grey_means_and_change(self):
        levels = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
        n = 20000
        data = Dataset(x=levels.repeat(n, 1)).dynamically_binarized()
        first, second = (
            epoch_x(data, epoch=0, batch_size=512),
            epoch_x(data, epoch=1, batch_size=512),
        )
        assert set(first.unique().tolist()) == {0.0, 1.0}
        standard_error = (levels * (1 - levels) / n).sqrt()
        assert ((first.mean(0) - levels).abs() <= 4 * standard_error).all()
        assert (first[:, 0] == 0).all() and (first[:, 4] == 1).all()
        # two independent draws differ with probability 2p(1 - p)
        differ = 2 * levels * (1 - levels)
        differ_error = (differ * (1 - differ) / n).sqrt()
        assert (((first != second).float().mean(0) - differ).abs() <= 4 * differ_error).all()

    def test_dynamic_pixels_are_a_function_of_seed_and_epoch(self):
        data = grey().dynamically_binarized()
        assert torch.equal(epoch_x(data, seed=1, epoch=5), epoch_x(data, seed=1, epoch=5))
        assert not torch.equal(epoch_x(data, seed=1, epoch=5), epoch_x(data, seed=2, epoch=5))

    def test_dynamic_pixels_leave_the_greys(self):
        data = grey(level=0.25).dynamically_binarized()
        epoch_x(data)
        assert (data.x == 0.25).all()

    def test_fixed_draw_is_a_function_of_the_seed(self):
        data = grey()
        drawn = data.binarized(0)
        assert torch.equal(drawn.x, data.binarized(0).x)
        assert not torch.equal(drawn.x, data.binarized(1).x)
        assert abs(drawn.x.mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / drawn.x.numel())
        assert not data.dynamically_binarized().binarized(0).stochastic_binarization

    def test_modes_of_splits(self):
        splits = Splits(train=grey(), validation=grey(), test=grey(), name="grey")
        assert splits.binarized("none") is splits
        dynamic = splits.binarized("dynamic", seed=3)
        assert dynamic.train.stochastic_binarization and torch.equal(
            dynamic.train.x, splits.train.x
        )
        assert not dynamic.test.stochastic_binarization
        assert torch.equal(dynamic.test.x, splits.binarized("dynamic", seed=3).test.x)
        static = splits.binarized("static", seed=3)
        assert not static.train.stochastic_binarization
        assert torch.equal(static.test.x, dynamic.test.x)
        parts = [static.train.x, static.validation.x, static.test.x]
        assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in parts)
        assert not torch.equal(parts[0], parts[1]) and not torch.equal(parts[1], parts[2])
        assert splits.binarized("static").validation is not None

    def test_unknown_mode(self):
        splits = Splits(train=grey(), validation=None, test=grey(), name="grey")
        with pytest.raises(
            InputError, match=r"unknown binarization 'dynamical'\. Did you mean 'dynamic'"
        ):
            splits.binarized("dynamical")

    @pytest.mark.parametrize("value", [-0.5, 1.5, 255.0])
    def test_outside_the_unit_interval(self, value):
        x = torch.full((4, 3), 0.5)
        x[2, 1] = value
        for binarize in (lambda data: data.binarized(0), lambda data: data.dynamically_binarized()):
            with pytest.raises(
                InputError, match=rf"\[0, 1\] to be binarized, got {value} at index \(2, 1\)"
            ):
                binarize(Dataset(x=x))


class TestDataset:
    def test_rows(self):
        data = numbered(
            labels=torch.arange(50),
            factors=torch.arange(50).unsqueeze(1),
            label_names=NAMES,
            factor_names=("f",),
        )
        mask = torch.zeros(50, dtype=torch.bool)
        mask[[4, 9]] = True
        for index, expected in (
            (slice(2, 5), [2, 3, 4]),
            (torch.tensor([7, 3, -1]), [7, 3, 49]),
            ([7, 3], [7, 3]),
            (torch.tensor([7, 3]).numpy(), [7, 3]),
            (mask, [4, 9]),
        ):
            part = data[index]
            assert (
                part.x[:, 0].tolist()
                == part.labels.tolist()
                == part.factors[:, 0].tolist()
                == expected
            )
            assert part.label_names == NAMES and part.factor_names == ("f",)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            (0, "indexed by a slice, integers or a mask, got 0; iterate over it with batches"),
            ([50], "index 50 is outside a data set of 50"),
            ([-51], "index -51 is outside"),
            ([0.5], "indexed by a slice, integers or a mask"),
            ([True, False], "a mask over 50 data must have as many entries, got 2"),
            (slice(None, None, -1), "slices with a positive step"),
            (slice(3, 3), "empty data set"),
        ],
    )
    def test_bad_rows(self, index, message):
        with pytest.raises(InputError, match=message):
            numbered()[index]

    def test_to(self):
        data = numbered(labels=torch.arange(50), context=Context(size_factor=torch.ones(50, 1)))
        moved = data.to("cpu", torch.float64)
        assert moved.x.dtype == moved.context.size_factor.dtype == torch.float64
        assert moved.labels.dtype == torch.long and moved.context.covariates is None
        assert data.to("cpu").x.dtype == torch.float32

    def test_size(self):
        data = numbered(d=12, image_shape=(3, 2, 2))
        assert len(data) == 50 and data.num_features == 12

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            ([[1.0]], "'x' must be a torch tensor, got list"),
            (torch.zeros(4, 1, 2, 2), r"'x' must have shape \(N, D\), got \(4, 1, 2, 2\); flatten"),
            (torch.zeros(4), r"got \(4,\)"),
            (
                torch.zeros(4, 2, dtype=torch.uint8),
                "'x' must be floating, got torch.uint8; use x.float()",
            ),
            (torch.zeros(0, 2), "empty data set"),
            (torch.zeros(2, 0), "empty data set"),
            (torch.tensor([[0.0, math.nan]]), r"'x' must be finite, got nan at index \(0, 1\)"),
            (torch.tensor([[math.inf]]), r"'x' must be finite, got inf at index \(0, 0\)"),
        ],
    )
    def test_bad_x(self, x, message):
        with pytest.raises(InputError, match=message):
            Dataset(x=x)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (
                {"labels": torch.zeros(3).long()},
                r"'labels' must have shape \(4,\) as 'x' has 4 rows, got \(3,\)",
            ),
            ({"labels": torch.zeros(4)}, "'labels' must be torch.int64, got torch.float32"),
            ({"labels": [0, 1, 2, 3]}, "'labels' must be a torch tensor"),
            ({"factors": torch.zeros(4)}, r"'factors' must have shape \(4, \*\)"),
            ({"factors": torch.full((4, 1), math.nan)}, "'factors' must be finite"),
            ({"factor_names": ("a",)}, "'factor_names' must name every column"),
            ({"factors": torch.zeros(4, 2), "factor_names": ("a",)}, "got 1 names"),
            ({"context": torch.zeros(4, 1)}, "'context' must be a Context or None, got Tensor"),
            (
                {"context": Context(covariates=torch.zeros(5, 1))},
                "'context.covariates' must have shape",
            ),
            (
                {"context": Context(size_factor=torch.ones(4))},
                "'context.size_factor' must have shape",
            ),
            (
                {"context": Context(size_factor=torch.ones(4, 2))},
                "'context.size_factor' must be positive",
            ),
            (
                {"context": Context(size_factor=torch.zeros(4, 1))},
                "'context.size_factor' must be positive",
            ),
            ({"image_shape": (1, 2, 3)}, r"C \* H \* W = 4, got \(1, 2, 3\)"),
            ({"image_shape": (2, 2)}, r"got \(2, 2\)"),
        ],
    )
    def test_bad_companions(self, kwargs, message):
        with pytest.raises(InputError, match=message):
            Dataset(x=torch.zeros(4, 4), **kwargs)

    def test_splits_share_their_features(self):
        with pytest.raises(InputError, match="training has 3, test has 2"):
            Splits(train=numbered(), validation=None, test=numbered(d=2), name="unequal")


class TestSplit:
    @pytest.mark.parametrize(
        ("validation", "test", "sizes"),
        [
            (0.1, 0.2, (35, 5, 10)),
            (10, 0.5, (15, 10, 25)),
            (0, 1, (49, 0, 1)),
            (0.0, 10, (40, 0, 10)),
        ],
    )
    def test_parts_are_a_partition(self, validation, test, sizes):
        splits = split(numbered(), validation=validation, test=test, seed=0, name="numbers")
        parts = [splits.train, splits.validation, splits.test]
        assert tuple(0 if part is None else len(part) for part in parts) == sizes
        rows = torch.cat([part.x[:, 0] for part in parts if part is not None])
        assert rows.sort().values.tolist() == list(range(50))
        assert splits.name == "numbers"

    def test_is_a_function_of_the_seed(self):
        first, same, other = (
            split(numbered(), validation=0.1, test=0.2, seed=s, name="n").test.x for s in (0, 0, 1)
        )
        assert torch.equal(first, same) and not torch.equal(first, other)

    @pytest.mark.parametrize(
        ("validation", "test", "message"),
        [
            (0.1, 0, "'test' must hold at least one datum, got 0"),
            (0.001, 0.1, "'validation' = 0.001 of 50 data leaves it empty"),
            (0.1, 0.001, "'test' = 0.001 of 50 data leaves it empty"),
            (0.5, 0.5, "none is left to train on"),
            (25, 25, "none is left to train on"),
            (0.1, 50, "'test' must be a fraction in .* or a number of data below 50, got 50"),
            (1.0, 0.1, "'validation' must be a fraction in .*, got 1.0"),
            (-0.1, 0.1, "'validation' must be a fraction in .*, got -0.1"),
            (math.nan, 0.1, "got nan"),
            (True, 0.1, "got True"),
        ],
    )
    def test_empty_parts(self, validation, test, message):
        with pytest.raises(InputError, match=message):
            split(numbered(), validation=validation, test=test, seed=0, name="numbers")


class TestLoad:
    def test_digits(self):
        splits = datasets.load("digits", seed=1)
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (1258, 180, 359)
        assert splits.train.image_shape == (1, 8, 8) and splits.train.num_features == 64
        assert splits.train.x.min() == 0 and splits.train.x.max() == 1
        assert len(splits.train.label_names) == 10 and set(splits.test.labels.tolist()) == set(
            range(10)
        )
        # an image and its label stay together: of all digits, only a zero is dark in the middle
        middle = splits.train.x.view(-1, 8, 8)[:, 3:5, 3:5].mean((1, 2))
        means = torch.stack([middle[splits.train.labels == digit].mean() for digit in range(10)])
        assert means.argmin() == 0 and means[0] < 0.2

    def test_options_reach_the_data_set(self):
        assert datasets.load("digits", validation=0).validation is None
        assert len(datasets.load("digits", validation=7).validation) == 7
        assert datasets.load("digits", binarize="dynamic").train.stochastic_binarization
        assert set(datasets.load("digits", binarize="static").train.x.unique().tolist()) == {
            0.0,
            1.0,
        }
        first, second = (datasets.load("linear-gaussian", seed=seed).train.x for seed in (0, 1))
        assert not torch.equal(first, second)

    def test_file(self, tmp_path):
        path = tmp_path / "mine.csv"
        path.write_text("a,part\n1,train\n2,test\n")
        splits = datasets.load("file", path=path, split_column="part")
        assert (
            splits.train.x.tolist() == [[1]]
            and splits.test.x.tolist() == [[2]]
            and splits.name == "mine"
        )

    def test_names(self):
        assert set(datasets.available()) == {
            *(
                "counts",
                "digits",
                "fashion-mnist",
                "file",
                "h5ad",
                "kmnist",
                "linear-gaussian",
                "mnist",
            ),
            *(
                "sprites",
                "sprites-32",
                "sprites-coloured",
                "sprites-on-noise",
                "sprites-on-texture",
                "dsprites",
            ),
        }

    @pytest.mark.parametrize(
        ("name", "kwargs", "message"),
        [
            ("mnits", {}, "unknown data set 'mnits'. Did you mean 'mnist'"),
            ("file", {}, "data set 'file' needs 'path'"),
            (
                "digits",
                {"path": "a.csv"},
                "'path' = 'a.csv' is for data set 'file', got data set 'digits'",
            ),
            ("digits", {"split_column": "c"}, "'split_column' = 'c' is for data set 'file'"),
            ("digits", {"binarize": "yes"}, "unknown binarization 'yes'"),
            ("digits", {"seed": -1}, "'seed' must be an integer"),
            ("linear-gaussian", {"binarize": "static"}, "to be binarized"),
        ],
    )
    def test_bad_options(self, name, kwargs, message):
        with pytest.raises(InputError, match=message):
            datasets.load(name, **kwargs)


def test_data_know_which_row_of_their_source_they_are():
    x = torch.arange(12.0).view(6, 2)
    parts = split(Dataset(x), validation=1, test=2, seed=0, name="numbers")
    for part in (parts.train, parts.validation, parts.test):
        assert part.x[:, 0].tolist() == (2 * part.index).tolist()
    names = np.array(["a", "b", "c", "d", "e", "f"])
    named = Dataset(x, index=names)
    assert named[torch.tensor([3, 1])].index.tolist() == ["d", "b"]
    assert named[x[:, 0] > 5].to(dtype=torch.double).index.tolist() == ["d", "e", "f"]
    lazy = LazyDataset(x.numpy(), index=names)[2:4]
    assert lazy.index.tolist() == lazy.dense().index.tolist() == ["c", "d"]


@pytest.mark.parametrize("index", [["a"] * 6, np.zeros((6, 1), int), np.arange(5), np.ones(6)])
def test_an_index_that_names_no_rows_is_refused(index):
    with pytest.raises(InputError, match="'index' must"):
        Dataset(torch.ones(6, 2), index=index)
