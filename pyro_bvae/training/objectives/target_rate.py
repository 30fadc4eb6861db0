"""A rate to hold instead of a β to choose: β follows from the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public

# How far log β may go from 0, and how fast the rate that it is steered by forgets.
_FARTHEST, _KEPT = math.log(1e4), 0.9


@public
@dataclass(frozen=True)
class TargetRate:
    r"""The β at which the rate is so many nats, found in training, as ``beta`` of ``fit``.

    .. math::
        \log \beta_t = I_t + k_p e_t, \qquad I_{t+1} = I_t + k_i e_t, \qquad
        e_t = \operatorname{clip}(\bar R_t / R^* - 1, -1, 1),

    a proportional and integral control of the moving average :math:`\bar R` of the rates of the
    batches (Shao et al. 2020), of the logarithm of β as of a Lagrange multiplier (Rezende and Viola
    2018). β is fixed in a step, so each step is that of the β-objective. In the last part of the
    training β stays at :math:`e^I`, so that the weights reach the optimum of one β, the last in
    ``metrics.csv``; ``best.pt`` is an epoch of that part.

    Attributes:
        nats: The rate to reach, positive, in nats per datum.
        start: The first β, positive.
        proportional: :math:`k_p`, at least 0.
        integral: :math:`k_i` a step, positive. A small one is slow, a large one swings.
        hold: Share of the training, at its end, in which β stays.
    """

    nats: float
    start: float = 1.0
    proportional: float = 0.3
    integral: float = 1e-2
    hold: float = 0.2

    def __post_init__(self) -> None:
        for name in ("nats", "start", "integral"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"'{name}' must be positive and finite, got {value}")
        if not (math.isfinite(self.proportional) and self.proportional >= 0):
            raise InputError(
                f"'proportional' must be non-negative and finite, got {self.proportional}"
            )
        if not 0 <= self.hold < 1:
            raise InputError(f"'hold' must lie in [0, 1), got {self.hold}")

    def __call__(self, epoch: float, epochs: int) -> float:
        """Return the first β."""
        return self.start

    def controller(self, device: torch.device | str = "cpu") -> RateController:
        """Return the state of a run."""
        return RateController(self, device)


class RateController:
    """The state of a controlled β: a few numbers on the device, part of the checkpoint.

    Args:
        target: The rate to reach, and the gains.
        device: Where the rates are.
    """

    def __init__(self, target: TargetRate, device: torch.device | str = "cpu") -> None:
        self.target = target
        # The integral, the moving average of the rate, and its weight.
        self._state = torch.tensor(
            [math.log(target.start), 0.0, 0.0], dtype=torch.double, device=device
        )

    def holds(self, done: float, epochs: int) -> bool:
        """Whether β stays as it is after ``done`` of so many epochs."""
        return done >= (1 - self.target.hold) * epochs

    def beta(self, done: float, epochs: int) -> Tensor:
        """Return the β after ``done`` of so many epochs, a scalar."""
        log_beta, _, weight = self._state
        if not self.holds(done, epochs):
            log_beta = log_beta + self.target.proportional * self._error() * (weight > 0)
        return log_beta.clamp(-_FARTHEST, _FARTHEST).exp()

    def update(self, rate: Tensor) -> None:
        """Update the state by the rate of a step, nats per datum, shape ``()``."""
        kept = torch.tensor([1.0, _KEPT, _KEPT], dtype=torch.double, device=self._state.device)
        rate = rate.detach().to(self._state)
        self._state = self._state * kept + (1 - kept) * torch.stack(
            [rate, rate, torch.ones_like(rate)]
        )
        integral = (self._state[:1] + self.target.integral * self._error()).clamp(
            -_FARTHEST, _FARTHEST
        )
        self._state = torch.cat([integral, self._state[1:]])

    def _error(self) -> Tensor:
        _, total, weight = self._state
        return (total / weight.clamp(min=1e-9) / self.target.nats - 1).clamp(-1, 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {"state": self._state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self._state = state["state"].to(self._state)
