"""Sweeps over β, or over rates, and seeds of a configuration: directories of runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from pyro_bvae.core.disk.run_files import writing
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.bounds import OptionType
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.datasets import Splits
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.runs._train import RunFiles, check_device, check_output, check_splits, untrained
from pyro_bvae.runs.build import check_config, load_data
from pyro_bvae.runs.config import NumSeeds, TrainConfig, read_config
from pyro_bvae.runs.record_file import read_record
from pyro_bvae.training import Sweep, sweep
from pyro_bvae.training.distributed import was_restarted
from pyro_bvae.training.replicas.sweeping import assigned, replica_name


@public
def saved_sweep(output: Path) -> tuple[TrainConfig, tuple[float, ...], tuple[float, ...], int]:
    """Return configuration, β, target rates and number of seeds of the sweep in a directory.

    Raises:
        InputError: if the directory holds no run of a sweep, or one that cannot be read.
    """
    runs = [
        read_config(path)
        for kind in ("beta", "rate")
        for path in sorted(output.glob(f"{kind}*-seed*/config.json"))
    ]
    if not runs:
        raise InputError(f"{output} holds no sweep: it has no run directory beta*-seed*")
    rates = {run.training.target_rate for run in runs}
    betas = {run.training.beta for run in runs if None in rates}
    seeds = {run.training.seed for run in runs}
    common = runs[0].with_options(target_rate=None, seed=min(seeds))
    return (
        common,
        tuple(sorted(betas)),
        tuple(sorted(rate for rate in rates if rate is not None)),
        len(seeds),
    )


@exclusive
def train_sweep(
    config: TrainConfig,
    output: Path,
    *,
    betas: tuple[float, ...] = (),
    target_rates: tuple[float, ...] = (),
    seeds: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Sweep:
    """Train the models of a configuration with several β and seeds, each into a run directory.

    Each run directory, ``output/beta<β>-seed<seed>`` or ``output/rate<nats>-seed<seed>``, is as
    ``train`` would have left it for a configuration of this β, or of this target rate, and this
    seed, random splits of the data included; :func:`pyro_bvae.load` reads it.

    Args:
        config: The configuration; its β is not looked at, and its seed is the first one. With
            target rates it is the first β.
        output: Directory of the run directories.
        betas: The β.
        target_rates: In place of β, rates in nats, for each of which a β is found.
        seeds: Number of seeds.
        resume: Continue the runs that are there, and train the others from their beginning;
            processes that ``torchrun`` starts again do so.
        overwrite: Take the places of runs that are there already, each of which stands until the
            first epoch of its successor is written.
        force: Take run directories over from other processes, as of :func:`~pyro_bvae.fit`.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, β, the number of seeds or a directory cannot be used, or
            another process writes to one.
    """
    OptionType.of(NumSeeds).check("seeds", seeds)
    if resume and overwrite:
        raise InputError("'--resume' and '--overwrite' exclude each other")
    if was_restarted():
        resume, overwrite = True, False
    _check_sweep(config, betas, target_rates)
    option: Literal["beta", "target_rate"] = "target_rate" if target_rates else "beta"
    numbers = range(config.training.seed, config.training.seed + seeds)
    replicas = assigned(target_rates or betas, numbers)
    config, configs = _configs(config, output, option, replicas, resume)
    check_device(config.training.device)
    _check_configs(configs)
    with ExitStack() as locks:
        for directory, run in configs.items():
            locks.enter_context(writing(directory, force=force))
            check_output(run, directory, resume and _is_run(directory), overwrite)
        parts = _data_of(configs, resume)
        config, configs = _in_epochs(config, configs, parts)
        settings = config.training.settings()
        for name in ("beta", "seed"):
            del settings[name]
        records = {seed: DataRecord.of(splits) for seed, splits in parts.items()}
        files = {path: RunFiles(run, records[run.training.seed]) for path, run in configs.items()}
        try:
            return sweep(
                lambda seed: untrained(config.with_options(seed=seed), parts[seed]),
                lambda seed: parts[seed].train,
                betas=target_rates or betas,
                seeds=numbers,
                schedule=lambda value: config.with_options(
                    **{option: value}
                ).training.beta_schedule(),
                validation=lambda seed: parts[seed].validation,
                **settings,
                device=config.training.device,
                output=output,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                callbacks=lambda replica: [files[Path(replica.directory or output)]],
            )
        except OSError:  # of a full disk
            for file in files.values():
                file.put_back()
            raise


def _data_of(configs: Mapping[Path, TrainConfig], resume: bool) -> dict[int, Splits]:
    """Return the data of each seed, as those of a run that is continued were; the models fit them.

    Raises:
        InputError: if a model cannot be trained on its data, or they are others than they were.
    """
    parts: dict[int, Splits] = {}
    for directory, config in configs.items():
        seed = config.training.seed
        if seed not in parts:
            known = read_record(directory) if resume else None
            parts[seed] = load_data(config, download=True, record=known)
            check_splits(untrained(config, parts[seed]), parts[seed])
    return parts


def _check_sweep(
    config: TrainConfig, betas: tuple[float, ...], target_rates: tuple[float, ...]
) -> None:
    """Raise unless a configuration is one that the runs of a sweep can have in common."""
    if config.training.target_rate is not None:
        raise InputError(
            "'target_rate' finds a β, and a sweep takes several as 'target_rates'; got"
            f" {config.training.target_rate}"
        )
    if config.training.sleep:
        raise InputError(
            f"'sleep' is of a single run, and must be 0 in a sweep; got {config.training.sleep}"
        )
    if betas and target_rates:
        raise InputError(
            f"'betas' and 'target_rates' exclude each other, got {betas} and {target_rates}"
        )


def _in_epochs(
    config: TrainConfig, configs: dict[Path, TrainConfig], parts: Mapping[int, Splits]
) -> tuple[TrainConfig, dict[Path, TrainConfig]]:
    """Return configurations with steps as epochs, which side by side are as many for each."""
    some = parts[min(parts)].train
    size = some.num_batches(config.training.batch_size)
    return config.in_epochs(size), {path: run.in_epochs(size) for path, run in configs.items()}


def _check_configs(configs: Mapping[Path, TrainConfig]) -> None:
    """Raise if a configuration cannot be used, or a file lies where its run directory is to be."""
    for directory, config in configs.items():
        check_config(config)
        if directory.exists() and not directory.is_dir():
            raise InputError(
                f"'output' must be a directory of runs, got one that holds the file {directory}"
            )


def _configs(
    config: TrainConfig,
    output: Path,
    option: Literal["beta", "target_rate"],
    replicas: list[tuple[float, int]],
    resume: bool,
) -> tuple[TrainConfig, dict[Path, TrainConfig]]:
    """Return the configuration that all have in common, and that of each run directory."""
    kind: Literal["beta", "rate"] = "beta" if option == "beta" else "rate"
    directories = {output / replica_name(*replica, kind): replica for replica in replicas}
    there = next((each for each in directories if _is_run(each)), None)
    if resume and there is not None and config.training.warmup_epochs is None:
        # A share of the first number of epochs.
        saved = read_config(there / "config.json").training
        config = config.with_options(warmup_epochs=saved.warmup_epochs)
    config = config.resolved()
    return config, {
        directory: config.with_options(**{option: value}, seed=seed)
        for directory, (value, seed) in directories.items()
    }


def _is_run(directory: Path) -> bool:
    return (directory / "config.json").exists()
