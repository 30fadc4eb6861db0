"""Folders of images, with sub-folders for their classes and parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import PARTS, WHOLE, check_parts, encode_labels
from pyro_bvae.datasets.readers.arrays import features_and_shape

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


def read_image_folder(path: Path) -> dict[str, Dataset]:
    """Read the images of a folder, in the order of their names.

    Sub-folders ``train``, ``test`` and maybe ``validation`` are parts; any other sub-folder of the
    whole, or of a part, is a class. Images are grey or colour, all of one size; transparency is
    dropped.
    """
    folders = [entry.name for entry in _visible(path) if entry.is_dir()]
    parts = {WHOLE: path}
    if "train" in folders or "test" in folders:
        check_parts(folders, "sub-folders beside 'train' or 'test'")
        parts = {part: path / part for part in PARTS if part in folders}
    files = {part: _images(folder) for part, folder in parts.items()}
    pixels = _stack(path, [[file for file, _ in members] for members in files.values()])
    xs, shape = features_and_shape(pixels, divide=True)
    classes = [label for members in files.values() for _, label in members]
    if any(classes) and not all(classes):
        raise InputError("images must lie all in sub-folders, one a class, or all in none")
    codes, names = encode_labels(np.array(classes))
    return {
        part: Dataset(
            x=x,
            labels=labels if any(classes) else None,
            image_shape=shape,
            label_names=names if any(classes) else (),
        )
        for part, x, labels in zip(files, xs, codes.split([len(x) for x in xs]), strict=True)
    }


def _images(folder: Path) -> list[tuple[Path, str]]:
    """Return the images below a folder with the name of their sub-folder, ``""`` for none."""
    results = []
    for entry in _visible(folder):
        if entry.is_dir():
            members = (file for file in sorted(entry.rglob("*")) if not file.name.startswith("."))
            results += [(file, entry.name) for file in members if _is_image(file)]
        elif _is_image(entry):
            results.append((entry, ""))
    if not results:
        raise InputError(f"empty data set: no image ({', '.join(IMAGE_SUFFIXES)}) in {folder}")
    return results


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__")))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()


def _stack(root: Path, parts: list[list[Path]]) -> list[np.ndarray]:
    """Return uint8 pixels ``(N, H, W, C)`` of each part, all of the shape of the first image."""
    first = parts[0][0]
    shape = _pixels(first, root).shape
    stacks = []
    for files in parts:
        stack = np.empty((len(files), *shape), dtype=np.uint8)
        for row, file in enumerate(files):
            pixels = _pixels(file, root)
            if pixels.shape != shape:
                raise InputError(
                    f"images must all be of one size: {first.relative_to(root)} is "
                    f"{_described(shape)}, "
                    f"{file.relative_to(root)} is {_described(pixels.shape)}"
                )
            stack[row] = pixels
        stacks.append(stack)
    return stacks


def _pixels(file: Path, root: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode not in _GREY_MODES + _COLOUR_MODES:
                raise InputError(
                    f"images must have 8 bits a channel, {file.relative_to(root)} has mode "
                    f"{image.mode}"
                )
            pixels = np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file.relative_to(root)} is not a readable image: {error}") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'grey' if shape[2] == 1 else 'colour'}"
