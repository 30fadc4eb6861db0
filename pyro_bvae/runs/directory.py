"""Run directories: a configuration, metrics and checkpoints on disk, read back.

A run directory holds ``config.json``, ``metrics.csv``, ``checkpoints/last.pt`` and ``best.pt``;
``evaluate`` adds ``evaluation.json`` and ``evaluation.nc``, and a report ``report.html``. Their
digests are in ``digests.sha256``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyro_bvae.core.disk.digests import changed, changed_files
from pyro_bvae.core.disk.run_files import check_settled
from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.protocols import latent_dim_of
from pyro_bvae.datasets import Splits
from pyro_bvae.runs.build import Shape, build_vae, load_data, settings_of
from pyro_bvae.runs.config import TrainConfig, read_config
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


@dataclass(frozen=True)
class Run:
    """A run directory, read back; ``vae, config, splits = load(run)`` takes the first three.

    Attributes:
        vae: The trained model.
        config: Its configuration; None for a run without ``config.json``.
        splits: Its data; None likewise, or where they are gone and the model was given.
        history: Its metrics.
        directory: Where it lies.
        training_beta: The β of the model's last step, which a warm-up that was cut short leaves
            below the configured one.
    """

    vae: Any
    config: TrainConfig | None
    splits: Splits | None
    history: History
    directory: Path
    training_beta: float

    def __iter__(self) -> Iterator[Any]:
        yield from (self.vae, self.config, self.splits)


@public
def load(
    run: str | Path,
    model: nn.Module | None = None,
    *,
    checkpoint: str = "best",
    device: str = "cpu",
) -> Run:
    """Read a run directory: model, configuration and data.

    Args:
        run: The directory.
        model: An untrained model of the same parts, for runs of parts that no configuration names;
            its weights are overwritten in place.
        checkpoint: ``best`` or ``last``.
        device: Where to put the model.

    Raises:
        InputError: if the directory is no run, a file in it cannot be read or was changed since the
            run wrote it, or configuration or data are not those of the training.
    """
    directory = Path(run)
    if not directory.is_dir():
        raise InputError(f"there is no run directory {directory}")
    if not (directory / "config.json").exists() and (runs := sorted(directory.glob("*-seed*"))):
        raise InputError(f"{directory} holds a sweep: take one of its runs, such as {runs[0]}")
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
    splits = _data_of(config, needed=model is None)
    vae = model
    if vae is None:
        assert config is not None and splits is not None
        vae = build_vae(config, Shape.of(splits.train))
    load_weights(vae.to(device), state, path)
    if splits is not None:
        check_identity(state.get("data", {}), splits.train, path)
        _check_validation(splits, state, path)
    # The best checkpoint knows the history up to itself only.
    try:
        history = History.read(directory / "metrics.csv")
    except FileNotFoundError:
        history = History(state["history"])
    history.remarks = _remarks(directory, state, latent_dim_of(vae))
    _warn_of_changes(directory)
    return Run(vae.eval(), config, splits, history, directory, float(state["history"][-1]["beta"]))


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


def _data_of(config: TrainConfig | None, *, needed: bool) -> Splits | None:
    if config is None:
        return None
    try:
        return load_data(config)
    except InputError:
        if needed:
            raise
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
