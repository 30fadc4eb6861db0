"""Schedules: a value for each moment of training, for β and for the learning rate.

A schedule is any callable ``schedule(epoch, epochs)``: the fractional number of epochs done and the
number there will be. It has no state, so a resumed run continues it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public


class Schedule(Protocol):
    """A value over the epochs of a training: β, or the learning rate."""

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the value after ``epoch`` of ``epochs`` epochs."""
        ...


@public
@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the value."""
        return self.value


@public
@dataclass(frozen=True)
class LinearWarmup:
    """From ``start`` to ``value`` in a straight line over ``warmup_epochs``, then constant.

    For β this is KL annealing (Bowman et al. 2016). ``fit`` warns of a warm-up that outlives the
    training.
    """

    value: float
    warmup_epochs: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup_epochs > 0:
            raise InputError(f"'warmup_epochs' must be positive, got {self.warmup_epochs}")

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the value at this epoch."""
        return self.start + (self.value - self.start) * min(1.0, epoch / self.warmup_epochs)


@public
@dataclass(frozen=True)
class CosineWarmup(LinearWarmup):
    """From ``start`` to ``value`` by a half cosine over the first ``warmup_epochs``, then constant.

    It leaves ``start`` and reaches ``value`` without a jump in slope. ``fit`` warns of a warm-up
    that outlives the training.

    Attributes:
        value: The last value.
        warmup_epochs: Length of the rise.
        start: The first value.
    """

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the value at this epoch."""
        return _half_cosine(self.start, self.value, min(1.0, epoch / self.warmup_epochs))


@public
@dataclass(frozen=True)
class Cyclical:
    """From 0 to ``value`` in a straight line, then constant, in each cycle (Fu et al. 2019).

    The cycles are of one length and fill the training, which ends at ``value``, however short it
    is.

    Attributes:
        value: The highest value, and the last.
        num_cycles: How many cycles.
        rise: Share of a cycle spent rising.
    """

    value: float
    num_cycles: int = 4
    rise: float = 0.5

    def __post_init__(self) -> None:
        check_count("num_cycles", self.num_cycles)
        if not 0 < self.rise <= 1:
            raise InputError(f"'rise' must lie in (0, 1], got {self.rise}")

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the value at this epoch."""
        if epoch >= epochs:
            return self.value  # the end of the last cycle, and the start of none
        return self.value * min(1.0, epoch * self.num_cycles / epochs % 1.0 / self.rise)


@public
@dataclass(frozen=True)
class OneCycle:
    """Up to ``value`` and down to nearly zero, both by a half cosine (Smith 2018).

    Attributes:
        value: The highest learning rate.
        rise: Share of the training spent rising.
        start_factor: The first value, in units of the highest.
        end_factor: The last value, in units of the highest.
    """

    value: float
    rise: float = 0.3
    start_factor: float = 0.04
    end_factor: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.rise < 1:
            raise InputError(f"'rise' must lie in [0, 1), got {self.rise}")

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the value at this epoch."""
        done = min(1.0, epoch / epochs)
        if done < self.rise:
            return self.value * _half_cosine(self.start_factor, 1.0, done / self.rise)
        return self.value * _half_cosine(1.0, self.end_factor, (done - self.rise) / (1 - self.rise))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def as_schedule(value: float | Schedule) -> Schedule:
    """Return a schedule: numbers are constant.

    Raises:
        InputError: for anything else.
    """
    if callable(value) and not isinstance(value, type):
        return value
    if not isinstance(value, Real):
        from torch import Tensor

        from pyro_bvae.core.inputs.data import shown

        if isinstance(value, Tensor) and value.numel() == 1:
            return Constant(value.item())
        raise InputError(f"a schedule must be a number or a function, got {shown(value)}")
    return Constant(float(value))
