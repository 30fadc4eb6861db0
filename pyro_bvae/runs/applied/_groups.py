"""Differential expression between groups of the cells of a run, by the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.core.inputs.files import as_path
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.counts.anndata import CellFormat
from pyro_bvae.datasets.counts.covariates import column
from pyro_bvae.datasets.counts.tables import open_h5ad
from pyro_bvae.evaluation import differential_expression
from pyro_bvae.evaluation.expression import DifferentialExpression
from pyro_bvae.runs.directory import Run, load


class _Cells(NamedTuple):
    """Cells with the name of the group and the number of the donor of each."""

    data: Dataset | LazyDataset
    groups: np.ndarray
    donors: np.ndarray | None


@exclusive
def compare_groups(
    run: Run | str | PathLike[str],
    group: str,
    against: str | None = None,
    *,
    data: str | PathLike[str] | None = None,
    group_column: str | None = None,
    donor_column: str | None = None,
    reference_batches: Sequence[str] = (),
    **options: Any,
) -> DifferentialExpression:
    """Return the differential expression between two groups of the cells of a run.

    Args:
        run: A run of counts, or its directory.
        group: The group of interest, by its name.
        against: The group that it is compared with; all other cells by default.
        data: A file of cells, or of another format with labels; by default the run's own: all cells
            of an ``.h5ad`` file, or else the test data.
        group_column: Column of ``obs`` with the groups; by default the run's labels.
        donor_column: Column of ``obs`` with donors, who are then the replicates.
        reference_batches: Batches that all cells are decoded in, averaged over several; by default
            each cell in its own. Its other covariates stay as they are.
        **options: Further options of :func:`~pyro_bvae.evaluation.differential_expression`.

    Raises:
        InputError: for a run without groups, an unknown group, batch or column, and as of
            :func:`~pyro_bvae.evaluation.differential_expression`.
    """
    opened = run if isinstance(run, Run) else load(Path(run))
    seen = None if opened.record is None else opened.record.cells
    if seen is not None:
        cells = _cells(opened, seen, data, group_column, donor_column)
    else:
        for name, value in (("group_column", group_column), ("donor_column", donor_column)):
            if value is not None:
                raise InputError(
                    f"'{name}' is a column of an .h5ad file, and {opened.directory} was trained on"
                    f" none, got '{value}'"
                )
        cells = _labelled(opened, data)
    names = np.unique(cells.groups).tolist()
    for wanted in filter(None, (group, against)):
        if wanted not in names:
            raise unknown_name("group", wanted, names)
    if group == against:
        raise InputError(f"'against' must be another group than 'group', got '{group}' twice")
    others = np.ones(len(cells.groups), bool) if against is None else cells.groups == against
    groups = np.where(cells.groups == group, 1, np.where(others, 0, -1))
    references = _references(seen, cells.data, reference_batches)
    return differential_expression(
        opened.vae, cells.data, torch.from_numpy(groups), references=references,
        donors=None if cells.donors is None else torch.from_numpy(cells.donors), **options,
    )  # fmt: skip


def _cells(
    run: Run,
    seen: CellFormat,
    data: str | PathLike[str] | None,
    group_column: str | None,
    donor_column: str | None,
) -> _Cells:
    """Return all cells of an ``.h5ad`` file that the run could have been trained on."""
    assert run.config is not None
    own = run.config.data
    name = group_column or seen.label_column
    if name is None:
        raise InputError(
            f"'group_column' must name a column of obs: {run.directory} was trained without labels"
        )
    path = as_path(str(own.path) if data is None else data)
    try:
        adata = open_h5ad(path, backed=bool(own.backed))
        cells, kept = replace(seen, label_column=None).read(adata)
        rows = np.flatnonzero(kept)
        donors = None
        if donor_column is not None:
            donors = np.unique(column(adata, donor_column, rows), return_inverse=True)[1]
        return _Cells(cells, column(adata, name, rows).astype(str), donors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _labelled(run: Run, data: str | PathLike[str] | None) -> _Cells:
    """Return rows whose labels are the groups."""
    rows = run.rows(data)
    if rows.labels is None:
        raise InputError(f"{run.directory} has no labels, which would be the groups")
    names = rows.label_names or tuple(map(str, range(int(rows.labels.max()) + 1)))
    return _Cells(rows, np.array(names)[rows.labels.cpu().numpy()], None)


def _references(
    seen: CellFormat | None, data: Dataset | LazyDataset, batches: Sequence[str]
) -> Tensor | None:
    """Return a row of covariates for each batch, NaN for those that stay as they are."""
    if not batches:
        return None
    known = () if seen is None else seen.batches
    for name in batches:
        if name not in known:
            raise unknown_name("batch", name, known)
    covariates = None if data.context is None else data.context.covariates
    assert covariates is not None
    rows = torch.full((len(batches), covariates.shape[1]), torch.nan)
    places = torch.tensor([known.index(name) for name in batches])
    rows[:, : len(known)] = torch.nn.functional.one_hot(places, len(known)).float()
    return rows
