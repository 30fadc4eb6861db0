"""``fit``: stochastic variational inference of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset
from pyro_bvae.training.checkpoint import checkpoint_path
from pyro_bvae.training.checks.checkpoint_content import as_trained
from pyro_bvae.training.distributed import current_ranks
from pyro_bvae.training.history import History, Row
from pyro_bvae.training.objectives.terms import Objective
from pyro_bvae.training.schedules import OneCycle, Schedule, as_schedule
from pyro_bvae.training.settings import Settings
from pyro_bvae.training.state import TrainingState
from pyro_bvae.training.steps.single import SingleModel
from pyro_bvae.training.trainer import Trainer

Callback = Callable[[Row], None]


@exclusive
def fit(
    vae: nn.Module,
    data: Tensor | Dataset | Any,
    *,
    beta: float | Schedule = 1.0,
    epochs: int = 30,
    validation: Tensor | Dataset | None = None,
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
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> History:
    r"""Train a model and guide by stochastic variational inference.

    Each step is that of ``pyro.infer.SVI`` with ``Trace_ELBO`` (or the given objective) and Adam on
    a mini-batch: the same loss, the same gradients, without a synchronisation with the device. Each
    step is a function of ``seed``, the epoch and the parameters, so a resumed run continues
    as if it had never stopped. The caller's parameter store, random state and train or eval mode
    are left as they were.

    Pyro's handlers and parameter store, and torch's generators, belong to the process: fits and
    measurements in several threads run one after the other, with the numbers of one thread. A
    person's own Pyro, ``torch.manual_seed`` or draws of torch in another thread meanwhile cannot be
    seen and change the numbers, unless they stand under ``with``
    :func:`~pyro_bvae.core.inputs.turns.turn`.

    Inside a :func:`~pyro_bvae.training.process_group`, or torch's own, the processes train one
    model together: each takes its share of every batch and draws noise of its own, and gradients
    and metrics are those of the joint batch. The first process writes files, shows the bar and
    calls the callbacks. A checkpoint resumes on any number of processes, with other noise.

    Args:
        vae: A module with Pyro functions ``model(x, context, beta)`` and ``guide(x, context,
            beta)``, such as :class:`~pyro_bvae.BetaVAE`; all its parameters that require gradients
            are trained.
        data: Training data: a tensor ``(N, D)``, a :class:`~pyro_bvae.datasets.Dataset`, or, where
            they are larger than memory, a :class:`~pyro_bvae.datasets.LazyDataset`, an array that
            is mapped from a file, a torch dataset or a torch loader; on several processes a loader
            needs a ``DistributedSampler``.
        beta: Weight of the KL: a number, a schedule such as
            :class:`~pyro_bvae.training.LinearWarmup`, or :class:`~pyro_bvae.training.TargetRate`,
            which finds the β of a rate.
        epochs: Passes over the data.
        validation: Held-out data. The objective on them at the final β picks ``best.pt``; their
            bound at β = 1 is logged beside it and decides nothing. While β is on its way the latest
            epoch is the best one.
        batch_size: Data in a step, of all processes together. A last batch of one datum joins the
            one before it, where a layer such as batch norm learns from no datum alone.
        learning_rate: A number for the peak of a one-cycle schedule, or a schedule.
        gradient_clip: Upper limit on the global norm of the gradient per datum; None for no limit.
        early_stopping: Stop after so many epochs without a better validation objective, and go back
            to the best weights; None for never. Without validation data it watches the training
            objective, and a warning says so.
        precision: ``bf16`` runs the networks of the parts in bfloat16 while training, where the
            hardware gains by it; weights, distributions, densities and all measurements stay in the
            model's own type.
        compile: Whether loss and gradients are compiled, for batches of the first one's shape: the
            same numbers to rounding, in about two thirds of the time on a CPU, after seconds of
            compiling. By default where a run has
            :data:`~pyro_bvae.training.steps.single.WORTH_COMPILING` steps or more; a program that
            cannot be compiled is run as it is, and ``History.step`` has the reason.
        objective: The objective; the β-bound by default. Others are
            :class:`~pyro_bvae.training.IWELBO` (importance weighted),
            :class:`~pyro_bvae.training.FreeBits`, :class:`~pyro_bvae.training.ControlledCapacity`
            and :class:`~pyro_bvae.training.TotalCorrelation`.
        device: Where to train; where the model is by default.
        output: Run directory for ``metrics.csv`` and ``checkpoints/``; None to write nothing. One
            process at a time writes to it.
        resume: Continue from ``output``'s last checkpoint. Features of a data set are taken by
            name, in the order that they had. On the same number of threads the result is the run
            that was never stopped, to the bit; sums over another number are rounded otherwise, and
            weights differ by some 1e-8.
        overwrite: Take the place of the run in ``output``, which stands until the first epoch of
            this one is written.
        force: Take ``output`` over from another process that holds it: one that hangs, or whose
            machine is gone. It stops before it writes again.
        progress: Show a progress bar with distortion and rate apart.
        seed: Seed of data order and noise.
        callbacks: Each called with the metrics of an epoch when it ends; one with a method
            ``begin(directory)`` before the first step too, see
            :class:`~pyro_bvae.core.protocols.Begins`.

    Returns:
        The metrics of each epoch, columns as in ``metrics.csv``; the model is trained in place.

    Raises:
        InputError: if the data cannot be used, an argument makes no sense, the objective has a
            gradient for tensors that the module does not own, ``output`` holds a run and neither
            ``resume`` nor ``overwrite`` is true, or another process writes to it.
        TrainingError: if loss or gradient stops being finite, naming the site; the last checkpoint
            stays good.
    """
    rate = learning_rate if callable(learning_rate) else OneCycle(float(learning_rate))
    settings = Settings(
        epochs, batch_size, gradient_clip, early_stopping, seed, precision,
        beta=as_schedule(beta), learning_rate=rate,
    )  # fmt: skip
    if current_ranks().is_first:
        settings.warn_of_unfinished_warmup()
        settings.warn_of_early_stopping(validation)
    directory = None if output is None else Path(output)
    ranks = current_ranks()
    with ranks.writing(directory, force):
        if resume and directory is not None:
            last = checkpoint_path(directory, "last")
            data, validation = as_trained(last, data, validation)
        state = TrainingState(vae, data, settings, validation, objective, device, directory, ranks)
        state.callbacks = callbacks
        state.start(resume, overwrite)
        state.check()
        Trainer([state], SingleModel(state, compile)).run(progress)
    return state.history
