"""The settings of a fit, checked."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, is_dataclass
from numbers import Real
from typing import Annotated, Any

from pyro_bvae.core.errors import InputError, check_beta, unknown_name
from pyro_bvae.core.inputs.bounds import Bounds, check_options
from pyro_bvae.core.inputs.calls import called
from pyro_bvae.training.schedules import Schedule

Epochs = Annotated[int, Bounds(1, 10_000_000)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
Beta = Annotated[float, Bounds(0, 1e20)]

# Epochs at whose start the schedules of a long training are looked at before it begins.
_LOOKED_AT = 1000


@dataclass(frozen=True)
class FitOptions:
    """The options that :func:`~pyro_bvae.fit`, its steps, and a configuration have in common."""

    epochs: Epochs = 30
    """Passes over the training data."""
    batch_size: Annotated[int, Bounds(1, 1_000_000_000)] = 128
    """Data in a step."""
    gradient_clip: Annotated[float | None, Bounds(0, above=True)] = 200.0
    """Upper limit on the global norm of the gradient per datum; None for no limit."""
    early_stopping: Annotated[int | None, Bounds(1, 1_000_000_000)] = None
    """Stop after so many epochs without a better validation objective; None for never."""
    seed: Seed = 0
    """Seed of weights, data order, noise and random splits."""
    precision: str = "float32"
    """Number type of the networks while training: float32 or bf16."""


@dataclass(frozen=True)
class Settings(FitOptions):
    """The settings of a training run besides model and data; a resumed run must agree on them."""

    beta: Schedule = field(kw_only=True)
    learning_rate: Schedule = field(kw_only=True)

    def __post_init__(self) -> None:
        from pyro_bvae.core.precision import PRECISIONS

        check_options(self)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for epoch in (*range(0, self.epochs, -(-self.epochs // _LOOKED_AT)), self.epochs):
            self.check_schedules(epoch)

    def check_schedules(self, epoch: int) -> None:
        """Raise unless β and learning rate after so many epochs are finite and not negative.

        Raises:
            InputError: with the schedule and its value.
        """
        check_beta(called("beta", self.beta, float(epoch), self.epochs))
        rate = called("learning_rate", self.learning_rate, float(epoch), self.epochs)
        number = rate.item() if hasattr(rate, "item") else rate
        if not (isinstance(number, Real) and math.isfinite(number) and float(number) >= 0):
            got = getattr(self.learning_rate, "value", rate)
            raise InputError(f"'learning_rate' must be non-negative and finite, got {got}")

    @property
    def final_beta(self) -> float:
        """The β of the end of training, at which validation is measured."""
        return float(self.beta(float(self.epochs), self.epochs))

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run shares with its checkpoint."""
        schedules = {
            name: repr(schedule)
            if is_dataclass(schedule)
            else getattr(schedule, "__qualname__", type(schedule).__name__)
            for name, schedule in (("beta", self.beta), ("learning_rate", self.learning_rate))
        }
        names = ("batch_size", "gradient_clip", "seed", "precision")
        return schedules | {name: getattr(self, name) for name in names}

    def warn_of_unfinished_warmup(self) -> None:
        """Warn if β is still on its way when training ends, or has only just arrived."""
        target = getattr(self.beta, "value", self.final_beta)
        advice = f"train for more than {self.epochs} epochs or warm up in fewer"
        if abs(self.final_beta - target) > 1e-9 * max(1.0, abs(target)):
            seen = "outlives the training:"
            seen += f" it ends at β = {self.final_beta:.4g}, not at {target:.4g}"
        elif getattr(self.beta, "warmup_epochs", 0) >= self.epochs:
            seen = f"is as long as the training: no step is taken at β = {target:.4g}"
        else:
            return
        warnings.warn(f"the warm-up of β {seen}; {advice}", stacklevel=4)

    def warn_of_early_stopping(self, validation: Any) -> None:
        """Warn if early stopping has no validation data, and so cannot see overfitting."""
        if self.early_stopping is not None and validation is None:
            warnings.warn(
                "early stopping watches the training objective, since there are no validation data",
                stacklevel=4,
            )
