"""Images with known factors from elsewhere: any two arrays, and the public dSprites file."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, listed
from pyro_bvae.core.inputs.data import MISMATCH, as_numbers, shown
from pyro_bvae.core.inputs.files import as_path, check_file, readable
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.readers.arrays import features_and_shape
from pyro_bvae.datasets.readers.files import check_arrays
from pyro_bvae.datasets.readers.npy import Header, read_array, read_header
from pyro_bvae.datasets.seeds import SPLIT_STREAM, stream_generator
from pyro_bvae.datasets.splits import Splits, split

# Of the public file, without its first factor: a colour that does not vary.
DSPRITES_FACTORS = ("shape", "scale", "orientation", "x", "y")
_DSPRITES_SHAPES = ("square", "ellipse", "heart")
_BLOCK = 512


@public
def from_factors(
    images: ArrayLike | Tensor,
    factors: ArrayLike | Tensor,
    *,
    factor_names: tuple[str, ...] = (),
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    name: str = "factors",
) -> Splits:
    """Make a data set of images, or any features, and the factors that made them.

    Args:
        images: ``(N, D)`` features, or images ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``
            with 1, 3 or 4 channels; images of type uint8 are divided by 255, unless all of them are
            zeros and ones.
        factors: Known factors of each, numbers ``(N, F)``, or ``(N,)`` for a single factor. They
            are kept as they are; :func:`factor_classes` numbers the values of each.
        factor_names: F names, or none.
        validation: Fraction or number of data that validate, 0 for none.
        test: Likewise, to test on.
        seed: Of the random split.
        name: Of the data set.

    Returns:
        x ``(N, D)``, channels first; factors ``(N, F)``, long if they are integers.

    Raises:
        InputError: if the arrays differ in length, hold no numbers, or have a shape that cannot be
            used.
    """
    pixels, known = (
        _numbers(key, array) for key, array in (("images", images), ("factors", factors))
    )
    known = known.reshape(-1, 1) if known.ndim == 1 else known
    if known.ndim != 2 or 0 in known.shape:
        raise InputError(
            f"'factors' must have shape (N, F) or (N,), at least (1, 1), got {known.shape}"
        )
    if pixels.ndim == 0 or len(pixels) != len(known):
        raise InputError(
            f"'images' and 'factors' must have one row for each datum, got {pixels.shape} and "
            f"{known.shape}"
        )
    (x,), shape = features_and_shape([pixels], divide=pixels.ndim > 2)
    columns = torch.from_numpy(known.astype(np.int64 if known.dtype.kind in "biu" else np.float32))
    data = Dataset(x=x, factors=columns, image_shape=shape, factor_names=tuple(factor_names))
    return split(data, validation=validation, test=test, seed=seed, name=name)


@public
def factor_classes(factors: Tensor) -> Tensor:
    """Number the values of each factor from 0, in increasing order: ``(N, F)`` to long ``(N, F)``.

    Raises:
        InputError: for another shape.
    """
    if factors.ndim != 2 or not factors.shape[1]:
        raise InputError(f"'factors' must have shape (N, F), got {tuple(factors.shape)}")
    return torch.stack([column.unique(return_inverse=True)[1] for column in factors.T], dim=1)


@public
def dsprites(
    path: str | os.PathLike[str],
    *,
    num_data: int | None = 20_000,
    values: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Read the public dSprites file ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``.

    Reference: Matthey et al. 2017.

    The images are read in a stream, and only those that are taken stay in memory: 16 KB each.

    Args:
        path: The file, or any ``.npz`` with ``imgs`` ``(N, H, W)``, ``latents_classes`` and
            ``latents_values`` ``(N, 6)``, of which the first column is the colour, which does not
            vary and is left out.
        num_data: How many of the images to take, at random without replacement; None for all.
        values: Let ``factors`` be the values of the factors (angles, say) and not their indices.
        validation: Fraction or number of the data taken that validate, 0 for none.
        test: Likewise, to test on.
        seed: Of the choice of images and of the split.

    Returns:
        x, ``(N, H * W)``, zeros and ones; ``factors`` ``(N, 5)``, long unless they are values;
        labels are the shapes.

    Raises:
        InputError: if the file is not there or cannot be read, or an array is not in it or of
            another length.
    """
    path = as_path(path)
    key = "latents_values" if values else "latents_classes"
    try:
        check_file(path)
        with readable("readable npz archive of numbers"), zipfile.ZipFile(path) as archive:
            _check_keys(archive)
            shape = _header(archive, "imgs").shape
            chosen = _choose(shape, num_data, seed)
            check_arrays([((max(_BLOCK, len(chosen)), shape[1] * shape[2]), 4)])
            classes, factors = (
                _table(archive, name, shape)[chosen, 1:] for name in ("latents_classes", key)
            )
            images = _images(archive, chosen)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    data = Dataset(
        x=images.flatten(1),
        labels=torch.from_numpy(classes[:, 0].astype(np.int64)),
        factors=torch.from_numpy(factors.astype(np.float32 if values else np.int64)),
        image_shape=(1, shape[1], shape[2]),
        factor_names=DSPRITES_FACTORS,
        label_names=_DSPRITES_SHAPES,
    )
    return split(data, validation=validation, test=test, seed=seed, name="dsprites")


def _numbers(name: str, array: ArrayLike | Tensor) -> np.ndarray:
    numbers = as_numbers(array)
    if numbers is MISMATCH:
        got = f"type {array.dtype}" if isinstance(array, np.ndarray) else shown(array)
        raise InputError(f"'{name}' must be numbers, got {got}")
    return numbers.cpu().numpy() if isinstance(numbers, Tensor) else numbers


def _check_keys(archive: zipfile.ZipFile) -> None:
    keys = sorted(name.removesuffix(".npy") for name in archive.namelist())
    if not {"imgs", "latents_classes", "latents_values"} <= set(keys):
        shown = listed(keys, 20) or "none"
        raise InputError(
            f"there must be keys 'imgs', 'latents_classes' and 'latents_values', got {shown}"
        )


def _header(archive: zipfile.ZipFile, key: str) -> Header:
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as stream:
        return read_header(stream, info.file_size)


def _choose(shape: tuple[int, ...], num_data: int | None, seed: int) -> np.ndarray:
    """Return the numbers of the images to take, in increasing order."""
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"key 'imgs' must have shape (N, H, W), got {shape}")
    check_arrays([((shape[0], 1), 8)])  # of an order of all
    if num_data is None:
        return np.arange(shape[0])
    check_count("num_data", num_data)
    if num_data > shape[0]:
        raise InputError(
            f"'num_data' must be at most {shape[0]}, the number of images in the file, got "
            f"{num_data}"
        )
    # the epoch sets this apart from the split that follows
    order = torch.randperm(shape[0], generator=stream_generator(seed, 1, SPLIT_STREAM))
    return order[:num_data].sort().values.numpy()


def _table(archive: zipfile.ZipFile, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read the classes or the values of all images, ``(N, 6)``."""
    header, info = _header(archive, key), archive.getinfo(f"{key}.npy")
    check_arrays([(header.shape, header.dtype.itemsize)])
    with archive.open(info) as stream:
        table = read_array(stream, info.file_size)
    columns = len(DSPRITES_FACTORS) + 1
    if table.shape != (shape[0], columns) or table.dtype.kind not in "biuf":
        raise InputError(
            f"key '{key}' must be numbers of shape ({shape[0]}, {columns}) as there are "
            f"{shape[0]} images, got "
            f"{table.dtype} of shape {table.shape}"
        )
    return table


def _images(archive: zipfile.ZipFile, chosen: np.ndarray) -> Tensor:
    """Read images in blocks and keep the chosen ones, ``(N, H, W)``."""
    info = archive.getinfo("imgs.npy")
    with archive.open(info) as stream:
        shape, by_column, dtype = read_header(stream, info.file_size)
        if dtype != np.uint8 or by_column:
            raise InputError(f"key 'imgs' must be uint8 pixels in the order of rows, got {dtype}")
        images = torch.empty(len(chosen), *shape[1:])
        pixels = shape[1] * shape[2]
        for start in range(0, int(chosen[-1]) + 1, _BLOCK):
            count = min(_BLOCK, shape[0] - start)
            block = np.frombuffer(stream.read(count * pixels), dtype=dtype).reshape(
                count, *shape[1:]
            )
            first, last = np.searchsorted(chosen, (start, start + count))
            images[first:last] = torch.from_numpy(block[chosen[first:last] - start])
    return images
