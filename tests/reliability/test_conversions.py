"""The lines that refusals print for files of other formats work as they are printed."""

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import torch

from pyro_bvae import InputError
from pyro_bvae.datasets import Splits, from_path, h5ad
from pyro_bvae.datasets.readers.files import CONVERSIONS

CELLS, GENES = 12, 5
COUNTS = np.random.default_rng(0).poisson(3.0, (CELLS, GENES)).astype(np.float32) + 1
NAMES = [f"g{i}" for i in range(GENES)]
TABLE = pd.DataFrame(COUNTS, columns=NAMES)


def loom(path: Path) -> None:
    """Write the file of a loom version 3, genes by cells."""
    with h5py.File(path, "w") as file:
        file["matrix"] = COUNTS.T
        file["attrs/LOOM_SPEC_VERSION"] = "3.0.0"
        file["row_attrs/Gene"] = [name.encode() for name in NAMES]
        file["col_attrs/CellID"] = [f"c{i}".encode() for i in range(CELLS)]
        for group in ("layers", "row_graphs", "col_graphs"):
            file.create_group(group)


def tenx(path: Path) -> None:
    """Write the file of a 10x matrix, genes by cells in compressed columns."""
    columns = sp.csc_matrix(COUNTS.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(columns, name)
        file["matrix/shape"] = np.array(columns.shape, np.int32)
        file["matrix/barcodes"] = np.array([f"c{i}" for i in range(CELLS)], "S8")
        file["matrix/features/id"] = np.array(NAMES, "S8")


def mtx(path: Path) -> None:
    """Write a Matrix Market file, genes by cells."""
    scipy.io.mmwrite(path, sp.coo_matrix(COUNTS.T))


def mu(path: Path) -> None:
    """Write a MuData file, whose first modality has the cells."""
    import mudata

    mudata.MuData({"rna": anndata.AnnData(COUNTS)}).write(path)


MAKERS: dict[str, tuple[Callable[[Path], object], str]] = {
    ".loom": (loom, "loompy"),
    ".h5": (tenx, "h5py"),
    ".mtx": (mtx, "scipy"),
    ".zarr": (lambda path: anndata.AnnData(COUNTS).write_zarr(path), "zarr"),
    ".parquet": (TABLE.to_parquet, "pyarrow"),
    ".feather": (TABLE.to_feather, "pyarrow"),
    ".xlsx": (lambda path: TABLE.to_excel(path, index=False), "openpyxl"),
    ".h5mu": (mu, "mudata"),
    ".pt": (lambda path: torch.save(torch.from_numpy(COUNTS), path), "torch"),
}


def rows_of(splits: Splits) -> np.ndarray:
    """Return the data of all parts in a fixed order."""
    parts = [part.x for part in (splits.train, splits.validation, splits.test) if part is not None]
    rows = torch.cat(parts).numpy()
    return rows[np.lexsort(rows.T)]


def test_every_line_is_tried() -> None:
    assert MAKERS.keys() == CONVERSIONS.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", CONVERSIONS)
def test_the_printed_line_makes_a_file_that_is_read(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, library = MAKERS[suffix]
    pytest.importorskip(library)
    path = tmp_path / f"it's {{x}}{suffix}"
    make(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        from_path(path)
    exec(str(caught.value).split("convert it: ")[1], {})
    made = next(p for p in map(Path, ("cells.h5ad", "data.csv", "data.npy")) if p.exists())
    splits = h5ad(made, min_cells=0) if made.suffix == ".h5ad" else from_path(made)
    assert np.array_equal(rows_of(splits), COUNTS[np.lexsort(COUNTS.T)])
    if suffix in (".loom", ".h5"):
        assert splits.train.feature_names == tuple(NAMES)
