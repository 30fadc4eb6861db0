"""The state of one model in training: data, metrics, best weights and checkpoints."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyro_bvae.core.atomic_files import make_directory
from pyro_bvae.core.context import arguments
from pyro_bvae.core.disk.lock import check_held
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.disk.run_files import is_vacant, remove_evaluation, replace_run, staged
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import check_observed, is_table, named
from pyro_bvae.core.inputs.programs import fitting_networks
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.param_store import in_training, private_store
from pyro_bvae.core.protocols import Batch, Begins, ChecksData, latent_dim_of
from pyro_bvae.core.seeds import VALIDATION_STREAM, seeded
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.training.batches import as_batches, first, joined, may_be_single, num_steps, shared
from pyro_bvae.training.checkpoint import (
    check_configuration,
    checkpoint_path,
    configuration,
    load_checkpoint,
    load_weights,
    save_epoch,
)
from pyro_bvae.training.checks.checklist import check_before, check_during
from pyro_bvae.training.checks.checkpoint_content import check_state, check_training, identity_of
from pyro_bvae.training.checks.dry_run import dry_run, takes_one
from pyro_bvae.training.checks.remarks import Remark
from pyro_bvae.training.checks.seam import warn_of_seam
from pyro_bvae.training.distributed import Ranks, check_shareable, job_name, own_device
from pyro_bvae.training.history import History, Row
from pyro_bvae.training.objectives.loss import Loss
from pyro_bvae.training.objectives.target_rate import TargetRate
from pyro_bvae.training.objectives.terms import Objective, StepsByTerms
from pyro_bvae.training.settings import Settings
from pyro_bvae.training.steps.step_metrics import count_active
from pyro_bvae.training.validation import Validation

# Data over whose posterior means active latents are counted.
_FEW = 256


class TrainingState:
    """One model in training, all but its steps: data, metrics, best weights, checkpoints.

    Args:
        vae: Module with ``model`` and ``guide``.
        data: Training data, as :func:`~pyro_bvae.fit` takes them.
        settings: Settings of the training.
        validation: Validation data.
        objective: Training objective.
        device: Device of the training.
        output: Run directory.
        ranks: The processes that train this model together.

    Attributes:
        label: Name of the model in messages, where there are several.
        callbacks: Functions of the metrics of an epoch.
        optimizer: The optimizer whose state is in the checkpoint, see :meth:`adopt`.
        directory: Where the files of the next epoch belong: ``output``, or the folder of a run that
            takes the place of another.
    """

    def __init__(
        self,
        vae: nn.Module,
        data: Any,
        settings: Settings,
        validation: Tensor | Dataset | None = None,
        objective: Objective | None = None,
        device: str | None = None,
        output: Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        if device is not None:
            vae.to(own_device(device))
        for name in ("model", "guide"):
            if not callable(getattr(vae, name, None)):
                raise InputError(
                    f"'vae' must have Pyro functions model and guide, got {type(vae).__name__}"
                    f" without {name}"
                )
        self.vae: Any = vae  # with model and guide, which a plain module has not
        self.settings, self.output, self.directory = settings, output, output
        self.parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise InputError(
                "'vae' has no parameter that requires a gradient, so there is nothing to train"
            )
        self.device = self.parameters[0].device
        self.data = self._as_batches(data)
        if not (validation is None or is_table(validation) or isinstance(validation, Dataset)):
            raise InputError(f"'validation' must be a tensor or a Dataset, got {named(validation)}")
        if isinstance(validation, Dataset) and validation.stochastic_binarization:
            validation = validation.binarized(settings.seed)  # the same pixels after every epoch
        self.loss = Loss(vae, objective)
        self.batches = shared(self.data, self.ranks)
        if self.ranks.size > 1:
            check_shareable(self.loss, self.loss.objective)
        self.validation: Validation | None = None
        if validation is not None:
            ready = cast("Dataset", self._as_batches(validation))
            self.validation = Validation(vae, ready, self.loss, settings.batch_size, self.ranks)
        target = settings.beta
        self.controller = target.controller(self.device) if isinstance(target, TargetRate) else None
        self.history, self.label = History(), ""
        self.callbacks: Sequence[Callable[[Row], None]] = ()
        self.best, self.stale = float("inf"), 0
        self.best_weights: dict[str, Tensor] | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._saved_optimizer: dict[str, Any] | None = None
        self._config: dict[str, Any] | None = None
        self._identity: dict[str, Any] | None = None

    def _as_batches(self, data: Any) -> Any:
        """Return data as batches; NaN in a tensor is a missing entry if the model has those."""
        data = as_dataset(data, self.vae) if is_table(data) else data
        if isinstance(data, Dataset):
            check_observed(data.x)
        check = self.vae.check_data if isinstance(self.vae, ChecksData) else None
        return as_batches(data, self.parameters[0].dtype, self.device, check)

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer of a step, and give it the state of the checkpoint that is resumed.

        Raises:
            InputError: if it has other parameters than the optimizer of the checkpoint.
        """
        self.optimizer = optimizer
        if self._saved_optimizer is None:
            return
        try:
            optimizer.load_state_dict(self._saved_optimizer)
        except ValueError as error:
            raise InputError(
                f"cannot resume {self.output}: other parameters of the model were trained"
            ) from error

    def first_batch(self) -> Batch:
        """Return the first batch of the first epoch, of all processes."""
        return first(self.data, self.settings.batch_size, self.settings.seed)

    def check(self) -> None:
        """Run objective and validation once, so that their faults come before the first epoch.

        Raises:
            InputError: as of :func:`~pyro_bvae.fit`.
        """
        size = self.settings.batch_size
        num_steps(self.batches, size, self.ranks)  # an error, before a process waits for another
        self.ranks.align(self.vae)
        with in_training(self.vae, self.settings.seed):
            x, context = self.first_batch()
            few = context and context.take(slice(2))
            with fitting_networks(self.vae):
                dry_run(self.loss, self.parameters, x[:2], few, self.final_beta)
            if self.validation is not None:
                self.validation.dry_run()
            single = may_be_single(self.data, size, self.ranks, self.vae)
            if single and not takes_one(self.vae, x, context):
                self.batches = joined(self.data, size, len(x), self.ranks)
            if self.history.rows:
                return
            if isinstance(self.data, Dataset):
                data = self.data.binarized(0) if self.data.stochastic_binarization else self.data
                x, context = data.x, data.context
            with pyro.validation_enabled(False):
                self._remark(check_before(self.vae, x, context, self.final_beta))

    def _remark(self, remarks: list[Remark]) -> None:
        """Keep remarks, and warn of those that make the training useless."""
        self.history.remarks += remarks
        for remark in remarks:
            if remark.grave and self.ranks.is_first:
                warnings.warn(
                    str(remark) + (f" ({self.label})" if self.label else ""), stacklevel=5
                )

    # -- β

    def beta(self, done: float) -> float | Tensor:
        """Return β after ``done`` epochs; a tensor only where it is held on an accelerator."""
        if self.controller is None:
            return float(self.settings.beta(done, self.settings.epochs))
        beta = self.controller.beta(done, self.settings.epochs)
        return float(beta) if self.device.type == "cpu" else beta

    @property
    def final_beta(self) -> float:
        """The β at the end of training, as far as it is known: that of the validation objective."""
        return float(self.beta(self.settings.epochs))

    def update_rate(self, done: float, rate: Tensor) -> None:
        """Give the controller of β the rate of a step, nats per datum, shape ``()``."""
        if self.controller is not None and not self.controller.holds(done, self.settings.epochs):
            self.controller.update(rate)

    # -- epochs

    def measure(self, row: Row, seconds: float) -> Row:
        """Return the row of an epoch: the metrics of its steps, of validation, and the time.

        Args:
            row: Metrics of the steps.
            seconds: Time of the steps.
        """
        started, extra = time.perf_counter(), Row()
        with private_store(self.vae.model), pyro.validation_enabled(False):
            if self.validation is not None:
                extra = self.validation.measure(int(row["epoch"]), self.final_beta)
            data = self.data if self.validation is None else self.validation.data
            if isinstance(data, Dataset):
                few = data[:_FEW]
                with evaluating(self.vae), seeded(VALIDATION_STREAM), torch.no_grad():
                    active = count_active(self.vae.guide, *arguments(few.x, few.context))
                extra |= {} if active is None else {"active_units": active}
        return row | extra | {"seconds": seconds + time.perf_counter() - started}

    def record(self, row: Row) -> None:
        """Append the row of an epoch, keep the weights if they are the best, write files."""
        self.history.rows.append(row)
        self._saved_optimizer = None
        final_beta = self.final_beta
        score = row["distortion"] + final_beta * row["rate"]
        if self.loss.has_own_objective:
            score = row["objective"]
        score = row.get("validation_objective", score)
        # While β is on its way to the value of the objective, the latest epoch counts as the best.
        warming = abs(float(self.beta(row["epoch"])) - final_beta) > 1e-9 * final_beta
        better = warming or score < self.best
        self.best = float("inf") if warming else min(score, self.best)
        self.stale = 0 if better else self.stale + 1
        if better and self.settings.early_stopping is not None:
            weights = self.vae.state_dict().items()
            self.best_weights = {name: value.detach().clone() for name, value in weights}
        if self.ranks.is_first:
            self._write(better)
        self.directory = self.output
        for callback in self.callbacks if self.ranks.is_first else ():
            callback(dict(row))

    def begin(self) -> None:
        """Call the callbacks that begin, and warn of schedules that jump before the first step."""
        steps = num_steps(self.batches, self.settings.batch_size, self.ranks)
        if self.ranks.is_first:
            warn_of_seam(self.history.rows, self.settings, steps)
        if self.directory is None or not self.ranks.is_first:
            return
        make_directory(self.directory)
        for callback in self.callbacks:
            if isinstance(callback, Begins):
                callback.begin(self.directory)

    def _write(self, better: bool) -> None:
        """Write the files of an epoch; those of the first take the place of an old run's."""
        if self.output is None or self.directory is None:
            return
        check_held(self.output)
        with making(self.directory / "checkpoints"):
            try:
                save_epoch(self.directory, self.history, self._checkpoint(), best=better)
            except OSError:
                check_held(self.output)  # else another process has removed the files
                raise
        if self.directory != self.output:
            replace_run(self.output)
        remove_evaluation(self.output)  # of a model that was trained less

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or early stopping has ended the training."""
        patience = self.settings.early_stopping
        stopped = patience is not None and self.stale >= patience
        return stopped or len(self.history.rows) >= self.settings.epochs

    def finish(self) -> None:
        """Remark on the metrics, and restore the best weights where early stopping keeps them."""
        before = [remark for remark in self.history.remarks if remark.when == "before"]
        self.history.remarks, clip = list(before), self.settings.gradient_clip
        latent_dim = latent_dim_of(self.vae)
        rows = self.history.rows
        self._remark(check_during(rows, clip, latent_dim=latent_dim, before=before))
        self.ranks.wait()  # so that the files of the first process are there when any returns
        if self.settings.early_stopping is None or self.stale == 0:
            return
        if self.best_weights is not None:
            self.vae.load_state_dict(self.best_weights)
        elif self.output is not None:
            path = checkpoint_path(self.output, "best")
            load_weights(self.vae, load_checkpoint(path, self.device), path)

    @property
    def standing(self) -> str:
        """The state of the run directory, should training end now, in words; none without files."""
        if self.output is None:
            return ""
        if self.directory != self.output:
            return f"the run in {self.output} is as it was"
        return "the last checkpoint is good" if self.history.rows else ""

    # -- checkpoints

    def _checkpoint(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        assert self.optimizer is not None and self.output is not None
        if self._config is None:
            self._config = configuration(self.directory or self.output)
            self._identity = identity_of(self.data)
        return {
            "model": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.rows,
            "remarks": [asdict(remark) for remark in self.history.remarks],
            "best": self.best,
            "stale": self.stale,
            "settings": self.settings.identity(),
            "objective": _name_of(self.loss.objective),
            "controller": {} if self.controller is None else self.controller.state_dict(),
            "config": self._config,
            "data": self._identity,
            "job": job_name(),
        }

    def start(self, resume: bool, overwrite: bool) -> None:
        """Continue the run in the run directory, take its place, or make sure that there is none.

        Raises:
            InputError: if that cannot be done.
        """
        if resume and overwrite:
            raise InputError("'resume' and 'overwrite' exclude each other")
        if resume:
            self.resume()
        elif self.output is None or is_vacant(self.output):
            return
        elif overwrite:
            self.directory = staged(self.output)
        elif checkpoint_path(self.output, "last").exists():
            raise InputError(
                f"{self.output} holds a run already: resume it, or choose another directory"
            )

    def resume(self) -> None:
        """Continue from the last checkpoint of the run directory.

        Raises:
            InputError: if there is none, or it is one of another model or other settings.
        """
        if self.output is None:
            raise InputError("'resume' needs 'output', the run directory to continue")
        path = checkpoint_path(self.output, "last")
        state = load_checkpoint(path, self.device)
        check_state(state, path)
        check_configuration(state, configuration(self.output), path)
        settings = {**self.settings.identity(), "objective": _name_of(self.loss.objective)}
        saved = {**settings, **state["settings"]}
        saved["objective"] = state.get("objective", settings["objective"])
        for name, value in settings.items():
            if saved[name] != value:
                raise InputError(f"cannot resume {path}: '{name}' was {saved[name]}, got {value}")
        validated = any("validation_objective" in row for row in state["history"])
        if validated != (self.validation is not None):
            has = "with" if validated else "without"
            raise InputError(f"cannot resume {path}: it was trained {has} 'validation'")
        load_weights(self.vae, state, path)
        check_training(state, self.parameters, self.data, path)
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        self._saved_optimizer = state["optimizer"]
        remarks = [Remark.read(remark) for remark in state.get("remarks", ())]
        self.history = History(state["history"], remarks)
        self.best, self.stale = state["best"], state["stale"]
        done, epochs = len(self.history.rows), self.settings.epochs
        if done > epochs and self.ranks.is_first:
            warnings.warn(
                f"{done} epochs are done and 'epochs' is {epochs}: nothing is trained or written",
                stacklevel=4,
            )


def _name_of(objective: Objective) -> str:
    return repr(objective) if isinstance(objective, StepsByTerms) else type(objective).__name__
