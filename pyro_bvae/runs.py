"""Run directories: a configuration, metrics and checkpoints on disk, and what is measured and shown of them.

A run directory holds ``config.json``, ``metrics.csv``, ``checkpoints/last.pt`` and ``best.pt``; ``evaluate`` adds
``evaluation.json`` and ``evaluation.nc``, and a report ``report.html``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_bvae.catalogue import Shape
from pyro_bvae.configs import TrainConfig, build_vae, load_data, read_config, write_config
from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.core.seeds import CHOICE_STREAM, stream_seed
from pyro_bvae.datasets import Dataset, LazyDataset, Splits
from pyro_bvae.evaluation import Evaluation
from pyro_bvae.measured import evaluate_shares, write_evaluation
from pyro_bvae.snapshots import Snapshots
from pyro_bvae.training import (
    History,
    Remark,
    TensorBoard,
    check_during,
    checkpoint_path,
    fit,
    load_checkpoint,
    load_weights,
    start_at_mean,
)
from pyro_bvae.training.distributed import own_device, process_group, was_restarted
from pyro_bvae.vae import BetaVAE

_MEASURED = ("evaluation.json", "evaluation.nc", "report.html")
_PRODUCTS = ("config.json", "metrics.csv", *_MEASURED)
_CHECKPOINTS = ("best", "last")
# Data that are checked at a time, which bounds what a file larger than memory takes.
_CHECKED = 4096


@dataclass(frozen=True)
class Run:
    """A run directory, read back; ``vae, config, splits = load(run)`` takes the first three.

    Attributes:
        vae: The trained model.
        config: Its configuration; None for a run without ``config.json``.
        splits: Its data; None likewise, or where they are gone and the model was given.
        history: Its metrics.
        directory: Where it lies.
        training_beta: The β of the model's last step, which a warm-up that was cut short leaves below the configured
            one.
    """

    vae: Any
    config: TrainConfig | None
    splits: Splits | None
    history: History
    directory: Path
    training_beta: float

    def __iter__(self) -> Iterator[Any]:
        yield from (self.vae, self.config, self.splits)


def load(run: str | Path, model: nn.Module | None = None, *, checkpoint: str = "best", device: str = "cpu") -> Run:
    """Read a run directory: model, configuration and data.

    Args:
        run: The directory.
        model: An untrained model of the same parts, for runs of parts that no configuration names; its weights are
            overwritten in place.
        checkpoint: ``best`` or ``last``.
        device: Where to put the model.

    Raises:
        InputError: if the directory is no run, or a file in it cannot be read.
    """
    directory = Path(run)
    if not directory.is_dir():
        raise InputError(f"there is no run directory {directory}")
    if checkpoint not in _CHECKPOINTS:
        raise unknown_name("checkpoint", checkpoint, _CHECKPOINTS)
    config_path = directory / "config.json"
    config = read_config(config_path) if config_path.exists() or model is None else None
    path = checkpoint_path(directory, checkpoint)
    state = load_checkpoint(path, device)
    splits = _data_of(config, needed=model is None)
    vae = model
    if vae is None:
        assert config is not None and splits is not None
        vae = build_vae(config, Shape.of(splits.train))
    load_weights(vae.to(device), state, path)
    # The best checkpoint knows the history up to itself only.
    metrics = directory / "metrics.csv"
    history = History.read(metrics) if metrics.exists() else History(state["history"])
    history.remarks = _remarks(directory, state, getattr(vae, "latent_dim", None))
    return Run(vae.eval(), config, splits, history, directory, float(state["history"][-1]["beta"]))


def _remarks(directory: Path, state: dict[str, Any], latent_dim: int | None) -> list[Remark]:
    """Return what the checklist has to say of a run, by its last checkpoint, or else the one at hand."""
    with suppress(InputError):
        state = load_checkpoint(checkpoint_path(directory, "last"))
    before = [Remark(**remark) for remark in state.get("remarks", ()) if remark["when"] == "before"]
    clip = state["settings"].get("gradient_clip")
    return [*before, *check_during(state["history"], clip, latent_dim=latent_dim, before=before)]


def _data_of(config: TrainConfig | None, *, needed: bool) -> Splits | None:
    if config is None:
        return None
    try:
        return load_data(config)
    except InputError:
        if needed:
            raise
        return None


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

    Everything that can be wrong with the input is found before anything is written or removed. The processes that
    ``torchrun`` starts train one model together, and the first of them writes; those that it starts again continue the
    run.

    Args:
        config: What to train.
        output: The run directory.
        resume: Continue the run that ``output`` holds.
        overwrite: Remove the run that ``output`` holds.
        snapshots: Epochs between two pictures of reconstructions and samples in ``snapshots/``; None for none.
        tensorboard: Write the metrics to ``tensorboard/`` too.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, the data or the directory cannot be used.
    """
    if resume and overwrite:
        raise InputError("'--resume' and '--overwrite' exclude each other")
    with process_group(config.device) as ranks:
        if any(ranks.gather(was_restarted())) and (output / "config.json").exists():
            resume, overwrite = True, False
        config, vae, splits, state = _prepare(config, output, resume, overwrite)
        callbacks = _callbacks(vae, splits, output, snapshots, tensorboard)
        ranks.wait()  # until all processes have seen what is there
        if ranks.is_first:
            _open(config, output, state, overwrite)
        history = fit(
            vae,
            splits.train,
            beta=config.beta_schedule(),
            epochs=config.epochs,
            validation=splits.validation,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            gradient_clip=config.gradient_clip,
            early_stopping=config.early_stopping,
            precision=config.precision,
            compile=config.compile,
            output=output,
            resume=state is not None,
            progress=progress,
            seed=config.seed,
            callbacks=callbacks,
        )
    return Run(vae, config, splits, history, output, history["beta"][-1])


def _prepare(
    config: TrainConfig, output: Path, resume: bool, overwrite: bool
) -> tuple[TrainConfig, BetaVAE, Splits, dict[str, Any] | None]:
    """Return configuration, model, data and the checkpoint that is continued, with nothing written or removed."""
    config.check()
    if resume and config.warmup_epochs is None:  # what followed from the epochs of the run's beginning
        config = replace(config, warmup_epochs=read_config(output / "config.json").warmup_epochs)
    config = config.resolved()
    check_device(config.device)
    _check_output(config, output, resume, overwrite)
    splits = load_data(config)
    vae = untrained(config, splits)
    check_splits(vae, splits)
    device = own_device(config.device) or "cpu"
    vae.to(device)
    last, state = checkpoint_path(output, "last"), None
    if resume and last.exists():
        state = load_checkpoint(last, device)
        load_weights(vae, state, last)
    return config, vae, splits, state


def _open(config: TrainConfig, output: Path, state: dict[str, Any] | None, overwrite: bool) -> None:
    """Make a run directory ready."""
    if state is not None and len(state["history"]) < config.epochs:
        _remove(output, _MEASURED)  # they will not be of this model any more
    if overwrite:
        remove_run(output)
    output.mkdir(parents=True, exist_ok=True)
    write_config(config, output / "config.json")


def untrained(config: TrainConfig, splits: Splits) -> BetaVAE:
    """Return the untrained model of a configuration, started at the data's mean if it asks for that."""
    vae = build_vae(config, Shape.of(splits.train))
    if config.start_at_mean:
        start_at_mean(vae, *next(iter(splits.train.batches(_CHECKED, seed=0, epoch=0, shuffle=False))))
    return vae


def check_splits(vae: BetaVAE, splits: Splits) -> None:
    """Raise unless a model can explain all parts of its data."""
    for data in (splits.train, splits.validation, splits.test):
        for x, context in () if data is None else data.batches(_CHECKED, seed=0, epoch=0, shuffle=False):
            vae.check_data(x, context)


def _callbacks(
    vae: nn.Module, splits: Splits, output: Path, snapshots: int | None, tensorboard: bool
) -> list[Callable[[dict[str, float]], None]]:
    found: list[Callable[[dict[str, float]], None]] = []
    if snapshots is not None:
        shown = (splits.validation or splits.test)[: Snapshots.most].dense()
        found.append(Snapshots(vae, shown, output / "snapshots", snapshots))
    return [*found, TensorBoard(output / "tensorboard")] if tensorboard else found


def check_device(device: str) -> None:
    """Raise unless torch can use a device of this name."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        kinds = "cpu and cuda" if torch.cuda.is_available() else "cpu (torch sees no CUDA device)"
        raise InputError(f"'device' must be one that torch can use here, {kinds}; got '{device}'") from error


def _check_output(config: TrainConfig, output: Path, resume: bool, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"'output' must be a directory, got the file {output}")
    occupied = output.is_dir() and any(output.iterdir())
    if occupied and not (resume or overwrite):
        raise InputError(
            f"{output} exists: pass --resume to continue it, --overwrite to replace it, or another --output"
        )
    if resume:
        saved = read_config(output / "config.json")
        ours, theirs = asdict(config), asdict(saved)
        free = {"epochs", "device", "data_root"}
        changed = [name for name in ours if name not in free and ours[name] != theirs[name]]
        if changed:
            listed = ", ".join(f"{name} was {theirs[name]}, got {ours[name]}" for name in changed)
            raise InputError(f"cannot resume {output} with another configuration: {listed}")
    if overwrite and occupied and not (output / "config.json").exists():
        raise InputError(f"{output} is not a run directory (it has no config.json), so it is not overwritten")


def remove_run(directory: Path) -> None:
    """Remove what a run has written from its directory, and nothing else."""
    _remove(directory, _PRODUCTS)
    for name in ("checkpoints", "snapshots", "tensorboard", "latents"):
        shutil.rmtree(directory / name, ignore_errors=True)


def _remove(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


def evaluate_run(
    directory: Path,
    *,
    num_samples: int = 5000,
    num_data: int | None = 500,
    families: Sequence[str] = (),
    checkpoint: str = "best",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Measure a run on its test data and write ``evaluation.json`` and ``evaluation.nc``.

    The processes that ``torchrun`` starts share the data, and the first of them writes.

    Args:
        directory: The run.
        num_samples: Particles for each datum.
        num_data: How many test data to measure, drawn by ``seed``; None for all.
        families: Richer guides to fit to each datum too: ``full-rank``, ``flow``.
        checkpoint: ``best`` or ``last``.
        seed: Seed of draws and choice of data.
        device: Where to compute.
        progress: Show progress bars.
    """
    check_device(device)
    if num_data is not None and num_data < 1:
        raise InputError(f"'num_data' must be a positive integer or None, got {num_data}")
    with process_group(device) as ranks:
        run = load(directory, checkpoint=checkpoint, device=own_device(device) or "cpu")
        assert run.config is not None and run.splits is not None
        test = choose_data(run.splits.test, num_data, seed).dense().to(own_device(device))
        args = (test.x, *(() if test.context is None else (test.context,)))
        run.vae.check_data(*args)
        evaluation = evaluate_shares(
            run.vae, args, ranks, training_beta=run.training_beta, num_samples=num_samples, families=families,
            seed=seed, progress=progress and ranks.is_first,
        )  # fmt: skip
        if ranks.is_first:
            head = {"dataset": run.config.dataset, "split": "test", "checkpoint": checkpoint, "seed": seed}
            attributes = {**head, "config": asdict(run.config)}
            write_evaluation(directory, run.vae, args, evaluation, attributes, run.config.latent_dim)
        ranks.wait()
    return evaluation


def choose_data(data: Dataset | LazyDataset, num_data: int | None, seed: int) -> Dataset | LazyDataset:
    """Return all data, or so many of them chosen by the seed."""
    if num_data is None or num_data >= len(data):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM)))
    return data[order[:num_data].sort().values]
