"""The state of a training run and its steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyro
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_bvae.core.atomic_files import make_directory, remove_parts
from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import fast_products
from pyro_bvae.core.protocols import ChecksData, latent_dim_of, takes_missing
from pyro_bvae.core.seeds import NOISE_STREAM, VALIDATION_STREAM, seeded, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.training.batches import as_batches, joined, may_be_single, num_steps, shared
from pyro_bvae.training.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from pyro_bvae.training.checks.checklist import Remark, check_before, check_during
from pyro_bvae.training.checks.dry_run import takes_one, try_out
from pyro_bvae.training.distributed import Ranks, check_shareable, current_ranks, own_device
from pyro_bvae.training.history import History, Row
from pyro_bvae.training.objectives.loss import Loss
from pyro_bvae.training.objectives.terms import Objective, StepsByTerms
from pyro_bvae.training.step_metrics import LOOK_EVERY, Watch, count_active
from pyro_bvae.training.steps.compiled import WORTH_COMPILING, CompiledStep
from pyro_bvae.training.steps.cuda_graph import GraphedStep
from pyro_bvae.training.steps.step import Step
from pyro_bvae.training.target_rate import TargetRate
from pyro_bvae.training.validation import HeldOut

if TYPE_CHECKING:
    from pyro_bvae.training.settings import Settings

# Data whose posterior means say which latents are active.
_FEW = 256


class Trainer:
    """A training run: the model, its optimizer, how far it got and where that is written.

    Args:
        vae: Module with ``model`` and ``guide``.
        data: Training data, as :func:`~pyro_bvae.fit` takes them.
        settings: What the run is made of.
        validation: Held-out data.
        objective: Training objective.
        device: Where to train.
        output: Run directory.
        compile: Whether the step is compiled; None where the run is long enough to repay it.
        together: Whether the processes of torch's process group, where there is one, train this one
            model.
    """

    def __init__(
        self,
        vae: nn.Module,
        data: Any,
        settings: Settings,
        validation: Tensor | Dataset | None,
        objective: Objective | None,
        device: str | None,
        output: Path | None,
        compile: bool | None = None,
        together: bool = True,
    ) -> None:
        self.ranks = current_ranks() if together else Ranks()
        if device is not None:
            vae.to(own_device(device))
        self.vae: Any = vae  # with model and guide, which a plain module has not
        self.settings, self.output = settings, output
        self.parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise InputError(
                "'vae' has no parameter that requires a gradient, so there is nothing to train"
            )
        self.device, dtype = self.parameters[0].device, self.parameters[0].dtype
        check = vae.check_data if isinstance(vae, ChecksData) else None
        self.data = as_batches(_as_dataset(data, vae), dtype, self.device, check)
        if not isinstance(validation, Tensor | Dataset | None):
            raise InputError(
                f"'validation' must be a tensor or a Dataset, got {type(validation).__name__}"
            )
        if isinstance(validation, Dataset) and validation.stochastic_binarization:
            validation = validation.binarized(settings.seed)  # the same pixels after every epoch
        self.loss = Loss(vae, objective)
        self.batches = shared(self.data, self.ranks)
        if self.ranks.size > 1:
            check_shareable(self.loss, self.loss.objective)
        self.held_out: HeldOut | None = None
        if validation is not None:
            ready = as_batches(_as_dataset(validation, vae), dtype, self.device, check)
            self.held_out = HeldOut(
                vae, cast("Dataset", ready), self.loss, settings.batch_size, self.ranks
            )
        kind: type[Step] = CompiledStep
        if compile is False:
            kind = Step
        elif self.device.type == "cuda" and self.ranks.size == 1:
            kind = GraphedStep
        self.step = kind(
            self.loss, self.parameters, settings.gradient_clip, settings.precision, self.ranks
        )
        self.optimizer, self.compile = self.step.optimizer, compile
        self.controller = (
            settings.beta.controller(self.device) if isinstance(settings.beta, TargetRate) else None
        )
        self.history = History()
        self.best, self.stale = float("inf"), 0
        self.best_weights: dict[str, Tensor] | None = None

    # -- the run
    # ---------------------------------------------------------------------------------------------------

    def run(self, progress: bool, callbacks: Sequence[Callable[[Row], None]]) -> History:
        """Train from where the run is to its end."""
        first, epochs = len(self.history.rows), self.settings.epochs
        num_steps(
            self.batches, self.settings.batch_size, self.ranks
        )  # or raise, before a process waits for another
        self.ranks.align(self.vae)
        progress = progress and self.ranks.is_first
        with self._surroundings() as steps, tqdm(
            total=epochs * steps, initial=first * steps, disable=not progress, unit="step", mininterval=0.5
        ) as bar:  # fmt: skip
            if not first:
                self._remark(self._before())
            if first < epochs:
                self._compile(
                    epochs * steps, bar
                )  # of the whole run: one that is resumed goes on as it was
            for epoch in range(first, epochs):
                if self._is_over():
                    break
                row = self._epoch(epoch, steps, bar)
                self._record(row)
                for callback in callbacks if self.ranks.is_first else ():
                    callback(dict(row))
        self.history.remarks = [
            remark for remark in self.history.remarks if remark.when == "before"
        ]
        self._remark(self._after())
        self.ranks.wait()  # so that what the first one writes is there when any of them returns
        self._restore_best()
        return self.history

    def _compile(self, steps: int, bar: tqdm[Any]) -> None:
        """Compile the step, if that is wanted or the run is long enough, and say how it went."""
        if not isinstance(self.step, CompiledStep) or not (
            self.compile or steps >= WORTH_COMPILING
        ):
            return
        bar.set_description("compiling")
        settings = self.settings
        batch = next(iter(self.batches.batches(settings.batch_size, seed=settings.seed, epoch=0)))
        if not len(batch[0]):
            return  # of a data set with fewer rows than processes
        done = self.step.prepare(*batch, self.final_beta)
        self.history.step = self.step.said
        if self.compile and not done:
            warnings.warn(self.step.said, stacklevel=4)
        elif not bar.disable:
            bar.write(self.step.said)

    def _before(self) -> list[Remark]:
        """Look over what is to be trained, as far as it is at hand."""
        if isinstance(self.data, Dataset):
            data = self.data.binarized(0) if self.data.stochastic_binarization else self.data
            batch = (data.x, data.context)
        else:
            batch = next(
                iter(self.data.batches(self.settings.batch_size, seed=self.settings.seed, epoch=0))
            )
        return check_before(self.vae, *batch, self.final_beta)

    def _after(self) -> list[Remark]:
        """Look over the metrics of the run."""
        latent_dim, before = latent_dim_of(self.vae), self.history.remarks
        return check_during(
            self.history.rows, self.settings.gradient_clip, latent_dim=latent_dim, before=before
        )

    def _remark(self, remarks: list[Remark]) -> None:
        """Keep what was seen, and warn of what makes the training useless."""
        self.history.remarks += remarks
        for remark in remarks:
            if remark.grave and self.ranks.is_first:
                warnings.warn(str(remark), stacklevel=4)

    @contextmanager
    def _surroundings(self) -> Iterator[int]:
        """Make all ready for steps; how many an epoch has is known when the model has been tried out."""
        modes = {module: module.training for module in self.vae.modules()}
        with ExitStack() as stack:
            stack.enter_context(private_store(self.vae.model))
            stack.enter_context(seeded(self.settings.seed))
            self.vae.train()
            stack.callback(_set_modes, modes)
            self._try_out()
            # Shapes and supports have been checked; in the loop the checks cost as much as the
            # model.
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(fast_products(self.device))
            yield num_steps(self.batches, self.settings.batch_size, self.ranks)

    def _try_out(self) -> None:
        """Run objective and validation once: what is wrong with them should be told before the first epoch."""
        x, context = next(
            iter(self.data.batches(self.settings.batch_size, seed=self.settings.seed, epoch=0))
        )
        try_out(
            self.loss, self.parameters, x[:2], context and context.take(slice(2)), self.final_beta
        )
        if self.held_out is not None:
            self.held_out.try_out()
        size = self.settings.batch_size
        if may_be_single(self.data, size, self.ranks, self.vae) and not takes_one(
            self.vae, x, context
        ):
            self.batches = joined(self.data, size, len(x), self.ranks)

    def _epoch(self, epoch: int, steps: int, bar: tqdm[Any]) -> Row:
        settings, started = self.settings, time.perf_counter()
        own = (self.ranks.rank,) if self.ranks.size > 1 else ()
        torch.manual_seed(stream_seed(settings.seed, epoch, NOISE_STREAM, *own))
        watch = Watch(self.vae, self.device, epoch + 1, self.ranks)
        beta: float | Tensor = 0.0
        learning_rate = 0.0
        for index, (x, context) in enumerate(
            self.batches.batches(settings.batch_size, seed=settings.seed, epoch=epoch)
        ):
            done = epoch + index / steps
            beta = self._beta(done)
            learning_rate = float(settings.learning_rate(done, settings.epochs))
            stats = self.step(x, context, beta, learning_rate)
            size = self.step.size if self.ranks.size > 1 else x.shape[0]
            watch.add(stats, size, x, context, beta)
            if self.controller is not None and not self.controller.holds(done, settings.epochs):
                self.controller.update(stats[2] / size)
            bar.update()
            if index % LOOK_EVERY == 0 and not bar.disable:
                bar.set_description(f"epoch {epoch + 1}/{settings.epochs}", refresh=False)
                numbers = zip(
                    ("distortion", "rate", "beta"), (*watch.recent(), float(beta)), strict=True
                )
                bar.set_postfix({name: f"{number:.4g}" for name, number in numbers}, refresh=False)
        objective, distortion, rate, norm = watch.finish()
        count = watch.count
        row: Row = {"epoch": epoch + 1, "beta": float(beta), "learning_rate": learning_rate}
        row |= {"gradient_norm": norm / steps, "objective": objective / count}
        row |= {"distortion": distortion / count, "rate": rate / count}
        held_out = (
            {} if self.held_out is None else self.held_out.measure(epoch + 1, self.final_beta)
        )
        return row | held_out | self._active_units() | {"seconds": time.perf_counter() - started}

    def _beta(self, done: float) -> float | Tensor:
        """Return β after so many epochs; on the CPU, where looking costs nothing, as a number."""
        if self.controller is None:
            return float(self.settings.beta(done, self.settings.epochs))
        beta = self.controller.beta(done, self.settings.epochs)
        return float(beta) if self.device.type == "cpu" else beta

    @property
    def final_beta(self) -> float:
        """The β at which training ends, as far as it is known: what held-out data are measured at."""
        epochs = self.settings.epochs
        return (
            self.settings.final_beta
            if self.controller is None
            else float(self.controller.beta(epochs, epochs))
        )

    def _active_units(self) -> Row:
        data = self.data if self.held_out is None else self.held_out.data
        if not isinstance(data, Dataset):
            return {}
        with evaluating(self.vae), seeded(VALIDATION_STREAM), torch.no_grad():
            few = data[:_FEW]
            active = count_active(self.vae.guide, *arguments(few.x, few.context))
        return {} if active is None else {"active_units": active}

    # -- what is kept
    # ----------------------------------------------------------------------------------------------

    def _record(self, row: Row) -> None:
        self.history.rows.append(row)
        seen = row["distortion"] + self.final_beta * row["rate"]
        score = row.get(
            "validation_objective", row["objective"] if self.loss.has_own_objective else seen
        )
        # While β is on its way the model of the objective's optimum is still to come: the latest
        # epoch counts.
        final_beta = self.final_beta
        warming = abs(float(self._beta(row["epoch"])) - final_beta) > 1e-9 * final_beta
        better = warming or score < self.best
        self.best = float("inf") if warming else min(score, self.best)
        self.stale = 0 if better else self.stale + 1
        if better and self.settings.early_stopping is not None:
            self.best_weights = {
                name: value.detach().clone() for name, value in self.vae.state_dict().items()
            }
        if self.output is not None and self.ranks.is_first:
            make_directory(self.output)
            self.history.write(self.output / "metrics.csv")
            state = self._state()
            if better:
                save_checkpoint(checkpoint_path(self.output, "best"), state)
            save_checkpoint(checkpoint_path(self.output, "last"), state)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.rows,
            "remarks": [remark._asdict() for remark in self.history.remarks],
            "best": self.best,
            "stale": self.stale,
            "settings": self.settings.identity(),
            "objective": _name_of(self.loss.objective),
            "controller": {} if self.controller is None else self.controller.state_dict(),
        }

    def _is_over(self) -> bool:
        return (
            self.settings.early_stopping is not None and self.stale >= self.settings.early_stopping
        )

    def _restore_best(self) -> None:
        if self.settings.early_stopping is None or self.stale == 0:
            return
        if self.best_weights is None and self.output is not None:
            path = checkpoint_path(self.output, "best")
            load_weights(self.vae, load_checkpoint(path, self.device), path)
        elif self.best_weights is not None:
            self.vae.load_state_dict(self.best_weights)

    def refuse_to_overwrite(self) -> None:
        """Raise if the run directory holds a run already."""
        if self.output is not None and checkpoint_path(self.output, "last").exists():
            raise InputError(
                f"{self.output} holds a run already: resume it, or choose another directory"
            )

    def resume(self) -> None:
        """Continue from the last checkpoint of the run directory."""
        if self.output is None:
            raise InputError("'resume' needs 'output', the run directory to continue")
        path = checkpoint_path(self.output, "last")
        state = load_checkpoint(path, self.device)
        for directory in (self.output, path.parent) if self.ranks.is_first else ():
            remove_parts(directory)
        for name, value in self.settings.identity().items():
            if (was := state["settings"].get(name, value)) != value:
                raise InputError(f"cannot resume {path}: '{name}' was {was}, got {value}")
        objective = _name_of(self.loss.objective)
        if (before := state.get("objective", objective)) != objective:
            raise InputError(f"cannot resume {path}: 'objective' was {before}, got {objective}")
        validated = any("validation_objective" in row for row in state["history"])
        if validated != (self.held_out is not None):
            raise InputError(
                f"cannot resume {path}: it was trained {'with' if validated else 'without'} 'validation'"
            )
        load_weights(self.vae, state, path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise InputError(
                f"cannot resume {path}: other parameters of the model were trained"
            ) from error
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        remarks = [Remark(**remark) for remark in state.get("remarks", ())]
        self.history = History(state["history"], remarks)
        self.best, self.stale = state["best"], state["stale"]


def _as_dataset(data: Any, vae: nn.Module) -> Any:
    """Return a tensor as a data set, in which NaN is a missing entry if the model takes it as one."""
    return Dataset(data, missing=takes_missing(vae)) if isinstance(data, Tensor) else data


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _name_of(objective: Objective) -> str:
    return repr(objective) if isinstance(objective, StepsByTerms) else type(objective).__name__
