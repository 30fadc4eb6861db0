"""A person's own data: an array, a table or a folder of images."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.files import as_path, check_file, status_of
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset, joined
from pyro_bvae.datasets.labels import PARTS, WHOLE
from pyro_bvae.datasets.readers.arrays import read_npy, read_npz
from pyro_bvae.datasets.readers.csv import read_csv
from pyro_bvae.datasets.readers.files import conversion
from pyro_bvae.datasets.readers.image_folders import ImageOptions, read_image_folder
from pyro_bvae.datasets.readers.tables import Columns
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
    label_column: str | None = None,
    index_column: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    missing: bool = False,
    stratify: str | None = None,
    **images: Unpack[ImageOptions],
) -> Splits:
    """Read a person's own data.

    ``.npz``: key ``x`` (or ``images``), maybe ``labels``, ``factors``, ``size_factor``,
    ``covariates``; for parts of one's own ``x_train``, ``x_test``, maybe ``x_validation``, and so
    on. ``.npy``: the array. ``.csv``, ``.tsv``, maybe with ``.gz``: a header, numeric columns,
    maybe one of labels; commas, semicolons, tabs or bars between them. A folder: images,
    sub-folders are classes; sub-folders ``train`` and ``test``, maybe ``validation``, are parts.
    Images are turned as their EXIF orientation says, and transparent ones are laid on white.
    Pixels of type uint8 are divided by 255.

    Data that need more memory than half of that which is free are refused before they are read;
    the environment variable ``PYRO_BVAE_MAX_BYTES`` sets another limit.

    Args:
        path: The file or folder.
        split_column: Column of a csv file that says train, validation or test of each row.
        label_column: Column of a csv file with labels, which are read as text; by default
            ``label`` or ``labels``, if there is one.
        index_column: Column of a csv file that names the rows, by names that differ; by default
            they are numbered.
        validation: Fraction or number of data that validate, 0 for none, unless the file has parts
            of its own.
        test: Likewise, to test on.
        seed: Of the random split, unless the file has parts of its own.
        missing: Take NaN, and empty fields of a csv file, for entries that were not observed.
        stratify: ``label`` for a random split with each label in proportion in each part.
        **images: ``skip_unreadable`` leaves out files of a folder that are no readable image; a
            warning names the first of them. ``image_size`` is the side in pixels of the square
            images to make, resized and cropped at the centre, where they are of several sizes.
            ``colour`` is ``grey``, ``rgb``, or ``auto`` for images as they are.

    Raises:
        InputError: if something is missing, cannot be read or cannot be used.
    """
    path = as_path(path)
    if stratify not in (None, "label"):
        raise InputError(f"'stratify' must be 'label' or None, got '{stratify}'")
    try:
        columns = Columns(label_column, index_column, split_column)
        parts = _reader(path, columns, missing, images)(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    name = path.resolve().name if path.is_dir() else path.name.removesuffix(_suffix(path))
    if WHOLE in parts:
        return split(
            parts[WHOLE], validation=validation, test=test, seed=seed, name=name,
            stratify=stratify is not None,
        )  # fmt: skip
    return Splits(
        train=parts["train"], validation=parts.get("validation"), test=parts["test"], name=name
    )


def read_rows(
    path: Path,
    *,
    columns: Columns,
    features: Sequence[str] = (),
    missing: bool = False,
    images: ImageOptions,
) -> Dataset:
    """Return all rows of a file or folder, of all its parts.

    Args:
        path: The file or folder.
        columns: Columns of a table that are no features, as far as they are there.
        features: Columns of a table that are read; all of them if there are none.
        missing: As of :func:`from_path`.
        images: Options of a folder of images.

    Raises:
        InputError: as of :func:`from_path`.
    """
    is_table = READERS.get(_suffix(path).lower()) is read_csv and not path.is_dir()
    own = images if path.is_dir() else ImageOptions()
    parts = _reader(path, columns if is_table else Columns(), missing, own, features)(path)
    return joined([parts[part] for part in (WHOLE, *PARTS) if part in parts])


def _suffix(path: Path) -> str:
    """Return the ending of a name that tells the format, .csv.gz of data.v2.csv.gz."""
    *before, last = ["", *path.suffixes] if path.suffixes else ["", ""]
    return before[-1] + last if last.lower() == ".gz" else last


def _reader(
    path: Path, columns: Columns, missing: bool, images: ImageOptions, features: Sequence[str] = ()
) -> Callable[[Path], dict[str, Dataset]]:
    """Return the reader of a file or folder, with the options it takes."""
    suffix = _suffix(path).lower()
    is_folder = stat.S_ISDIR(status_of(path).st_mode) and not conversion(path)
    reader = None if is_folder else READERS.get(suffix)
    for role, name in columns.given.items():
        if reader is not read_csv:
            raise InputError(f"'{role}_column' is for csv files, got '{name}'")
    if is_folder:
        return partial(read_image_folder, **images)
    for option, value in images.items():
        if value not in (None, False, "auto"):
            raise InputError(f"'{option}' is for folders of images, got a file '{suffix}'")
    if suffix == ".h5ad":
        raise InputError("an .h5ad file is data set 'h5ad', read by pyro_bvae.datasets.h5ad")
    if reader is None:
        raise InputError(
            f"data must be a folder of images or a file {', '.join(READERS)}, got '{suffix}'"
            f"{conversion(path)}"
        )
    if check_file(path).st_size == 0:
        raise InputError("empty data set: the file is empty")
    options: dict[str, Any] = {}
    if reader is read_csv:
        options = {"columns": columns, "features": features}
    return partial(reader, missing=missing, **options)
