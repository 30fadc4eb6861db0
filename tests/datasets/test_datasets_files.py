"""A person's own files: round trips, and one clear line for what cannot be used."""

import io
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import from_path

RNG = np.random.default_rng(0)


def everything(splits, field="x"):
    """Return the rows of all parts, sorted by their first feature, which tells them apart."""
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    order = torch.cat([part.x[:, 0] for part in parts]).argsort()
    return torch.cat([getattr(part, field) for part in parts])[order]


def refused(path, message, **kwargs):
    with pytest.raises(InputError, match=message) as caught:
        from_path(path, **kwargs)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class TestAnyFile:
    def test_missing(self, tmp_path):
        refused(tmp_path / "absent.npz", "there is no such file or folder")

    def test_suffix(self, tmp_path):
        path = tmp_path / "data.xlsx"
        path.write_text("a")
        refused(
            path,
            r"must be a folder of images or a file .csv, .csv.gz, .tsv, .tsv.gz, .npy, .npz, got '.xlsx'",
        )

    @pytest.mark.parametrize("suffix", ["csv", "npy", "npz"])
    def test_empty(self, tmp_path, suffix):
        path = tmp_path / f"data.{suffix}"
        path.touch()
        refused(path, "empty data set: the file is empty")

    def test_split_column_elsewhere(self, tmp_path):
        path = tmp_path / "x.npy"
        np.save(path, np.ones((4, 2)))
        refused(path, "'split_column' is for csv files, got 'part'", split_column="part")
        refused(tmp_path, "'split_column' is for csv files, got 'part'", split_column="part")

    def test_split_is_random_by_seed(self, tmp_path):
        path = tmp_path / "x.npy"
        np.save(path, np.arange(40.0).reshape(40, 1))
        first, same, other = (from_path(path, seed=seed).test.x for seed in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)
        assert from_path(path, validation=0).validation is None
        assert len(from_path(path, test=10).test) == 10


class TestArrays:
    def test_npy(self, tmp_path):
        x = np.sort(RNG.normal(size=(30, 4)), axis=0)
        np.save(tmp_path / "mine.npy", x)
        splits = from_path(tmp_path / "mine.npy")
        assert splits.name == "mine" and splits.train.image_shape is None
        assert torch.equal(everything(splits), torch.from_numpy(x).float())

    def test_npz_with_companions(self, tmp_path):
        rows = np.arange(30)
        np.savez(
            tmp_path / "mine.npz",
            x=np.stack([rows, rows**2], 1),
            labels=np.array(["b", "a", "c"])[rows % 3],
            factors=rows[:, None] * 2,
            factor_names=["twice"],
            size_factor=rows + 1.0,
            covariates=rows[:, None] / 2,
            unused=np.array([{"pickled": 1}], dtype=object),
        )
        splits = from_path(tmp_path / "mine.npz")
        assert torch.equal(
            everything(splits), torch.from_numpy(np.stack([rows, rows**2], 1)).float()
        )
        assert splits.train.label_names == ("a", "b", "c")
        assert everything(splits, "labels").tolist() == [[1, 0, 2][row % 3] for row in rows]
        assert everything(splits, "factors").flatten().tolist() == (rows * 2).tolist()
        assert splits.train.factor_names == ("twice",)
        assert torch.equal(splits.test.context.size_factor, splits.test.x[:, :1] + 1)
        assert torch.equal(splits.test.context.covariates, splits.test.x[:, :1] / 2)

    def test_npz_with_parts_of_its_own(self, tmp_path):
        path = tmp_path / "mine.npz"
        np.savez(
            path,
            x_train=np.full((3, 2), 1),
            x_test=np.full((2, 2), 3),
            labels_train=["u", "u", "v"],
            labels_test=["w", "v"],
        )
        splits = from_path(path)
        assert splits.validation is None
        assert splits.train.x.tolist() == [[1, 1]] * 3 and splits.test.x.tolist() == [[3, 3]] * 2
        assert splits.train.label_names == splits.test.label_names == ("u", "v", "w")
        assert splits.train.labels.tolist() == [0, 0, 1] and splits.test.labels.tolist() == [2, 1]
        np.savez(
            path, x_train=np.ones((3, 2)), x_validation=np.ones((1, 2)), x_test=np.ones((2, 2))
        )
        assert len(from_path(path).validation) == 1

    @pytest.mark.parametrize(
        ("shape", "image_shape"),
        [
            ((6, 4, 5), (1, 4, 5)),
            ((6, 4, 5, 3), (3, 4, 5)),
            ((6, 3, 4, 5), (3, 4, 5)),
            ((6, 4, 5, 1), (1, 4, 5)),
        ],
    )
    def test_images_are_flattened_channels_first(self, tmp_path, shape, image_shape):
        images = RNG.integers(0, 256, size=shape).astype(np.uint8)
        np.savez(tmp_path / "mine.npz", images_train=images, images_test=images)
        data = from_path(tmp_path / "mine.npz").train
        assert data.image_shape == image_shape
        first = images if images.ndim == 3 or shape[1] == 3 else images.transpose(0, 3, 1, 2)
        assert torch.equal(data.x, torch.from_numpy(first.reshape(6, -1).copy()).float() / 255)

    def test_when_integers_are_pixels(self, tmp_path):
        counts = np.array([[0, 200], [7, 3], [1, 1]], dtype=np.uint8)
        binary = (np.arange(3 * 4).reshape(3, 2, 2) % 2).astype(np.uint8)
        for key, array, largest in (
            ("x", counts, 200),
            ("images", counts, 200 / 255),
            ("x", binary, 1),
            ("x", binary * 255, 1),
            ("x", binary.astype(np.int32) * 9, 9),
            ("x", binary.astype(bool), 1),
        ):
            np.savez(tmp_path / "mine.npz", **{key: array})
            splits = from_path(tmp_path / "mine.npz", validation=0, test=1)
            assert max(splits.train.x.max(), splits.test.x.max()).item() == pytest.approx(largest)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            (
                {"y": np.ones((3, 2))},
                "there must be a key 'x' or 'images', or 'x_train' and 'x_test', got y",
            ),
            (
                {"x_train": np.ones((3, 2))},
                "the endings of the keys 'x_...' must be .*, got 'train'",
            ),
            ({"x": np.ones(3)}, r"must have shape \(N, D\), .* got \(3,\)"),
            ({"x": np.ones((3, 2, 2, 2, 2))}, "must have shape"),
            ({"x": np.ones((3, 7, 7, 7))}, "1, 3 or 4 channels, first or last, got shape"),
            ({"x": np.ones((0, 2))}, "empty data set"),
            ({"x": np.array([["a", "b"]])}, "the data must be numbers, got type <U1"),
            ({"x": np.ones((3, 2), complex)}, "the data must be numbers, got type complex128"),
            (
                {"x": np.array([[1, {}]], dtype=object)},
                "not a readable npz archive of numbers and text",
            ),
            (
                {"x": np.array([[1.0, 2.0], [3.0, np.nan]])},
                r"'x' must be finite, got nan at index \(1, 1\)",
            ),
            ({"x": np.full((3, 2), 1e300)}, r"'x' must be finite, got inf at index \(0, 0\)"),
            ({"x": np.ones((3, 2)), "labels": np.arange(2)}, "'labels' must have shape"),
            (
                {"x": np.ones((2, 2)), "labels": [0.5, 1]},
                "labels must be whole numbers or text, got 0.5 in row 1",
            ),
            ({"x": np.ones((2, 2)), "labels": [[0], [1]]}, r"key 'labels' must have shape \(N,\)"),
            ({"x": np.ones((2, 2)), "factors": [["a"], ["b"]]}, "key 'factors' must be numbers"),
            (
                {"x": np.ones((2, 2)), "size_factor": [0.0, 1.0]},
                "'context.size_factor' must be positive",
            ),
            (
                {"x_train": np.ones((2, 2)), "x_test": np.ones((2, 3))},
                "the parts must agree in shape and type",
            ),
            (
                {"x_train": np.ones((2, 2)), "x_test": np.ones((2, 2)), "labels_train": [0, 1]},
                "labels for all parts or none, and key 'labels_test' is missing",
            ),
        ],
    )
    def test_bad_archive(self, tmp_path, arrays, message):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        refused(path, message)

    def test_not_an_archive(self, tmp_path):
        path = tmp_path / "mine.npz"
        path.write_text("hello")
        refused(path, "this is not a readable npz archive")
        buffer = io.BytesIO()
        np.save(buffer, np.ones((3, 2)))
        path.write_bytes(buffer.getvalue())
        refused(path, "this is a single array, not an npz archive; name it .npy")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing here")
        refused(path, "there must be a key 'x'")

    def test_damaged_archive(self, tmp_path):
        path = tmp_path / "mine.npz"
        np.savez_compressed(path, x=RNG.normal(size=(200, 5)))
        content = bytearray(path.read_bytes())
        content[2000:2100] = bytes(100)
        path.write_bytes(content)
        refused(path, "this is not a readable npz archive")
        path.write_bytes(content[:3000])
        refused(path, "this is not a readable npz archive")

    def test_not_an_array(self, tmp_path):
        path = tmp_path / "mine.npy"
        path.write_text("hello")
        refused(path, "this is not a readable npy file")
        with path.open("wb") as file:
            np.savez(file, x=np.ones((3, 2)))
        refused(path, "this is an npz archive, not an npy file")


class TestTables:
    def write(self, tmp_path, text):
        path = tmp_path / "mine.csv"
        path.write_text(text)
        return path

    def test_round_trip(self, tmp_path):
        frame = pd.DataFrame(
            {"a": np.arange(30), "b": RNG.normal(size=30), "c": np.arange(30) % 2 == 0}
        )
        frame["label"] = np.where(frame.a % 3 == 0, "fizz", "other")
        path = tmp_path / "mine.csv"
        frame.to_csv(path, index=False)
        splits = from_path(path)
        expected = torch.from_numpy(frame[["a", "b", "c"]].to_numpy(dtype=np.float32))
        assert torch.allclose(everything(splits), expected)
        assert splits.train.label_names == ("fizz", "other")
        assert everything(splits, "labels").tolist() == [
            0 if row % 3 == 0 else 1 for row in range(30)
        ]

    def test_labels_that_are_numbers(self, tmp_path):
        path = self.write(
            tmp_path, "labels,a\n" + "".join(f"{row % 4},{row}\n" for row in range(20))
        )
        splits = from_path(path)
        assert splits.train.label_names == () and splits.train.num_features == 1
        assert everything(splits, "labels").tolist() == [row % 4 for row in range(20)]

    def test_split_column(self, tmp_path):
        path = self.write(tmp_path, "a,part\n1,train\n2,test\n3, train\n4,validation\n")
        splits = from_path(path, split_column="part")
        assert splits.train.x.tolist() == [[1], [3]] and splits.train.feature_names == ("a",)
        assert splits.validation.x.tolist() == [[4]] and splits.test.x.tolist() == [[2]]
        path = self.write(tmp_path, "a,part\n1,train\n2,test\n")
        assert from_path(path, split_column="part").validation is None

    def test_numbered_columns_and_byte_order_mark(self, tmp_path):
        path = self.write(tmp_path, "\ufeff0,1,2\n" + "7,8,9\n" * 10)
        assert from_path(path).train.num_features == 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "a,b\n1,2\n3,x\n",
                "column 'b' must be numbers, got 'x' in row 2; name it 'label_column' if",
            ),
            ("a,b\n1,2\n3,\n", "values must be finite, got nan in row 2, column 'b'"),
            ("a,b\n1,2\n3\n", "values must be finite, got nan in row 2, column 'b'"),
            ("a,b\n1,inf\n3,4\n", "values must be finite, got inf in row 1, column 'b'"),
            ("a,b\n1,1e300\n3,4\n", "values must be finite, got inf in row 1, column 'b'"),
            ("a,label\n1,u\n2,\n", "column 'label' has no label in row 2"),
            ("a,label\n1,0.5\n2,1\n", "labels must be whole numbers or text, got 0.5 in row 1"),
            ("a,a\n1,2\n", "the names of the columns must differ, got 'a' twice"),
            (",a\n0,2\n", "column 1 has no name; name it, or leave it out"),
            ("0.5,1.5\n1,2\n", "the first row must name the columns, got the numbers 0.5, 1.5"),
            ("0,0,0\n1,2,3\n", "the first row must name the columns, got the numbers 0, 0, 0"),
            ("a,b\n1,2,3\n4,5,6\n", "this is not a readable csv file"),
            ("a,b\n1,2\n1,2,3\n", "this is not a readable csv file"),
            ("a,b\n", "empty data set: 2 feature columns and 0 rows"),
            ("label\n1\n", "empty data set: 0 feature columns and 1 rows"),
            ("\n1\n", "empty data set: the first row must name the columns"),
            ("a\n1\n2\n", "leaves it empty"),
        ],
    )
    def test_bad_table(self, tmp_path, text, message):
        path = self.write(tmp_path, text)
        if message == "leaves it empty":
            with pytest.raises(InputError, match=message):
                from_path(path)
        else:
            refused(path, message)

    def test_bad_encoding(self, tmp_path):
        path = tmp_path / "mine.csv"
        path.write_bytes(b"a,b\n\xff\xfe,1\n")
        refused(path, "this is not a readable csv file")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2\n", "'split_column' must be one of the columns a, b, got 'part'"),
            (
                "a,part\n1,train\n2,valid\n",
                "the values in column 'part' must be .*, got 'train', 'valid'",
            ),
            (
                "a,part\n1,train\n2,validation\n",
                "the values in column 'part' must be 'train', 'test'",
            ),
            ("a,part\n1,train\n2,test\n3,\n", "got '', 'test', 'train'"),
        ],
    )
    def test_bad_split_column(self, tmp_path, text, message):
        refused(self.write(tmp_path, text), message, split_column="part")

    def test_many_columns_are_not_all_listed(self, tmp_path):
        path = self.write(tmp_path, ",".join(f"c{i}" for i in range(30)) + "\n")
        refused(path, "c18, c19 and 10 more, got 'part'", split_column="part")


class TestImageFolders:
    def write(self, file, shape=(4, 5), level=None):
        pixels = RNG.integers(0, 256, size=shape) if level is None else np.full(shape, level)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        return torch.from_numpy(pixels.astype(np.float32) / 255)

    def test_flat_grey(self, tmp_path):
        for row in range(10):
            self.write(tmp_path / f"{row:02d}.png", level=row * 20)
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / ".hidden.png").write_text("not an image")
        splits = from_path(tmp_path)
        assert splits.train.image_shape == (1, 4, 5) and splits.train.labels is None
        assert splits.name == tmp_path.name
        assert torch.allclose(everything(splits)[:, -1] * 255, torch.arange(10) * 20.0)

    def test_colour_classes_and_parts(self, tmp_path):
        pixels = self.write(tmp_path / "train" / "cat" / "a.png", shape=(4, 5, 3))
        self.write(tmp_path / "train" / "dog" / "deep" / "b.png", shape=(4, 5, 3))
        self.write(tmp_path / "test" / "emu" / "c.png", shape=(4, 5, 3))
        splits = from_path(tmp_path)
        assert splits.validation is None and splits.train.image_shape == (3, 4, 5)
        assert torch.allclose(splits.train.x[0], pixels.permute(2, 0, 1).flatten())
        assert splits.train.label_names == ("cat", "dog", "emu")
        assert splits.train.labels.tolist() == [0, 1] and splits.test.labels.tolist() == [2]
        self.write(tmp_path / "validation" / "emu" / "d.png", shape=(4, 5, 3))
        assert len(from_path(tmp_path).validation) == 1

    def test_other_formats_and_modes(self, tmp_path):
        for suffix in ("jpg", "bmp", "PNG", "webp"):
            self.write(tmp_path / f"image.{suffix}", shape=(4, 5, 3), level=100)
        rgba = np.full((4, 5, 4), 100, dtype=np.uint8)
        rgba[..., 3] = 255
        Image.fromarray(rgba).save(tmp_path / "alpha.png")
        splits = from_path(tmp_path, validation=0, test=1)
        assert len(splits.train) == 4 and splits.train.image_shape == (3, 4, 5)
        assert (everything(splits) * 255 - 100).abs().max() < 3  # jpg and webp lose a little

    def test_black_and_white(self, tmp_path):
        for row in range(3):
            Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / f"{row}.png")
        assert torch.equal(
            from_path(tmp_path, validation=0, test=1).train.x[0], torch.eye(4).flatten()
        )

    def test_no_image(self, tmp_path):
        refused(tmp_path, "empty data set: no image")
        (tmp_path / "train").mkdir()
        refused(tmp_path, "sub-folders beside 'train' or 'test' must be .*, got 'train'")
        (tmp_path / "test").mkdir()
        refused(tmp_path, r"empty data set: no image .* in .*train")

    @pytest.mark.parametrize(
        ("shape", "words"), [((5, 5), "5 x 5 grey"), ((4, 5, 3), "5 x 4 colour")]
    )
    def test_one_differs(self, tmp_path, shape, words):
        for row in range(3):
            self.write(tmp_path / f"{row}.png")
        self.write(tmp_path / "7.png", shape=shape)
        self.write(tmp_path / "8.png", shape=shape)
        refused(tmp_path, f"images must all be of one size: 0.png is 5 x 4 grey, 7.png is {words}")

    def test_parts_beside_something_else(self, tmp_path):
        for folder in ("train", "test", "more"):
            self.write(tmp_path / folder / "a.png")
        refused(tmp_path, "got 'more', 'test', 'train'")

    def test_classes_beside_images(self, tmp_path):
        self.write(tmp_path / "a.png")
        self.write(tmp_path / "class" / "b.png")
        refused(tmp_path, "images must lie all in sub-folders, one a class, or all in none")

    def test_unreadable_image(self, tmp_path):
        self.write(tmp_path / "a.png", shape=(64, 64))
        (tmp_path / "b.png").write_bytes(b"not an image")
        refused(tmp_path, "b.png is not a readable image")
        (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
        refused(tmp_path, "b.png is not a readable image")

    def test_sixteen_bits(self, tmp_path):
        Image.fromarray(np.full((4, 5), 60000, dtype=np.uint16)).save(tmp_path / "a.png")
        refused(tmp_path, "images must have 8 bits a channel, a.png has mode I;16")
