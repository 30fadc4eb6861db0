"""The training loop: epochs of steps for one model, or for several in the same step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import pyro
from torch import Tensor, nn

from pyro_bvae.core.param_store import in_training
from pyro_bvae.core.precision import fast_products
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.processes.signals import until_the_epoch_ends
from pyro_bvae.training.batches import Batch, num_steps
from pyro_bvae.training.checks.nonfinite import TrainingError
from pyro_bvae.training.history import Row
from pyro_bvae.training.state import TrainingState
from pyro_bvae.training.steps.step_metrics import LOOK_EVERY, StepMetrics


class ModelsStep(Protocol):
    """The step that a :class:`Trainer` drives, of R models at once."""

    @property
    def program(self) -> nn.Module:
        """The module whose Pyro functions run."""
        ...

    @property
    def size(self) -> int:
        """Number of data of the last step, for each model."""
        ...

    def prepare(self, num_steps: int, bar: ProgressBar) -> None:
        """Compile the step, or the like, for a training of so many steps."""
        ...

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Seed the noise of an epoch and yield its batches."""
        ...

    def run(self, batch: Batch, betas: Sequence[float | Tensor], learning_rate: float) -> Tensor:
        """Take a step; return loss, distortion, rate, gradient norm per datum, ``(R, 4)``."""
        ...

    def hand_back(self) -> None:
        """Give the models their weights, and their optimizers the state for a checkpoint."""
        ...

    def keep(self, remaining: Sequence[int]) -> None:
        """Go on with some of the models, by their positions among those so far."""
        ...

    def describe(self, number: int, batch: Batch, beta: float | Tensor, stats: Tensor) -> str:
        """Return the cause of a number of a model, ``stats`` ``(4,)``, that is not finite."""
        ...


class Trainer:
    """The training of R models that take their steps together.

    A model that early stopping ends keeps its weights and its history, and the others go on.

    Args:
        states: The models, of one number of epochs, batch size and learning rate, all after the
            same number of epochs.
        step: Their step.
    """

    def __init__(self, states: Sequence[TrainingState], step: ModelsStep) -> None:
        self.states, self.active, self.step = list(states), list(states), step
        first = self.states[0]
        self.settings, self.ranks, self.device = first.settings, first.ranks, first.device
        self.num_steps = num_steps(first.batches, self.settings.batch_size, self.ranks)

    def run(self, progress: bool) -> None:
        """Train to the end.

        Args:
            progress: Whether a progress bar is shown.

        Raises:
            TrainingError: if a number is not finite, or another process has ended.
        """
        try:
            self._train(progress)
        except TrainingError as error:
            standing = self.states[0].standing
            raise TrainingError(f"{error}{standing and f'; {standing}'}") from error
        except KeyboardInterrupt as error:
            state = self.states[0]
            if state.output is not None and state.directory != state.output:
                error.add_note(state.standing)
            elif not state.history.rows:
                error.add_note("no epoch was finished")
            raise
        for state in self.states:
            state.finish()

    def _train(self, progress: bool) -> None:
        first, total = len(self.states[0].history.rows), self.settings.epochs * self.num_steps
        disable = not (progress and self.ranks.is_first)
        with ExitStack() as stack:
            stack.enter_context(in_training(self.step.program, self.settings.seed))
            # The dry run has checked shapes and supports; in the loop the checks cost as much as
            # the model.
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(fast_products(self.device))
            bar = ProgressBar(
                total=total,
                initial=first * self.num_steps,
                disable=disable,
                unit="step",
                mininterval=0.5,
            )
            stack.enter_context(bar)
            if not all(state.is_over for state in self.states):
                # By the steps of the whole training: one that is resumed is compiled alike.
                self.step.prepare(total, bar)
            for state in self.states:
                if not state.is_over:
                    state.begin()
            end_of_epoch = stack.enter_context(until_the_epoch_ends())
            for epoch in range(first, self.settings.epochs):
                self.settings.check_schedules(epoch)
                remaining = [r for r, state in enumerate(self.active) if not state.is_over]
                if len(remaining) < len(self.active):
                    self.active = [self.active[r] for r in remaining]
                    if not remaining:
                        break
                    self.step.keep(remaining)
                rows = self._epoch(epoch, bar)
                for state, row in zip(self.active, rows, strict=True):
                    state.record(row)
                end_of_epoch()

    def _epoch(self, epoch: int, bar: ProgressBar) -> list[Row]:
        """Take the steps of an epoch and return its row for each model."""
        settings, started, count = self.settings, time.perf_counter(), len(self.active)
        metrics, betas, learning_rate = StepMetrics(count, self.device), [], 0.0
        controlled = [
            (r, state) for r, state in enumerate(self.active) if state.controller is not None
        ]
        for index, batch in enumerate(self.step.batches(epoch)):
            done = epoch + index / self.num_steps
            betas = [state.beta(done) for state in self.active]
            learning_rate = float(settings.learning_rate(done, settings.epochs))
            stats = self.step.run(batch, betas, learning_rate)
            metrics.add(stats, self.step.size)
            if metrics.steps % metrics.look_every == 0:
                self._check_finite(metrics, epoch, batch, betas)
            for r, state in controlled:
                state.update_rate(done, stats.view(-1, 4)[r, 2] / self.step.size)
            bar.update()
            if index % LOOK_EVERY == 0 and not bar.disable:
                models = f"{count} models, " if count > 1 else ""
                bar.set_description(f"{models}epoch {epoch + 1}/{settings.epochs}", refresh=False)
                if count == 1:
                    recent = {**metrics.recent(), "beta": float(betas[0])}
                    shown = {name: f"{value:.4g}" for name, value in recent.items()}
                    bar.set_postfix(shown, refresh=False)
        self._check_finite(metrics, epoch, batch, betas)
        self.step.hand_back()
        seconds = (time.perf_counter() - started) / count
        return [
            state.measure(
                {"epoch": epoch + 1, "beta": float(beta), "learning_rate": learning_rate} | means,
                seconds,
            )
            for state, beta, means in zip(self.active, betas, metrics.means(), strict=True)
        ]

    def _check_finite(
        self, metrics: StepMetrics, epoch: int, batch: Batch, betas: Sequence[float | Tensor]
    ) -> None:
        """Raise if a number of a model is not finite.

        Raises:
            TrainingError: naming epoch, step, batch, model and cause.
        """
        if metrics.is_finite():
            return
        bad, stats = metrics.first_nonfinite()
        where = f"epoch {epoch + 1}, step {metrics.steps} (batch {metrics.steps - 1})"
        if label := self.active[bad].label:
            where = f"{where}, {label}"
        cause = self.step.describe(bad, batch, betas[bad], stats)
        raise TrainingError(f"{where}: {cause}")
