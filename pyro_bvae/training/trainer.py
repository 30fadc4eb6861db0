"""The state of a training run and its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from tqdm import tqdm

from pyro_bvae.context import Context
from pyro_bvae.datasets import Dataset
from pyro_bvae.errors import InputError, check_finite
from pyro_bvae.evaluation import bound
from pyro_bvae.modules import evaluating
from pyro_bvae.randomness import NOISE_STREAM, VALIDATION_STREAM, seeded, stream_seed
from pyro_bvae.store import private_store
from pyro_bvae.training.batches import as_batches
from pyro_bvae.training.checkpoint import checkpoint_path, load_checkpoint, load_weights, save_checkpoint
from pyro_bvae.training.health import TrainingError, describe_nonfinite, find_nonfinite
from pyro_bvae.training.history import History, Row
from pyro_bvae.training.loss import Loss
from pyro_bvae.training.objectives import Objective, StepsByTerms, TraceTerms

if TYPE_CHECKING:
    from pyro_bvae.training.fit import Settings

# Steps between two looks at the losses on an accelerator, where each look waits for the device.
_LOOK_EVERY = 20


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
    ) -> None:
        if device is not None:
            vae.to(device)
        self.vae: Any = vae  # with model and guide, which a plain module has not
        self.settings, self.output = settings, output
        self.parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise InputError("'vae' has no parameter that requires a gradient, so there is nothing to train")
        self.device, dtype = self.parameters[0].device, self.parameters[0].dtype
        check = getattr(vae, "check_data", None)
        self.data = as_batches(_as_dataset(data, vae), dtype, self.device, check)
        if not isinstance(validation, Tensor | Dataset | None):
            raise InputError(f"'validation' must be a tensor or a Dataset, got {type(validation).__name__}")
        if isinstance(validation, Dataset) and validation.stochastic_binarization:
            validation = validation.binarized(settings.seed)  # the same pixels after every epoch
        held_out = None if validation is None else as_batches(_as_dataset(validation, vae), dtype, self.device, check)
        self.validation = cast("Dataset | None", held_out)
        self.loss = Loss(vae, objective)
        self.has_own_objective = type(self.loss.objective) is not TraceTerms
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, fused=fused)
        self.history = History()
        self.best, self.stale = float("inf"), 0
        self.best_weights: dict[str, Tensor] | None = None

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self, progress: bool, callbacks: Sequence[Callable[[Row], None]]) -> History:
        """Train from where the run is to its end."""
        first, epochs = len(self.history.rows), self.settings.epochs
        steps = self.data.num_batches(self.settings.batch_size)
        with self._surroundings(), tqdm(
            total=epochs * steps, initial=first * steps, disable=not progress, unit="step", mininterval=0.5
        ) as bar:  # fmt: skip
            for epoch in range(first, epochs):
                if self._is_over():
                    break
                row = self._epoch(epoch, steps, bar)
                self._record(row)
                for callback in callbacks:
                    callback(dict(row))
        self._restore_best()
        return self.history

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        modes = {module: module.training for module in self.vae.modules()}
        with ExitStack() as stack:
            stack.enter_context(private_store(self.vae.model))
            stack.enter_context(seeded(self.settings.seed))
            self.vae.train()
            stack.callback(_set_modes, modes)
            self._check_program()
            # Shapes and supports have been checked; in the loop the checks cost as much as the model.
            stack.enter_context(pyro.validation_enabled(False))
            yield

    def _check_program(self) -> None:
        """Run objective and validation once under Pyro's checks, and see that the module owns every parameter."""
        for name, parameter in self.vae.named_parameters():
            check_finite(f"vae.{name}", parameter.detach())
        x, context = next(iter(self.data.batches(self.settings.batch_size, seed=self.settings.seed, epoch=0)))
        # In eval mode, so that no batch-norm statistic moves.
        with (
            evaluating(self.vae),
            poutine.trace(param_only=True) as capture,
            pyro.validation_enabled(),
            torch.no_grad(),
        ):
            self.loss(x[:2], _first(context, 2), self.settings.final_beta)
        own = {id(parameter) for parameter in self.vae.parameters()}
        nodes: dict[str, Any] = dict(capture.trace.nodes)
        for name, site in nodes.items():
            if site["type"] == "param" and id(site["value"].unconstrained()) not in own:
                raise InputError(
                    f"'{name}' is a pyro.param outside the module, which fit would not train: make it an "
                    "nn.Parameter or a PyroParam of the module, or train with pyro.infer.SVI"
                )
        if self.validation is not None:
            self._measure(self.validation[:2])  # what cannot be validated should be told before the first epoch

    def _epoch(self, epoch: int, steps: int, bar: tqdm[Any]) -> Row:
        settings, started = self.settings, time.perf_counter()
        torch.manual_seed(stream_seed(settings.seed, epoch, NOISE_STREAM))
        watch = _Watch(self, epoch)
        count = 0
        beta = learning_rate = 0.0
        for index, (x, context) in enumerate(self.data.batches(settings.batch_size, seed=settings.seed, epoch=epoch)):
            done = epoch + index / steps
            beta = float(settings.beta(done, settings.epochs))
            learning_rate = float(settings.learning_rate(done, settings.epochs))
            watch.add(self._step(x, context, beta, learning_rate), x, context, beta)
            count += x.shape[0]
            bar.update()
            if index % _LOOK_EVERY == 0 and not bar.disable:
                bar.set_description(f"epoch {epoch + 1}/{settings.epochs}", refresh=False)
                distortion, rate = watch.recent()
                bar.set_postfix(distortion=f"{distortion:.2f}", rate=f"{rate:.2f}", beta=f"{beta:.3g}", refresh=False)
        objective, distortion, rate, norm = watch.finish()
        row: Row = {"epoch": epoch + 1, "beta": beta, "learning_rate": learning_rate, "gradient_norm": norm / steps}
        row |= {"objective": objective / count, "distortion": distortion / count, "rate": rate / count}
        return row | self._validate(epoch) | {"seconds": time.perf_counter() - started}

    def _step(self, x: Tensor, context: Context | None, beta: float, learning_rate: float) -> Tensor:
        """Take one step and return (loss, distortion, rate, gradient norm per datum), shape ``(4,)``."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.loss(x, context, beta)
        terms.loss.backward()
        size = x.shape[0]
        clip = self.settings.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.parameters, float("inf") if clip is None else clip * size)
        stats = torch.stack([terms.loss.detach(), terms.distortion, terms.rate, norm / size])
        # A step that would spoil the weights is not taken; fused Adam decides on the device, without a look from here.
        if self.device.type == "cpu":
            if bool(torch.isfinite(stats).all()):
                self.optimizer.step()
            return stats
        self.optimizer.found_inf = (~torch.isfinite(stats).all()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return stats

    def _validate(self, epoch: int) -> Row:
        if self.validation is None:
            return {}
        cause = None
        try:
            row = self._measure(self.validation)
        except ValueError as error:  # a check that values which are not finite do not pass, or one of something else
            row, cause = {"validation_objective": math.nan}, error
        if all(map(math.isfinite, row.values())):
            return row
        # Raised before these weights are written: the checkpoint before them stays the last.
        args = (self.validation.x, self.validation.context, self.settings.final_beta)
        with evaluating(self.vae):
            if cause is not None and find_nonfinite(self.vae, *args) is None:
                raise cause
            raise TrainingError(f"epoch {epoch + 1}, validation: {describe_nonfinite(self.vae, *args)}") from cause

    @torch.no_grad()
    def _measure(self, data: Dataset) -> Row:
        args = (data.x, *(() if data.context is None else (data.context,)))
        # The same noise after every epoch: curves move with the weights alone.
        measured = bound(self.vae.model, self.vae.guide, *args, num_samples=1, seed=VALIDATION_STREAM)
        objective = measured.objective(self.settings.final_beta).value
        return {
            "validation_objective": self._own_objective(data) if self.has_own_objective else objective,
            "validation_distortion": measured.distortion.value,
            "validation_rate": measured.rate.value,
            "validation_elbo": measured.elbo.value,
        }

    def _own_objective(self, data: Dataset) -> float:
        """Return the mean of an objective that is not the β-bound, at the final β and with the same noise each time."""
        batches = data.batches(self.settings.batch_size, seed=0, epoch=0, shuffle=False)
        with evaluating(self.vae), seeded(VALIDATION_STREAM):
            return sum(float(self.loss(*batch, self.settings.final_beta).loss) for batch in batches) / len(data)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def _record(self, row: Row) -> None:
        self.history.rows.append(row)
        seen = row["distortion"] + self.settings.final_beta * row["rate"]
        score = row.get("validation_objective", row["objective"] if self.has_own_objective else seen)
        # While β is on its way the model of the objective's optimum is still to come: the latest epoch counts.
        final_beta = self.settings.final_beta
        warming = abs(float(self.settings.beta(row["epoch"], self.settings.epochs)) - final_beta) > 1e-9 * final_beta
        better = warming or score < self.best
        self.best = float("inf") if warming else min(score, self.best)
        self.stale = 0 if better else self.stale + 1
        if better and self.settings.early_stopping is not None:
            self.best_weights = {name: value.detach().clone() for name, value in self.vae.state_dict().items()}
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
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
            "best": self.best,
            "stale": self.stale,
            "settings": self.settings.identity(),
            "objective": _name_of(self.loss.objective),
        }

    def _is_over(self) -> bool:
        return self.settings.early_stopping is not None and self.stale >= self.settings.early_stopping

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
            raise InputError(f"{self.output} holds a run already: resume it, or choose another directory")

    def resume(self) -> None:
        """Continue from the last checkpoint of the run directory."""
        if self.output is None:
            raise InputError("'resume' needs 'output', the run directory to continue")
        path = checkpoint_path(self.output, "last")
        state = load_checkpoint(path, self.device)
        for name, value in self.settings.identity().items():
            if state["settings"].get(name) != value:
                raise InputError(f"cannot resume {path}: '{name}' was {state['settings'].get(name)}, got {value}")
        objective = _name_of(self.loss.objective)
        if (before := state.get("objective", objective)) != objective:
            raise InputError(f"cannot resume {path}: 'objective' was {before}, got {objective}")
        validated = any("validation_objective" in row for row in state["history"])
        if validated != (self.validation is not None):
            raise InputError(f"cannot resume {path}: it was trained {'with' if validated else 'without'} 'validation'")
        load_weights(self.vae, state, path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise InputError(f"cannot resume {path}: other parameters of the model were trained") from error
        self.history = History(state["history"])
        self.best, self.stale = state["best"], state["stale"]


class _Watch:
    """Sums of a step's numbers over an epoch, looked at as often as looking is cheap."""

    def __init__(self, trainer: Trainer, epoch: int) -> None:
        self.trainer, self.epoch = trainer, epoch
        self.sums = torch.zeros(4, dtype=torch.double, device=trainer.device)
        self.look_every = 1 if trainer.device.type == "cpu" else _LOOK_EVERY
        self.steps = 0
        self.last: tuple[Tensor, int] | None = None

    def add(self, stats: Tensor, x: Tensor, context: Context | None, beta: float) -> None:
        self.sums += stats
        self.steps += 1
        self.last = (stats, x.shape[0])
        if self.steps % self.look_every == 0 and not bool(torch.isfinite(self.sums).all()):
            where = f"epoch {self.epoch + 1}, step {self.steps}"
            raise TrainingError(f"{where}: {describe_nonfinite(self.trainer.vae, x, context, beta, stats)}")

    def recent(self) -> tuple[float, float]:
        """Return distortion and rate per datum of the last batch."""
        assert self.last is not None
        stats, size = self.last
        return float(stats[1]) / size, float(stats[2]) / size

    def finish(self) -> list[float]:
        """Return the sums of loss, distortion, rate and gradient norm."""
        if not bool(torch.isfinite(self.sums).all()):
            raise TrainingError(f"epoch {self.epoch + 1}: the loss or its gradient stopped being finite")
        return [float(value) for value in self.sums]


def _as_dataset(data: Any, vae: nn.Module) -> Any:
    """Return a tensor as a data set, in which NaN is a missing entry if the model takes it as one."""
    return Dataset(data, missing=getattr(vae, "missing", False)) if isinstance(data, Tensor) else data


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _name_of(objective: Objective) -> str:
    return repr(objective) if isinstance(objective, StepsByTerms) else type(objective).__name__


def _first(context: Context | None, count: int) -> Context | None:
    return None if context is None else Context(*(None if part is None else part[:count] for part in context))
