"""Cells by genes: counts in an ``AnnData``, in memory, sparse, or in a large ``.h5ad`` file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import named
from pyro_bvae.core.inputs.files import as_path
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.moved import grouped
from pyro_bvae.datasets.counts.checks import observed_size_factor
from pyro_bvae.datasets.counts.covariates import (
    Categories,
    Scale,
    categories_of,
    column,
    covariates_of,
    labels_of,
    scales_of,
)
from pyro_bvae.datasets.counts.on_disk import CellsOnDisk
from pyro_bvae.datasets.counts.tables import CountTable, Selected, gene_names, open_h5ad, select
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import PARTS, check_parts
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.splits import Splits, part_sizes, parts_of

if TYPE_CHECKING:
    from anndata import AnnData

#: Numbers that a sparse test part may have to be made dense at once, 400 MB in float32.
MOST_DENSE = 100_000_000


@dataclass(frozen=True)
class CellFormat:
    """The view of cells as data on which a model was trained, to read other cells likewise.

    Attributes:
        genes: Names of the features, in order.
        layer: The layer with the counts; None for ``X``.
        label_column: Column of ``obs`` with the labels.
        batch_column: Column of ``obs`` whose values become one-hot covariates.
        batches: The values of that column, in the order of the covariates, the first of which they
            are.
        categories: Further categorical columns, each with its values; the next covariates.
        shares: The shares of the values over the training cells, of the batches first.
        scales: Continuous columns, each with its mean and its standard deviation over the training
            cells, by which it is standardised; the last covariates.
        min_counts: Cells with fewer counts of these genes are left out.
        size_factor: Whether the total counts of these genes are the size factor.
    """

    genes: tuple[str, ...]
    layer: str | None = None
    label_column: str | None = None
    batch_column: str | None = None
    batches: tuple[str, ...] = ()
    min_counts: float = 0
    size_factor: bool = True
    categories: tuple[Categories, ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()
    scales: tuple[Scale, ...] = ()

    @property
    def all_categories(self) -> tuple[Categories, ...]:
        """The categorical columns with their values, the batches first."""
        first = () if self.batch_column is None else ((self.batch_column, self.batches),)
        return (*first, *self.categories)

    def read(self, adata: AnnData) -> tuple[LazyDataset, np.ndarray]:
        """Return the cells that have enough counts, and their mask over all cells.

        Raises:
            InputError: if a gene, the layer or a column is not there, a count is none, a batch is
                new, or no cell is left.
        """
        matrix, selected = self.select(adata)
        return self.cells(adata, matrix, selected), selected.cells

    def select(self, adata: AnnData) -> tuple[Any, Selected]:
        """Return the matrix of counts, and its cells with enough counts of the genes.

        Raises:
            InputError: as of :meth:`read`.
        """
        where = {name: place for place, name in enumerate(gene_names(adata))}
        missing = [name for name in self.genes if name not in where]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.genes)} genes are not there, the first is "
                f"'{missing[0]}'"
            )
        genes = np.array([where[name] for name in self.genes])
        return select(adata, self.layer, self.min_counts, genes=genes)

    def cells(
        self,
        adata: AnnData,
        matrix: Any,
        selected: Selected,
        assumed: Mapping[str, str] = MappingProxyType({}),
    ) -> LazyDataset:
        """Return the cells selected, given the matrix of their counts.

        Args:
            adata: The cells.
            matrix: Their counts.
            selected: Which cells and genes.
            assumed: By column, the category that cells of an unseen one are taken to have.
        """
        rows = np.flatnonzero(selected.cells)
        names = adata.obs_names[rows]
        size_factor = None
        if self.size_factor:
            size_factor = observed_size_factor(
                torch.from_numpy(selected.totals[rows]).float(), names
            )
        covariates = covariates_of(adata, rows, self.all_categories, self.scales, assumed)
        labels: Tensor | None = None
        label_names: tuple[str, ...] = ()
        if self.label_column is not None:
            labels, label_names = labels_of(adata, self.label_column, rows)
        context = (
            None if size_factor is None and covariates is None else Context(size_factor, covariates)
        )
        table = CountTable(matrix, rows, selected.genes)
        return LazyDataset(
            table, context=context, labels=labels, label_names=label_names,
            feature_names=self.genes, index=names.to_numpy(dtype=str) if names.is_unique else rows,
        )  # fmt: skip


@dataclass(frozen=True)
class ObsColumns:
    """Columns of ``obs`` with a meaning.

    Attributes:
        label: Labels, such as cell types.
        batch: Batches, which become one-hot covariates.
        split: The part of each cell: train, validation or test.
        categorical: Further categorical columns, which become one-hot covariates too.
        continuous: Columns of numbers, which become covariates, standardised by their mean and
            standard deviation over the training cells.
        stratify: A random split has each value of this column in proportion in each part.
    """

    label: str | None = None
    batch: str | None = None
    split: str | None = None
    categorical: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    stratify: str | None = None


@dataclass(frozen=True, eq=False)
class CellSplits(Splits):
    """The parts of a data set of cells, and their format, by which other cells are read.

    Attributes:
        format: How the cells are seen.
        train_names: ``obs_names`` of the training cells; likewise ``validation_names`` and
            ``test_names``.
        dropped_cells: Number of cells with fewer than ``min_counts`` counts, which are in no part.
        dropped_genes: Number of genes with counts in fewer than ``min_cells`` cells, which are no
            feature.
    """

    format: CellFormat
    train_names: np.ndarray
    validation_names: np.ndarray
    test_names: np.ndarray
    dropped_cells: int
    dropped_genes: int

    def __str__(self) -> str:
        cells = len(self.train_names) + len(self.validation_names) + len(self.test_names)
        return (
            f"{self.name}: {cells} cells x {len(self.format.genes)} genes"
            f" (left out: {self.dropped_cells} cells with fewer than {self.format.min_counts:g} "
            "counts,"
            f" {self.dropped_genes} genes in too few cells)"
        )


_flat_columns = grouped(
    "columns", ObsColumns, label_column="label", batch_column="batch", split_column="split"
)


@_flat_columns
@public
def h5ad(path: str | os.PathLike[str], *, backed: bool = False, **options: Any) -> CellSplits:
    """Read counts from an ``.h5ad`` file, a ``.zarr`` folder of AnnData's, or a folder of both.

    Args:
        path: The file or folder. Files in a folder are shards, one below the other in the order of
            their names, with the same genes.
        backed: Leave the counts on disk, whose rows are then read in shuffled blocks: for files
            larger than memory. The file stays open; of an ``.h5ad`` file AnnData still reads layers
            as a whole. Shards always stay on disk.
        **options: As of :func:`from_anndata`.

    Raises:
        InputError: if AnnData is not installed, the file cannot be read, is damaged, or needs more
            memory than half of that which is free (or than ``PYRO_BVAE_MAX_BYTES``), or as of
            :func:`from_anndata`.
    """
    path = as_path(path)
    try:
        return from_anndata(open_h5ad(path, backed=backed), **{"name": path.stem, **options})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


@_flat_columns
@public
def from_anndata(
    adata: AnnData | CellsOnDisk,
    *,
    layer: str | None = None,
    columns: ObsColumns | None = None,
    min_counts: float = 0,
    min_cells: int = 1,
    size_factor: bool = True,
    validation: float = 0.0,
    test: float = 0.2,
    seed: int = 0,
    name: str = "cells",
) -> CellSplits:
    """Return the cells of an ``AnnData`` as training, validation and test parts.

    Sparse counts stay sparse, and a backed file stays on disk: the training part is then a
    :class:`~pyro_bvae.datasets.LazyDataset`, dense only in the batch, and so is a test part of more
    than :data:`MOST_DENSE` numbers. The size factor is the total of each cell, computed from the
    counts themselves, so evidence is that of the counts given their total.

    Args:
        adata: The cells, which are not changed: an ``AnnData``, or those that :func:`h5ad` has
            left on disk.
        layer: Layer with the raw counts; None for ``X``.
        columns: Columns of ``obs`` with labels, batches, further covariates and parts;
            ``validation``, ``test`` and ``seed`` are of no use with one of parts.
        min_counts: Leave out cells with fewer counts (of the genes kept).
        min_cells: Leave out genes with counts in fewer cells (of those kept): 1 for genes that are
            never seen.
        size_factor: Whether the context has the total counts as size factor.
        validation: Fraction or number of cells that validate; 0 for none.
        test: Fraction or number of cells to test on. The cells kept are ordered by
            ``numpy.random.default_rng(seed).permutation``: the first train, then those that
            validate, the last test.
        seed: Of that order.
        name: Name of the result.

    Raises:
        InputError: if a layer or column is not there, a value is no count, a cell without counts
            has no size factor, a sparse matrix is not sound, a part is empty, or it has a category
            that is not among the training cells. A ``MuData`` of several modalities is refused:
            take one.
    """
    if not (hasattr(adata, "obs") and hasattr(adata, "layers")):
        raise InputError(f"'adata' must be an AnnData, got {named(adata)}")
    columns = columns or ObsColumns()
    matrix, selected = select(adata, layer, min_counts, min_cells)
    rows = np.flatnonzero(selected.cells)
    if columns.split is None:
        strata = None if columns.stratify is None else column(adata, columns.stratify, rows)
        parts = _random_parts(rows, validation, test, seed, strata)
    else:
        part_of = column(adata, columns.split, rows).astype(str)
        results = sorted(set(part_of.tolist()))
        check_parts(results, f"the values in obs column '{columns.split}'")
        parts = {part: rows[part_of == part] for part in PARTS}
    first = [] if columns.batch is None else [columns.batch]
    categories, shares = categories_of(adata, [*first, *columns.categorical], parts["train"])
    seen = CellFormat(
        tuple(gene_names(adata)[selected.genes]), layer, columns.label, columns.batch,
        categories[0][1] if first else (), min_counts, size_factor, categories[len(first) :],
        shares, scales_of(adata, columns.continuous, parts["train"]),
    )  # fmt: skip
    return _cell_splits(adata, matrix, selected, seen, parts, name)


def known_cells(
    path: Path, seen: CellFormat, members: Mapping[str, np.ndarray], *, backed: bool, name: str
) -> CellSplits:
    """Return the cells of a file that are known by name or row, in the parts that they are in.

    Args:
        path: The ``.h5ad`` file.
        seen: How the cells are seen.
        members: ``obs_names``, or numbers of rows, of the cells of each part, in order.
        backed: As of :func:`h5ad`.
        name: Name of the result.

    Raises:
        InputError: if a gene, a cell, the layer or a column is not there, or a count is none.
    """
    adata = open_h5ad(path, backed=backed)
    matrix, selected = seen.select(adata)
    rows = np.flatnonzero(selected.cells)
    names = adata.obs_names
    where: dict[Any, int] = {int(row): int(row) for row in rows}
    where |= dict(zip(names[rows].astype(str), rows.tolist(), strict=True))
    parts = {}
    for part, own in members.items():
        gone = [key for key in own.tolist() if key not in where]
        if gone:
            first = gone[0]
            kind = f"cell '{first}'" if isinstance(first, str) else f"the cell of row {first + 1}"
            raise InputError(
                f"these are other cells than those of the training: {kind} is not there, or has"
                f" fewer counts ({len(gone)} of {len(own)} cells of the {part} data)"
            )
        parts[part] = np.array([where[key] for key in own.tolist()], dtype=np.int64)
    added = np.setdiff1d(rows, np.concatenate(list(parts.values())))
    if len(added):
        raise InputError(
            f"these are other cells than those of the training: cell '{names[added[0]]}' is a new"
            f" one ({len(added)} are new)"
        )
    return _cell_splits(adata, matrix, selected, seen, parts, name)


def new_cells(path: Path, seen: CellFormat, *, backed: bool) -> LazyDataset | Dataset:
    """Return the cells of a file with enough counts, seen as those of a training.

    Labels are read where the file has their column.

    Raises:
        InputError: as of :meth:`CellFormat.read`.
    """
    adata = open_h5ad(path, backed=backed)
    labelled = seen.label_column in adata.obs.columns
    found, kept = (seen if labelled else replace(seen, label_column=None)).read(adata)
    if not kept.all():
        first = adata.obs_names[int((~kept).argmax())]
        warnings.warn(
            f"{path}: {int((~kept).sum())} of {len(kept)} cells have fewer than"
            f" {seen.min_counts:g} counts and are left out, the first is '{first}'",
            stacklevel=3,
        )
    is_small = len(found) * found.num_features <= MOST_DENSE
    return found.dense() if is_small else found


def _cell_splits(
    adata: AnnData,
    matrix: Any,
    selected: Selected,
    seen: CellFormat,
    parts: Mapping[str, np.ndarray],
    name: str,
) -> CellSplits:
    """Return the cells of each part, given their rows."""
    whole = seen.cells(adata, matrix, selected)
    place = np.cumsum(selected.cells) - 1
    data = {part: whole[place[members]] for part, members in parts.items() if len(members)}
    is_small = isinstance(matrix, np.ndarray) or len(parts["test"]) * len(seen.genes) <= MOST_DENSE
    validating = data.get("validation")
    names = adata.obs_names.to_numpy()
    return CellSplits(
        train=data["train"].dense() if isinstance(matrix, np.ndarray) else data["train"],
        validation=None if validating is None else validating.dense(),
        test=data["test"].dense() if is_small else data["test"],
        name=name,
        format=seen,
        **{f"{part}_names": names[parts.get(part, np.empty(0, np.int64))] for part in PARTS},
        dropped_cells=adata.n_obs - int(selected.cells.sum()),
        dropped_genes=adata.n_vars - len(seen.genes),
    )


def _random_parts(
    rows: np.ndarray, validation: float, test: float, seed: int, strata: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the rows of each part, in the order of a permutation of the cells kept."""
    sizes = part_sizes(len(rows), validation, test)
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"'seed' must be a non-negative integer, got {seed!r}")
    order = np.random.default_rng(seed).permutation(len(rows))
    return {
        part: rows[own] for part, own in zip(PARTS, parts_of(order, sizes, strata), strict=True)
    }
