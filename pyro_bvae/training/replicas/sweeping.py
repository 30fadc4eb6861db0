"""``sweep``: models over β and seeds, trained in the same steps as one Pyro program."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

from torch import nn

from pyro_bvae.core.disk.run_files import writing
from pyro_bvae.core.errors import InputError, check_beta
from pyro_bvae.core.inputs.calls import called
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.datasets import Dataset
from pyro_bvae.training.checkpoint import checkpoint_path
from pyro_bvae.training.distributed import own_device, place
from pyro_bvae.training.history import History, Row
from pyro_bvae.training.objectives.target_rate import TargetRate
from pyro_bvae.training.objectives.terms import Objective
from pyro_bvae.training.replicas.program import CannotStack
from pyro_bvae.training.replicas.stacked import StackedModels
from pyro_bvae.training.schedules import OneCycle, Schedule, as_schedule
from pyro_bvae.training.settings import Settings
from pyro_bvae.training.state import TrainingState
from pyro_bvae.training.steps.single import SingleModel
from pyro_bvae.training.trainer import Trainer
from pyro_bvae.vae import BetaVAE

# Weights of a model from which so many replicas are no faster stacked than apart (measured on one
# core and on two).
_LARGE = {1: 0, 2: 2**15, 3: 2**18}


@dataclass(frozen=True)
class Replica:
    """One model of a sweep.

    Attributes:
        beta: Its entry of ``betas``: the β at the end of training, or with
            :class:`~pyro_bvae.training.TargetRate` the rate to reach.
        seed: Its seed.
        vae: The trained model.
        history: Its metrics.
        directory: Its run directory, if there is one.
        finds_beta: Whether its β was found for a rate.
    """

    beta: float
    seed: int
    vae: BetaVAE
    history: History
    directory: Path | None = None
    finds_beta: bool = False

    @property
    def final_beta(self) -> float:
        """The β at the end of training, given or found."""
        return self.history["beta"][-1] if self.finds_beta else self.beta


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
        shown = "objective distortion rate validation_objective validation_elbo active_units"
        finds = any(run.finds_beta for run in self.runs)
        columns = [
            name
            for name in ("beta " * finds + shown).split()
            if self.runs and all(name in run.history for run in self.runs)
        ]
        lines = [
            f"{'target' if finds else 'beta':>8}{'seed':>6}"
            + "".join(f"{name:>{len(name) + 3}}" for name in columns)
        ]
        for run in self.runs:
            last = run.history.rows[-1]
            numbers = "".join(f"{last[name]:>{len(name) + 3}.2f}" for name in columns)
            lines.append(f"{run.beta:>8g}{run.seed:>6}{numbers}")
        return "\n".join(lines)


@exclusive
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
    compile: bool | None = None,
    objective: Objective | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = True,
    callbacks: Callable[[Replica], Sequence[Callable[[Row], None]]] = lambda replica: (),
) -> Sweep:
    r"""Train a model for each β and seed: R models as one Pyro program, in the same steps.

    .. math:: \mathcal{L} = \sum_r \sum_n \Big( \mathbb{E}_{q_r(z \mid x_{rn})} [-\log p_r(x_{rn}
        \mid z)]
        + \beta_r \, KL(q_r(z \mid x_{rn}) \,\|\, p_r(z)) \Big)

    Each model has the noise, the order of data, the limit on its gradient, the schedule of β and
    the early stopping that ``fit(make_vae(seed), data, beta=schedule(beta), seed=seed, ...)`` would
    give it, and so ends, but for rounding, as the model which that would train. Networks are
    stacked, as ``torch.func`` stacks ensembles, and the program is held to the models' own losses
    and gradients on a few data before it is trained. Models that cannot be stacked are trained one
    after the other, with a warning that gives the reason: those with batch norm, with a flow as a
    guide, of another objective than the β-bound, or in compiled steps. So are two or three large
    models on a CPU, without a warning, since they would gain nothing.

    Under ``torchrun`` each process trains its share, every ``WORLD_SIZE``-th model, and returns
    that.

    Args:
        make_vae: Builds the untrained model of a seed, a new one at each call. It is called with
            torch's generators seeded by the seed, so that it need not do so itself.
        data: Training data, as ``fit`` takes them, or a function from a seed to them.
        betas: The β of the models.
        seeds: Their seeds: of weights, order of data and noise. Each β is trained with each.
        schedule: From an entry of ``betas`` to the ``beta`` of ``fit``, such as ``lambda beta:
            LinearWarmup(beta, 10)``. With :class:`~pyro_bvae.training.TargetRate` the entries are
            rates in nats, and each model finds its β.
        epochs: Passes over the data.
        validation: Validation data, or a function from a seed to them.
        batch_size: Data in a step, of each model.
        learning_rate: A number for the peak of a one-cycle schedule, or a schedule.
        gradient_clip: Upper limit on the norm of each model's gradient per datum; None for no
            limit.
        early_stopping: As of ``fit``, for each model: one that stops leaves the others, which go
            on.
        precision: As of ``fit``.
        compile: As of ``fit`` for models that are trained one after the other; True has them
            trained so, False and None leave a stacked step uncompiled.
        objective: As of ``fit``; each model gets a copy.
        device: Where to train; ``cuda`` is the device of the process under ``torchrun``.
        output: Directory of a run directory for each model, ``beta<β>-seed<seed>`` or
            ``rate<nats>-seed<seed>``, which ``fit`` could resume; None to write nothing.
        resume: Continue the runs in ``output`` from their last checkpoints, and train the others
            from their beginning.
        overwrite: Take the places of the runs in ``output``, as of ``fit``.
        force: Take run directories over from other processes, as of ``fit``.
        progress: Show a progress bar.
        callbacks: From a model, before its training, to functions that are called with the metrics
            of each of its epochs.

    Returns:
        The trained models. The ``seconds`` of their histories are shares of the time that the
        models took together.

    Raises:
        InputError: if there is no β, or one is negative or there twice, and likewise for seeds; as
            ``fit`` does; if a run directory holds a run and neither ``resume`` nor ``overwrite`` is
            true, or another process writes to it.
        TrainingError: if a loss or gradient stops being finite, naming the model.
    """
    if resume and output is None:
        raise InputError("'resume' needs 'output', the directory of the runs to continue")
    if resume and overwrite:
        raise InputError("'resume' and 'overwrite' exclude each other")
    rate = learning_rate if callable(learning_rate) else OneCycle(float(learning_rate))
    directory, device = None if output is None else Path(output), own_device(device)
    states: dict[tuple[float, int], TrainingState] = {}
    of_seed: dict[int, TrainingState] = {}
    for beta, seed in assigned(betas, seeds):
        settings = Settings(
            epochs, batch_size, gradient_clip, early_stopping, seed, precision,
            beta=as_schedule(called("schedule", schedule, beta)), learning_rate=rate,
        )  # fmt: skip
        vae = _made(make_vae, seed)
        finds = isinstance(settings.beta, TargetRate)
        name = replica_name(beta, seed, "rate" if finds else "beta")
        own = None if directory is None else directory / name
        same = of_seed.get(seed)
        if same is not None and isinstance(same.data, Dataset):  # they lie on the device already
            given = same.data, None if same.validation is None else same.validation.data
        else:
            given = tuple(
                called(name, part, seed) if callable(part) else part
                for name, part in (("data", data), ("validation", validation))
            )
        state = TrainingState(
            vae, given[0], settings, given[1], copy.deepcopy(objective), device, own
        )
        state.label = f"{'rate' if finds else 'β'} = {beta:g}, seed {seed}"
        states[beta, seed] = of_seed[seed] = state
    parameters = [parameter for state in states.values() for parameter in state.parameters]
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise InputError("'make_vae' must build a new model at each call, got one twice")
    with ExitStack() as locks:
        for state in states.values():
            if state.output is not None:
                locks.enter_context(writing(state.output, force=force))
                begun = checkpoint_path(state.output, "last").exists()
                state.start(resume and begun, overwrite)
        if states:
            first = next(iter(states.values()))
            first.settings.warn_of_unfinished_warmup()
            first.settings.warn_of_early_stopping(first.validation)
        for state in states.values():
            state.check()
        keys = states.items()
        runs = [
            Replica(*key, state.vae, state.history, state.output, state.controller is not None)
            for key, state in keys
        ]
        for run, state in zip(runs, states.values(), strict=True):
            state.callbacks = _callbacks_of(run, callbacks)
        _train(list(states.values()), compile, progress and place()[0] == 0)
    return Sweep(tuple(runs), None if callable(validation) else validation)


def _made(make_vae: Callable[[int], BetaVAE], seed: int) -> BetaVAE:
    """Return the untrained model of a seed."""
    with seeded(seed, WEIGHTS_STREAM):
        vae = called("make_vae", make_vae, seed)
    if not isinstance(vae, nn.Module):
        raise InputError(f"'make_vae' must build a model, got {shown(vae)}")
    return cast("BetaVAE", vae)


def _callbacks_of(
    run: Replica, callbacks: Callable[[Replica], Any]
) -> Sequence[Callable[..., None]]:
    made = called("callbacks", callbacks, run)
    if not (isinstance(made, list | tuple) and all(map(callable, made))):
        raise InputError(f"'callbacks' must return a sequence of functions, got {shown(made)}")
    return made


def assigned(betas: Sequence[float], seeds: Sequence[int]) -> list[tuple[float, int]]:
    """Return β and seed of each model of this process, under ``torchrun`` its share.

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


def replica_name(value: float, seed: int, kind: Literal["beta", "rate"] = "beta") -> str:
    """Return the name of a replica's run directory, such as ``beta<β>-seed<seed>``."""
    short = f"{value:g}"
    return f"{kind}{short if float(short) == value else repr(float(value))}-seed{seed}"


def _train(states: list[TrainingState], compile: bool | None, progress: bool) -> None:
    """Train models in the same steps, or one after the other where that cannot be."""
    groups: dict[int, list[TrainingState]] = {}
    for state in states:
        if state.is_over:
            state.finish()
        else:  # runs that are resumed may have come to different epochs
            groups.setdefault(len(state.history.rows), []).append(state)
    for group in groups.values():
        stacked, weights = None, sum(parameter.numel() for parameter in group[0].parameters)
        large = weights >= _LARGE.get(len(group), math.inf)
        # One model, or on a CPU few large ones, gain nothing.
        if not (large and (group[0].device.type == "cpu" or len(group) == 1)):
            try:
                if compile:
                    raise CannotStack("a compiled step is of one model")
                stacked = StackedModels(group)
            except CannotStack as reason:
                warnings.warn(
                    f"the models are trained one after the other, since {reason}", stacklevel=4
                )
        if stacked is not None:
            Trainer(group, stacked).run(progress)
            continue
        for state in group:
            Trainer([state], SingleModel(state, compile)).run(progress)
