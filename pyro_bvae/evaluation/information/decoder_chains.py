r"""Chains that walk one path through all β: log normalisers and distortions of a trained decoder.

The densities are :math:`f_t(z) \propto p(z)\, p(x|z)^t` with :math:`t = 1 / \beta`, and the walk
passes each wanted t exactly. A weight on the way, up to t, has the mean :math:`Z_t`, so its log
bounds :math:`\log Z_t` from below; the walk in reverse, from the latents that made simulated data,
bounds it from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.seeds import seeded
from pyro_bvae.evaluation.marginal.annealing_run import AnnealingRun
from pyro_bvae.evaluation.marginal.hmc import State, evaluate_path, hmc_step
from pyro_bvae.program.densities import LatentValues

# Moves by which reverse chains part from the draw that they share, and moves at each stop, over
# which the distortion is averaged.
_DECORRELATE, _STAY = 20, 20


class Stops(NamedTuple):
    r"""The chains of a block of data where they pass the wanted temperatures.

    Attributes:
        log_weights: Log weights of the way so far, ``(J, C, B)``.
        distortions: :math:`-\log p(x|z)` there, the mean over a few moves, ``(J, C, B)``.
        whole: Log weights of the whole way, ``(C, B)``.
    """

    log_weights: Tensor
    distortions: Tensor
    whole: Tensor


class CurveRun(AnnealingRun):
    """One plan for a block of data that passes each wanted temperature, and its chains.

    Args:
        temperatures: The wanted t, rising, positive.
        *args: As of :class:`AnnealingRun`.
    """

    def __init__(self, temperatures: Sequence[float], *args: Any) -> None:
        self.longest = float(max(*temperatures, 1.0))
        super().__init__(*args)
        stops = sorted({*temperatures, 1.0})
        self.rungs, self.moves, places = with_stops(
            self.plan.temperatures, self.plan.steps, [t / self.longest for t in stops]
        )
        self.exact = places[stops.index(1.0)]
        self.stops = [places[stops.index(t)] for t in temperatures]

    def path(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return both parts of the path, stretched so that its end, 1, is the largest t."""
        base, observed = super().path(vectors)
        return base, self.longest * observed

    def upward(self) -> Stops:
        """Walk from the prior: weights bound each normaliser from below."""
        with seeded(self.seed, 1), torch.no_grad():
            drawn = self.program.draw_prior(self.settings.num_chains, self.args).values
            state = evaluate_path(self.path, self.coordinates.flatten(drawn))
            zeros = torch.zeros_like(state.ratio, dtype=torch.double)
            return self._walk(state, range(len(self.rungs)), zeros)

    def downward(self, latents: LatentValues) -> Stops:
        """Walk from the latents of simulated data, at t = 1, to the top and then to the prior."""
        with seeded(self.seed, 2), torch.no_grad():
            exact = self.coordinates.flatten(
                {name: value.unsqueeze(0) for name, value in latents.items()}
            )
            state = evaluate_path(self.path, exact.expand(self.settings.num_chains, -1, -1))
            for _ in range(_DECORRELATE):
                state = self._moved(state, self.exact)
            log_weights = torch.zeros_like(state.ratio, dtype=torch.double)
            top = len(self.rungs) - 1
            for index in range(self.exact + 1, top + 1):
                width = self.rungs[index] - self.rungs[index - 1]
                log_weights = log_weights + width.double() * state.ratio.double()
                state = self._moved(state, index)
            return self._walk(state, range(top, -1, -1), log_weights)

    def _moved(self, state: State, index: int) -> State:
        moved, _ = hmc_step(
            self.path, state, self.rungs[index], self.moves[index - 1], self.settings.leapfrog_steps
        )
        return moved

    def _walk(self, state: State, rungs: range, log_weights: Tensor) -> Stops:
        """Walk along the rungs, weigh, move, and note the chains at each stop."""
        weights: dict[int, Tensor] = {}
        distortions: dict[int, Tensor] = {}
        before = rungs[0]
        for index in rungs:
            width = (self.rungs[index] - self.rungs[before]).double()
            log_weights = log_weights + torch.where(width != 0, width * state.ratio.double(), 0.0)
            if index:  # exact draws of the prior need no move
                state = self._moved(state, index)
            if index in self.stops:
                weights[index] = log_weights
                total = state.ratio.double()
                for _ in range(_STAY):
                    state = self._moved(state, index)
                    total = total + state.ratio.double()
                distortions[index] = -total / (_STAY + 1) / self.longest
            before = index
            self.bar.update()
        at_stops = torch.stack([weights[stop] for stop in self.stops])
        return Stops(at_stops, torch.stack([distortions[stop] for stop in self.stops]), log_weights)


def with_stops(
    temperatures: Tensor, steps: Tensor, stops: Sequence[float]
) -> tuple[Tensor, Tensor, list[int]]:
    """Let a plan pass given temperatures, at the same place for all data.

    Between two of them each datum keeps the temperatures of its own plan, as many as the data have
    on average.

    Args:
        temperatures: Of the plan, from 0 to 1, ``(T + 1, B)``.
        steps: Its step sizes, ``(T, B, d)``.
        stops: Rising, the last of them 1.

    Returns:
        Temperatures ``(S + 1, B)``, step sizes ``(S, B, d)``, and the place of each stop.
    """
    rows = temperatures.T.contiguous()
    wanted = temperatures.new_tensor(stops).expand(len(rows), -1).contiguous()
    after = torch.searchsorted(rows, wanted).clamp(1, len(temperatures) - 1)
    low, high = rows.gather(1, after - 1), rows.gather(1, after)
    ends = (after - 1 + (wanted - low) / (high - low).clamp(min=1e-30)).T  # (J, B)
    rungs, places, begin = [temperatures[:1]], [], torch.zeros_like(ends[0])
    positions = []
    for stop, end in zip(stops, ends, strict=True):
        count = max(1, round(float((end - begin).mean())))
        shares = torch.linspace(0, 1, count + 1, dtype=ends.dtype, device=ends.device)[1:, None]
        here = begin + shares * (end - begin)
        lower = here.floor().long().clamp(0, len(temperatures) - 2)
        part = here - lower
        between = (1 - part) * temperatures.gather(0, lower) + part * temperatures.gather(
            0, lower + 1
        )
        between[-1] = stop
        rungs.append(between)
        positions.append(lower)
        places.append(sum(len(rung) for rung in rungs) - 1)
        begin = end
    sources = torch.cat(positions).clamp(max=len(steps) - 1)
    moves = steps.gather(0, sources[..., None].expand(-1, -1, steps.shape[-1]))
    return torch.cat(rungs), moves, places
