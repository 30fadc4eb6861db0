"""Counts that stay on disk, in HDF5, zarr and shards, held to the same counts in memory."""

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, LazyDataset, blocks, h5ad
from pyro_bvae.datasets.counts import on_disk

anndata = pytest.importorskip("anndata")
zarr = pytest.importorskip("zarr")

CELLS, GENES = 300, 7
COUNTS = np.random.default_rng(0).poisson(0.7, size=(CELLS, GENES)).astype(np.float32)
COUNTS[:, 0] += 1


def cells(rows: slice = slice(None), genes: int = GENES) -> object:
    adata = anndata.AnnData(sp.csr_matrix(COUNTS[rows, :genes]))
    adata.obs_names = [f"cell{row}" for row in np.arange(CELLS)[rows]]
    adata.var_names = [f"gene{gene}" for gene in range(genes)]
    adata.obs["kind"] = np.array(["a", "b", "c"])[np.arange(CELLS)[rows] % 3]
    adata.layers["doubled"] = 2 * adata.X
    return adata


def write_zarr(adata: object, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the next versions of zarr and AnnData
        adata.write_zarr(path)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cells")
    found = {name: folder / name for name in ("cells.h5ad", "cells.zarr", "shards")}
    cells().write_h5ad(found["cells.h5ad"])
    write_zarr(cells(), found["cells.zarr"])
    found["shards"].mkdir()
    cells(slice(0, 110)).write_h5ad(found["shards"] / "part1.h5ad")
    write_zarr(cells(slice(110, 111)), found["shards"] / "part2.zarr")
    write_zarr(cells(slice(111, None)), found["shards"] / "part3.zarr")
    return found


@pytest.mark.parametrize("kind", ["cells.h5ad", "cells.zarr", "shards"])
@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("layer", [None, "doubled"])
def test_parts_and_batches_are_those_of_the_file_in_memory(
    paths: dict[str, Path], kind: str, backed: bool, layer: str | None
) -> None:
    options = {"label_column": "kind", "layer": layer, "seed": 2}
    with pytest.warns(DeprecationWarning):
        known = h5ad(paths["cells.h5ad"], **options)
        found = h5ad(paths[kind], backed=backed, **options)
    assert found.train_names.tolist() == known.train_names.tolist()
    assert torch.equal(found.test.x, known.test.x)
    assert torch.equal(found.train.labels, known.train.labels)
    for shuffle in (True, False):
        one, other = (
            list(part.train.batches(16, seed=1, epoch=3, shuffle=shuffle))
            for part in (found, known)
        )
        assert len(one) == len(other) == 15
        for (x, context), (y, also) in zip(one, other, strict=True):
            assert torch.equal(x, y) and torch.equal(context.size_factor, also.size_factor)


class Table:
    """Rows that hold their own numbers, read so many at a time."""

    def __init__(self, size: int, at_once: int) -> None:
        self.shape, self.rows_at_once = (size, 1), at_once
        self.asked: list[np.ndarray] = []

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        self.asked.append(rows)
        return rows[:, None].astype(float)


def order(data: LazyDataset, batch: int = 64, **options: object) -> list[int]:
    given = {"seed": 0, "epoch": 0, **options}
    return torch.cat([x for x, _ in data.batches(batch, **given)])[:, 0].long().tolist()


def test_blocks_are_shuffled_and_mixed_and_each_row_comes_once() -> None:
    size, at_once = 20_480, 4096
    table = Table(size, at_once)
    data = LazyDataset(table)
    found = order(data)
    assert sorted(found) == list(range(size)) and found != order(data, epoch=1)
    assert found == order(data) and order(data, drop_last=True) == found[: size // 64 * 64]
    assert max(map(len, table.asked)) == at_once
    # A group is of 16 blocks, each of 256 neighbours that are asked for in one piece.
    assert all((np.diff(rows) > 1).sum() <= 17 for rows in table.asked)
    # A batch has rows from all over the file: the mean of uniform ones to five standard errors.
    places = np.array(found[: 2 * at_once]).reshape(-1, 64)
    error = size / np.sqrt(12 * 64)
    within = np.abs(places.mean(1) - places.mean()) < 5 * error
    assert within.all() and np.unique(places // 256).size == 32
    assert all(np.unique(batch // 256).size >= 12 for batch in places)


def test_rows_that_fit_into_one_group_come_as_in_memory() -> None:
    size = 500
    dense = Dataset(torch.arange(float(size))[:, None])
    assert order(LazyDataset(Table(size, 512))) == order(dense)
    assert order(LazyDataset(Table(size, 100)), shuffle=False) == list(range(size))


def test_processes_read_their_own_rows_of_the_same_batches() -> None:
    whole, tables = LazyDataset(Table(1000, 256)), [Table(1000, 256) for _ in range(2)]
    shares = [
        LazyDataset(table).shared(lambda n, side=side: slice(n * side // 2, n * (side + 1) // 2))
        for side, table in enumerate(tables)
    ]
    parts = [[x for x, _ in data.batches(64, seed=0, epoch=0)] for data in shares]
    joined = [torch.cat(pair)[:, 0].long().tolist() for pair in zip(*parts, strict=True)]
    assert [row for batch in joined for row in batch] == order(whole)
    read = [set(np.concatenate(table.asked).tolist()) for table in tables]
    assert not read[0] & read[1]


def test_a_reader_that_fails_says_so_at_its_batch_and_leaves_no_thread() -> None:
    class Failing(Table):
        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            if len(self.asked) == 2:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    data = LazyDataset(Failing(1000, 256))
    with pytest.raises(OSError, match="the disk is gone"):
        order(data)
    batches = LazyDataset(Table(1000, 256)).batches(64, seed=0, epoch=0)
    next(batches)
    del batches
    assert not [thread for thread in threading.enumerate() if "reader" in thread.name]


def test_rows_near_each_other_are_read_in_one_piece() -> None:
    asked: list[slice] = []

    class Matrix:
        shape, num_stored = (1000, 1), 1000

        def __getitem__(self, rows: slice) -> np.ndarray:
            asked.append(rows)
            return np.arange(1000)[rows, None]

    rows = np.array([3, 5, 30, 500, 999])
    assert on_disk.read_rows(Matrix(), rows)[:, 0].tolist() == rows.tolist()
    assert [(own.start, own.stop) for own in asked] == [(3, 31), (500, 501), (999, 1000)]


def test_groups_hold_fewer_rows_of_wide_tables() -> None:
    class Matrix:
        def __init__(self, stored: int) -> None:
            self.shape, self.num_stored = (1000, 10**5), stored

    sizes = [on_disk.rows_at_once(Matrix(stored)) for stored in (10, 10**6, 10**9)]
    assert sizes == [32_768, 5000, 5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("empty", "a folder of cells must end in .zarr, or hold .h5ad or .zarr files"),
        ("genes", "must have the same genes in the same order, but those of b.zarr differ"),
        ("damaged", "shard b.zarr: this is not a readable zarr folder of AnnData"),
        ("columns", "'X' is read by rows if it is dense or csr, got csc"),
        ("pointers", "'X/indptr' must rise from 0 to the"),
    ],
)
def test_folders_that_are_no_cells(tmp_path: Path, change: str, words: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if change != "empty":
        cells(slice(0, 20)).write_h5ad(folder / "a.h5ad")
        other = cells(slice(20, 40), GENES - (change == "genes"))
        if change == "columns":
            other.X = sp.csc_matrix(other.X)
        write_zarr(other, folder / "b.zarr")
    if change == "damaged":
        (folder / "b.zarr" / "zarr.json").write_text("{")
        (folder / "b.zarr" / ".zgroup").unlink(missing_ok=True)
    if change == "pointers":
        group = zarr.open_group(folder / "b.zarr", mode="r+")
        group["X/indptr"][3] = 10**6
    with pytest.raises(InputError, match=words):
        h5ad(folder)


def test_blocks_of_one_group_are_a_permutation() -> None:
    rows = torch.arange(40)
    (only,) = blocks.groups(rows, 64, torch.Generator().manual_seed(3))
    assert torch.equal(only, torch.randperm(40, generator=torch.Generator().manual_seed(3)))
