"""Sweeps over β and seeds of a configuration: directories of runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from pyro_bvae.core.atomic_files import make_directory
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.runs._train import check_device, check_splits, untrained
from pyro_bvae.runs.build import load_data
from pyro_bvae.runs.config import TrainConfig, write_config
from pyro_bvae.runs.directory import remove_run
from pyro_bvae.training import Schedule, Sweep, sweep
from pyro_bvae.training.replicas.sweeping import assigned, replica_name


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """What a sweep is made of: a configuration, and the β and seeds that are to be trained with it."""

    beta: tyro.conf.Suppress[float] = 1.0
    target_rate: tyro.conf.Suppress[float | None] = None
    betas: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
    """The weights of the KL."""
    seeds: int = 1
    """How many seeds for each β, from --seed on."""
    output: Path | None = None
    """Directory of the runs, beta<β>-seed<seed>; runs/<dataset>-sweep by default."""
    overwrite: bool = False
    """Replace the runs in the output directory."""

    @property
    def directory(self) -> Path:
        """The directory of the runs."""
        return self.output or Path("runs") / f"{self.dataset}-sweep"


def train_sweep(
    config: TrainConfig,
    output: Path,
    *,
    betas: tuple[float, ...],
    seeds: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Sweep:
    """Train the models of a configuration with several β and seeds, each into a run directory of its own.

    Each run directory, ``output/beta<β>-seed<seed>``, is what ``train`` would have left there for a
    configuration of this β and seed, random splits of the data included; :func:`pyro_bvae.load`
    reads it.

    Args:
        config: What to train; its β is not looked at, and its seed is the first one.
        output: Directory of the run directories.
        betas: The β.
        seeds: Number of seeds.
        overwrite: Remove runs that are there already.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, β, the number of seeds or a directory cannot be used.
    """
    check_count("seeds", seeds)
    if config.target_rate is not None:
        raise InputError(
            f"'target_rate' finds a β, and a sweep is given its own; got {config.target_rate}"
        )
    numbers = range(config.seed, config.seed + seeds)
    runs = [replace(config, beta=beta, seed=seed) for beta, seed in assigned(betas, numbers)]
    for run in runs:
        run.check()
    config = config.resolved()
    check_device(config.device)
    directories = {output / replica_name(run.beta, run.seed): run.resolved() for run in runs}
    _check_new(directories, overwrite)
    parts = {seed: load_data(replace(config, seed=seed)) for seed in {run.seed for run in runs}}
    for seed, splits in parts.items():
        check_splits(untrained(replace(config, seed=seed), splits), splits)
    for directory, run in directories.items():
        if overwrite:
            remove_run(directory)
        make_directory(directory)
        write_config(run, directory / "config.json")

    def schedule(beta: float) -> float | Schedule:
        return replace(config, beta=beta).beta_schedule()

    return sweep(
        lambda seed: untrained(replace(config, seed=seed), parts[seed]),
        lambda seed: parts[seed].train,
        betas=betas,
        seeds=numbers,
        schedule=schedule,
        epochs=config.epochs,
        validation=lambda seed: parts[seed].validation,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        gradient_clip=config.gradient_clip,
        early_stopping=config.early_stopping,
        precision=config.precision,
        device=config.device,
        output=output,
        progress=progress,
    )


def _check_new(directories: dict[Path, TrainConfig], overwrite: bool) -> None:
    """Raise if there is something where a run is to be written."""
    for directory in directories:
        if directory.exists() and not directory.is_dir():
            raise InputError(
                f"'output' must be a directory of runs, got one that holds the file {directory}"
            )
        if not directory.is_dir() or not any(directory.iterdir()):
            continue
        if not overwrite:
            raise InputError(
                f"{directory} exists: pass --overwrite to replace it, or another --output"
            )
        if not (directory / "config.json").exists():
            raise InputError(
                f"{directory} is not a run directory (it has no config.json), so it is not overwritten"
            )
