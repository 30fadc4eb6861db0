"""Formats that are not read, with the lines that convert them, and the memory that data take."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

from pyro_bvae.core.errors import check_bytes

#: Formats that are not read, with the lines of Python that convert them; {path} is the file.
CONVERSIONS = {
    ".loom": "import anndata.io; anndata.io.read_loom({path!r}).write_h5ad('cells.h5ad')",
    ".h5": (
        "import anndata, h5py, pandas, scipy.sparse; m = h5py.File({path!r})['matrix']; "
        "x = [m[k][:] for k in ('data', 'indices', 'indptr')]; n = m['shape'][:]; "
        "b, f = (pandas.DataFrame(index=m[k].asstr()[:]) for k in ('barcodes', 'features/id')); "
        "anndata.AnnData(scipy.sparse.csr_matrix((*x,), (n[1], n[0])), b, f)"
        ".write_h5ad('cells.h5ad')"
    ),
    ".mtx": "import anndata.io; anndata.io.read_mtx({path!r}).T.write_h5ad('cells.h5ad')",
    ".zarr": "import anndata.io; anndata.io.read_zarr({path!r}).write_h5ad('cells.h5ad')",
    ".h5mu": (
        "import mudata; mudata.read_h5mu({path!r})['rna'].write_h5ad('cells.h5ad')"
        "  # one modality: several are out of scope"
    ),
    ".parquet": "import pandas; pandas.read_parquet({path!r}).to_csv('data.csv', index=False)",
    ".feather": "import pandas; pandas.read_feather({path!r}).to_csv('data.csv', index=False)",
    ".xlsx": "import pandas; pandas.read_excel({path!r}).to_csv('data.csv', index=False)",
    ".pt": "import torch, numpy; numpy.save('data.npy', torch.load({path!r}).numpy())",
}
# Those of them that are read as they are with .gz at their end.
_READ_PACKED = (".mtx",)
# Of a number of the data: its float32, the copy of that in a part, and the flags of the checks.
_BYTES_OF_A_NUMBER = 9
# Of a feature: 32 units of encoder and decoder, with their gradients and Adam's two moments.
_BYTES_OF_A_FEATURE = 1024


def conversion(path: Path, suffix: str | None = None) -> str:
    """Return the sentence that says how a file becomes one that is read; empty if it is unknown."""
    if suffix is None:
        suffixes = (part.lower() for part in reversed(path.suffixes))
        suffix = next((part for part in suffixes if part != ".gz"), "")
    line = CONVERSIONS.get(suffix)
    is_packed = path.suffix.lower() in (".gz", ".xz", ".bz2", ".zip", ".zst")
    if is_packed and not (line and suffix in _READ_PACKED):
        return "; unpack it first"
    return "" if line is None else f"; convert it: {line.format(path=str(path))}"


def check_arrays(arrays: Iterable[tuple[tuple[int, ...], int]]) -> None:
    """Raise if arrays of data need more memory than reading may take.

    Args:
        arrays: The shape of each, data first, and the bytes of one of its entries.

    Raises:
        InputError: as of :func:`~pyro_bvae.core.errors.check_bytes`.
    """
    entries = [(prod(shape), prod(shape[1:]), itemsize) for shape, itemsize in arrays]
    needed = sum(count * (itemsize + _BYTES_OF_A_NUMBER) for count, _, itemsize in entries)
    num_features = max((features for _, features, _ in entries), default=0)
    count = sum(count for count, _, _ in entries)
    check_bytes(
        needed + num_features * _BYTES_OF_A_FEATURE,
        f"a data set of {count:,} numbers with {num_features:,} features",
    )
