r"""A search before the draws: the modes of the posterior and the mass of each.

Draws of the prior and of each start climb the log joint density. Where they end in several places,
importance weights under a mixture over those places, with a share of the prior, say how much mass
each has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import CHOICE_STREAM, PROPOSAL_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.inversion.climb import Modes, find_modes
from pyro_bvae.evaluation.inversion.mixture import Mixture, num_prior_draws, weigh
from pyro_bvae.evaluation.inversion.model import InverseProblem
from pyro_bvae.evaluation.inversion.starts import (
    AggregateStart,
    EncoderStart,
    PriorStart,
    Start,
    start_chains,
)
from pyro_bvae.evaluation.marginal.hmc import Path
from pyro_bvae.evaluation.marginal.psis import pareto_k
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.program import Program, open_program

# Climbs from the prior, and from each other start.
_FROM_PRIOR, _FROM_EACH = 128, 16
# A mode with a smaller share of the mass has no draws of its own to be missed.
_LEAST_MASS = 0.01
_LEAST_LAPLACE = 1e-4
# Importance weights with a heavier tail say nothing of the masses (Vehtari et al. 2024).
_MOST_PARETO_K, _LEAST_EFFECTIVE = 0.7, 100.0
_NUM_DRAWS, _ROUNDS = 4000, 2
# A chain that starts more nats than this below the mode is far from all that is likely, and may
# never leave.
_FAR = 20.0
_NAMES = {
    PriorStart: "the prior",
    EncoderStart: "the encoder's answer",
    AggregateStart: "the aggregated posterior",
}


@dataclass(frozen=True)
class Scouted:
    """Modes of N posteriors.

    Attributes:
        mixture: A component for each mode, in unconstrained coordinates.
        z: The latents at the modes, ``(M, N, L)``.
        masses: The share of the posterior that belongs to each mode, ``(M, N)``.
        effective: Effective draws behind the shares, ``(N,)``; 0 where they are Laplace's
            approximations.
        begin: Where chains would start, ``(C, N, L)``; those far below the mode, where their climbs
            have ended.
        looked: From where it was looked, in words.
    """

    mixture: Mixture
    z: Tensor
    masses: Tensor
    effective: Tensor
    begin: Tensor
    looked: str

    @property
    def counts(self) -> Tensor:
        """How many modes of each problem hold mass, ``(N,)``, at least one."""
        return (self.masses >= _LEAST_MASS).sum(0).clamp(min=1)

    def seats(self, for_each_mode: bool = False) -> Tensor:
        """Return where to start, ``(C, N, L)``: where there are several modes, at these in turn.

        Args:
            for_each_mode: Whether there are as many starts as the modes ask for.
        """
        number = max(len(self.begin), int(self.counts.max())) if for_each_mode else len(self.begin)
        begin = self.begin[torch.arange(number) % len(self.begin)]
        order = self.masses.argsort(0, descending=True)
        z = self.z.gather(0, order.unsqueeze(-1).expand_as(self.z))
        turns = torch.arange(number, device=order.device).unsqueeze(1) % self.counts
        seats = z.gather(0, turns.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
        return torch.where((self.counts > 1).unsqueeze(-1), seats, begin)


@contextmanager
def opened_problem(
    problem: InverseProblem, y: Tensor, context: Context | None, seed: int
) -> Iterator[tuple[Program, Coordinates]]:
    """Open a problem as the log densities of many particles, and its coordinates."""
    args = arguments(y, context)
    with open_program(problem.model, problem.start, args, seed=seed) as program:
        yield program, Coordinates(program, args)


def path_of(program: Program, coordinates: Coordinates) -> Path:
    """Return the log joint density of vectors ``(C, N, d)``: prior with its Jacobian, and y."""

    def path(vectors: Tensor) -> tuple[Tensor, Tensor]:
        values, log_jacobian = coordinates.unflatten(vectors)
        latent, observed = program.log_joint(values, program.args)
        return latent + log_jacobian, observed

    return path


@torch.no_grad()
def start_vectors(program: Program, coordinates: Coordinates, starts: Tensor) -> Tensor:
    """Return where the chains start, ``(C, N, d)``: z where it is told, the rest from the prior."""
    values = program.draw(len(starts), program.args).values
    return coordinates.flatten({**values, "z": starts})


@torch.no_grad()
def prior_vectors(program: Program, coordinates: Coordinates, num_draws: int) -> Tensor:
    """Return draws of the prior, ``(P, N, d)``."""
    return coordinates.flatten(program.draw(num_draws, program.args).values)


def scout(
    vae: Any,
    problem: InverseProblem,
    y: Tensor,
    context: Context | None,
    chosen: Sequence[Start],
    begin: Tensor,
    seed: int,
) -> Scouted | None:
    """Look for the modes of each problem; None if it runs for one particle at a time only.

    Args:
        vae: The model.
        problem: The problems.
        y: The observations.
        context: Its context.
        chosen: The starts, from each of which several climbs begin.
        begin: Where the chains would start, ``(C, N, L)``: more climbs.
        seed: Of all that is drawn.
    """
    others = [start for start in chosen if not isinstance(start, PriorStart)]
    told = begin
    if others:
        number = _FROM_EACH * len(others)
        more = start_chains(
            vae, problem, y, context, others, number, stream_seed(seed, CHOICE_STREAM)
        )
        told = torch.cat([begin, more])
    with warnings.catch_warnings():
        # A problem that runs one particle at a time is said to be slow by the methods that run it
        # so.
        warnings.simplefilter("ignore", UserWarning)
        try:
            with opened_problem(problem, y, context, seed) as (program, coordinates):
                if not program.vectorized:
                    return None
                with seeded(seed, PROPOSAL_STREAM, CHOICE_STREAM):
                    return _look(program, coordinates, told, len(begin), _words(others))
        except InputError:
            return None


def _look(
    program: Program, coordinates: Coordinates, told: Tensor, num_chains: int, looked: str
) -> Scouted:
    path = path_of(program, coordinates)
    starts = prior_vectors(program, coordinates, _FROM_PRIOR)
    scale = starts.std(0).clamp(min=1e-6)
    modes, climbs = find_modes(
        path, torch.cat([start_vectors(program, coordinates, told), starts]), scale
    )
    mixture, masses, effective = _masses(path, modes, program, coordinates)
    z, ends = (
        coordinates.unflatten(part)[0]["z"].detach()
        for part in (modes.points, climbs.ends[:num_chains])
    )
    low = climbs.first[:num_chains] < modes.heights[0] - _FAR - scale.shape[-1]
    begin = torch.where(low.unsqueeze(-1), ends, told[:num_chains])
    return Scouted(mixture, z, masses, effective, begin, looked)


def _masses(
    path: Path, modes: Modes, program: Program, coordinates: Coordinates
) -> tuple[Mixture, Tensor, Tensor]:
    """Return a mixture over the modes, their masses, and the effective draws behind these."""
    laplace = modes.log_masses.softmax(0)
    laplace = torch.where(laplace > _LEAST_LAPLACE, laplace, 0)
    laplace = laplace / laplace.sum(0)
    floored = laplace.clamp(min=0.1) * (laplace > 0)
    mixture = Mixture(modes.points, modes.factors, (floored / floored.sum(0)).log(), heavy=True)
    if not bool(((laplace > 0).sum(0) > 1).any()):
        return mixture, laplace, torch.zeros_like(laplace[0])
    prior = prior_vectors(program, coordinates, num_prior_draws(_NUM_DRAWS))
    for _ in range(_ROUNDS):
        mixture = mixture.adapted(weigh(path, mixture, prior[: len(prior) // 4], _NUM_DRAWS // 4))
    result = weigh(path, mixture, prior, _NUM_DRAWS)
    known = (pareto_k(result.log_weights).to(laplace) <= _MOST_PARETO_K) & (
        result.effective >= _LEAST_EFFECTIVE
    )
    masses = torch.where(known, result.masses(mixture).to(laplace), laplace)
    return mixture, masses, torch.where(known, result.effective, 0.0).to(laplace)


def _words(others: Sequence[Start]) -> str:
    parts = [f"{_FROM_PRIOR} draws of the prior"]
    names = dict.fromkeys(_NAMES.get(type(start), "the given starts") for start in others)
    return " and ".join([*parts, *(f"{_FROM_EACH} of {name}" for name in names)])
