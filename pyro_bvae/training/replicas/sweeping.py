"""``sweep``: models over β and seeds, trained side by side as one Pyro program."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import nn

from pyro_bvae.core.errors import InputError, check_beta
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.datasets import Dataset
from pyro_bvae.training.distributed import own_device, place
from pyro_bvae.training.history import History
from pyro_bvae.training.replicas.program import CannotStack
from pyro_bvae.training.replicas.side_by_side import SideBySide
from pyro_bvae.training.replicas.trainer import ReplicaTrainer
from pyro_bvae.training.schedules import OneCycle, Schedule, as_schedule
from pyro_bvae.training.settings import Settings
from pyro_bvae.training.target_rate import TargetRate
from pyro_bvae.vae import BetaVAE

# Weights of a model from which so many replicas are no faster stacked than apart (measured on one
# core and on two).
_LARGE = {1: 0, 2: 2**15, 3: 2**18}


@dataclass(frozen=True)
class Replica:
    """One model of a sweep.

    Attributes:
        beta: Its β at the end of training.
        seed: Its seed.
        vae: The trained model.
        history: Its metrics.
        directory: Its run directory, if there is one.
    """

    beta: float
    seed: int
    vae: BetaVAE
    history: History
    directory: Path | None = None


@dataclass(frozen=True)
class Sweep(Sequence[Replica]):
    """The models of a sweep, by β and then by seed; it prints itself as a table.

    Attributes:
        runs: One for each β and seed.
        validation: The held-out data, if they were the same for all.
    """

    runs: tuple[Replica, ...]
    validation: Any = None

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.runs)

    @overload
    def __getitem__(self, index: int) -> Replica: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Replica, ...]: ...

    def __getitem__(self, index: int | slice) -> Replica | tuple[Replica, ...]:
        return self.runs[index]

    def __str__(self) -> str:
        shown = (
            "objective",
            "distortion",
            "rate",
            "validation_objective",
            "validation_elbo",
            "active_units",
        )
        columns = [
            name for name in shown if self.runs and all(name in run.history for run in self.runs)
        ]
        lines = [
            f"{'beta':>8}{'seed':>6}" + "".join(f"{name:>{len(name) + 3}}" for name in columns)
        ]
        for run in self.runs:
            last = run.history.rows[-1]
            numbers = "".join(f"{last[name]:>{len(name) + 3}.2f}" for name in columns)
            lines.append(f"{run.beta:>8g}{run.seed:>6}{numbers}")
        return "\n".join(lines)


def sweep(
    make_vae: Callable[[int], BetaVAE],
    data: Any,
    *,
    betas: Sequence[float],
    seeds: Sequence[int] = (0,),
    schedule: Callable[[float], float | Schedule] = float,
    epochs: int = 30,
    validation: Any = None,
    batch_size: int = 128,
    learning_rate: float | Schedule = 3e-3,
    gradient_clip: float | None = 200.0,
    early_stopping: int | None = None,
    precision: str = "float32",
    device: str | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Sweep:
    r"""Train a model for each β and seed, side by side: R replicas as one Pyro program, and one step for all of them.

    .. math:: \mathcal{L} = \sum_r \sum_n \Big( \mathbb{E}_{q_r(z \mid x_{rn})} [-\log p_r(x_{rn}
    \mid z)]
        + \beta_r \, KL(q_r(z \mid x_{rn}) \,\|\, p_r(z)) \Big)

    Each replica has the noise, the order of data, the limit on its gradient and the schedule of β
    that ``fit(make_vae(seed), data, beta=schedule(beta), seed=seed, ...)`` would give it, and so
    ends, but for rounding, as the model which that would train. Networks are stacked, as
    ``torch.func`` stacks ensembles, and the program is held to the models' own losses and gradients
    on a few data before it is trained. What cannot be stacked, such as batch norm or a flow as a
    guide, is trained one after the other as ``fit`` does it, with a warning that says why; so are
    two or three large models on a CPU, without one, since they would gain nothing.

    Under ``torchrun`` each process trains its share, every ``WORLD_SIZE``-th replica, and returns
    that.

    Args:
        make_vae: Builds the untrained model of a seed, a new one at each call. It is called with
            torch's generators seeded by the seed, so that it need not do so itself.
        data: Training data, as ``fit`` takes them, or a function from a seed to them.
        betas: The β of the replicas.
        seeds: Their seeds: of weights, order of data and noise. Each β is trained with each.
        schedule: From a β to what ``fit`` takes for it, such as ``lambda beta: LinearWarmup(beta,
            10)``.
        epochs: Passes over the data.
        validation: Held-out data, or a function from a seed to them.
        batch_size: Data in a step, of each replica.
        learning_rate: A number for the peak of a one-cycle schedule, or a schedule.
        gradient_clip: Upper limit on the norm of each replica's gradient per datum; None for no
            limit.
        early_stopping: As of ``fit``; replicas are then trained one after the other.
        precision: As of ``fit``.
        device: Where to train; ``cuda`` is the device of the process under ``torchrun``.
        output: Directory of a run directory ``beta<β>-seed<seed>`` for each replica, which ``fit``
            could resume; None to write nothing.
        progress: Show a progress bar.

    Returns:
        The trained models. The ``seconds`` of their histories are shares of what the replicas took
        together.

    Raises:
        InputError: if there is no β, or one is negative or there twice, and likewise for seeds; for
            what ``fit`` would not take; and if a run directory holds a run.
        TrainingError: if a loss or gradient stops being finite, naming the replica.
    """
    rate = learning_rate if callable(learning_rate) else OneCycle(float(learning_rate))
    directory, device = None if output is None else Path(output), own_device(device)
    replicas: dict[tuple[float, int], ReplicaTrainer] = {}
    of_seed: dict[int, ReplicaTrainer] = {}
    for beta, seed in assigned(betas, seeds):
        target = as_schedule(schedule(beta))
        if isinstance(target, TargetRate):
            raise InputError(
                f"'schedule' must give the β of a sweep, got one that is to be found: {target}"
            )
        settings = Settings(
            epochs, batch_size, gradient_clip, early_stopping, seed, precision,
            beta=target, learning_rate=rate,
        )  # fmt: skip
        with seeded(seed, WEIGHTS_STREAM):
            vae = make_vae(seed)
        if not isinstance(vae, nn.Module):
            raise InputError(f"'make_vae' must build a model, got {vae!r}")
        own = None if directory is None else directory / replica_name(beta, seed)
        given = _data_for(seed, data, validation, of_seed.get(seed))
        replica = ReplicaTrainer(vae, given[0], settings, given[1], device, own)
        replicas[beta, seed] = of_seed[seed] = replica
    if replicas:
        next(iter(replicas.values())).settings.warn_of_unfinished_warmup()
        _check_new(list(replicas.values()))
        _train(list(replicas.values()), progress and place()[0] == 0)
    runs = (
        Replica(*key, replica.vae, replica.history, replica.output)
        for key, replica in replicas.items()
    )
    return Sweep(tuple(runs), None if callable(validation) else validation)


def assigned(betas: Sequence[float], seeds: Sequence[int]) -> list[tuple[float, int]]:
    """Return β and seed of each replica of this process: all of them, or every ``WORLD_SIZE``-th under ``torchrun``.

    Args:
        betas: The β of a sweep.
        seeds: Its seeds.

    Raises:
        InputError: if there are none, or one is there twice, or cannot be used.
    """
    for name, values in (("betas", betas), ("seeds", seeds)):
        if not len(values):
            raise InputError(f"'{name}' must name at least one, got none")
        twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
        if twice is not None:
            raise InputError(f"'{name}' must be different from each other, got {twice} twice")
    for beta in betas:
        check_beta(beta)
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError(f"'seeds' must be non-negative integers, got {seed!r}")
    rank, processes = place()
    return [(float(beta), seed) for beta in betas for seed in seeds][rank::processes]


def replica_name(beta: float, seed: int) -> str:
    """Return the name of a replica's run directory, ``beta<β>-seed<seed>``."""
    short = f"{beta:g}"
    return f"beta{short if float(short) == beta else repr(float(beta))}-seed{seed}"


def _train(replicas: list[ReplicaTrainer], progress: bool) -> None:
    """Train replicas side by side, or one after the other where that cannot be."""
    for replica in replicas:
        replica.check()
    if _gain_nothing(replicas):
        for replica in replicas:
            replica.run(progress, ())
        return
    try:
        together = SideBySide(replicas)
    except CannotStack as reason:
        warnings.warn(f"the replicas are trained one after the other, since {reason}", stacklevel=4)
        for replica in replicas:
            replica.run(progress, ())
    else:
        together.run(progress)


def _gain_nothing(replicas: list[ReplicaTrainer]) -> bool:
    """Whether stacking costs a step more than it saves: one replica, or on a CPU few with large networks."""
    weights = sum(parameter.numel() for parameter in replicas[0].parameters)
    least = _LARGE.get(len(replicas), math.inf)
    return weights >= least and (replicas[0].device.type == "cpu" or len(replicas) == 1)


def _check_new(replicas: list[ReplicaTrainer]) -> None:
    """Raise if replicas are one model, or were trained before."""
    if len({id(parameter) for replica in replicas for parameter in replica.parameters}) < sum(
        len(replica.parameters) for replica in replicas
    ):
        raise InputError("'make_vae' must build a new model at each call, got one twice")
    for replica in replicas:
        replica.refuse_to_overwrite()


def _data_for(
    seed: int, data: Any, validation: Any, same: ReplicaTrainer | None
) -> tuple[Any, Any]:
    """Return the data of a seed; where a replica of it has them ready on the device, those."""
    if same is not None and isinstance(same.data, Dataset):
        return same.data, None if same.held_out is None else same.held_out.data
    return tuple(part(seed) if callable(part) else part for part in (data, validation))  # type: ignore[return-value]
