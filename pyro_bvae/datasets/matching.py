"""Data of a run that come back, and new data that are seen as the run saw its own."""

from __future__ import annotations

import os
from pathlib import Path

from pyro_bvae.core.errors import AbsentDataError, InputError
from pyro_bvae.core.inputs.files import as_path
from pyro_bvae.datasets.counts.anndata import known_cells, new_cells
from pyro_bvae.datasets.counts.checks import with_size_factor
from pyro_bvae.datasets.counts.on_disk import holds_cells
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.readers.path import read_rows
from pyro_bvae.datasets.readers.tables import Columns
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.datasets.registry import DataOptions, prepared, source_of
from pyro_bvae.datasets.splits import Splits

# The part of the data for whose pixels, drawn once, new data have noise of their own.
_NEW = 3


def read_known(
    options: DataOptions, seed: int, record: DataRecord, *, download: bool = False
) -> Splits:
    """Return the data of a run, with the features and the members of each part that they had.

    Args:
        options: The options of the data.
        seed: The seed of the run.
        record: The data as they were.
        download: Whether to download files that are absent.

    Raises:
        InputError: if the data cannot be read, or are others, with the first that differs.
    """
    source, given = source_of(options, seed, download=download)
    where = str(options.path or options.dataset)
    if options.path is not None and not Path(options.path).exists():
        raise AbsentDataError(f"{where}: there is no such file or folder")
    try:
        if record.cells is None:
            found = record.matched(source.read(given))
        else:
            members = {part: own.index for part, own in record.parts.items()}
            backed = bool(options.backed)
            path = Path(where)
            found = known_cells(path, record.cells, members, backed=backed, name=record.name)
        splits = prepared(found, options)
        record.check(splits)
    except AbsentDataError:
        raise
    except InputError as error:
        raise _located(error, where) from error
    return splits


def read_new(
    options: DataOptions, path: str | os.PathLike[str], record: DataRecord
) -> Dataset | LazyDataset:
    """Return all rows of a file, seen as the data of a run.

    Args:
        options: The options of the run's data.
        path: A file or folder of any format that is read for training.
        record: The data of the run, whose features are taken by name.

    Raises:
        InputError: if the file cannot be read, or has not the features of the run.
    """
    place = as_path(path)
    try:
        if holds_cells(place):
            if record.cells is None:
                raise InputError(f"{place.name} has cells, and the run was trained on none")
            return record.classes(new_cells(place, record.cells, backed=bool(options.backed)))
        rows = read_rows(
            place,
            columns=Columns(options.label_column, options.index_column),
            features=record.feature_names,
            missing=options.missing == "nan",
            images={
                "skip_unreadable": options.skip_unreadable,
                "image_size": options.image_size,
                "colour": options.colour,
            },
        )
        data = record.classes(record.features(rows))
        assert isinstance(data, Dataset)
        if options.binarize != "none":
            data = data.binarized(0, part=_NEW)
        counted = record.cells is not None and record.cells.size_factor
        return with_size_factor(data) if counted or options.size_factor == "observed" else data
    except InputError as error:
        raise _located(error, str(place)) from error


def _located(error: InputError, where: str) -> InputError:
    """Return an error that begins with the file."""
    return InputError(f"{where}: {str(error).removeprefix(f'{where}: ')}")
