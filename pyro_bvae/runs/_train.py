"""Training the model of a configuration into a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.datasets import Splits
from pyro_bvae.runs.build import Shape, build_vae, check_config, load_data
from pyro_bvae.runs.config import TrainConfig, read_config, write_config
from pyro_bvae.runs.directory import Run, remove_evaluation, remove_run
from pyro_bvae.runs.snapshots import Snapshots
from pyro_bvae.training import (
    TensorBoard,
    checkpoint_path,
    fit,
    load_checkpoint,
    load_weights,
    start_at_mean,
)
from pyro_bvae.training.checkpoint import check_configuration
from pyro_bvae.training.checks.checkpoint_content import check_state
from pyro_bvae.training.distributed import own_device, process_group, was_restarted
from pyro_bvae.vae import BetaVAE

# Data that are checked at a time, a bound on memory for large files.
_CHECKED = 4096


@exclusive
def train(
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    snapshots: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Run:
    """Train the model of a configuration into a run directory.

    All input is checked before anything is written or removed. The processes that ``torchrun``
    starts train one model together, and the first of them writes; those that it starts again
    continue the run.

    Args:
        config: The configuration.
        output: The run directory.
        resume: Continue the run that ``output`` holds.
        overwrite: Remove the run that ``output`` holds.
        snapshots: Epochs between two pictures of reconstructions and samples in ``snapshots/``;
            None for none.
        tensorboard: Write the metrics to ``tensorboard/`` too.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, the data or the directory cannot be used.
    """
    if resume and overwrite:
        raise InputError("'--resume' and '--overwrite' exclude each other")
    if snapshots is not None:
        check_count("snapshots", snapshots)
    with process_group(config.training.device) as ranks:
        if any(ranks.gather(was_restarted())) and (output / "config.json").exists():
            resume, overwrite = True, False
        config, vae, splits, state = _prepare(config, output, resume, overwrite)
        callbacks: list[Callable[[dict[str, float]], None]] = []
        if snapshots is not None:
            shown = (splits.validation or splits.test)[: Snapshots.most].dense()
            callbacks.append(Snapshots(vae, shown, output / "snapshots", snapshots))
        if tensorboard:
            callbacks.append(TensorBoard(output / "tensorboard"))
        ranks.wait()  # until all processes have looked at the directory
        if ranks.is_first:
            if state is not None and len(state["history"]) < config.training.epochs:
                remove_evaluation(output)  # of a model that is trained further
            if overwrite:
                remove_run(output)
            output.mkdir(parents=True, exist_ok=True)
            write_config(config, output / "config.json")
        history = fit(
            vae,
            splits.train,
            **config.training.settings(),
            validation=splits.validation,
            output=output,
            resume=state is not None,
            progress=progress,
            callbacks=callbacks,
        )
    return Run(vae, config, splits, history, output, history["beta"][-1])


def _prepare(
    config: TrainConfig, output: Path, resume: bool, overwrite: bool
) -> tuple[TrainConfig, BetaVAE, Splits, dict[str, Any] | None]:
    """Return configuration, model, data and the checkpoint to continue; nothing is written."""
    check_config(config)
    if resume and config.training.warmup_epochs is None:  # a share of the first number of epochs
        saved = read_config(output / "config.json").training
        config = config.with_options(warmup_epochs=saved.warmup_epochs)
    config = config.resolved()
    check_device(config.training.device)
    check_output(config, output, resume, overwrite)
    splits = load_data(config)
    vae = untrained(config, splits)
    check_splits(vae, splits)
    device = own_device(config.training.device) or "cpu"
    vae.to(device)
    last, state = checkpoint_path(output, "last"), None
    if resume and last.exists():
        state = load_checkpoint(last, device)
        check_state(state, last)
        check_configuration(state, config.options(), last)
        load_weights(vae, state, last)
    return config, vae, splits, state


@exclusive
def untrained(config: TrainConfig, splits: Splits) -> BetaVAE:
    """Return the untrained model of a configuration, started at the data's mean on request."""
    vae = build_vae(config, Shape.of(splits.train))
    if config.training.start_at_mean:
        start_at_mean(
            vae, *next(iter(splits.train.batches(_CHECKED, seed=0, epoch=0, shuffle=False)))
        )
    return vae


@public
def check_splits(vae: BetaVAE, splits: Splits) -> None:
    """Raise unless a model can explain all parts of its data."""
    for data in (splits.train, splits.validation, splits.test):
        for x, context in (
            () if data is None else data.batches(_CHECKED, seed=0, epoch=0, shuffle=False)
        ):
            vae.check_data(x, context)


@public
def check_device(device: str) -> None:
    """Raise unless torch can use a device of this name."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        kinds = "cpu and cuda" if torch.cuda.is_available() else "cpu (torch sees no CUDA device)"
        raise InputError(
            f"'device' must be one that torch can use here, {kinds}; got '{device}'"
        ) from error


def check_output(config: TrainConfig, output: Path, resume: bool, overwrite: bool) -> None:
    """Raise unless a run may be written to, or continued in, a directory."""
    if output.exists() and not output.is_dir():
        raise InputError(f"'output' must be a directory, got the file {output}")
    occupied = output.is_dir() and any(output.iterdir())
    if occupied and not (resume or overwrite):
        raise InputError(
            f"{output} exists: pass --resume to continue it, --overwrite to replace it, or "
            "another --output"
        )
    if resume:
        saved = read_config(output / "config.json")
        ours, theirs = config.options(), saved.options()
        free = {"epochs", "device", "data_root"}
        changed = [name for name in ours if name not in free and ours[name] != theirs[name]]
        if changed:
            listed = ", ".join(f"{name} was {theirs[name]}, got {ours[name]}" for name in changed)
            raise InputError(f"cannot resume {output} with another configuration: {listed}")
    if overwrite and occupied and not (output / "config.json").exists():
        raise InputError(
            f"{output} is not a run directory (it has no config.json), so it is not overwritten"
        )
