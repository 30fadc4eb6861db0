"""Sweeps over β and seeds of a configuration: directories of runs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pyro_bvae.core.disk.run_files import is_vacant, writing
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.runs._train import ConfigFile, check_device, check_splits, untrained
from pyro_bvae.runs.build import check_config, load_data
from pyro_bvae.runs.config import TrainConfig
from pyro_bvae.training import Sweep, sweep
from pyro_bvae.training.replicas.sweeping import assigned, replica_name


def train_sweep(
    config: TrainConfig,
    output: Path,
    *,
    betas: tuple[float, ...],
    seeds: int = 1,
    overwrite: bool = False,
    force: bool = False,
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
        overwrite: Take the places of runs that are there already, each of which stands until the
            first epoch of its successor is written.
        force: Take run directories over from other processes, as of :func:`~pyro_bvae.fit`.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, β, the number of seeds or a directory cannot be used, or
            another process writes to one.
    """
    check_count("seeds", seeds)
    training = config.training
    if training.target_rate is not None:
        raise InputError(
            f"'target_rate' finds a β, and a sweep is given its own; got {training.target_rate}"
        )
    numbers = range(training.seed, training.seed + seeds)
    replicas = assigned(betas, numbers)
    config = config.resolved()
    configs = {pair: config.with_options(beta=pair[0], seed=pair[1]) for pair in replicas}
    directories = [output / replica_name(*pair) for pair in replicas]
    for run in configs.values():
        check_config(run)
    check_device(training.device)
    settings = training.settings()
    for name in ("beta", "seed"):
        del settings[name]
    with ExitStack() as locks:
        _check_no_files(directories)
        for directory in directories:
            locks.enter_context(writing(directory, force=force))
        _check_new(directories, overwrite)
        own = dict.fromkeys(seed for _, seed in replicas)
        parts = {seed: load_data(config.with_options(seed=seed), download=True) for seed in own}
        for seed, splits in parts.items():
            check_splits(untrained(config.with_options(seed=seed), splits), splits)
        files = {pair: ConfigFile(run) for pair, run in configs.items()}
        try:
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
                overwrite=overwrite,
                progress=progress,
                callbacks=lambda replica: [files[replica.beta, replica.seed]],
            )
        except OSError:  # of a full disk
            for file in files.values():
                file.put_back()
            raise


def _check_no_files(directories: Iterable[Path]) -> None:
    """Raise if there is a file where a run directory is to be."""
    for directory in directories:
        if directory.exists() and not directory.is_dir():
            raise InputError(
                f"'output' must be a directory of runs, got one that holds the file {directory}"
            )


def _check_new(directories: Iterable[Path], overwrite: bool) -> None:
    """Raise if there is something where a run is to be written."""
    for directory in directories:
        if is_vacant(directory):
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
