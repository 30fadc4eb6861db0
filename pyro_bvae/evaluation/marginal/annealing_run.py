"""The chains of annealed importance sampling for one block of data, and their weights."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import seeded
from pyro_bvae.evaluation.marginal import chains
from pyro_bvae.evaluation.marginal.averages import Average, effective_sample_size
from pyro_bvae.evaluation.marginal.hmc import evaluate_path, hmc_step
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings, find_plan
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Function, Program

Start = Literal["prior", "guide"]

# Moves by which chains part from the exact draw that they share, which each of them remains.
_DECORRELATE = 20


class ChainWeights(NamedTuple):
    """The bound of one block of data."""

    average: Average
    effective_sample_size: Tensor
    reliable: Tensor
    cost: int


class AnnealingRun:
    """One plan for a block of data, and the chains that follow it, from a guide of that block."""

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        start: Start,
        settings: AnnealingSettings,
        seed: int,
        bar: ProgressBar,
        guide: Function | None = None,
    ) -> None:
        self.program, self.args, self.start = program, args, start
        self.guide = guide or program.guide
        self.settings, self.seed, self.bar = settings, seed, bar
        self.coordinates = Coordinates(program, args)
        bar.set_postfix_str("pilot run")
        with seeded(seed, 0):
            self.plan = find_plan(self.path, self._draw_start(settings.pilot_chains), settings)
        bar.set_postfix_str("")

    def path(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two parts of the path's log density at vectors ``(C, B, d)``."""
        values, log_jacobian = self.coordinates.unflatten(vectors)
        latent, observed = self.program.log_joint(values, self.args)
        if self.start == "prior":
            return latent + log_jacobian, observed
        guide = self.program.log_guide(values, self.args, self.guide)
        return guide + log_jacobian, latent + observed - guide

    def _draw_start(self, count: int) -> Tensor:
        function = self.program.model if self.start == "prior" else self.guide
        with torch.no_grad():
            return self.coordinates.flatten(self.program.draw(count, self.args, function).values)

    def forward(self) -> ChainWeights:
        """Anneal from the start to the posterior: a lower bound."""
        plan, settings = self.plan, self.settings
        with seeded(self.seed, 1):
            state = evaluate_path(self.path, self._draw_start(settings.num_chains))
            log_weights = torch.zeros_like(state.ratio, dtype=torch.double)
            accepted = torch.zeros_like(log_weights[0])
            for index, step in enumerate(plan.steps):
                log_weights += self._increment(index, state.ratio)
                if index + 1 < len(plan.steps):  # no weight depends on where the last move would go
                    temperature = plan.temperatures[index + 1]
                    state, acceptance = hmc_step(
                        self.path, state, temperature, step, settings.leapfrog_steps
                    )
                    accepted += acceptance.mean(0)
                self.bar.update(state.vectors.shape[1])
        moves = len(plan.steps) - 1
        return self._measure(
            log_weights, accepted / moves if moves else accepted + 1, 1.0, plan.cost
        )

    def backward(self, latents: LatentValues) -> ChainWeights:
        """Anneal from exact draws of the posterior, one a datum, to the start: an upper bound."""
        plan, settings = self.plan, self.settings
        exact = self.coordinates.flatten(
            {name: value.unsqueeze(0) for name, value in latents.items()}
        )
        with seeded(self.seed, 2):
            state = evaluate_path(self.path, exact.expand(settings.num_chains, -1, -1))
            log_weights = torch.zeros_like(state.ratio, dtype=torch.double)
            accepted = torch.zeros_like(log_weights[0])
            for _ in range(_DECORRELATE):
                state, _ = hmc_step(
                    self.path, state, plan.temperatures[-1], plan.steps[-1], settings.leapfrog_steps
                )
            for index in reversed(range(len(plan.steps))):
                temperature = plan.temperatures[index + 1]
                state, acceptance = hmc_step(
                    self.path, state, temperature, plan.steps[index], settings.leapfrog_steps
                )
                accepted += acceptance.mean(0)
                log_weights -= self._increment(index, state.ratio)
                self.bar.update(state.vectors.shape[1])
        apart = _DECORRELATE * log_weights.numel() * (settings.leapfrog_steps + 1)
        return self._measure(log_weights, accepted / len(plan.steps), -1.0, apart)

    def _increment(self, index: int, ratio: Tensor) -> Tensor:
        width = (self.plan.temperatures[index + 1] - self.plan.temperatures[index]).double()
        # Where the temperature stands still, a density of zero is not raised to any power.
        return torch.where(width > 0, width * ratio.double(), 0.0)

    def _measure(
        self, log_weights: Tensor, acceptance: Tensor, sign: float, beside: int
    ) -> ChainWeights:
        lost = torch.isnan(log_weights).any(0)
        if bool(lost.any()):
            raise InputError(
                f"the log weights of datum {int(lost.nonzero()[0])} of a block of {len(lost)} are"
                " NaN"
            )
        average = chains.average(log_weights)
        reliable = chains.trusted(log_weights, len(self.plan.steps), acceptance, average.pareto_k)
        bias = torch.where(
            reliable, average.bias, torch.maximum(average.bias, chains.shortfall(log_weights))
        )
        rows = log_weights.numel() * len(self.plan.steps) * (self.settings.leapfrog_steps + 1)
        # The log weight of a chain is a sum of as many increments as there are steps, each rounded.
        rounding = self.program.rounding * len(self.plan.steps) ** 0.5 * average.value.abs()
        return ChainWeights(
            average._replace(
                value=sign * average.value,
                error=torch.hypot(average.error, rounding),
                bias=sign * bias,
            ),
            effective_sample_size(log_weights),
            reliable,
            rows + beside,
        )
