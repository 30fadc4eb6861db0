"""Do cells on disk train as fast as cells in memory, and does memory stay put as the file grows?

    python analysis/larger_than_memory.py --folder FOLDER_WITH_2_GB
    python analysis/larger_than_memory.py --folder FOLDER_WITH_2_GB --cells 1000000 --steps 64
    python analysis/larger_than_memory.py --quick

Cells of twenty types, x_nd ~ Poisson(l_n p_kd), 2,000 genes of which about 5% are seen in a cell,
are written in chunks to an .h5ad file and a .zarr folder, and read back: whole into memory (sparse
there), from .h5ad and from zarr, each in a process of its own.

``read``: cells a second of shuffled batches of 128, dense, which nobody uses. ``train``: those of
``fit`` of a negative-binomial VAE (10 latents, one hidden layer of 128), plain unless ``--compile``;
from the first batch that is asked for to the last one, checks of the counts among them. ``embed``
and ``score`` (importance sampling, 10 particles): cells a second of the whole call, which reads and
checks the file first. ``memory``: the peak of the process above that of the imported package.

An epoch is cut after ``--steps`` steps, and reading after four times as many.
``cells_a_cpu_second`` counts the processor's time of all threads, which other work on the machine
does not change much. A table and files that were begun are gone on with; the files, 2 GB, are
deleted when all is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import sparse

from pyro_bvae.core.context import Context
from pyro_bvae.datasets import h5ad
from pyro_bvae.latents import embed
from pyro_bvae.runs import Shape, TrainConfig, build_vae, score, train
from pyro_bvae.training import fit

RESULTS = Path(__file__).parent / "results" / "larger_than_memory"
SIZES, QUICK = (10_000, 100_000, 1_000_000), (2_000, 4_000)
STORAGES, CALLS = ("memory", "h5ad", "zarr"), ("read", "train", "embed", "score")
GENES, TYPES, COUNTS, CHUNK, BATCH = 2000, 20, 115, 20_000, 128
MOST_SCORED = 100_000
MODEL: dict[str, Any] = {"hidden": (128,), "latent_dim": 10, "likelihood": "negative-binomial"}
KEYS = ["cells", "call", "storage"]
VALUES = ["cells_a_second", "cells_a_cpu_second", "open_seconds", "peak_mib", "steps"]
COLUMNS = [*KEYS, *VALUES]


def counts_of(cells: int, chunk: int, seed: int = 0) -> sparse.csr_matrix:
    """Return one chunk of the cells, their counts over the genes of each cell's type."""
    profiles = np.random.default_rng(seed).gamma(0.6, size=(TYPES, GENES))
    cumulated = np.cumsum(profiles, 1) / profiles.sum(1, keepdims=True)
    rng = np.random.default_rng([seed, chunk])
    types, totals = rng.integers(TYPES, size=cells), 1 + rng.poisson(COUNTS, size=cells)
    rows = np.repeat(np.arange(cells), totals)
    genes = np.empty(len(rows), np.int32)
    for kind in range(TYPES):
        own = types[rows] == kind
        genes[own] = np.searchsorted(cumulated[kind], rng.random(int(own.sum())))
    ones = np.ones(len(rows), np.float32)
    return sparse.coo_matrix((ones, (rows, genes)), (cells, GENES)).tocsr()


def write(path: Path, cells: int) -> None:
    """Write the cells chunk by chunk, under the name once all are there."""
    part = path.with_name(f"part{path.suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the next version of zarr
        _write(part, cells)
    part.rename(path)


def _write(path: Path, cells: int) -> None:
    import h5py
    import zarr
    from anndata.io import write_elem

    is_zarr = path.suffix == ".zarr"
    file: Any = zarr.open_group(path, mode="w") if is_zarr else h5py.File(path, "w")
    obs = pd.DataFrame(index=[f"c{row}" for row in range(cells)])
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(GENES)])
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(file, "obs", obs)
    write_elem(file, "var", var)
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = [cells, GENES] if is_zarr else np.array([cells, GENES])
    growing = {} if is_zarr else {"maxshape": (None,)}
    kinds = (("data", "float32"), ("indices", "int32"))
    arrays = {
        name: (group.create_array if is_zarr else group.create_dataset)(
            name, shape=(0,), dtype=dtype, chunks=(65_536,), **growing
        )
        for name, dtype in kinds
    }
    ends = [np.zeros(1, np.int64)]
    for number, start in enumerate(range(0, cells, CHUNK)):
        part = counts_of(min(CHUNK, cells - start), number)
        first = int(ends[-1][-1])
        for name, array in arrays.items():
            array.resize((first + part.nnz,))
            array[first:] = getattr(part, name)
        ends.append(part.indptr[1:].astype(np.int64) + first)
    write_elem(group, "indptr", np.concatenate(ends))
    if not is_zarr:
        file.close()


class Timed:
    """Data of which an epoch has so many batches, and the times at which they were asked for."""

    def __init__(self, data: Any, steps: int) -> None:
        self.data, self.steps = data, steps
        self.times: list[tuple[float, float]] = []

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        return min(self.steps, int(self.data.num_batches(batch_size)))

    def batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[torch.Tensor, Context | None]]:
        """Yield the batches of one epoch."""
        self._note()
        whole = self.data.batches(batch_size, seed=seed, epoch=epoch)
        for batch in islice(whole, self.num_batches(batch_size)):
            yield batch
            self._note()

    def _note(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


def time_epoch(
    path: Path, storage: str, call: str, steps: int, compiled: bool
) -> tuple[np.ndarray, float]:
    """Return cells a second and a CPU second, and the seconds until the data were open."""
    start = time.perf_counter()
    splits = h5ad(path, backed=storage != "memory")
    opened = time.perf_counter() - start
    timed = Timed(splits.train, steps if call == "train" else 4 * steps)
    if call == "train":
        vae = build_vae(TrainConfig(**MODEL), Shape.of(splits.train))
        options = {"epochs": 1, "batch_size": BATCH, "compile": compiled, "progress": False}
        fit(vae, timed, beta=1.0, **options)
    else:
        for _ in timed.batches(BATCH, seed=0, epoch=0):
            pass
    count = timed.num_batches(BATCH)
    spent = np.array(timed.times[-1]) - timed.times[-1 - count]
    return BATCH * count / spent, opened


def time_reading(path: Path, storage: str, call: str) -> np.ndarray:
    """Return cells a second and a CPU second of ``embed`` or ``score`` with a run of few cells."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / f"small{path.suffix}"
        write(small, 1000)
        backed = storage != "memory" or None
        data = {"dataset": "h5ad", "path": str(small), "backed": backed, "epochs": 1}
        config = TrainConfig(**MODEL, **data)
        train(config, Path(folder) / "run", progress=False)
        start = np.array([time.perf_counter(), time.process_time()])
        if call == "embed":
            count = len(embed(Path(folder) / "run", path).codes)
        else:
            scores = score(Path(folder) / "run", path, num_samples=10, method="importance")
            count = len(scores.index)
        return count / (np.array([time.perf_counter(), time.process_time()]) - start)


def measure(path: Path, storage: str, call: str, steps: int, compiled: bool) -> dict[str, float]:
    """Return the row of one call in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if call in ("read", "train"):
        speed, opened = time_epoch(path, storage, call, steps, compiled)
    else:
        speed, opened = time_reading(path, storage, call), np.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return dict(zip(VALUES, [*speed.tolist(), opened, peak / 1024, steps], strict=True))


def table_of(folder: Path, work: Path, sizes: tuple[int, ...], options: list[str]) -> pd.DataFrame:
    """Measure the rows that the table has not yet, and write it after each of them."""
    path = folder / "table.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["cells"], row["call"], row["storage"]) for row in rows}
    wanted = [(cells, call, kind) for call in CALLS for cells in sizes for kind in STORAGES]
    wanted = [key for key in wanted if key[1] != "score" or key[0] <= MOST_SCORED]
    for key in [key for key in wanted if key not in done]:
        data = work / f"cells{key[0]}{'.zarr' if key[2] == 'zarr' else '.h5ad'}"
        if not data.exists():
            write(data, key[0])
        call = [sys.executable, __file__, "--one", str(data), key[2], key[1], *options]
        found = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append({**dict(zip(KEYS, key, strict=True)), **json.loads(found.splitlines()[-1])})
        print(rows[-1], flush=True)
        pd.DataFrame(rows)[COLUMNS].to_csv(path, index=False, float_format="%.4g")
    for data in work.glob("cells*.*"):
        shutil.rmtree(data) if data.is_dir() else data.unlink()
    return pd.DataFrame(rows)[COLUMNS]


def figure_of(table: pd.DataFrame) -> Figure:
    """Draw cells a second and peak memory against cells."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for call, line in zip(("read", "train", "embed"), ("-", "--", ":"), strict=True):
        for place, kind in enumerate(STORAGES):
            own = table[(table.call == call) & (table.storage == kind)].sort_values("cells")
            if own.empty:
                continue
            look = {"color": f"C{place}", "ls": line, "marker": "o", "label": f"{call}, {kind}"}
            left.plot(own.cells, own.cells_a_cpu_second, **look)
            right.plot(own.cells, own.peak_mib, **look)
    left.set(ylabel="cells a CPU second", yscale="log")
    right.set(ylabel="peak memory above the package, MiB", ylim=(0, None))
    right.axhline(1024, color="grey", lw=1)
    for axes in (left, right):
        axes.set(xlabel="cells in the file", xscale="log")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right", fontsize=8)
    return figure


def main() -> None:
    """Measure, or measure one row for the process that asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the files are written")
    parser.add_argument("--cells", type=int, nargs="+", default=SIZES)
    parser.add_argument("--steps", type=int, default=256, help="steps of an epoch at most")
    parser.add_argument("--compile", action="store_true", help="time compiled steps")
    parser.add_argument("--quick", action="store_true", help="thousands of cells, ten steps")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        path, storage, call = given.one
        row = measure(Path(path), storage, call, given.steps, given.compile)
        print("\n" + json.dumps(row))
        return
    folder = RESULTS
    sizes, options = (
        tuple(given.cells),
        ["--steps", str(given.steps), *["--compile"] * given.compile],
    )
    with tempfile.TemporaryDirectory() as passing:
        work = given.folder or Path(passing)
        if given.quick:
            folder, sizes, options = Path(passing) / "results", QUICK, ["--steps", "10"]
        folder.mkdir(parents=True, exist_ok=True)
        table = table_of(folder, work, sizes, options)
        print(table.to_string(index=False))
        figure_of(table).savefig(folder / "figure.png", dpi=120)


if __name__ == "__main__":
    main()
