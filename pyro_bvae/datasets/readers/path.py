"""A person's own data: an array, a table or a folder of images."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.files import as_path, check_file, status_of
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset, joined
from pyro_bvae.datasets.labels import PARTS, WHOLE
from pyro_bvae.datasets.readers.arrays import read_npy, read_npz
from pyro_bvae.datasets.readers.csv import read_csv
from pyro_bvae.datasets.readers.files import conversion
from pyro_bvae.datasets.readers.image_folders import read_image_folder
from pyro_bvae.datasets.splits import Splits, split

# A new format is one reader in one file and one line here: a path -> the whole, or train,
# validation and test.
READERS: dict[str, Callable[..., dict[str, Dataset]]] = {
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".tsv": read_csv,
    ".tsv.gz": read_csv,
    ".npy": read_npy,
    ".npz": read_npz,
}


@public
def from_path(
    path: str | os.PathLike[str],
    *,
    split_column: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    missing: bool = False,
    skip_unreadable: bool = False,
) -> Splits:
    """Read a person's own data.

    ``.npz``: key ``x`` (or ``images``), maybe ``labels``, ``factors``, ``size_factor``,
    ``covariates``; for parts of one's own ``x_train``, ``x_test``, maybe ``x_validation``, and so
    on. ``.npy``: the array. ``.csv``, ``.tsv``, maybe with ``.gz``: a header, numeric columns,
    maybe a column ``label``. A folder: images, sub-folders are classes; sub-folders ``train`` and
    ``test``, maybe ``validation``, are parts. Images of type uint8 are divided by 255.

    Data that need more memory than half of that which is free are refused before they are read;
    the environment variable ``PYRO_BVAE_MAX_BYTES`` sets another limit.

    Args:
        path: The file or folder.
        split_column: Column of a csv file that says train, validation or test of each row.
        validation: Fraction or number of data that validate, 0 for none, unless the file has parts
            of its own.
        test: Likewise, to test on.
        seed: Of the random split, unless the file has parts of its own.
        missing: Take NaN, and empty fields of a csv file, for entries that were not observed.
        skip_unreadable: Leave out files of a folder that are no readable image; a warning names
            the first of them.

    Raises:
        InputError: if something is missing, cannot be read or cannot be used.
    """
    path = as_path(path)
    try:
        parts = _reader(path, split_column, missing, skip_unreadable)(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    name = path.resolve().name if path.is_dir() else path.name.removesuffix(_suffix(path))
    if WHOLE in parts:
        return split(parts[WHOLE], validation=validation, test=test, seed=seed, name=name)
    return Splits(
        train=parts["train"], validation=parts.get("validation"), test=parts["test"], name=name
    )


def read_rows(
    path: Path,
    *,
    features: Sequence[str] = (),
    missing: bool = False,
    skip_unreadable: bool = False,
) -> Dataset:
    """Return all rows of a file or folder, of all its parts.

    Args:
        path: The file or folder.
        features: Columns of a table that are read; all of them if there are none.
        missing: As of :func:`from_path`.
        skip_unreadable: Likewise.

    Raises:
        InputError: as of :func:`from_path`.
    """
    skip = skip_unreadable and path.is_dir()
    parts = _reader(path, None, missing, skip, features)(path)
    return joined([parts[part] for part in (WHOLE, *PARTS) if part in parts])


def _suffix(path: Path) -> str:
    """Return the ending of a name that tells the format, .csv.gz of data.v2.csv.gz."""
    *before, last = ["", *path.suffixes] if path.suffixes else ["", ""]
    return before[-1] + last if last.lower() == ".gz" else last


def _reader(
    path: Path,
    split_column: str | None,
    missing: bool,
    skip_unreadable: bool,
    features: Sequence[str] = (),
) -> Callable[[Path], dict[str, Dataset]]:
    """Return the reader of a file or folder, with the options it takes."""
    suffix = _suffix(path).lower()
    is_folder = stat.S_ISDIR(status_of(path).st_mode)
    reader = None if is_folder else READERS.get(suffix)
    if split_column is not None and reader is not read_csv:
        raise InputError(f"'split_column' is for csv files, got '{split_column}'")
    if skip_unreadable and not is_folder:
        raise InputError(f"'skip_unreadable' is for folders of images, got a file '{suffix}'")
    if is_folder:
        return partial(read_image_folder, skip_unreadable=skip_unreadable)
    if suffix == ".h5ad":
        raise InputError("an .h5ad file is data set 'h5ad', read by pyro_bvae.datasets.h5ad")
    if reader is None:
        raise InputError(
            f"data must be a folder of images or a file {', '.join(READERS)}, got '{suffix}'"
            f"{conversion(path)}"
        )
    if check_file(path).st_size == 0:
        raise InputError("empty data set: the file is empty")
    options: dict[str, Any] = {} if split_column is None else {"split_column": split_column}
    if reader is read_csv:
        options["features"] = features
    return partial(reader, missing=missing, **options)
