"""Hours of use in one process: ``python -m tests.reliability.soak --minutes 30``.

Small models are trained, resumed, evaluated, loaded, embedded and measured in a loop, by several
threads too; the commands score, impute, reconstruct, compare, improve and export a run. Every
minute the memory, the open files, the entries of the parameter store, the threads and the temporary
files of the process are printed. A straight line is laid through the second half of the samples;
over that half it may rise by at most 5% of the memory, and by less than one of anything else.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import torch

from pyro_bvae import BetaVAE, Decoder, evidence, fit, inference_gaps, load, runs
from pyro_bvae.cli import main as main_of_commands
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.latents import embed, traverse
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import TrainConfig

#: Growth over the second half that a figure may have: a share of the memory, a number of the rest.
MEMORY_SHARE, COUNT = 0.05, 1.0
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Sample(NamedTuple):
    """Resources of this process at a moment.

    Attributes:
        seconds: Since the beginning.
        rounds: Rounds done.
        memory: Resident memory, MB.
        files: Open file descriptors.
        entries: Entries of Pyro's parameter store.
        threads: Threads of the process.
        temporary: Files in the folder for temporary ones.
    """

    seconds: float
    rounds: int
    memory: float
    files: int
    entries: int
    threads: int
    temporary: int

    @classmethod
    def now(cls, started: float, rounds: int) -> Sample:
        """Return the resources now, after unused objects are freed."""
        gc.collect()
        process = Path("/proc/self")
        pages = int((process / "statm").read_text(encoding="ascii").split()[1])
        return cls(
            time.monotonic() - started,
            rounds,
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(list((process / "fd").iterdir())),
            len(pyro.get_param_store().keys()),
            threading.active_count(),
            sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        )

    def __str__(self) -> str:
        return (
            f"{self.seconds / 60:6.1f} min {self.rounds:6d} rounds {self.memory:8.1f} MB"
            f" {self.files:4d} files {self.entries:3d} entries {self.threads:3d} threads"
            f" {self.temporary:3d} temporary files"
        )


def growth(samples: list[Sample]) -> dict[str, float]:
    """Return by how much each figure rises over the second half, by a straight line."""
    half = samples[len(samples) // 2 :]
    seconds = np.array([sample.seconds for sample in half])
    length = seconds[-1] - seconds[0]
    names = ("memory", "files", "entries", "threads", "temporary")
    return {
        name: float(np.polyfit(seconds, [getattr(s, name) for s in half], 1)[0] * length)
        for name in names
    }


def excess(samples: list[Sample]) -> list[str]:
    """Return the figures that grow by more than they may, in words."""
    bounds = {"memory": MEMORY_SHARE * float(np.mean([sample.memory for sample in samples]))}
    return [
        f"{name} rises by {value:.1f} over the second half, {bounds.get(name, COUNT):.1f} or more"
        for name, value in growth(samples).items()
        if value >= bounds.get(name, COUNT)
    ]


def make_vae() -> BetaVAE:
    """Return an untrained model."""
    decoder = Decoder(MLP(2, 6, (8,)), NormalLikelihood())
    return BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, (8,))))


def run_directory(folder: Path, number: int) -> None:
    """Train a run, go on with it, measure it and read it back."""
    options = {"hidden": (8,), "latent_dim": 2, "warmup_epochs": 0.0, "batch_size": 2000}
    config = TrainConfig(dataset="linear-gaussian", likelihood="normal", epochs=1, **options)
    run = folder / "run"
    runs.train(config, run, overwrite=True, progress=False)
    runs.train(config.with_options(epochs=2), run, resume=True, progress=False)
    runs.evaluate_run(run, num_samples=5, num_data=4, seed=number, progress=False)
    embed(load(run))


def single_model(folder: Path, number: int) -> None:
    """Fit a model, measure it, and look at its latents."""
    vae = make_vae()
    fit(vae, X, epochs=2, batch_size=16, progress=False, seed=number)
    evidence(vae.model, vae.guide, X, num_samples=20, seed=number)
    settings = RefitSettings(max_rounds=1, steps_per_round=5, num_plateaus=1)
    inference_gaps(vae.model, vae.guide, X[:4], num_samples=10, settings=settings)
    traverse(vae, X, latents=[0])


def commands(folder: Path, number: int) -> None:
    """Train on a table with missing values, and apply the model to new rows, in turns."""
    run, improved = folder / "table", folder / "improved"
    rows = np.random.default_rng(number).normal(size=(80, 6))
    rows[::7, 1] = np.nan
    table, new = folder / "table.csv", folder / "new.csv"
    for path, values in ((table, rows), (new, rows[:8])):
        np.savetxt(path, values, delimiter=",", header="a,b,c,d,e,f", comments="")
    train = (
        f"train --dataset file --path {table} --likelihood normal --missing nan --hidden 8"
        f" --latent-dim 2 --epochs 2 --output {run} --overwrite"
    )
    turns = (
        (f"score {run} --data {new} --num-samples 20", f"impute {run} --data {new}"),
        (f"reconstruct {run} --data {new}", f"embed {run} --data {new}"),
        (
            f"improve {run} --output {improved} --epochs 1 --num-data 4 --overwrite",
            f"compare {run} {improved} --data {new} --num-samples 20",
        ),
        (f"export {run}",),
    )
    for line in (train, *turns[number % len(turns)]):
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
            status = main_of_commands(line.split())
        if status:
            raise RuntimeError(f"pyro-bvae {line} ended with status {status}: {said.getvalue()}")


def many_threads(folder: Path, number: int) -> None:
    """Fit a model in each of three threads."""
    with ThreadPoolExecutor(3) as pool:
        fits = [pool.submit(fit, make_vae(), X, epochs=1, progress=False) for _ in range(3)]
        for each in fits:
            each.result()


WORK: tuple[Callable[[Path, int], None], ...] = (
    run_directory,
    commands,
    single_model,
    many_threads,
)


def rounds(folder: Path, seconds: float, every: float, least: int) -> Iterator[Sample]:
    """Work for so many seconds and rounds, and yield the resources every so many seconds."""
    started = last = time.monotonic()
    for number in count(1):
        for work in WORK:
            work(folder, number)
        if time.monotonic() - last >= every or time.monotonic() - started >= seconds:
            last = time.monotonic()
            yield Sample.now(started, number)
        if time.monotonic() - started >= seconds and number >= least:
            return


def soak(minutes: float, every: float = 60.0, least: int = 1) -> list[Sample]:
    """Work for so many minutes, print the resources, and return them.

    Args:
        minutes: How long.
        every: Seconds from one line to the next.
        least: Rounds that are done however long they take.
    """
    kept, samples = tempfile.tempdir, []
    with tempfile.TemporaryDirectory() as folder:
        (temporary := Path(folder) / "temporary").mkdir()
        tempfile.tempdir = str(temporary)
        try:
            for sample in rounds(Path(folder), 60 * minutes, every, least):
                samples.append(sample)
                print(sample, flush=True)
        finally:
            tempfile.tempdir = kept
    return samples


def main() -> int:
    """Soak for the minutes of the command line; the status is 1 if a figure grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    torch.set_num_threads(1)
    samples = soak(minutes, every=min(60.0, 60 * minutes / 20))
    print("growth over the second half:", {k: round(v, 2) for k, v in growth(samples).items()})
    faults = excess(samples)
    print(*faults or ["nothing grows"], sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
