"""Counts that stay on disk: sparse matrices in HDF5 and zarr files, and several files as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_bvae.core.errors import InputError, check_bytes
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.datasets.counts.h5ad_files import check_h5ad, check_pointers

if TYPE_CHECKING:
    import pandas as pd

# Rows at most between two that are read in one piece, and stored numbers that are read at a time.
_GAP, _MOST_STORED = 32, 5_000_000
# Rows that are read at a time at most; a shuffle mixes so many.
_MOST_ROWS = 32_768


class SparseOnDisk:
    """A CSR matrix in a file, whose slices of rows are read when they are asked for.

    Args:
        group: The group of an open HDF5 or zarr file with ``data``, ``indices`` and ``indptr``; the
            last, a number for each row, is read at once.
        num_columns: D.
    """

    format = "csr"

    def __init__(self, group: Any, num_columns: int) -> None:
        self._data, self._indices = group["data"], group["indices"]
        self._indptr = np.asarray(group["indptr"][:]).astype(np.int64)
        self.shape = (len(self._indptr) - 1, num_columns)
        self.num_stored = int(self._indptr[-1])

    def __getitem__(self, rows: slice) -> Any:
        """Return consecutive rows as a SciPy CSR matrix."""
        from scipy.sparse import csr_matrix

        start, stop, _ = rows.indices(self.shape[0])
        places = self._indptr[start : stop + 1]
        own = slice(int(places[0]), int(places[-1]))
        parts = np.asarray(self._data[own]), np.asarray(self._indices[own]), places - places[0]
        return csr_matrix(parts, shape=(stop - start, self.shape[1]))


class Stacked:
    """Matrices of several files, one below the other.

    Args:
        parts: The matrices, each with slices of rows.
    """

    format = "csr"

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), int(parts[0].shape[1]))
        self.num_stored = sum(map(_stored, parts))

    def __getitem__(self, rows: slice) -> Any:
        """Return consecutive rows."""
        start, stop, _ = rows.indices(self.shape[0])
        found = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            first = end - part.shape[0]
            if start < end and stop > first:
                found.append(part[max(start - first, 0) : min(stop, end) - first])
        return _below(found)


def is_on_disk(matrix: Any) -> bool:
    """Return whether rows of a matrix are read from a file."""
    return not isinstance(matrix, np.ndarray) and not hasattr(matrix, "tocsr")


def rows_at_once(matrix: Any) -> int:
    """Return how many rows of a matrix on disk are read at a time."""
    each = max(1.0, _stored(matrix) / matrix.shape[0])
    return int(min(_MOST_ROWS, max(1, _MOST_STORED // each)))


def read_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Return rows of a matrix on disk; their numbers must increase.

    Rows that are near each other are read in one piece: a file is read by blocks anyhow.
    """
    breaks = np.flatnonzero(np.diff(rows) > _GAP) + 1
    pieces = np.split(rows, breaks)
    return _below([matrix[own[0] : own[-1] + 1][own - own[0]] for own in pieces])


@dataclass(frozen=True)
class CellsOnDisk:
    """The parts of an ``AnnData`` that counts are read from, with the matrices left on disk.

    Attributes:
        obs: A row for each cell.
        var: A row for each gene.
        X: The counts, or None.
        layers: Further matrices by their names.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    X: Any
    layers: Mapping[str, Any] = field(default_factory=dict)
    isbacked = False  # as AnnData has it for an .h5ad file alone

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return len(self.obs), len(self.var)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return len(self.var)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes."""
        return self.var.index


def holds_cells(path: Path) -> bool:
    """Return whether a path is of cells: ``.h5ad``, ``.zarr`` or a folder of these."""
    return path.suffix.lower() in (".h5ad", ".zarr") or bool(_shards(path))


def open_folder(path: Path, *, backed: bool) -> Any:
    """Return the cells of a ``.zarr`` folder, or of a folder of ``.h5ad`` and ``.zarr`` shards.

    Args:
        path: The folder.
        backed: Leave the counts of a ``.zarr`` folder on disk; those of shards always stay there.

    Raises:
        InputError: if zarr is needed and not installed, a part cannot be read or does not fit into
            memory, or shards have other genes.
    """
    shards = _shards(path)
    if path.suffix.lower() != ".zarr" and not shards:
        raise InputError(
            "a folder of cells must end in .zarr, or hold .h5ad or .zarr files of the same genes"
        )
    if not shards:
        return _open_zarr(path, backed)
    import pandas as pd

    parts = []
    for shard in shards:
        try:
            is_zarr = shard.suffix.lower() == ".zarr"
            parts.append(_open_zarr(shard, True) if is_zarr else _open_hdf5(shard))
        except InputError as error:
            raise InputError(f"shard {shard.name}: {error}") from error
        if not parts[-1].var_names.equals(parts[0].var_names):
            raise InputError(
                f"shards must have the same genes in the same order, but those of {shard.name}"
                f" differ from those of {shards[0].name}"
            )
    names = set(parts[0].layers).intersection(*(part.layers for part in parts))
    has_x = all(part.X is not None for part in parts)
    return CellsOnDisk(
        pd.concat([part.obs for part in parts]),
        parts[0].var,
        Stacked([part.X for part in parts]) if has_x else None,
        {name: Stacked([part.layers[name] for part in parts]) for name in sorted(names)},
    )


def _shards(path: Path) -> list[Path]:
    if path.suffix.lower() == ".zarr" or not path.is_dir():
        return []
    return sorted(each for each in path.iterdir() if each.suffix.lower() in (".h5ad", ".zarr"))


def _open_zarr(path: Path, backed: bool) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError("reading .zarr needs zarr: pip install 'pyro-bvae[zarr]'") from error
    import anndata

    with readable("readable zarr folder of AnnData"):
        group = zarr.open_group(path, mode="r")
        cells = _cells(group)
        if backed:
            return cells
        stored = [cells.X, *cells.layers.values()]
        check_bytes(16 * sum(_stored(matrix) for matrix in stored if matrix is not None), "reading")
        return anndata.read_zarr(path)


def _open_hdf5(path: Path) -> CellsOnDisk:
    import h5py

    check_h5ad(path, backed=True)
    with readable("readable h5ad file"):
        return _cells(h5py.File(path, "r"))


def _cells(group: Any) -> CellsOnDisk:
    """Return the cells of an open file, with obs and var in memory."""
    from anndata.io import read_elem

    missing = [name for name in ("obs", "var") if name not in group]
    if missing:
        raise ValueError(f"it has no '{missing[0]}', as AnnData writes it")
    obs, var = read_elem(group["obs"]), read_elem(group["var"])
    layers = group.get("layers", {})
    matrices = {name: _matrix(f"layers/{name}", layers[name]) for name in layers}
    return CellsOnDisk(obs, var, _matrix("X", group["X"]) if "X" in group else None, matrices)


def _matrix(name: str, item: Any) -> Any:
    """Return a matrix of an open file, dense or by rows."""
    kind = str(item.attrs.get("encoding-type", "array"))
    if kind == "csc_matrix":
        raise ValueError(f"'{name}' is read by rows if it is dense or csr, got csc")
    if kind != "csr_matrix":
        return item
    check_pointers(name, item)
    return SparseOnDisk(item, int(item.attrs["shape"][1]))


def _stored(matrix: Any) -> int:
    """Return how many numbers a matrix on disk has."""
    stored = getattr(matrix, "num_stored", None)
    return int(np.prod(matrix.shape)) if stored is None else int(stored)


def _below(parts: Sequence[Any]) -> Any:
    """Return matrices of one kind, one below the other."""
    from scipy.sparse import vstack

    if len(parts) == 1:
        return parts[0]
    return vstack(parts, "csr") if hasattr(parts[0], "tocsr") else np.concatenate(parts)
