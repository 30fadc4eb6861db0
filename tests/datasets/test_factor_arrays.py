"""Images with known factors from arrays and from files like the public one, against what was put
in."""

import numpy as np
import pytest
import torch

from pyro_bvae import datasets
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import dsprites, factor_classes, from_factors
from pyro_bvae.datasets.factors import factor_arrays

NUM = 700


def public(num=NUM, side=8):
    """Return arrays as those of the public file.

    The first pixels spell the row's number in binary.
    """
    rows = np.arange(num)
    images = np.zeros((num, side, side), np.uint8)
    images[:, 0, :] = rows[:, None] >> np.arange(side) & 1
    images[:, 1, :4] = rows[:, None] >> (side + np.arange(4)) & 1
    classes = np.stack(
        [0 * rows, rows % 3, rows // 3 % 6, rows % 40, rows % 32, rows // 32 % 32], axis=1
    )
    return {
        "imgs": images,
        "latents_classes": classes,
        "latents_values": np.where(np.arange(6) < 2, 1.0 + classes, classes / 7),
    }


def numbers(x, side=8):
    """Return the row numbers that images spell."""
    return (
        x[:, :side] @ (2.0 ** torch.arange(side))
        + x[:, side : side + 4] @ (2.0 ** (side + torch.arange(4)))
    ).long()


@pytest.fixture
def path(tmp_path):
    np.savez_compressed(tmp_path / "dsprites.npz", latents_names=np.array(["color"]), **public())
    return tmp_path / "dsprites.npz"


def everything(splits):
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    return torch.cat([part.x for part in parts]), torch.cat([part.factors for part in parts])


class TestDsprites:
    @pytest.mark.parametrize("block", [1, 64, 512])
    def test_images_stay_with_their_factors(self, path, block, monkeypatch):
        monkeypatch.setattr(factor_arrays, "_BLOCK", block)
        splits = dsprites(path, num_data=100, validation=10, test=0.2, seed=5)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [
            70,
            10,
            20,
        ]
        x, factors = everything(splits)
        rows = numbers(x)
        assert len(rows.unique()) == 100 and rows.max() > 512
        assert torch.equal(factors, torch.from_numpy(public()["latents_classes"])[rows, 1:])
        train = splits.train
        assert (
            train.image_shape == (1, 8, 8)
            and train.factors.dtype == torch.long
            and splits.name == "dsprites"
        )
        assert train.factor_names == ("shape", "scale", "orientation", "x", "y")
        assert torch.equal(train.labels, train.factors[:, 0])

    def test_all_of_them_and_values(self, path):
        x, factors = everything(dsprites(path, num_data=None, values=True))
        assert numbers(x).sort().values.tolist() == list(range(NUM))
        expected = torch.from_numpy(public()["latents_values"]).float()[numbers(x), 1:]
        assert torch.equal(factors, expected)

    def test_seeds(self, path):
        first, same, other = (dsprites(path, num_data=60, seed=seed).train.x for seed in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)

    def test_by_name(self, tmp_path):
        np.savez(tmp_path / "mine.npz", **public(20_010, side=12))
        splits = datasets.load("dsprites", path=tmp_path / "mine.npz", validation=0)
        assert splits.validation is None and len(splits.train) + len(splits.test) == 20_000

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"imgs": None}, "there must be keys 'imgs', .* got latents_classes, latents_values"),
            ({"latents_values": None}, "got imgs, latents_classes"),
            (
                {"imgs": np.zeros((5, 64), np.uint8)},
                r"'imgs' must have shape \(N, H, W\), got \(5, 64\)",
            ),
            ({"imgs": np.zeros((NUM, 8, 8))}, "'imgs' must be uint8 pixels .* got float64"),
            (
                {"imgs": np.zeros((NUM - 1, 8, 8), np.uint8)},
                "'latents_classes' must be numbers of shape \\(699, 6\\)",
            ),
            (
                {"latents_classes": np.zeros((NUM, 5))},
                r"must be numbers of shape \(700, 6\) .* got float64 of .* 5\)",
            ),
            ({"latents_classes": np.full((NUM, 6), "a")}, "must be numbers of shape"),
            ({"latents_classes": np.full((NUM, 6), None)}, "not a readable npz archive"),
        ],
    )
    def test_bad_archives(self, tmp_path, changes, message):
        arrays = {key: value for key, value in {**public(), **changes}.items() if value is not None}
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(InputError, match=message) as raised:
            dsprites(tmp_path / "bad.npz", num_data=100)
        assert "bad.npz: " in str(raised.value) and "\n" not in str(raised.value)

    def test_bad_files_and_numbers(self, path):
        with pytest.raises(InputError, match=r"nowhere\.npz: there is no such file"):
            dsprites(path.parent / "nowhere.npz")
        with pytest.raises(InputError, match=r"'num_data' must be at most 700, .* got 701"):
            dsprites(path, num_data=701)
        with pytest.raises(InputError, match="'num_data' must be a positive integer, got 0"):
            dsprites(path, num_data=0)
        with pytest.raises(InputError, match="data set 'dsprites' needs 'path'"):
            datasets.load("dsprites")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"dsprites\.npz: this is not a readable npz archive"):
            dsprites(path)


class TestFromFactors:
    @pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda array: array.tolist()])
    def test_rows_stay_together(self, convert):
        x = np.arange(60.0).reshape(20, 3)
        splits = from_factors(
            convert(x), convert(np.stack([x[:, 0], -x[:, 1]], 1)), factor_names=("a", "b"), test=5
        )
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [13, 2, 5]
        rows, factors = everything(splits)
        assert torch.equal(factors, torch.stack([rows[:, 0], -rows[:, 1]], 1))
        assert rows[:, 0].sort().values.tolist() == x[
            :, 0
        ].tolist() and splits.train.factor_names == ("a", "b")

    def test_images_become_channels_first_and_pixels_are_divided(self):
        images = np.arange(10 * 4 * 4 * 3).reshape(10, 4, 4, 3).astype(np.uint8)
        splits = from_factors(images, np.arange(10), validation=0)
        data = splits.train
        assert (
            data.image_shape == (3, 4, 4)
            and data.factors.shape == (9, 1)
            and data.factors.dtype == torch.long
        )
        row = int(data.factors[0, 0])
        assert np.allclose(data.x[0].view(3, 4, 4).numpy(), np.moveaxis(images[row], 2, 0) / 255)

    def test_classes_number_the_values(self):
        values = torch.tensor([[0.5, 3.0], [-1.0, 3.0], [0.5, 7.0], [9.0, 3.0]])
        assert factor_classes(values).tolist() == [[1, 0], [0, 0], [1, 1], [2, 0]]
        angles = datasets.SPRITE_FACTORS.values_of(datasets.SPRITE_FACTORS.sample(500))
        again = datasets.SPRITE_FACTORS.sample(500)
        assert torch.equal(factor_classes(angles), again)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: from_factors(np.zeros((5, 2)), np.zeros((4, 1))),
                r"'images' and 'factors' must have one row for each datum, got \(5, 2\) and \(4, "
                r"1\)",
            ),
            (lambda: from_factors(np.float32(1), np.zeros((4, 1))), r"got \(\) and \(4, 1\)"),
            (
                lambda: from_factors(np.zeros((5, 2)), np.zeros((5, 1, 1))),
                r"shape \(N, F\) or \(N,\), .* got \(5, 1, 1\)",
            ),
            (
                lambda: from_factors(np.zeros((5, 2)), np.zeros((5, 0))),
                r"at least \(1, 1\), got \(5, 0\)",
            ),
            (
                lambda: from_factors(np.zeros((5, 2)), np.array(["a"] * 5)),
                "'factors' must be numbers, got type <U1",
            ),
            (
                lambda: from_factors(np.zeros((5, 2, 2, 9)), np.zeros(5)),
                "images must have 1, 3 or 4 channels",
            ),
            (
                lambda: from_factors(np.zeros((5, 2)), np.full(5, np.nan)),
                "'factors' must be finite, got nan",
            ),
            (
                lambda: from_factors(np.zeros((5, 2)), np.zeros(5), factor_names=("a", "b")),
                "got 2 names",
            ),
            (
                lambda: factor_classes(torch.zeros(3)),
                r"'factors' must have shape \(N, F\), got \(3,\)",
            ),
        ],
    )
    def test_bad_arrays(self, call, message):
        with pytest.raises(InputError, match=message):
            call()
