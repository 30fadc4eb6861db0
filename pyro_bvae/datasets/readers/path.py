"""A person's own data: an array, a table or a folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.labels import WHOLE
from pyro_bvae.datasets.readers.arrays import read_npy, read_npz
from pyro_bvae.datasets.readers.csv import read_csv
from pyro_bvae.datasets.readers.image_folders import read_image_folder
from pyro_bvae.datasets.splits import Splits, split

# A new format is one reader in one file and one line here: a path -> the whole, or train,
# validation and test.
READERS: dict[str, Callable[..., dict[str, Dataset]]] = {
    ".csv": read_csv,
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
) -> Splits:
    """Read a person's own data.

    ``.npz``: key ``x`` (or ``images``), maybe ``labels``, ``factors``, ``size_factor``,
    ``covariates``; for parts of one's own ``x_train``, ``x_test``, maybe ``x_validation``, and so
    on. ``.npy``: the array. ``.csv``: a header, numeric columns, maybe a column ``label``. A
    folder: images, sub-folders are classes; sub-folders ``train`` and ``test``, maybe
    ``validation``, are parts. Images of type uint8 are divided by 255.

    Args:
        path: The file or folder.
        split_column: Column of a csv file that says train, validation or test of each row.
        validation: Fraction or number of data that validate, 0 for none, unless the file has parts
            of its own.
        test: Likewise, to test on.
        seed: Of the random split, unless the file has parts of its own.
        missing: Take NaN, and empty fields of a csv file, for entries that were not observed.

    Raises:
        InputError: if something is missing, cannot be read or cannot be used.
    """
    path = Path(path).expanduser()
    try:
        parts = _read(path, split_column, missing)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    name = path.resolve().name if path.is_dir() else path.stem
    if WHOLE in parts:
        return split(parts[WHOLE], validation=validation, test=test, seed=seed, name=name)
    return Splits(
        train=parts["train"], validation=parts.get("validation"), test=parts["test"], name=name
    )


def _read(path: Path, split_column: str | None, missing: bool) -> dict[str, Dataset]:
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError("there is no such file or folder")
    if split_column is not None and suffix != ".csv":
        raise InputError(f"'split_column' is for csv files, got '{split_column}'")
    if path.is_dir():
        return read_image_folder(path)
    if suffix == ".h5ad":
        raise InputError("an .h5ad file is data set 'h5ad', read by pyro_bvae.datasets.h5ad")
    if suffix not in READERS:
        raise InputError(
            f"data must be a folder of images or a file {', '.join(READERS)}, got '{suffix}'"
        )
    if path.stat().st_size == 0:
        raise InputError("empty data set: the file is empty")
    if split_column is not None:
        return read_csv(path, split_column=split_column, missing=missing)
    return READERS[suffix](path, missing=missing)
