"""Folders of images, with sub-folders for their classes and parts."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.core.inputs.files import check_file, readable
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import PARTS, WHOLE, check_parts, encode_labels
from pyro_bvae.datasets.readers.arrays import features_and_shape
from pyro_bvae.datasets.readers.files import check_arrays

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


def read_image_folder(path: Path, *, skip_unreadable: bool = False) -> dict[str, Dataset]:
    """Read the images of a folder, in the order of their names.

    Sub-folders ``train``, ``test`` and maybe ``validation`` are parts; any other sub-folder of the
    whole, or of a part, is a class. Images are grey or colour, all of one size; transparency is
    dropped. With ``skip_unreadable``, files that are no readable image are left out, and a warning
    names the first of them.
    """
    folders = [entry.name for entry in _visible(path) if entry.is_dir()]
    parts = {WHOLE: path}
    if "train" in folders or "test" in folders:
        check_parts(folders, "sub-folders beside 'train' or 'test'")
        parts = {part: path / part for part in PARTS if part in folders}
    files = {part: _images(folder) for part, folder in parts.items()}
    pixels = _decode(path, files, skip_unreadable)
    xs, shape = features_and_shape(
        [np.stack([image for image, _ in members]) for members in pixels.values()], divide=True
    )
    classes = [label for members in pixels.values() for _, label in members]
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
    root: Path, parts: dict[str, list[tuple[Path, str]]], skip_unreadable: bool
) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Return the pixels of each image, uint8 ``(H, W, C)`` of one shape, with its class."""
    count = sum(len(members) for members in parts.values())
    first: tuple[str, tuple[int, ...]] | None = None
    results: dict[str, list[tuple[np.ndarray, str]]] = {part: [] for part in parts}
    skipped: dict[str, str] = {}
    for part, file, label in ((part, *each) for part, own in parts.items() for each in own):
        name = str(file.relative_to(root))
        try:
            pixels = _pixels(file, name)
        except InputError as error:
            reason = str(error) if name in str(error) else f"{name}: {error}"
            if not skip_unreadable:
                raise InputError(
                    f"{reason}; '--skip-unreadable' (skip_unreadable=True) leaves such files out"
                ) from error
            skipped[name] = reason
            continue
        if first is None:
            first = name, pixels.shape
            check_arrays([((count, *pixels.shape), 1)])
        if pixels.shape != first[1]:
            raise InputError(
                f"images must all be of one size: {first[0]} is {_described(first[1])}, {name} is "
                f"{_described(pixels.shape)}"
            )
        results[part].append((pixels, label))
    if skipped:
        reason = next(iter(skipped.values()))
        if empty := [part for part in results if not results[part]]:
            where = "" if empty == [WHOLE] else f" in '{empty[0]}'"
            raise InputError(f"empty data set: no image{where} is readable; {reason}")
        shown = f"{len(skipped)} of {count} images are skipped: {listed(list(skipped))}"
        warnings.warn(f"{root}: {shown} ({reason})", stacklevel=2)
    return results


def _pixels(file: Path, name: str) -> np.ndarray:
    """Return the pixels of an image, ``(H, W, C)``; its size is checked before it is decoded."""
    from PIL import Image

    with readable("readable image", name):
        check_file(file)
        with Image.open(file) as image:
            if image.mode not in _GREY_MODES + _COLOUR_MODES:
                raise InputError(f"images must have 8 bits a channel, {name} has mode {image.mode}")
            is_grey = image.mode in _GREY_MODES
            check_arrays([((1, image.height, image.width, 1 if is_grey else 3), 1)])
            pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} {'grey' if shape[2] == 1 else 'colour'}"
