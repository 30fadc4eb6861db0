"""Counts of cells in an ``AnnData``: checked and selected in one pass over blocks of cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_bvae.core.errors import InputError, listed, unknown_name
from pyro_bvae.core.inputs.files import readable
from pyro_bvae.datasets.counts.checks import check_block, check_sparse
from pyro_bvae.datasets.counts.h5ad_files import check_h5ad
from pyro_bvae.datasets.counts.on_disk import (
    SparseOnDisk,
    is_on_disk,
    open_folder,
    read_rows,
    rows_at_once,
)

if TYPE_CHECKING:
    from anndata import AnnData

Check = Callable[..., None]
# Numbers that a block of cells would have if it were dense.
_BLOCK = 10_000_000


def import_anndata() -> ModuleType:
    """Return the package ``anndata``, which is an extra.

    Raises:
        InputError: if it is not installed, with how to.
    """
    try:
        with warnings.catch_warnings():  # of its own imports, which change from version to version
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            import anndata
    except ImportError as error:
        raise InputError(
            "reading .h5ad files needs AnnData: pip install 'pyro-bvae[anndata]'"
        ) from error
    return anndata


def open_h5ad(path: Path, *, backed: bool) -> AnnData:
    """Read an ``.h5ad`` file, a ``.zarr`` folder or a folder of these.

    With ``backed``, ``X`` stays on disk.

    Raises:
        InputError: if there is no such file, it is no h5ad file, or one of several modalities.
    """
    anndata = import_anndata()
    if path.suffix.lower() == ".h5mu":
        raise InputError(
            "a MuData of several modalities is out of scope; write one of them to an .h5ad file,"
            " such as by mdata['rna'].write_h5ad('rna.h5ad')"
        )
    if path.is_dir() and path.suffix.lower() != ".h5ad":
        return open_folder(path, backed=backed)
    check_h5ad(path, backed=backed)
    with readable("readable h5ad file"):
        return anndata.read_h5ad(path, backed="r" if backed else None)


def gene_names(adata: AnnData) -> np.ndarray:
    """Return the names of the genes, ``(D,)``, as ``var_names_make_unique`` makes them."""
    import_anndata()
    from anndata.utils import make_index_unique

    return make_index_unique(adata.var_names.astype(str)).to_numpy()


def count_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return the matrix of counts: an array, a CSR matrix, or one of the two in a file.

    Raises:
        InputError: if there is none, or it is in a file by columns.
    """
    layers = [
        name for name in adata.layers if name is not None
    ]  # under None newer versions of AnnData have X
    if layer is not None and layer not in layers:
        if not layers:
            raise InputError(
                f"unknown layer '{layer}': there are no layers; the counts may be in X, layer=None"
            )
        raise unknown_name("layer", layer, layers)
    with readable("readable table of counts"):
        matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        known = listed(layers, 20) or "none"
        raise InputError(f"there is no X; give one of the layers: {known}")
    if len(getattr(matrix, "shape", ())) != 2:
        raise InputError(f"the counts must have shape (N, D), got {type(matrix).__name__}")
    if tuple(matrix.shape) != adata.shape:
        raise InputError(
            f"the counts must have shape {adata.shape}, as there are so many cells and genes, got "
            f"{tuple(matrix.shape)}"
        )
    if 0 in matrix.shape:
        raise InputError(f"empty data set: the counts have shape {tuple(matrix.shape)}")
    if adata.isbacked and layer is None:
        check_h5ad(Path(str(adata.filename)), backed=True)
    elif hasattr(matrix, "check_format"):
        check_sparse(matrix, layer or "X")
    if getattr(matrix, "format", "csr") == "csr":
        return SparseOnDisk(matrix.group, matrix.shape[1]) if hasattr(matrix, "group") else matrix
    if adata.isbacked and layer is None:
        raise InputError(
            f"a file is read by rows if it is dense or csr, got {matrix.format}: do without "
            "'backed'"
        )
    return matrix.tocsr()


class CountTable:
    """Rows of counts, looked up in a matrix: some of its cells and genes, rounded to whole numbers.

    Args:
        matrix: An array, a CSR matrix, or one of the two in a file.
        cells: Numbers of the rows, increasing.
        genes: Numbers of the columns.
    """

    def __init__(self, matrix: Any, cells: np.ndarray, genes: np.ndarray) -> None:
        self.matrix, self.cells = matrix, cells
        self.genes = None if np.array_equal(genes, np.arange(matrix.shape[1])) else genes
        self.shape = (len(cells), len(genes))
        self.rows_at_once = rows_at_once(matrix) if is_on_disk(matrix) else None

    def __getitem__(self, rows: np.ndarray) -> Any:
        """Return rows ``(B, D)``, an array or a CSR matrix; their numbers must increase."""
        wanted, matrix = self.cells[rows], self.matrix
        result = read_rows(matrix, wanted) if is_on_disk(matrix) else matrix[wanted]
        return _rounded(result if self.genes is None else result[:, self.genes])


class Selected(NamedTuple):
    """Which cells and genes have counts enough."""

    cells: np.ndarray  # a mask, (N,)
    genes: np.ndarray  # numbers, (D,)
    totals: np.ndarray  # counts of these genes, (N,), float64


def select(
    adata: AnnData,
    layer: str | None,
    min_counts: float,
    min_cells: int = 0,
    genes: np.ndarray | None = None,
) -> tuple[Any, Selected]:
    """Return the matrix of counts, checked, and which of its cells and genes have enough of them.

    They are the largest set with at least ``min_counts`` counts of its genes in each of its cells,
    and with each of its genes in at least ``min_cells`` of its cells.

    Args:
        adata: The cells.
        layer: The layer with the counts; None for ``X``.
        min_counts: Least counts of a cell.
        min_cells: Least number of cells that have a gene.
        genes: Numbers of the genes; by default all are looked at.

    Raises:
        InputError: if there are no counts, a value is none, or no cell or no gene is left.
    """
    for name, value in (("min_counts", min_counts), ("min_cells", min_cells)):
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"'{name}' must be non-negative and finite, got {value}")
    matrix = count_matrix(adata, layer)
    kept = np.arange(matrix.shape[1]) if genes is None else genes
    check: Check | None = partial(
        check_block, name=layer or "X", row_names=adata.obs_names, column_names=adata.var_names
    )
    while True:
        totals, carriers = _count(matrix, kept, min_counts, check)
        check = None  # once is enough
        cells = totals >= min_counts
        if not cells.any():
            raise InputError(
                f"no cell has 'min_counts' = {min_counts:g} counts, the most is {totals.max():g}"
            )
        enough = carriers >= min_cells
        if not enough.any():
            raise InputError(
                f"no gene has counts in 'min_cells' = {min_cells} cells, the most is "
                f"{carriers.max()}"
            )
        kept = kept[enough]
        if not carriers[~enough].any():  # then no cell's total changes with the genes that go
            return matrix, Selected(cells, kept, totals)


def _count(
    matrix: Any, genes: np.ndarray, min_counts: float, check: Check | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the total counts of each cell, ``(N,)``, and cells of each gene, ``(D,)``."""
    totals, carriers = [], np.zeros(len(genes), dtype=np.int64)
    for start, block in _blocks(matrix):
        if check is not None:
            check(block, first_row=start)
        counts = _rounded(block[:, genes])
        totals.append(np.asarray(counts.sum(1, dtype=np.float64)).ravel())
        carriers += np.asarray((counts[totals[-1] >= min_counts] > 0).sum(0)).ravel()
    return np.concatenate(totals), carriers


def _rounded(counts: Any) -> Any:
    """Return counts, of which nothing else has a hold, rounded to whole numbers."""
    values = counts.data if hasattr(counts, "tocsr") else counts
    if values.dtype.kind == "f":
        np.rint(values, out=values)
    return counts


def _blocks(matrix: Any) -> Iterator[tuple[int, Any]]:
    """Yield blocks of rows in memory, with the number of their first."""
    size = max(1, _BLOCK // matrix.shape[1])
    for start in range(0, matrix.shape[0], size):
        with readable("readable table of counts"):  # of a file, where it is backed
            block = matrix[start : start + size]
        yield start, block
