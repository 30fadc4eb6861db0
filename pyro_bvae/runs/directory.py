"""Run directories: a configuration, metrics and checkpoints on disk, read back.

A run directory holds ``config.json``, ``data.json`` (shapes, names and members of the data),
``metrics.csv``, ``checkpoints/last.pt`` and ``best.pt``;
``evaluate`` adds ``evaluation.json`` and ``evaluation.nc``, and a report ``report.html``. Their
digests are in ``digests.sha256``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.disk.digests import changed, changed_files
from pyro_bvae.core.disk.run_files import check_settled
from pyro_bvae.core.errors import AbsentDataError, InputError, unknown_name
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.protocols import latent_dim_of
from pyro_bvae.datasets import Dataset, LazyDataset, Splits
from pyro_bvae.datasets.matching import read_new
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.runs.build import Shape, build_vae, load_data, settings_of
from pyro_bvae.runs.config import TrainConfig, read_config
from pyro_bvae.runs.improvement.record import build_improved, read_improvement
from pyro_bvae.runs.record_file import read_record
from pyro_bvae.training import (
    History,
    Remark,
    check_during,
    checkpoint_path,
    load_checkpoint,
    load_weights,
)
from pyro_bvae.training.checkpoint import check_configuration, differences
from pyro_bvae.training.checks.checkpoint_content import check_identity, check_state

_CHECKPOINTS = ("best", "last")


class Run:
    """A run directory, read back; ``vae, config, splits = load(run)`` takes the first three.

    Args:
        vae: The trained model.
        config: Its configuration; None for a run without ``config.json``.
        splits: Its data, or a function that reads them, which is called when they are needed.
        history: Its metrics.
        directory: Where it lies.
        training_beta: The β of the model's last step, which a warm-up that was cut short leaves
            below the configured one.
        record: The names, shapes and members of its data; None for a run of version 0.1.0.

    Attributes:
        vae, config, history, directory, training_beta, record: As given.
    """

    def __init__(
        self,
        vae: Any,
        config: TrainConfig | None,
        splits: Splits | Callable[[], Splits] | None,
        history: History,
        directory: Path,
        training_beta: float,
        record: DataRecord | None = None,
    ) -> None:
        self.vae, self.config, self.history = vae, config, history
        self.directory, self.training_beta, self.record = directory, training_beta, record
        self._splits = splits

    def __iter__(self) -> Iterator[Any]:
        yield from (self.vae, self.config, self.splits)

    @property
    def splits(self) -> Splits | None:
        """Its data; None where they are not there any more.

        Raises:
            InputError: if others lie in their place, with the first datum that differs.
        """
        if callable(self._splits):
            try:
                self._splits = self._splits()
            except AbsentDataError:
                return None
        return self._splits

    def with_splits(self, splits: Splits) -> Run:
        """Return the run with other data."""
        return Run(
            self.vae, self.config, splits, self.history, self.directory, self.training_beta,
            self.record,
        )  # fmt: skip

    def part(self, name: str = "test") -> Dataset | LazyDataset:
        """Return a part of its data: ``train``, ``validation`` or ``test``.

        Raises:
            InputError: if the data are not there any more, are others, or there is no such part.
        """
        if callable(self._splits):
            try:
                self._splits = self._splits()
            except AbsentDataError as error:
                raise AbsentDataError(
                    f"the data of {self.directory} are gone ({error}); give data by '--data'"
                    " (data=...)"
                ) from error
        data = None if self._splits is None else getattr(self._splits, name)
        if data is None:
            raise InputError(f"{self.directory} has no {name} data")
        found: Dataset | LazyDataset = data
        return found

    def rows(self, data: Any = None, part: str = "test") -> Dataset | LazyDataset:
        """Return data for its model.

        Args:
            data: A file or folder, as of :meth:`read`, a tensor ``(N, D)`` or a data set; None for
                a part of its own.
            part: That part.

        Raises:
            InputError: if the data cannot be used, or the run's own are needed and gone.
        """
        if data is None:
            return self.part(part)
        if isinstance(data, str | PathLike):
            return self.read(data)
        return data if isinstance(data, LazyDataset) else as_dataset(data, self.vae)

    def warn_of_training(self, data: Dataset | LazyDataset) -> None:
        """Warn of data among given ones that it was trained on: they are not held out."""
        if self.record is None:
            return
        known = int((self.record.part_of(data) == "train").sum())
        if known:
            warnings.warn(
                f"{known} of {len(data)} data are training data of {self.directory}, whose evidence"
                " is no held-out one",
                stacklevel=3,
            )

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """``(C, H, W)`` where its features are pixels."""
        return self.part("train").image_shape if self.record is None else self.record.image_shape

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of its features, or none."""
        names = self.part("train") if self.record is None else self.record
        return names.feature_names

    @property
    def contexts(self) -> Context | None:
        """The contexts of some of its test data; None for a model without."""
        return self.part("test").context if self.record is None else self.record.contexts

    def read(self, path: str | PathLike[str]) -> Dataset | LazyDataset:
        """Return the rows of a file, seen as the run saw its own data: features taken by name.

        Args:
            path: A file or folder of any format that is read for training.

        Raises:
            InputError: if it cannot be read, or has not the features of the run.
        """
        if self.config is None:
            raise InputError(f"{self.directory} has no config.json, so that no data can be read")
        record = self.record
        if record is None:
            self.part("train")  # whose error says that they are needed
            assert isinstance(self._splits, Splits)
            record = DataRecord.of(self._splits)
        return read_new(self.config.data, path, record)


@public
def load(
    run: str | Path,
    model: nn.Module | None = None,
    *,
    checkpoint: str = "best",
    device: str = "cpu",
    data: str | PathLike[str] | None = None,
) -> Run:
    """Read a run directory: the model, its configuration, and its data when they are looked at.

    The model needs the directory alone, and its data may be gone. Data that are there must be those
    of the training: features and rows are taken by name.

    Args:
        run: The directory.
        model: An untrained model of the same parts, for runs of parts that no configuration names;
            its weights are overwritten in place.
        checkpoint: ``best`` or ``last``.
        device: Where to put the model.
        data: Where the file or folder of its data lies now, if not where it was.

    Raises:
        InputError: if the directory is no run, a file in it cannot be read or was changed since the
            run wrote it, or the configuration is not that of the training; for a run of version
            0.1.0, whose model is built from its data, if they are gone or others.
    """
    directory = Path(run)
    if not directory.is_dir():
        raise InputError(f"there is no run directory {directory}")
    if not (directory / "config.json").exists() and (runs := sorted(directory.glob("*-seed*"))):
        raise InputError(f"{directory} holds a sweep: take one of its runs, such as {runs[0]}")
    if (directory / "weights.safetensors").exists() and not (directory / "checkpoints").exists():
        raise InputError(f"{directory} holds an export: runs.from_export('{directory}') reads it")
    if checkpoint not in _CHECKPOINTS:
        raise unknown_name("checkpoint", checkpoint, _CHECKPOINTS)
    path = checkpoint_path(directory, checkpoint)
    check_settled(directory)
    config_path = directory / "config.json"
    config = read_config(config_path) if config_path.exists() or model is None else None
    state = load_checkpoint(path, device)
    check_state(state, path)
    if config is not None:
        _check_configuration(config, state, path)
    elif state.get("config"):
        raise changed(config_path, "it is gone")
    record = None if config is None else read_record(directory)
    improvement = read_improvement(directory)
    improved = None if improvement is None else improvement["guide"]
    splits = _data_of(
        config, data, record, state, path, needed=model is None, whole=improved is None
    )
    vae = model
    if vae is None:
        assert config is not None
        shape = _shape_of(record, splits)
        vae = build_improved(config, shape, improved) if improved else build_vae(config, shape)
    load_weights(vae.to(device), state, path)
    # The best checkpoint knows the history up to itself only.
    try:
        history = History.read(directory / "metrics.csv")
    except FileNotFoundError:
        history = History(state["history"])
    history.remarks = _remarks(directory, state, latent_dim_of(vae))
    _warn_of_changes(directory)
    beta = float(state["history"][-1]["beta"])
    return Run(vae.eval(), config, splits, history, directory, beta, record)


def _shape_of(record: DataRecord | None, splits: Any) -> Shape:
    return Shape.of(splits.train) if record is None else Shape.recorded(record)


def _remarks(directory: Path, state: dict[str, Any], latent_dim: int | None) -> list[Remark]:
    """Return the checklist's remarks on a run, by its last checkpoint, or else the one at hand."""
    last = checkpoint_path(directory, "last")
    if last.exists():
        state = load_checkpoint(last)
        check_state(state, last)
    remarks = [Remark.read(saved) for saved in state.get("remarks", ())]
    before = [remark for remark in remarks if remark.when == "before"]
    clip = state["settings"].get("gradient_clip")
    return [*before, *check_during(state["history"], clip, latent_dim=latent_dim, before=before)]


def _check_configuration(config: TrainConfig, state: Mapping[str, Any], path: Path) -> None:
    """Raise unless a checkpoint was trained with a configuration; an old one knows its settings."""
    check_configuration(state, config.options(), path)
    own = settings_of(config.training).identity()
    if not state.get("config") and (differ := differences(state["settings"], own)):
        raise InputError(f"{path} was trained with another configuration: {differ}")


def _data_of(
    config: TrainConfig | None,
    place: str | PathLike[str] | None,
    record: DataRecord | None,
    state: Mapping[str, Any],
    path: Path,
    *,
    needed: bool,
    whole: bool,
) -> Splits | Callable[[], Splits] | None:
    """Return the data of a run, or the function that reads them where the model needs none."""
    if config is None:
        return None
    if place is not None:
        config = config.with_options(path=str(place))

    def read() -> Splits:
        splits = load_data(config, record=record)
        # A guide that is trained on without validation data holds a part of the others out.
        if whole or splits.validation is not None:
            check_identity(state.get("data", {}), splits.train, path)
            _check_validation(splits, state, path)
        return splits

    if record is not None:
        return read
    try:
        return read()
    except AbsentDataError:
        if needed:
            raise
        return None
    except InputError as error:
        gone = config.data.path is not None and not Path(config.data.path).exists()
        if not gone:
            raise
        if needed:
            raise AbsentDataError(
                f"{error}; {path.parent.parent} has no data.json with the shapes of its data, as"
                " version 0.1.0 wrote none, so that its model cannot be built without them"
            ) from error
        return None


def _check_validation(splits: Splits, state: Mapping[str, Any], path: Path) -> None:
    validated = "validation_objective" in state["history"][-1]
    if validated != (splits.validation is not None):
        has = "with" if validated else "without"
        raise InputError(f"{path} was trained {has} 'validation' data")


def _warn_of_changes(directory: Path) -> None:
    """Warn of files that were changed and are not read here; others may be thrown away."""
    for name in changed_files(directory):
        if (directory / name).exists():
            warnings.warn(str(changed(directory / name)), stacklevel=3)
