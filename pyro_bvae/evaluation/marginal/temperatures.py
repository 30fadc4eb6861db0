r"""The plan of an annealing run: temperatures and step sizes of a short pilot run.

A plan that adapts to the chains it moves is no valid annealing, so a few other chains walk the path
first. They take steps of equal thermodynamic length, :math:`dt \propto 1 /
\operatorname{std}_{f_t}(b)`, which puts temperatures where the density changes most (Gelman and
Meng 1998), and tune a step size for each datum along the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.marginal.hmc import Path, evaluate_path, hmc_step


@public
@dataclass(frozen=True)
class AnnealingSettings:
    """How annealed importance sampling runs.

    Attributes:
        num_temperatures: Steps from the start (prior or guide) to the posterior. Few of them leave
            log weights that spread too much to be trusted; twice as many have about half the
            variance.
        num_chains: Chains of each datum; ten or fewer say too little of their own spread to be
            trusted.
        leapfrog_steps: Leapfrog steps of each move, one move for each temperature.
        acceptance: Share of moves to be accepted, to which the pilot run adapts the step sizes.
        pilot_chains: Chains of the pilot run.
        pilot_length: Thermodynamic length of its steps; shorter ones follow the path more closely.
        pilot_temperatures: Most steps that it may take.
    """

    num_temperatures: int = 1000
    num_chains: int = 32
    leapfrog_steps: int = 5
    acceptance: float = 0.7
    pilot_chains: int = 16
    pilot_length: float = 0.5
    pilot_temperatures: int = 400

    def __post_init__(self) -> None:
        for name in (
            "num_temperatures",
            "num_chains",
            "leapfrog_steps",
            "pilot_chains",
            "pilot_temperatures",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"'{name}' must be a positive integer, got {value!r}")
        if self.pilot_chains < 2:
            raise InputError(
                f"'pilot_chains' must be at least 2 to have a spread, got {self.pilot_chains}"
            )
        if not 0 < self.acceptance < 1:
            raise InputError(f"'acceptance' must lie between 0 and 1, got {self.acceptance}")
        if not self.pilot_length > 0:
            raise InputError(f"'pilot_length' must be positive, got {self.pilot_length}")


class Plan(NamedTuple):
    """A frozen annealing run of T steps over B data.

    Attributes:
        temperatures: From 0 to 1, ``(T + 1, B)``.
        steps: Step size of the move at each temperature but the first, ``(T, B, d)``.
        cost: Evaluations of the path that finding it took.
    """

    temperatures: Tensor
    steps: Tensor
    cost: int


# Moves at each temperature of the pilot, and how fast its step sizes follow the acceptance.
PILOT_MOVES, _GAIN = 2, 0.15
# Every move's step size is multiplied by a factor drawn between these: trajectories of one length
# can come back to where they started, over and over.
_JITTER = (0.5, 1.5)
# Neighbours on the path whose scales and step sizes are averaged.
_WINDOW = 5


def find_plan(path: Path, start: Tensor, settings: AnnealingSettings) -> Plan:
    """Walk the path with a few chains and return the plan of a run.

    Args:
        path: The path.
        start: Draws from its beginning, ``(C, B, d)`` with C at least ``settings.pilot_chains``.
        settings: How to run.
    """
    state = evaluate_path(path, start)
    num_chains, num_data, size = start.shape
    log_step = start.new_full((num_data,), 0.5).log() - 0.25 * torch.log(torch.tensor(float(size)))
    temperature = torch.zeros_like(log_step)
    temperatures, log_steps, variances = [temperature], [log_step], [_variance(state.vectors)]
    arrived = torch.zeros_like(temperature)  # index of the step that reached the end
    while bool((temperature < 1).any()) and len(temperatures) <= settings.pilot_temperatures:
        temperature = _next_temperature(temperature, state.ratio, settings, len(temperatures))
        arrived = arrived + (temperatures[-1] < 1)
        for _ in range(PILOT_MOVES):
            step = _jitter(log_step.exp()[None])[0].unsqueeze(-1) * variances[-1].sqrt()
            state, acceptance = hmc_step(path, state, temperature, step, settings.leapfrog_steps)
            log_step = log_step + _GAIN * (acceptance.mean(0) - settings.acceptance)
        temperatures.append(temperature)
        log_steps.append(log_step)
        variances.append(0.7 * variances[-1] + 0.3 * _variance(state.vectors))
    scales = _averaged(torch.stack(variances)).sqrt()  # (P, d)
    positions = torch.linspace(
        0, 1, settings.num_temperatures + 1, dtype=start.dtype, device=start.device
    )
    positions = positions.unsqueeze(-1) * arrived  # (T + 1, B), in steps of the pilot
    steps = _jitter(_interpolate(_averaged(torch.stack(log_steps)), positions[1:]).exp())
    whole = positions[1:].round().long().clamp(max=len(scales) - 1)
    planned = _interpolate(torch.stack(temperatures), positions)
    planned[0], planned[-1] = 0.0, 1.0
    cost = (
        num_chains
        * num_data
        * (len(temperatures) - 1)
        * PILOT_MOVES
        * (settings.leapfrog_steps + 1)
    )
    return Plan(planned, steps.unsqueeze(-1) * scales[whole], cost)


def _jitter(steps: Tensor) -> Tensor:
    """Return step sizes ``(T, B)`` times one factor a row, drawn without a look at the chains."""
    low, high = _JITTER
    return steps * (
        low + (high - low) * torch.rand(len(steps), 1, dtype=steps.dtype, device=steps.device)
    )


def _next_temperature(
    temperature: Tensor, ratio: Tensor, settings: AnnealingSettings, done: int
) -> Tensor:
    spread = torch.nan_to_num(ratio.std(0), nan=torch.inf).clamp(min=1e-12)
    # With its steps nearly used up the pilot hurries to the end, and the plan is coarser there.
    hurry = (1 - temperature) / max(settings.pilot_temperatures - done, 1)
    return (temperature + torch.maximum(settings.pilot_length / spread, hurry)).clamp(max=1)


def _variance(vectors: Tensor) -> Tensor:
    """Return the variance of each coordinate over chains, averaged over data, shape ``(d,)``."""
    return vectors.var(0).mean(0).clamp(min=1e-12)


def _averaged(rows: Tensor) -> Tensor:
    """Return a moving average along the path, shape as given."""
    kernel = min(_WINDOW, len(rows))
    padded = torch.cat(
        [rows[:1].expand(kernel // 2, -1), rows, rows[-1:].expand((kernel - 1) // 2, -1)]
    )
    return padded.unfold(0, kernel, 1).mean(-1)


def _interpolate(rows: Tensor, positions: Tensor) -> Tensor:
    """Return ``(P, B)`` values at positions ``(T, B)`` between rows, linearly."""
    low = positions.floor().long().clamp(max=len(rows) - 1)
    high = (low + 1).clamp(max=len(rows) - 1)
    part = positions - low
    return (1 - part) * rows.gather(0, low) + part * rows.gather(0, high)
