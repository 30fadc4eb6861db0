"""The structure of an ``.h5ad`` file, checked before AnnData takes its word for it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pyro_bvae.core.errors import InputError, byte_size, check_bytes
from pyro_bvae.core.inputs.files import check_file, readable
from pyro_bvae.datasets.readers.files import conversion

_MOST_OBJECTS = 100_000
# Bytes of a text in memory, and of each dense count beside it: a float32 and its copy in a part.
_TEXT, _DENSE = 64, 8


def check_h5ad(path: Path, *, backed: bool) -> None:
    """Raise unless a file has the structure of an ``.h5ad`` file and fits into memory.

    Sizes are compared with the limit of memory before anything is read. The pointers of sparse
    matrices are checked here, and their column numbers as the counts are read, by
    :func:`~pyro_bvae.datasets.counts.checks.check_sparse`.

    Args:
        path: The file.
        backed: Whether ``X`` stays in the file, which then may be larger than memory.

    Raises:
        InputError: if the file is something else, damaged or too large.
    """
    import h5py

    check_file(path)
    if not h5py.is_hdf5(path):
        raise InputError(f"this is not a readable h5ad file: it is no HDF5 file{conversion(path)}")
    with readable("readable h5ad file"), h5py.File(path, "r") as file:
        _check_kind(file, path)
        objects = _objects(file)
        _check_memory([each for each in objects if isinstance(each[1], h5py.Dataset)], backed)
        for name, item in objects:
            if isinstance(item, h5py.Group) and _format(item):
                check_pointers(name, item)


def _objects(file: Any) -> list[tuple[str, Any]]:
    """Return all groups and arrays of a file by their paths; no group may have two of them."""
    import h5py

    results: list[tuple[str, Any]] = []
    groups, rest = {file.id}, [("", file)]
    while rest:
        above, group = rest.pop()
        for key in group:
            name = f"{above}/{key}"
            if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
                raise ValueError(f"'{name}' is a link to another file")
            item = group[key]
            results.append((name, item))
            if isinstance(item, h5py.Group):
                if item.id in groups:
                    raise ValueError(f"'{name}' is a link to a group that has another path too")
                groups.add(item.id)
                rest.append((name, item))
        if len(results) > _MOST_OBJECTS:
            raise ValueError(f"it has more than {_MOST_OBJECTS:,} groups and arrays")
    return results


def _check_kind(file: Any, path: Path) -> None:
    """Raise for the files of counts that other programs write, which convert them in one line."""
    if "matrix" in file and "X" not in file:
        kind, suffix = ("loom", ".loom") if "row_attrs" in file else ("10x", ".h5")
        raise ValueError(f"it is a {kind} file{conversion(path, suffix)}")


def _check_memory(arrays: list[tuple[str, Any]], backed: bool) -> None:
    """Raise if the arrays that are read need more memory than reading may take."""
    needed = 0
    for name, item in arrays:
        if backed and name == "/X":
            _check_written(name, item)
        elif not (backed and name in ("/X/data", "/X/indices")):
            is_dense = item.ndim == 2 and (name == "/X" or name.startswith("/layers/"))
            itemsize = _TEXT if item.dtype.kind == "O" else int(item.dtype.itemsize)
            needed += int(item.size or 0) * (itemsize + _DENSE * is_dense)
            check_bytes(needed, f"reading the file up to '{name}'")


def _check_written(name: str, item: Any) -> None:
    """Raise for a table that is larger than memory and that was not written in full."""
    declared = item.size * item.dtype.itemsize
    lengths = zip(item.shape, item.chunks or item.shape, strict=True)
    chunks = prod(-(-length // max(1, chunk)) for length, chunk in lengths)
    held = item.id.get_num_chunks() if item.chunks else int(item.id.get_storage_size() > 0)
    if held < chunks:
        check_bytes(
            declared,
            f"'{name}', of which {held:,} of {chunks:,} blocks of {byte_size(declared // chunks)} "
            "were written,",
        )


def _format(group: Any) -> str:
    """Return csr or csc for the group of a sparse matrix, and nothing for others."""
    kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", b""))
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    return kind.removesuffix("_matrix") if kind.startswith(("csr", "csc")) else ""


def check_pointers(name: str, group: Any) -> None:
    """Raise unless the arrays of a sparse matrix in a file agree in type, length and pointers.

    Args:
        name: The name of the matrix in the error.
        group: Its group in an HDF5 or zarr file.

    Raises:
        ValueError: naming the array that differs.
    """
    for key in ("data", "indices", "indptr"):
        if key not in group or getattr(group[key], "ndim", 0) != 1:
            raise ValueError(f"the sparse matrix '{name}' has no array '{key}' of one dimension")
        kinds, wanted = ("biuf", "numbers") if key == "data" else ("iu", "whole numbers")
        if group[key].dtype.kind not in kinds:
            raise ValueError(f"'{name}/{key}' must be {wanted}, got {group[key].dtype}")
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    lengths = () if shape is None else tuple(int(length) for length in np.ravel(shape))
    if len(lengths) != 2 or min(lengths) < 0:
        raise ValueError(f"the sparse matrix '{name}' has no shape of two lengths, got {lengths}")
    major, minor = lengths if _format(group) == "csr" else lengths[::-1]
    stored, count, pointers = (group[key].shape[0] for key in ("data", "indices", "indptr"))
    if count != stored or pointers != major + 1:
        raise ValueError(
            f"the sparse matrix '{name}' of shape {lengths} has {stored} values, {count} indices "
            f"and {pointers} pointers"
        )
    places = group["indptr"][:].astype(np.int64)
    steps = np.diff(places)
    if places[0] != 0 or places[-1] != stored or steps.min(initial=0) < 0:
        raise ValueError(
            f"'{name}/indptr' must rise from 0 to the {stored} values that there are, got "
            f"{places[0]} to {places[-1]} in steps of at least {steps.min(initial=0)}"
        )
    if steps.max(initial=0) > minor:
        raise ValueError(f"'{name}/indptr' gives {steps.max()} values to a line of {minor}")
