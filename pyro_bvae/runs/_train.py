"""Training the model of a configuration into a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from pyro_bvae.core.disk.digests import read_file, remove_files, write_files
from pyro_bvae.core.disk.run_files import is_vacant
from pyro_bvae.core.errors import InputError, SupportError, check_count
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.datasets import Splits
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.runs.build import Shape, build_vae, check_config, load_data
from pyro_bvae.runs.config import TrainConfig, config_bytes, read_config, write_config
from pyro_bvae.runs.directory import Run
from pyro_bvae.runs.improvement.sleep import sleep_run
from pyro_bvae.runs.record_file import RECORD, read_record, record_bytes
from pyro_bvae.runs.snapshots import Snapshots
from pyro_bvae.training import TensorBoard, checkpoint_path, fit, load_checkpoint, start_at_mean
from pyro_bvae.training.checkpoint import check_configuration
from pyro_bvae.training.checks.checkpoint_content import check_state
from pyro_bvae.training.distributed import job_name, own_device, process_group, was_restarted
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
    force: bool = False,
    snapshots: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Run:
    """Train the model of a configuration into a run directory.

    All input is checked before anything is written or removed, and the run that is overwritten
    stands until the first epoch of the new one is written. Data sets of the MNIST family that are
    not there are downloaded. The processes that ``torchrun`` starts train one model together, and
    the first of them writes; those that it starts again continue the run.

    Args:
        config: The configuration.
        output: The run directory.
        resume: Continue the run that ``output`` holds.
        overwrite: Take the place of the run that ``output`` holds.
        force: Take ``output`` over from another process that holds it, as of
            :func:`~pyro_bvae.fit`.
        snapshots: Epochs between two pictures of reconstructions and samples in ``snapshots/``;
            None for none.
        tensorboard: Write the metrics to ``tensorboard/`` too.
        progress: Show a progress bar.

    Raises:
        InputError: if the configuration, the data or the directory cannot be used, or another
            process writes to it.
    """
    if resume and overwrite:
        raise InputError("'--resume' and '--overwrite' exclude each other")
    if snapshots is not None:
        check_count("snapshots", snapshots)
    check_config(config)
    if output.exists() and not output.is_dir():
        raise InputError(f"'output' must be a directory, got the file {output}")
    with process_group(config.training.device) as ranks, ranks.writing(output, force):
        if any(ranks.gather(was_restarted())) and (output / "config.json").exists():
            resume = not overwrite or _is_of_this_job(output)
            overwrite = not resume
        config, vae, splits = _prepare(config, output, resume, overwrite)
        record = DataRecord.of(splits)
        files = RunFiles(config, record)
        callbacks: list[Callable[[dict[str, float]], None]] = [files]
        if snapshots is not None:
            shown = (splits.validation or splits.test)[: Snapshots.most].dense()
            callbacks.append(Snapshots(vae, shown, output / "snapshots", snapshots))
        if tensorboard:
            callbacks.append(TensorBoard(output / "tensorboard"))
        resume = resume and checkpoint_path(output, "last").exists()
        ranks.wait()  # until all processes have looked at the directory
        try:
            history = fit(
                vae,
                splits.train,
                **config.training.settings(),
                validation=splits.validation,
                output=output,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                callbacks=callbacks,
            )
        except OSError:  # of a full disk, before or after the first epoch
            files.put_back()
            raise
        except Exception:  # such as a loss that diverges
            files.take_back()
            raise
        if config.training.sleep:
            sleep_run(output, vae, splits.train, config, progress=progress)
        if len(history.rows) > config.training.epochs:
            config = read_config(output / "config.json")
        elif ranks.is_first and not files.written:
            write_config(config, output / "config.json")
    return Run(vae, config, splits, history, output, history["beta"][-1], record)


class RunFiles:
    """A callback of ``fit`` that writes ``config.json`` and ``data.json`` before the first step.

    Args:
        config: The configuration.
        record: The record of the data.
        others: Further files by name.

    Attributes:
        written: Whether there was a first step.
    """

    def __init__(
        self,
        config: TrainConfig,
        record: DataRecord,
        others: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        self.written = False
        own = {"config.json": config_bytes(config), RECORD: record_bytes(record)}
        self._contents = {**own, **others}
        self._directory: Path | None = None
        self._before: dict[str, bytes] = {}

    def begin(self, directory: Path) -> None:
        """Write the files."""
        self._directory, self.written = directory, True
        there = [name for name in self._contents if (directory / name).exists()]
        self._before = {name: read_file(directory / name) for name in there}
        self._write(self._contents)

    def __call__(self, row: dict[str, float]) -> None:
        """Keep the files: an epoch is written."""
        self._directory = None

    def put_back(self) -> None:
        """Have the directory as it was before, unless an epoch is written."""
        if self._directory is None:
            return
        remove_files(self._directory, self._contents.keys() - self._before.keys())
        if self._before:
            self._write(self._before)

    def take_back(self) -> None:
        """Remove the files of a new run, unless an epoch is written."""
        if not self._before:
            self.put_back()

    def _write(self, contents: Mapping[str, bytes]) -> None:
        assert self._directory is not None
        write_files({self._directory / name: each for name, each in contents.items()}, begin=True)


def _is_of_this_job(output: Path) -> bool:
    """Return whether a run is that of processes which ``torchrun`` has started again."""
    last = checkpoint_path(output, "last")
    return last.exists() and load_checkpoint(last).get("job") == job_name()


def _prepare(
    config: TrainConfig, output: Path, resume: bool, overwrite: bool
) -> tuple[TrainConfig, BetaVAE, Splits]:
    """Return configuration, model and data; nothing is written but data that are downloaded."""
    if resume and config.training.warmup_epochs is None:  # a share of the first number of epochs
        saved = read_config(output / "config.json").training
        config = config.with_options(warmup_epochs=saved.warmup_epochs)
    config = config.resolved()
    check_device(config.training.device)
    check_output(config, output, resume, overwrite)
    last = checkpoint_path(output, "last")
    if resume and last.exists():
        state = load_checkpoint(last)
        check_state(state, last)
        check_configuration(state, config.options(), last)
    known = read_record(output) if resume else None
    splits = load_data(config, download=True, record=known)
    config = config.in_epochs(splits.train.num_batches(config.training.batch_size))
    vae = untrained(config, splits)
    check_splits(vae, splits)
    vae.to(own_device(config.training.device) or "cpu")
    return config, vae, splits


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
        if data is None:
            continue
        done = 0
        for x, context in data.batches(_CHECKED, seed=0, epoch=0, shuffle=False):
            try:
                vae.check_data(x, context)
            except SupportError as error:
                row, column = data.index[done + error.index[0]], error.index[-1]
                names = data.feature_names
                feature = f"'{names[column]}'" if names else f"{column}"
                raise InputError(
                    f"feature {feature} of the datum with index {row} is {error.value:g}, outside"
                    f" the likelihood's support, {error.support}: take another '--likelihood'"
                    " (likelihood=...), such as normal for real numbers"
                ) from error
            done += len(x)


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
    occupied = not is_vacant(output)
    if occupied and not (resume or overwrite):
        raise InputError(
            f"{output} exists: pass --resume to continue it, --overwrite to replace it, or "
            "another --output"
        )
    if resume:
        saved = read_config(output / "config.json")
        ours, theirs = config.options(), saved.options()
        # A file that was moved has the same data, which are looked at by themselves.
        free = {"epochs", "steps", "device", "data_root", "path"}
        changed = [name for name in ours if name not in free and ours[name] != theirs[name]]
        if changed:
            listed = ", ".join(f"{name} was {theirs[name]}, got {ours[name]}" for name in changed)
            raise InputError(f"cannot resume {output} with another configuration: {listed}")
    if overwrite and occupied and not (output / "config.json").exists():
        raise InputError(
            f"{output} is not a run directory (it has no config.json), so it is not overwritten"
        )
