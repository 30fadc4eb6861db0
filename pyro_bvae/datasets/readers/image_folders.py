"""Folders of images, with sub-folders for their classes and parts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from pyro_bvae.core.errors import InputError, check_count, listed, unknown_name
from pyro_bvae.core.inputs.files import check_file, readable
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import PARTS, WHOLE, check_parts, encode_labels
from pyro_bvae.datasets.readers.arrays import features_and_shape
from pyro_bvae.datasets.readers.files import check_arrays
from pyro_bvae.datasets.registry import COLOURS

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "RGBa", "P", "PA", "CMYK", "YCbCr")
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")
_LARGEST = 10_000  # pixels of a side


class ImageOptions(TypedDict, total=False):
    """The options of a folder of images, see :func:`read_image_folder`."""

    skip_unreadable: bool
    image_size: int | None
    colour: str


class _Image(NamedTuple):
    """The pixels of an image, uint8 ``(H, W, C)``, its name in the folder and that of its class."""

    pixels: np.ndarray
    name: str
    label: str


@public
def read_image_folder(
    path: Path, *, skip_unreadable: bool = False, image_size: int | None = None,
    colour: str = "auto",
) -> dict[str, Dataset]:  # fmt: skip
    """Read the images of a folder, in the order of their names.

    Sub-folders ``train``, ``test`` and maybe ``validation`` are parts; any other sub-folder of the
    whole, or of a part, is a class. Images are turned as their EXIF orientation says, and
    transparent ones are laid on white. The index of a datum is the name of its file in the folder.

    Args:
        path: The folder.
        skip_unreadable: Leave out files that are no readable image; a warning names the first.
        image_size: Side in pixels of the square images to make: the shorter side is resized to it,
            and the longer one cropped at the centre; a warning counts the images that are changed.
            By default images must all be of one size.
        colour: ``grey`` or ``rgb`` images, or ``auto``: as they are, all grey or all colour.

    Raises:
        InputError: if there are no images, or some that cannot be read or put together.
    """
    if colour not in COLOURS:
        raise unknown_name("colour", colour, COLOURS)
    if image_size is not None:
        check_count("image_size", image_size)
        if image_size > _LARGEST:
            raise InputError(f"'image_size' must be at most {_LARGEST}, got {image_size}")
    folders = [entry.name for entry in _visible(path) if entry.is_dir()]
    parts = {WHOLE: path}
    if "train" in folders or "test" in folders:
        check_parts(folders, "sub-folders beside 'train' or 'test'")
        parts = {part: path / part for part in PARTS if part in folders}
    files = {part: _images(folder) for part, folder in parts.items()}
    images = _decode(path, files, skip_unreadable, image_size, colour)
    xs, shape = features_and_shape(
        [np.stack([image.pixels for image in members]) for members in images.values()], divide=True
    )
    classes = [image.label for members in images.values() for image in members]
    if any(classes) and not all(classes):
        raise InputError("images must lie all in sub-folders, one a class, or all in none")
    codes, names = encode_labels(np.array(classes))
    return {
        part: Dataset(
            x=x,
            labels=labels if any(classes) else None,
            image_shape=shape,
            label_names=names if any(classes) else (),
            index=np.array([image.name for image in images[part]]),
        )
        for part, x, labels in zip(files, xs, codes.split([len(x) for x in xs]), strict=True)
    }


def _images(folder: Path) -> list[tuple[Path, str]]:
    """Return the images below a folder with the name of their sub-folder, ``""`` for none."""
    results = []
    with readable("readable folder"):
        for entry in _visible(folder):
            if entry.is_dir():
                members = sorted(entry.rglob("*"))
                results += [(file, entry.name) for file in members if _is_image(file)]
            elif _is_image(entry):
                results.append((entry, ""))
    if not results:
        raise InputError(f"empty data set: no image ({', '.join(IMAGE_SUFFIXES)}) in {folder}")
    return results


def _visible(folder: Path) -> list[Path]:
    with readable("readable folder"):
        entries = sorted(folder.iterdir())
    return [entry for entry in entries if not entry.name.startswith((".", "__"))]


def _is_image(file: Path) -> bool:
    """Return whether a name is that of an image, which a broken link or a pipe may have too."""
    hidden = file.name.startswith(".")
    return file.suffix.lower() in IMAGE_SUFFIXES and not hidden and not file.is_dir()


def _decode(
    root: Path,
    parts: dict[str, list[tuple[Path, str]]],
    skip_unreadable: bool,
    image_size: int | None,
    colour: str,
) -> dict[str, list[_Image]]:
    """Return the images of each part, all of one shape."""
    count = sum(len(members) for members in parts.values())
    first: _Image | None = None
    results: dict[str, list[_Image]] = {part: [] for part in parts}
    skipped: dict[str, str] = {}
    num_resized = 0
    for part, file, label in ((part, *each) for part, own in parts.items() for each in own):
        name = file.relative_to(root).as_posix()
        try:
            pixels, is_resized = _pixels(file, name, image_size, colour)
        except InputError as error:
            reason = str(error) if name in str(error) else f"{name}: {error}"
            if not skip_unreadable:
                raise InputError(
                    f"{reason}; '--skip-unreadable' (skip_unreadable=True) leaves such files out"
                ) from error
            skipped[name] = reason
            continue
        image, num_resized = _Image(pixels, name, label), num_resized + is_resized
        if first is None:
            first = image
            check_arrays([((count, *pixels.shape), 1)])
        _check_like(first, image)
        results[part].append(image)
    if skipped:
        reason = next(iter(skipped.values()))
        if empty := [part for part in results if not results[part]]:
            where = "" if empty == [WHOLE] else f" in '{empty[0]}'"
            raise InputError(f"empty data set: no image{where} is readable; {reason}")
        shown = f"{len(skipped)} of {count} images are skipped: {listed(list(skipped))}"
        warnings.warn(f"{root}: {shown} ({reason})", stacklevel=2)
    if num_resized:
        warnings.warn(
            f"{root}: {num_resized} of {count} images are resized to {image_size} x {image_size} "
            "pixels, the longer side cropped at the centre",
            stacklevel=2,
        )
    return results


def _check_like(first: _Image, image: _Image) -> None:
    """Raise unless an image has the shape of the first, with the option that gives it that."""
    if image.pixels.shape == first.pixels.shape:
        return
    hints = []
    if image.pixels.shape[:2] != first.pixels.shape[:2]:
        hints.append("'--image-size 64' (image_size=64) makes them so")
    if image.pixels.shape[2] != first.pixels.shape[2]:
        hints.append("'--colour grey' or 'rgb' (colour=) makes them all grey or all colour")
    raise InputError(
        f"images must all be of one size: {first.name} is {_described(first.pixels.shape)}, "
        f"{image.name} is {_described(image.pixels.shape)}; {', '.join(hints)}"
    )


def _pixels(file: Path, name: str, image_size: int | None, colour: str) -> tuple[np.ndarray, bool]:
    """Return the pixels of an image, ``(H, W, C)``, and whether its size was another.

    Its size is checked before it is decoded.
    """
    from PIL import Image, ImageOps

    with readable("readable image", name):
        check_file(file)
        # Of a file by its name, Pillow maps grey TIFF into memory, and turns that wrongly.
        with file.open("rb") as stream, Image.open(stream) as image:
            if image.mode not in _GREY_MODES + _COLOUR_MODES:
                raise InputError(f"images must have 8 bits a channel, {name} has mode {image.mode}")
            is_grey = image.mode in _GREY_MODES if colour == "auto" else colour == "grey"
            check_arrays([((1, image.height, image.width, 1 if is_grey else 3), 1)])
            is_transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
            upright = ImageOps.exif_transpose(image)
            if is_transparent:
                picture = upright.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                upright = Image.alpha_composite(white, picture)
            result = upright.convert("L" if is_grey else "RGB")
            is_resized = False
            if image_size is not None and result.size != (image_size, image_size):
                is_resized = True
                result = ImageOps.fit(result, (image_size, image_size), Image.Resampling.LANCZOS)
            pixels = np.asarray(result)
    return pixels.reshape(*pixels.shape[:2], -1), is_resized


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'grey' if shape[2] == 1 else 'colour'}"
