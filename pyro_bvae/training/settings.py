"""The settings of a fit, checked."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from pyro_bvae.core.errors import InputError, check_beta, check_count, unknown_name
from pyro_bvae.training.schedules import Schedule


@dataclass(frozen=True)
class FitOptions:
    """The options that :func:`~pyro_bvae.fit`, its steps, and a configuration have in common."""

    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 128
    """Data in a step."""
    gradient_clip: float | None = 200.0
    """Upper limit on the global norm of the gradient per datum; None for no limit."""
    early_stopping: int | None = None
    """Stop after so many epochs without a better validation objective; None for never."""
    seed: int = 0
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

        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("gradient_clip", "early_stopping"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"'{name}' must be positive or None, got {value!r}")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"'seed' must be a non-negative integer, got {self.seed!r}")
        for epoch in range(self.epochs + 1):
            check_beta(self.beta(float(epoch), self.epochs))
            rate = self.learning_rate(float(epoch), self.epochs)
            if not (math.isfinite(rate) and rate >= 0):
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
