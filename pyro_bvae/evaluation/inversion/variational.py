"""Fits to the posterior of an inverse problem, and their correction by importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import REFIT_STREAM, seeded
from pyro_bvae.evaluation.inversion.methods import Draws, check_counts, opened_for
from pyro_bvae.evaluation.inversion.mixture import (
    Mixture,
    Weighted,
    num_prior_draws,
    resampled,
    weigh,
)
from pyro_bvae.evaluation.inversion.model import InverseProblem
from pyro_bvae.evaluation.inversion.scout import path_of, prior_vectors, start_vectors
from pyro_bvae.evaluation.marginal.hmc import Path
from pyro_bvae.evaluation.marginal.psis import pareto_k
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.program import Program

# Weights with a heavier tail, or mass where a fit has next to none, make draws of the fit none of
# the posterior.
_MOST_PARETO_K, _MOST_OUTSIDE, _OUTSIDE = 0.7, 0.02, 20.0
# A fit that is effective in a smaller share of its draws tells too little to be mended by its
# weights.
_LEAST_SHARE, _LEAST_EFFECTIVE = 0.1, 100.0
_DRAWS_EACH, _ROUNDS = 4, 3


@public
@dataclass(frozen=True)
class VariationalMethod:
    """Full-rank normals fitted to the posterior in unconstrained coordinates, one a start.

    Draws come from the mixture of the fits, with the shares that importance weights give them. The
    Pareto k of their weights says whether it can be trusted: below 0.7 (Yao et al. 2018; Vehtari et
    al. 2024). A small share of the prior says whether there is mass where the fits have none. Where
    either fails, draws are picked by the weights of Student-t components that have been moved to
    where the mass is, and k is theirs.

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
    #: There is a fit for each start, and a start for each mode that was found.
    fits_modes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_draws", "num_steps", "num_particles")
        if self.num_chains != 1:
            raise InputError(f"'num_chains' must be 1: a fit has no chains, got {self.num_chains}")
        if not self.learning_rate > 0:
            raise InputError(f"'learning_rate' must be positive, got {self.learning_rate}")

    def __call__(
        self, problem: InverseProblem, y: Tensor, context: Context | None, starts: Tensor, seed: int
    ) -> Draws:
        """Fit all problems at once, and draw from the fits."""
        with (
            opened_for(problem, y, context, seed) as (program, coordinates),
            seeded(seed, REFIT_STREAM),
        ):
            path = path_of(program, coordinates)
            fits = self._fit(path, start_vectors(program, coordinates, starts))
            with torch.no_grad():
                vectors, k, effective = self._draw(path, fits, program, coordinates)
                values, _ = coordinates.unflatten(vectors)
        sites = {name: value.unsqueeze(0) for name, value in values.items()}
        return Draws(sites, torch.zeros(len(y), dtype=torch.long), k, effective)

    def _draw(
        self, path: Path, fits: Mixture, program: Program, coordinates: Coordinates
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return draws ``(K, N, d)``, Pareto k and effective draws, ``(N,)`` each."""
        prior = prior_vectors(program, coordinates, num_prior_draws(self.num_draws))
        if len(fits.loc) > 1:
            told = weigh(path, fits, prior, _DRAWS_EACH * self.num_draws)
            fits = replace(
                fits, log_shares=told.masses(fits).to(fits.loc).clamp(min=1e-3).log().log_softmax(0)
            )
        result = weigh(path, fits, prior, self.num_draws)
        vectors = fits.sample(self.num_draws)
        log_ratios = sum(path(vectors)) - fits.log_prob(vectors)
        k = pareto_k(log_ratios)
        outside = self._outside(result, fits)
        sound = (k <= _MOST_PARETO_K) & (outside <= _MOST_OUTSIDE)
        effective = torch.full_like(k, float(self.num_draws))
        if bool(sound.all()):
            return vectors, k, effective
        return self._mended(
            path,
            fits,
            result,
            prior,
            (vectors, torch.where(sound | (k > _MOST_PARETO_K), k, torch.inf), effective),
        )

    def _outside(self, result: Weighted, fits: Mixture) -> Tensor:
        """Return the posterior's mass where the fits have less than a twentieth of it, ``(N,)``."""
        log_evidence = (
            result.log_weights.logsumexp(0) - torch.tensor(float(len(result.vectors))).log()
        )
        ratio = result.log_joint - fits.log_prob(result.vectors).double() - log_evidence
        return (result.log_weights.softmax(0) * (ratio.exp() > _OUTSIDE)).sum(0).cpu()

    def _mended(
        self,
        path: Path,
        fits: Mixture,
        result: Weighted,
        prior: Tensor,
        plain: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return draws by importance weights for problems of unsound fits, if these are sound."""
        vectors, k, effective = plain
        tells = result.effective.cpu() >= _LEAST_SHARE * len(result.vectors)
        mixture, wider = fits, result
        for _ in range(_ROUNDS):
            mixture = mixture.adapted(wider)
            wider = weigh(path, mixture, prior, _DRAWS_EACH * self.num_draws)
        tail = pareto_k(wider.log_weights)
        better = (k > _MOST_PARETO_K) & tells & (tail <= _MOST_PARETO_K)
        better &= wider.effective.cpu() >= _LEAST_EFFECTIVE
        for row in better.nonzero()[:, 0].tolist():
            places = resampled(wider.log_weights[:, row].softmax(0).cpu(), self.num_draws)
            vectors[:, row] = wider.vectors[places.to(vectors.device), row]
        k = torch.where(better, tail, k)
        return (
            vectors,
            k,
            torch.where(better, wider.effective.cpu().clamp(max=float(self.num_draws)), effective),
        )

    def _fit(self, path: Path, start: Tensor) -> Mixture:
        """Return the normals that maximise each problem's bound from each start ``(M, N, d)``."""
        size = start.shape[-1]
        loc, lower = (
            start.clone().requires_grad_(),
            start.new_zeros(*start.shape, size).requires_grad_(),
        )
        log_scale = _first_scale(start).log().requires_grad_()
        parameters = [loc, lower, log_scale]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for _ in range(self.num_steps):
            normal = _normal(loc, lower, log_scale)
            drawn = normal.rsample(torch.Size([self.num_particles]))
            latent, observed = path(drawn.flatten(0, 1))
            bound = (latent + observed).reshape(drawn.shape[:-1]).mean(0) + normal.entropy()
            gradients = torch.autograd.grad(-bound.sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.nan_to_num(gradient)
            optimizer.step()
            schedule.step()
        fitted = _normal(loc.detach(), lower.detach(), log_scale.detach())
        equal = start.new_full(start.shape[:-1], 1 / len(start)).log()
        return Mixture(fitted.loc, fitted.scale_tril, equal)


def _first_scale(start: Tensor) -> Tensor:
    """Return scales to begin with, ``(M, N, d)``, so small that no fit reaches another's start."""
    apart = torch.cdist(start.movedim(0, 1), start.movedim(0, 1))  # (N, M, M)
    nearest = apart.where(apart > 0, torch.inf).amin(-1).T.unsqueeze(-1)
    return (nearest / 6).clamp(min=1e-3, max=math.exp(-1)).expand_as(start).clone()


def _normal(
    loc: Tensor, lower: Tensor, log_scale: Tensor
) -> torch.distributions.MultivariateNormal:
    factor = lower.tril(-1) + torch.diag_embed(log_scale.exp())
    return torch.distributions.MultivariateNormal(loc, scale_tril=factor, validate_args=False)
