"""Arrays in ``.npz`` and ``.npy`` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import PARTS, WHOLE, check_parts, encode_labels
from pyro_bvae.datasets.readers.files import check_arrays
from pyro_bvae.datasets.readers.npy import NPY_MAGIC, ZIP_MAGIC, read_array, read_header

_DATA_KEYS = ("x", "images")
_KNOWN_KEYS = (
    *_DATA_KEYS,
    "labels",
    "factors",
    "size_factor",
    "covariates",
    "label_names",
    "factor_names",
    "mask",
)
_CHANNELS = (1, 3, 4)


def read_npy(path: Path, *, missing: bool = False) -> dict[str, Dataset]:
    """Read one array of data, of a shape that :func:`features_and_shape` takes."""
    with readable("readable npy file of numbers"), path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            raise InputError("this is an npz archive, not an npy file; name it .npz")
        file.seek(0)
        size = path.stat().st_size
        header = read_header(file, size)
        check_arrays([(header.shape, header.dtype.itemsize)])
        file.seek(0)
        array = read_array(file, size)
    (x,), shape = features_and_shape([array], divide=array.ndim > 2)
    return {WHOLE: Dataset(x=x, image_shape=shape, missing=missing)}


def read_npz(path: Path, *, missing: bool = False) -> dict[str, Dataset]:
    """Read an archive with key ``x`` or ``images``, or one for each part, such as ``x_train``.

    Optional keys, likewise with or without the part: ``labels``, ``factors``, ``size_factor``,
    ``covariates``; ``mask``, of the shape of the data, 0 or False where an entry was not observed;
    and ``label_names``, ``factor_names``. Other keys are not read. ``missing`` is that of
    :class:`Dataset`.
    """
    arrays, keys = _archive(path)
    data_key, endings = _layout(arrays, keys)
    data = [arrays[data_key + ending] for ending in endings.values()]
    xs, shape = features_and_shape(data, divide=data_key == "images" or data[0].ndim > 2)
    labels, label_names = _labels(arrays, list(endings.values()))
    parts = {}
    for x, label, (part, ending) in zip(xs, labels, endings.items(), strict=True):
        parts[part] = Dataset(
            x=x,
            context=_context(arrays, ending),
            labels=label,
            factors=_numbers(arrays, "factors" + ending),
            image_shape=shape,
            factor_names=_names(arrays, "factor_names"),
            label_names=_names(arrays, "label_names") or label_names,
            missing=missing,
        )
        if (mask := _numbers(arrays, "mask" + ending)) is not None:
            observed, _ = features_and_shape([mask.numpy()], divide=False)
            parts[part] = parts[part].masked(observed[0] > 0)
    return parts


def features_and_shape(
    arrays: list[np.ndarray], *, divide: bool
) -> tuple[list[Tensor], tuple[int, int, int] | None]:
    """Turn the arrays of all parts into flat features and the shape of their images.

    Args:
        arrays: ``(N, D)`` features, or images ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``
            with 1, 3 or 4 channels; where both could be meant, channels come last.
        divide: Whether uint8 is pixels, to be divided by 255 (unless all of them are zeros and
            ones).

    Returns:
        float32 features ``(N, D)`` of each part, in the order C, H, W, and ``(C, H, W)`` or None
        for ``(N, D)``.
    """
    first = arrays[0]
    for array in arrays:
        _check_array(array, first)
    shape: tuple[int, int, int] | None = None
    if first.ndim == 3:
        shape = (1, first.shape[1], first.shape[2])
    elif first.ndim == 4:
        if first.shape[3] in _CHANNELS:
            arrays = [np.moveaxis(array, 3, 1) for array in arrays]
        shape = (arrays[0].shape[1], arrays[0].shape[2], arrays[0].shape[3])
    grey_levels = (
        divide and first.dtype == np.uint8 and max(int(array.max()) for array in arrays) > 1
    )
    with np.errstate(
        over="ignore"
    ):  # numbers too large for float32 are reported as infinite, with their index
        tables = [array.reshape(len(array), -1).astype(np.float32) for array in arrays]
    return [torch.from_numpy(table).div_(255 if grey_levels else 1) for table in tables], shape


def _check_array(array: np.ndarray, first: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise InputError(f"the data must be numbers, got type {array.dtype}")
    if array.ndim not in (2, 3, 4):
        raise InputError(
            "the data must have shape (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W), got "
            f"{array.shape}"
        )
    if 0 in array.shape:
        raise InputError(f"empty data set: the data have shape {array.shape}")
    if array.ndim == 4 and not {array.shape[1], array.shape[3]} & set(_CHANNELS):
        raise InputError(
            f"images must have 1, 3 or 4 channels, first or last, got shape {array.shape}"
        )
    if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
        raise InputError(
            f"the parts must agree in shape and type, got {first.shape} {first.dtype} and "
            f"{array.shape} {array.dtype}"
        )


def _archive(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays of known keys, and all the keys there are."""
    endings = ("", *(f"_{part}" for part in PARTS))
    known = {f"{key}{ending}.npy" for key in _KNOWN_KEYS for ending in endings}
    with readable("readable npz archive of numbers and text"), path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
            raise InputError("this is a single array, not an npz archive; name it .npy")
        with zipfile.ZipFile(file) as archive:
            wanted = [info for info in archive.infolist() if info.filename in known]
            check_arrays(_size(archive, info) for info in wanted)
            arrays = {info.filename.removesuffix(".npy"): _array(archive, info) for info in wanted}
            return arrays, [name.removesuffix(".npy") for name in archive.namelist()]


def _size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], int]:
    """Return the shape of a member and the bytes of an entry."""
    with archive.open(info) as stream:
        header = read_header(stream, info.file_size)
    return header.shape, header.dtype.itemsize


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        return read_array(stream, info.file_size)


def _layout(arrays: dict[str, np.ndarray], keys: list[str]) -> tuple[str, dict[str, str]]:
    """Return the key of the data, and for each part the ending of its keys."""
    for key in _DATA_KEYS:
        if key in arrays:
            return key, {WHOLE: ""}
        results = [part for part in PARTS if f"{key}_{part}" in arrays]
        if results:
            check_parts(results, f"the endings of the keys '{key}_...'")
            return key, {part: f"_{part}" for part in results}
    raise InputError(
        "there must be a key 'x' or 'images', or 'x_train' and 'x_test', got "
        f"{listed(sorted(keys), 20) or 'none'}"
    )


def _labels(
    arrays: dict[str, np.ndarray], endings: list[str]
) -> tuple[list[Tensor] | list[None], tuple[str, ...]]:
    """Return the labels of every part, text numbered over all parts together."""
    keys = ["labels" + ending for ending in endings]
    missing = [key for key in keys if key not in arrays]
    if len(missing) == len(keys):
        return [None] * len(keys), ()
    if missing:
        raise InputError(
            f"there must be labels for all parts or none, and key '{missing[0]}' is missing"
        )
    for key in keys:
        if arrays[key].ndim != 1:
            raise InputError(f"key '{key}' must have shape (N,), got {arrays[key].shape}")
    codes, names = encode_labels(np.concatenate([arrays[key] for key in keys]))
    return list(codes.split([len(arrays[key]) for key in keys])), names


def _context(arrays: dict[str, np.ndarray], ending: str) -> Context | None:
    size_factor = _numbers(arrays, "size_factor" + ending)
    covariates = _numbers(arrays, "covariates" + ending)
    if size_factor is None and covariates is None:
        return None
    if size_factor is not None and size_factor.ndim == 1:
        size_factor = size_factor.unsqueeze(1)
    return Context(size_factor, covariates)


def _numbers(arrays: dict[str, np.ndarray], key: str) -> Tensor | None:
    if key not in arrays:
        return None
    if arrays[key].dtype.kind not in "biuf":
        raise InputError(f"key '{key}' must be numbers, got type {arrays[key].dtype}")
    with np.errstate(over="ignore"):  # infinite numbers are reported with their index
        return torch.from_numpy(arrays[key].astype(np.float32))


def _names(arrays: dict[str, np.ndarray], key: str) -> tuple[str, ...]:
    return tuple(str(name) for name in arrays[key].ravel()) if key in arrays else ()
