r"""Chains to the posterior of an inverse problem: NUTS, and HMC of many chains at once.

A method is any callable ``method(problem, y, context, starts, seed)`` that returns :class:`Draws`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.module_modes import evaluating, frozen
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import full_precision
from pyro_bvae.core.seeds import ANNEALING_STREAM, SAMPLE_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.geometry.jacobian import rows_of
from pyro_bvae.evaluation.inversion.model import InverseProblem
from pyro_bvae.evaluation.inversion.scout import opened_problem, path_of, start_vectors
from pyro_bvae.evaluation.marginal.hmc import Path, State, evaluate_path, hmc_step
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.differentiability import check_differentiable
from pyro_bvae.program.program import Program

# Pyro's own diagnostics of a chain, among them its divergences, take no fewer draws.
_LEAST_DRAWS = 4


@dataclass(frozen=True)
class Draws:
    """The draws of a method for N problems.

    Attributes:
        sites: Draws of each site by name, ``(C, K, N, ...)``.
        divergences: How many transitions diverged in each problem, ``(N,)``.
        pareto_k: Tail shape of the importance weights of a fit, ``(N,)``; None for chains. Infinite
            where draws of the prior find mass that the fit does not reach: its own weights have no
            tail that could say so.
        effective: Effective draws behind those that importance weights have picked, ``(N,)``; None
            for all others.
    """

    sites: dict[str, Tensor]
    divergences: Tensor
    pareto_k: Tensor | None = None
    effective: Tensor | None = None


@public
@dataclass(frozen=True)
class NUTSMethod:
    """Pyro's No-U-Turn sampler: chains in turn, each with a seed and a start of its own.

    Attributes:
        num_chains: C.
        num_draws: K of each chain.
        num_warmup: Draws before, in which step size and scales are found.
        target_acceptance: Acceptance that the step size aims at.
        max_tree_depth: Trajectories have at most :math:`2^d` steps.

    Reference: Hoffman and Gelman 2014.
    """

    num_chains: int = 4
    num_draws: int = 500
    num_warmup: int = 300
    target_acceptance: float = 0.8
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        check_counts(self, "num_chains", "num_draws", "num_warmup", "max_tree_depth")
        if self.num_draws < _LEAST_DRAWS:
            raise InputError(f"'num_draws' must be at least {_LEAST_DRAWS}, got {self.num_draws}")
        check_share("target_acceptance", self.target_acceptance)

    def __call__(
        self, problem: InverseProblem, y: Tensor, context: Context | None, starts: Tensor, seed: int
    ) -> Draws:
        """Draw from the posterior, one problem after another."""
        with prepared(problem):
            results = [
                [
                    self._chain(
                        problem,
                        y,
                        context,
                        starts[chain],
                        row,
                        stream_seed(seed, row, chain, SAMPLE_STREAM),
                    )
                    for chain in range(self.num_chains)
                ]
                for row in range(len(y))
            ]
        sites = {
            name: torch.stack(
                [
                    torch.cat([chain[0][name] for chain in rows], 1)
                    for rows in zip(*results, strict=True)
                ]
            )
            for name in results[0][0][0]
        }
        return Draws(sites, torch.tensor([sum(diverged for _, diverged in row) for row in results]))

    def _chain(
        self,
        problem: InverseProblem,
        y: Tensor,
        context: Context | None,
        start: Tensor,
        row: int,
        seed: int,
    ) -> tuple[dict[str, Tensor], int]:
        rows = slice(row, row + 1)
        kernel = NUTS(
            problem.model,
            init_strategy=init_to_value(values={"z": start[rows]}),
            target_accept_prob=self.target_acceptance,
            max_tree_depth=self.max_tree_depth,
            max_plate_nesting=1,
        )
        run = MCMC(kernel, self.num_draws, warmup_steps=self.num_warmup, disable_progbar=True)
        with seeded(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            run.run(y[rows], rows_of(context, rows))
        return run.get_samples(), len(run.diagnostics()["divergences"]["chain 0"])


@public
@dataclass(frozen=True)
class BatchedHMCMethod:
    """Hamiltonian Monte Carlo with trajectories of one length, all chains of all problems at once.

    A draw costs more steps than one of NUTS, and a step of thousands of chains about as much time
    as one of a single
    chain: the method for many problems. Scales are shared by the chains of a problem.

    Attributes:
        num_chains: C of each problem.
        num_draws: K of each chain.
        num_warmup: Draws before, in which step sizes and scales are found.
        leapfrog_steps: Steps of a trajectory.
        target_acceptance: Acceptance that the step sizes aim at.
    """

    num_chains: int = 8
    num_draws: int = 250
    num_warmup: int = 200
    leapfrog_steps: int = 10
    target_acceptance: float = 0.8

    def __post_init__(self) -> None:
        check_counts(self, "num_chains", "num_draws", "num_warmup", "leapfrog_steps")
        check_share("target_acceptance", self.target_acceptance)

    def __call__(
        self, problem: InverseProblem, y: Tensor, context: Context | None, starts: Tensor, seed: int
    ) -> Draws:
        """Draw from the posteriors of all problems."""
        with (
            opened_for(problem, y, context, seed) as (program, coordinates),
            seeded(seed, ANNEALING_STREAM),
        ):
            vectors = start_vectors(program, coordinates, starts)
            path = path_of(program, coordinates)
            state, step = self._warm_up(path, evaluate_path(path, vectors))
            kept, diverged = [], torch.zeros(len(y), dtype=torch.long)
            for _ in range(self.num_draws):
                state, acceptance = self._move(path, state, step)
                kept.append(state.vectors)
                diverged += (acceptance == 0).sum(0).cpu()
            values, _ = coordinates.unflatten(torch.stack(kept, 1).flatten(0, 1))
        shape = (self.num_chains, self.num_draws)
        return Draws({name: value.unflatten(0, shape) for name, value in values.items()}, diverged)

    def _warm_up(self, path: Path, state: State) -> tuple[State, Tensor]:
        """Return where the chains are, and step sizes of each coordinate, ``(N, d)``."""
        log_step = state.vectors.new_full((state.vectors.shape[1],), 0.2).log()
        scale = torch.ones_like(state.vectors[0])
        window: list[Tensor] = []
        for index in range(self.num_warmup):
            state, acceptance = self._move(path, state, log_step.exp().unsqueeze(-1) * scale)
            log_step = log_step + 2 / (10 + index % (self.num_warmup // 2 + 1)) ** 0.6 * (
                acceptance.mean(0) - self.target_acceptance
            )
            if index < self.num_warmup // 2:
                window = [*window[-50:], state.vectors]
            elif index == self.num_warmup // 2 and len(window) > 1:
                # About each chain's own mean: the distance between modes is no scale of either.
                deviation = torch.stack(window).var(0).mean(0).sqrt().clamp(min=1e-6)
                log_step, scale = (
                    log_step.add(scale.log().mean(1) - deviation.log().mean(1)),
                    deviation,
                )
        return state, log_step.exp().unsqueeze(-1) * scale

    def _move(self, path: Path, state: State, step: Tensor) -> tuple[State, Tensor]:
        # Trajectories of one length can come back to where they began: lengths vary.
        jitter = 0.7 + 0.6 * torch.rand((), dtype=step.dtype, device=step.device)
        return hmc_step(
            path, state, torch.ones_like(step[:, 0]), jitter * step, self.leapfrog_steps
        )


@contextmanager
def prepared(problem: InverseProblem) -> Iterator[None]:
    """Run the body with the parts in eval mode, frozen, at full precision, unvalidated."""
    parts = (problem.decoder, problem.prior)
    with (
        evaluating(*parts),
        frozen(*parts),
        private_store(*parts),
        full_precision(),
        pyro.validation_enabled(False),
    ):
        yield


@contextmanager
def opened_for(
    problem: InverseProblem, y: Tensor, context: Context | None, seed: int
) -> Iterator[tuple[Program, Coordinates]]:
    """Open a problem for a method that moves by gradients."""
    with prepared(problem), opened_problem(problem, y, context, seed) as (program, coordinates):
        check_differentiable(program)
        yield program, coordinates


def check_counts(settings: Any, *names: str) -> None:
    """Raise unless each of the named settings is a positive integer."""
    for name in names:
        check_count(name, getattr(settings, name))


def check_share(name: str, value: float) -> None:
    """Raise unless a setting lies between 0 and 1."""
    if not 0 < value < 1:
        raise InputError(f"'{name}' must lie between 0 and 1, got {value}")
