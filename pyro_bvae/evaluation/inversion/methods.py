r"""Ways to the posterior of an inverse problem: NUTS, Hamiltonian Monte Carlo of many chains at once, and a fit.

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

from pyro_bvae.context import Context
from pyro_bvae.errors import InputError, check_count
from pyro_bvae.evaluation.coordinates import Coordinates
from pyro_bvae.evaluation.geometry import rows_of
from pyro_bvae.evaluation.gradients import check_differentiable
from pyro_bvae.evaluation.hamiltonian import Path, State, evaluate_path, move
from pyro_bvae.evaluation.inversion.model import InverseProblem
from pyro_bvae.evaluation.program import Program, program
from pyro_bvae.evaluation.psis import pareto_k
from pyro_bvae.modules import evaluating, frozen
from pyro_bvae.precision import full_precision
from pyro_bvae.randomness import ANNEALING_STREAM, REFIT_STREAM, SAMPLE_STREAM, seeded, stream_seed
from pyro_bvae.store import private_store

# Pyro's own diagnostics of a chain, among them its divergences, take no fewer draws.
_LEAST_DRAWS = 4


@dataclass(frozen=True)
class Draws:
    """What a method found of N problems.

    Attributes:
        sites: Draws of each site by name, ``(C, K, N, ...)``.
        divergences: How many transitions diverged in each problem, ``(N,)``.
        pareto_k: Tail shape of the importance weights of a fit, ``(N,)``; None for chains.
    """

    sites: dict[str, Tensor]
    divergences: Tensor
    pareto_k: Tensor | None = None


@dataclass(frozen=True)
class NUTSMethod:
    """The No-U-Turn sampler, Pyro's own: chains one after another, each with a seed and a start of its own.

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
        _check_counts(self, "num_chains", "num_draws", "num_warmup", "max_tree_depth")
        if self.num_draws < _LEAST_DRAWS:
            raise InputError(f"'num_draws' must be at least {_LEAST_DRAWS}, got {self.num_draws}")
        _check_share("target_acceptance", self.target_acceptance)

    def __call__(self, problem: InverseProblem, y: Tensor, context: Context | None, starts: Tensor, seed: int) -> Draws:
        """Draw from the posterior, one problem after another."""
        with prepared(problem):
            found = [
                [self._chain(problem, y, context, starts[chain], row, stream_seed(seed, row, chain, SAMPLE_STREAM))
                 for chain in range(self.num_chains)]
                for row in range(len(y))
            ]  # fmt: skip
        sites = {
            name: torch.stack([torch.cat([chain[0][name] for chain in rows], 1) for rows in zip(*found, strict=True)])
            for name in found[0][0][0]
        }
        return Draws(sites, torch.tensor([sum(diverged for _, diverged in row) for row in found]))

    def _chain(
        self, problem: InverseProblem, y: Tensor, context: Context | None, start: Tensor, row: int, seed: int
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


@dataclass(frozen=True)
class BatchedHMCMethod:
    """Hamiltonian Monte Carlo with trajectories of one length, all chains of all problems at once.

    A draw costs more steps than one of NUTS, and a step of thousands of chains about as much time as one of a single
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
        _check_counts(self, "num_chains", "num_draws", "num_warmup", "leapfrog_steps")
        _check_share("target_acceptance", self.target_acceptance)

    def __call__(self, problem: InverseProblem, y: Tensor, context: Context | None, starts: Tensor, seed: int) -> Draws:
        """Draw from the posteriors of all problems."""
        with _opened(problem, y, context, seed) as (opened, coordinates), seeded(seed, ANNEALING_STREAM):
            vectors = _start_vectors(opened, coordinates, starts)
            path = _path_of(opened, coordinates)
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
        """Return where the chains are, and step sizes of each problem and coordinate, ``(N, d)``."""
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
            elif index == self.num_warmup // 2 and window:
                deviation = torch.cat(window).std(0).clamp(min=1e-6)
                log_step, scale = log_step.add(scale.log().mean(1) - deviation.log().mean(1)), deviation
        return state, log_step.exp().unsqueeze(-1) * scale

    def _move(self, path: Path, state: State, step: Tensor) -> tuple[State, Tensor]:
        # Trajectories of one length can come back to where they began: lengths vary.
        jitter = 0.7 + 0.6 * torch.rand((), dtype=step.dtype, device=step.device)
        return move(path, state, torch.ones_like(step[:, 0]), jitter * step, self.leapfrog_steps)


@dataclass(frozen=True)
class VariationalMethod:
    """A normal fitted to the posterior in unconstrained coordinates, all latents correlated: fast, and one mode only.

    Draws come from the fit. The Pareto k of their importance weights says whether it can be trusted: below 0.7 (Yao et
    al. 2018; Vehtari et al. 2024).

    Attributes:
        num_draws: K.
        num_steps: Steps of Adam, at a step size that falls to zero.
        num_particles: Draws behind each gradient.
        learning_rate: The first step size.
    """

    num_draws: int = 1000
    num_steps: int = 500
    num_particles: int = 32
    learning_rate: float = 0.05
    num_chains: int = 1

    def __post_init__(self) -> None:
        _check_counts(self, "num_draws", "num_steps", "num_particles")
        if self.num_chains != 1:
            raise InputError(f"'num_chains' must be 1: a fit has no chains, got {self.num_chains}")
        if not self.learning_rate > 0:
            raise InputError(f"'learning_rate' must be positive, got {self.learning_rate}")

    def __call__(self, problem: InverseProblem, y: Tensor, context: Context | None, starts: Tensor, seed: int) -> Draws:
        """Fit all problems at once, and draw from the fits."""
        with _opened(problem, y, context, seed) as (opened, coordinates), seeded(seed, REFIT_STREAM):
            path = _path_of(opened, coordinates)
            fitted = self._fit(path, _start_vectors(opened, coordinates, starts)[0])
            with torch.no_grad():
                vectors = fitted.sample(torch.Size([self.num_draws]))
                log_weights = sum(path(vectors)) - fitted.log_prob(vectors)
                values, _ = coordinates.unflatten(vectors)
        sites = {name: value.unsqueeze(0) for name, value in values.items()}
        return Draws(sites, torch.zeros(len(y), dtype=torch.long), pareto_k(log_weights))

    def _fit(self, path: Path, start: Tensor) -> Any:
        """Return the normals that maximise the bound of each problem, batch shape ``(N,)``."""
        size = start.shape[1]
        loc, lower = start.clone().requires_grad_(), start.new_zeros(len(start), size, size).requires_grad_()
        log_scale = start.new_full(start.shape, -1.0).requires_grad_()
        parameters = [loc, lower, log_scale]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for _ in range(self.num_steps):
            normal = _normal(loc, lower, log_scale)
            latent, observed = path(normal.rsample(torch.Size([self.num_particles])))
            bound = (latent + observed).mean(0) + normal.entropy()
            gradients = torch.autograd.grad(-bound.sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.nan_to_num(gradient)
            optimizer.step()
            schedule.step()
        return _normal(loc.detach(), lower.detach(), log_scale.detach())


def _normal(loc: Tensor, lower: Tensor, log_scale: Tensor) -> torch.distributions.MultivariateNormal:
    factor = lower.tril(-1) + torch.diag_embed(log_scale.exp())
    return torch.distributions.MultivariateNormal(loc, scale_tril=factor, validate_args=False)


@contextmanager
def prepared(problem: InverseProblem) -> Iterator[None]:
    """Run the body with the parts as they are looked at: in eval mode, frozen, at full precision, unvalidated."""
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
def _opened(
    problem: InverseProblem, y: Tensor, context: Context | None, seed: int
) -> Iterator[tuple[Program, Coordinates]]:
    args = (y,) if context is None else (y, context)
    with prepared(problem), program(problem.model, problem.start, args, seed=seed) as opened:
        check_differentiable(opened)
        yield opened, Coordinates(opened, args)


def _path_of(opened: Program, coordinates: Coordinates) -> Path:
    def path(vectors: Tensor) -> tuple[Tensor, Tensor]:
        values, log_jacobian = coordinates.unflatten(vectors)
        latent, observed = opened.log_joint(values, opened.args)
        return latent + log_jacobian, observed

    return path


@torch.no_grad()
def _start_vectors(opened: Program, coordinates: Coordinates, starts: Tensor) -> Tensor:
    """Return where the chains start, ``(C, N, d)``: z where it is told, the rest from the prior."""
    values = opened.draw(len(starts), opened.args).values
    return coordinates.flatten({**values, "z": starts})


def _check_counts(settings: Any, *names: str) -> None:
    for name in names:
        check_count(name, getattr(settings, name))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"'{name}' must lie between 0 and 1, got {value}")
