"""Pictures as cameras and people leave them: turned, transparent, of several sizes and colours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Splits, from_path, load

RNG = np.random.default_rng(0)
ORIENTATION = 0x0112
# The operation that each EXIF orientation asks for, as an array sees it.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """Return the images of a folder by file name, ``(H, W, C)`` from 0 to 255."""
    return by_name(from_path(folder, validation=0, test=1))


def by_name(splits: Splits) -> dict[str, np.ndarray]:
    found = {}
    for part in (splits.train, splits.test):
        assert part.image_shape is not None
        for name, x in zip(part.index, part.x, strict=True):  # type: ignore[call-overload]
            found[str(name)] = 255 * x.reshape(part.image_shape).permute(1, 2, 0).numpy()
    return found


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_as_the_camera_was(orientation: int, mode: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 6) if mode == "L" else (4, 6, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for name in ("a.png", "b.png", "c.tif"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    upright = TURNS[orientation](pixels)
    for image in pictures(tmp_path).values():
        assert np.allclose(image.squeeze(), upright, atol=1e-3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette", "grey key"])
def test_transparent_pictures_are_laid_on_white(mode: str, tmp_path: Path) -> None:
    level, alpha = 40, np.array([[0, 255], [128, 51]], dtype=np.uint8)
    if mode in ("palette", "grey key"):
        image = Image.new("P" if mode == "palette" else "L", (2, 2), 1)
        if mode == "palette":
            image.putpalette([0, 0, 0, level, level, level])
        image.putpixel((0, 0), 0)
        alpha, level = np.array([[0, 255], [255, 255]]), level if mode == "palette" else 1
        image.save(tmp_path / "a.png", transparency=0)
    else:
        image = Image.merge("LA", [Image.new("L", (2, 2), level), Image.fromarray(alpha)])
        image.convert(mode).save(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        Image.new("L" if mode in ("LA", "grey key") else "RGB", (2, 2)).save(tmp_path / name)
    share = alpha[..., None] / 255
    assert np.abs(pictures(tmp_path)["a.png"] - (share * level + (1 - share) * 255)).max() <= 1.01


def scene(height: int, width: int) -> np.ndarray:
    """Return a picture whose grey is a smooth function of the place, relative to its centre."""
    side = min(height, width)
    rows = (np.arange(height) + 0.5 - height / 2) / side
    columns = (np.arange(width) + 0.5 - width / 2) / side
    return 128 + 60 * np.sin(3 * rows)[:, None] + 60 * np.cos(4 * columns)[None]


@pytest.mark.parametrize("size", [8, 28, 64])
def test_pictures_of_several_sizes_are_resized_and_cropped_at_the_centre(
    size: int, tmp_path: Path
) -> None:
    shapes = [(size, size), (120, 90), (77, 200), (32, 32)]
    for number, shape in enumerate(shapes):
        Image.fromarray(scene(*shape).round().astype(np.uint8)).save(tmp_path / f"{number}.png")
    resized = sum(shape != (size, size) for shape in shapes)
    words = f"{resized} of 4 images are resized to {size} x {size} pixels"
    with pytest.warns(UserWarning, match=words):
        splits = from_path(tmp_path, image_size=size, validation=0, test=1)
    assert splits.train.image_shape == (1, size, size)
    truth = scene(size, size)
    for image in by_name(splits).values():
        assert np.abs(image.squeeze() - truth)[1:-1, 1:-1].max() < 6
    with pytest.raises(InputError, match=r"'--image-size 64' \(image_size=64\) makes them so"):
        from_path(tmp_path)


def test_pictures_of_the_size_stay_as_they_are_and_nothing_is_said(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(RNG.integers(0, 256, (8, 8)).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    plain = from_path(tmp_path, validation=0, test=1)
    sized = from_path(tmp_path, image_size=8, validation=0, test=1)
    assert torch.equal(plain.train.x, sized.train.x)


def test_grey_and_colour_in_one_folder(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (4, 5)).astype(np.uint8)
    colour = RNG.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.png")
    Image.fromarray(colour).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"a.png is 5 x 4 grey, c.png is 5 x 4 colour; '--colour"):
        from_path(tmp_path)
    both = by_name(from_path(tmp_path, colour="rgb", validation=0, test=1))
    assert np.allclose(both["a.png"], grey[..., None], atol=1e-3)
    assert np.allclose(both["c.png"], colour, atol=1e-3)
    one = by_name(from_path(tmp_path, colour="grey", validation=0, test=1))
    luminance = colour @ np.array([0.299, 0.587, 0.114])
    assert np.allclose(one["a.png"].squeeze(), grey, atol=1e-3)
    assert np.abs(one["c.png"].squeeze() - luminance).max() <= 0.51


def test_pictures_are_named_by_their_place_in_the_folder(tmp_path: Path) -> None:
    for name in ("train/cat/deep/a.png", "train/01/b.png", "test/1/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    splits = from_path(tmp_path)
    assert list(splits.train.index) == ["train/01/b.png", "train/cat/deep/a.png"]
    assert list(splits.test.index) == ["test/1/c.png"]
    assert splits.train.label_names == ("01", "1", "cat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "'image_size' must be a positive integer, got 0"),
        ({"image_size": 1.5}, "'image_size' must be an integer or None, got 1.5"),
        ({"image_size": 10**6}, "'image_size' must be at most 10000"),
        ({"colour": "gray"}, "unknown colour 'gray'. Did you mean 'grey'? Known: auto, grey, rgb."),
        ({"skip_unreadable": "yes"}, "'skip_unreadable' must be True or False, got 'yes'"),
    ],
)
def test_bad_options(options: dict[str, object], words: str, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        from_path(tmp_path, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_options_of_pictures_are_for_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 2)))
    for name, value in (("image_size", 8), ("colour", "grey")):
        with pytest.raises(InputError, match=f"'{name}' is for folders of images, got a file"):
            from_path(tmp_path / "x.npy", **{name: value})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"'{name}' = '{value}' is for data set 'file'"):
            load("digits", **{name: value})
    from_path(tmp_path / "x.npy", image_size=None, colour="auto", skip_unreadable=False)


@pytest.mark.filterwarnings("default")
def test_a_folder_is_trained_on_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in range(12):
        Image.new("RGB" if row % 2 else "L", (20 + row, 30)).save(tmp_path / f"{row:02}.png")
    data = ["--dataset", "file", "--path", str(tmp_path)]
    small = ["--epochs", "1", "--hidden", "4", "--latent-dim", "2", "--network", "convolutional"]
    run = ["train", "--output", str(tmp_path / "run"), *data, *small]
    assert main(run) == 2
    error = capsys.readouterr().err
    assert "'--image-size 64'" in error and "'--colour grey'" in error
    assert main([*run, "--image-size", "18", "--colour", "grey"]) == 2
    assert "divisible by 4, got 18 x 18; --image-size gives" in capsys.readouterr().err
    assert main([*run, "--image-size", "12", "--colour", "rgb"]) == 0
    assert "12 of 12 images are resized to 12 x 12 pixels" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["image_size"], config["colour"]) == (12, "rgb")
    words = ["evaluate", str(tmp_path / "run"), "--num-samples", "5", "--num-data", "1"]
    assert main(words) == 0
