"""Sweeps over β and seeds of a configuration: directories of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pyro_bvae.core.atomic_files import make_directory
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.bounds import OptionType
from pyro_bvae.runs._train import check_device, check_splits, untrained
from pyro_bvae.runs.build import check_config, load_data
from pyro_bvae.runs.config import NumSeeds, TrainConfig, write_config
from pyro_bvae.runs.directory import remove_run
from pyro_bvae.training import Sweep, sweep
from pyro_bvae.training.replicas.sweeping import assigned, replica_name


def train_sweep(
    config: TrainConfig,
    output: Path,
    *,
    betas: tuple[float, ...],
    seeds: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Sweep:
    """Train the models of a configuration with several β and seeds, each into a run directory.

    Each run directory, ``output/beta<β>-seed<seed>``, is as ``train`` would have left it for a
    configuration of this β and seed, random splits of the data included; :func:`pyro_bvae.load`
    reads it.

    Args:
        config: The configuration; its β is not looked at, and its seed is the first one.
        output: Directory of the run directories.
        betas: The β.
        seeds: Number of seeds.
        overwrite: Remove runs that are there already.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, β, the number of seeds or a directory cannot be used.
    """
    OptionType.of(NumSeeds).check("seeds", seeds)
    training = config.training
    if training.target_rate is not None:
        raise InputError(
            f"'target_rate' finds a β, and a sweep is given its own; got {training.target_rate}"
        )
    numbers = range(training.seed, training.seed + seeds)
    replicas = assigned(betas, numbers)
    config = config.resolved()
    directories = {
        output / replica_name(beta, seed): config.with_options(beta=beta, seed=seed)
        for beta, seed in replicas
    }
    for run in directories.values():
        check_config(run)
    check_device(training.device)
    _check_new(directories, overwrite)
    parts = {seed: load_data(config.with_options(seed=seed)) for _, seed in replicas}
    for seed, splits in parts.items():
        check_splits(untrained(config.with_options(seed=seed), splits), splits)
    for directory, run in directories.items():
        if overwrite:
            remove_run(directory)
        make_directory(directory)
        write_config(run, directory / "config.json")

    settings = training.settings()
    for name in ("beta", "seed"):
        del settings[name]
    return sweep(
        lambda seed: untrained(config.with_options(seed=seed), parts[seed]),
        lambda seed: parts[seed].train,
        betas=betas,
        seeds=numbers,
        schedule=lambda beta: replace(training, beta=beta).beta_schedule(),
        validation=lambda seed: parts[seed].validation,
        **settings,
        device=training.device,
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
                f"{directory} is not a run directory (it has no config.json), so it is not "
                "overwritten"
            )
