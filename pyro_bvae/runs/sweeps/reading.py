"""Sweeps on disk: a directory of run directories, read back in the order of their settings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, overload

from torch import nn

from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.evaluation import Evaluation
from pyro_bvae.runs import directory as single
from pyro_bvae.runs._evaluate import evaluate_run
from pyro_bvae.runs.config import TrainConfig, read_config
from pyro_bvae.runs.directory import Run
from pyro_bvae.training import checkpoint_path

_NAME = re.compile(r"(beta|rate)([^-].*)-seed(\d+)")
# Options in which the members of a sweep differ.
_OWN = ("beta", "target_rate", "seed")


class Member(NamedTuple):
    """A run directory of a sweep, by its name, such as ``beta<β>-seed<seed>``.

    Attributes:
        kind: The setting, ``beta`` or ``rate``.
        value: Its value.
        seed: The seed.
        directory: The run directory.
    """

    kind: str
    value: float
    seed: int
    directory: Path

    @property
    def setting(self) -> str:
        """The name without the seed, such as ``beta<β>``."""
        return self.directory.name.rpartition("-seed")[0]


@dataclass(frozen=True, eq=False)
class LoadedSweep(Sequence[Run]):
    """The runs of a sweep, read back, by β or rate and then by seed; it prints itself as a table.

    Attributes:
        directory: Where it lies.
        members: Setting, seed and run directory of each.
        runs: The runs, in the same order.
    """

    directory: Path
    members: tuple[Member, ...]
    runs: tuple[Run, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the run directories."""
        return tuple(member.directory.name for member in self.members)

    @property
    def by_setting(self) -> dict[str, list[Run]]:
        """The runs by their setting, such as ``beta<β>``; several seeds of one stand together."""
        groups: dict[str, list[Run]] = {}
        for member, run in zip(self.members, self.runs, strict=True):
            groups.setdefault(member.setting, []).append(run)
        return groups

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Run, ...]: ...

    def __getitem__(self, index: int | slice) -> Run | tuple[Run, ...]:
        return self.runs[index]

    def __str__(self) -> str:
        columns = ("objective", "distortion", "rate", "validation_objective")
        shown = [name for name in columns if all(name in run.history for run in self.runs)]
        width = max(3, *map(len, self.names))
        lines = [f"{'run':{width}}" + "".join(f"{name:>{len(name) + 3}}" for name in shown)]
        for name, run in zip(self.names, self.runs, strict=True):
            last = run.history.rows[-1]
            numbers = "".join(f"{last[column]:>{len(column) + 3}.2f}" for column in shown)
            lines.append(f"{name:{width}}{numbers}")
        return "\n".join(lines)


@public
def is_sweep(directory: Path) -> bool:
    """Return whether a directory is no run, and has run directories of a sweep."""
    return not (directory / "config.json").exists() and bool(_found(directory))


@public
def sweep_members(directory: Path) -> tuple[Member, ...]:
    """Return the run directories of a sweep, by β or rate and then by seed.

    A seed that some of the settings have and others have not is a warning.

    Args:
        directory: The directory of the sweep.

    Raises:
        InputError: if it holds no sweep, or a run of it was never begun, or is of another
            configuration than the others in more than its β, rate and seed.
    """
    members = _found(directory)
    if not members:
        raise InputError(f"{directory} holds no sweep: it has no run directory beta*-seed*")
    resume = f"'pyro-bvae sweep --resume --output {directory}' trains it"
    for member in members:
        path = member.directory
        if not (path / "config.json").exists() or not checkpoint_path(path, "last").exists():
            raise InputError(f"{path} of the sweep holds no trained run: {resume}")
    _check_configs(members)
    settings = dict.fromkeys((member.kind, member.setting) for member in members)
    seeds = sorted({member.seed for member in members})
    there = {(member.setting, member.seed) for member in members}
    lacking = [
        f"{setting}-seed{seed}" for _, setting in settings for seed in seeds
        if (setting, seed) not in there
    ]  # fmt: skip
    if lacking:
        warnings.warn(f"the sweep in {directory} lacks {listed(lacking)}", stacklevel=3)
    return members


@public
def load(
    run: str | Path,
    model: nn.Module | None = None,
    *,
    checkpoint: str = "best",
    device: str = "cpu",
    data: str | PathLike[str] | None = None,
) -> Run | Any:
    """Read a run directory, or a sweep of them: models, configurations and data.

    Args:
        run: The directory of a run, or that of a sweep.
        model: An untrained model of the same parts, for a run of parts that no configuration names;
            its weights are overwritten in place.
        checkpoint: ``best`` or ``last``.
        device: Where to put the models.
        data: Where the file or folder of the data lies now, if not where it was.

    Returns:
        A :class:`~pyro_bvae.runs.Run`; of a sweep, a
        :class:`~pyro_bvae.runs.sweeps.reading.LoadedSweep`, whose runs are in the order of their
        β or rates, and then of their seeds.

    Raises:
        InputError: as of :func:`pyro_bvae.runs.load`; for a directory that is no run and no sweep.
    """
    path = Path(run)
    if not is_sweep(path):
        return single.load(path, model, checkpoint=checkpoint, device=device, data=data)
    if model is not None:
        raise InputError(f"'model' is for one run, and {path} holds a sweep of several")
    members = sweep_members(path)
    runs = [
        single.load(each.directory, checkpoint=checkpoint, device=device, data=data)
        for each in members
    ]
    for own in runs:
        _warn_of_unfinished(own)
    return LoadedSweep(path, members, tuple(runs))


@exclusive
def evaluate_sweep(directory: Path, **options: Any) -> dict[str, Evaluation]:
    """Measure each run of a sweep on its test data, as :func:`~pyro_bvae.runs.evaluate_run` does.

    Args:
        directory: The directory of the sweep.
        **options: As of :func:`~pyro_bvae.runs.evaluate_run`. A time ``within`` which to measure is
            that of the first run, whose counts are then those of the others.

    Returns:
        The evaluations by the name of the run directory, in the order of the settings.

    Raises:
        InputError: as of :func:`sweep_members` and of :func:`~pyro_bvae.runs.evaluate_run`.
    """
    evaluations: dict[str, Evaluation] = {}
    for member in sweep_members(directory):
        evaluation = evaluate_run(member.directory, **options)
        evaluations[member.directory.name] = evaluation
        if evaluation.plan is not None:
            options["within"] = evaluation.plan
    return evaluations


def _found(directory: Path) -> tuple[Member, ...]:
    """Return the directories that are named as a sweep names its runs, in order."""
    members = []
    for path in directory.glob("*-seed*") if directory.is_dir() else ():
        named = _NAME.fullmatch(path.name)
        if named is None or not path.is_dir():
            continue
        try:
            members.append(Member(named[1], float(named[2]), int(named[3]), path))
        except ValueError:  # a directory of something else
            continue
    return tuple(sorted(members))


def _check_configs(members: Sequence[Member]) -> None:
    """Raise unless all members have one configuration, but for the setting in their names."""
    common: dict[str, Any] = {}
    for member in members:
        config = read_config(member.directory / "config.json")
        options = config.options()
        value = options["beta" if member.kind == "beta" else "target_rate"]
        if value != member.value or options["seed"] != member.seed:
            raise InputError(
                f"{member.directory} holds a run of {'β' if member.kind == 'beta' else 'rate'}"
                f" {value} and seed {options['seed']}, of another name than its own"
            )
        for name in _OWN:
            del options[name]
        common = common or options
        for name in options:
            if options[name] != common[name]:
                raise InputError(
                    f"{members[0].directory} and {member.directory.name} are of no one sweep: their"
                    f" '{name}' is {common[name]} and {options[name]}"
                )


def _warn_of_unfinished(run: Run) -> None:
    """Warn of a run that was stopped before its last epoch."""
    config: TrainConfig | None = run.config
    assert config is not None
    done = len(run.history.rows)
    if config.training.early_stopping is None and done < config.training.epochs:
        warnings.warn(
            f"{run.directory} was trained for {done} of {config.training.epochs} epochs",
            stacklevel=4,
        )
