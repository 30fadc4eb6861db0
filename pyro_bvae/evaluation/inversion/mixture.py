r"""Importance weights of posteriors under mixtures with a small share of the prior.

The proposal is :math:`q(u) = (1 - a) \sum_m w_m q_m(u) + a\, p(u)`, with normal or Student-t
components at the modes and their own shares w. Weights are those of the whole mixture, whichever
part a draw came from (Owen and Zhou 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bvae.evaluation.marginal.hmc import Path

# The share a of the prior, and the degrees of freedom of the heavy-tailed components.
PRIOR_SHARE, _DEGREES = 0.05, 5.0
# No component is given up, since its region may have been missed so far.
_LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Mixture:
    """Mixtures of M components for N problems.

    Attributes:
        loc: Centres, ``(M, N, d)``.
        factors: Cholesky factors of the covariances, ``(M, N, d, d)``.
        log_shares: Their logarithmic shares, ``(M, N)``.
        heavy: Whether the components are Student-t.
    """

    loc: Tensor
    factors: Tensor
    log_shares: Tensor
    heavy: bool = False

    def log_components(self, vectors: Tensor) -> Tensor:
        """Return the log density of each component, ``(J, N, d)`` to ``(M, J, N)``."""
        density: Tensor = self._family(self.loc.unsqueeze(1), self.factors.unsqueeze(1)).log_prob(
            vectors
        )
        return density

    def log_prob(self, vectors: Tensor) -> Tensor:
        """Return the log density, ``(J, N, d)`` to ``(J, N)``."""
        return (self.log_components(vectors) + self.log_shares.unsqueeze(1)).logsumexp(0)

    def labels(self, vectors: Tensor) -> Tensor:
        """Return the component of each vector, whatever the shares, ``(J, N, d)`` to ``(J, N)``."""
        density = self.log_components(vectors)
        return density.masked_fill(torch.isinf(self.log_shares).unsqueeze(1), -torch.inf).argmax(0)

    def sample(self, num_draws: int) -> Tensor:
        """Draw, ``(J, N, d)``."""
        chosen = torch.distributions.Categorical(logits=self.log_shares.T).sample(
            (num_draws,)
        )  # (J, N)
        columns = torch.arange(self.loc.shape[1], device=self.loc.device)
        drawn: Tensor = self._family(
            self.loc[chosen, columns], self.factors[chosen, columns]
        ).sample()
        return drawn

    def _family(self, loc: Tensor, factors: Tensor) -> torch.distributions.Distribution:
        if self.heavy:
            family: torch.distributions.Distribution = dist.MultivariateStudentT(
                _DEGREES, loc, factors, validate_args=False
            )
            return family
        return torch.distributions.MultivariateNormal(loc, scale_tril=factors, validate_args=False)

    def adapted(self, result: Weighted) -> Mixture:
        """Return heavy-tailed components with shares, centres and covariances of weighted draws."""
        labels = self.labels(result.vectors)
        weights = result.log_weights.softmax(0).to(result.vectors)
        loc, factors, shares = [], [], []
        for index in range(len(self.loc)):
            mine = weights * (labels == index)
            share = mine.sum(0)
            within = (mine / share.clamp(min=1e-30)).unsqueeze(-1)
            centre = (within * result.vectors).sum(0)
            off = result.vectors - centre
            covariance = torch.einsum("jn,jna,jnb->nab", within.squeeze(-1), off, off)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            enough = 1 / within.square().sum((0, -1)) > 10 * off.shape[-1]
            taken = ((failed == 0) & enough & torch.isfinite(centre).all(-1)).unsqueeze(-1)
            loc.append(torch.where(taken, centre, self.loc[index]))
            factors.append(torch.where(taken.unsqueeze(-1), factor, self.factors[index]))
            shares.append(share)
        floored = torch.stack(shares).clamp(min=_LEAST_SHARE) * torch.isfinite(self.log_shares)
        return replace(
            self,
            loc=torch.stack(loc),
            factors=torch.stack(factors),
            log_shares=(floored / floored.sum(0)).log(),
            heavy=True,
        )


class Weighted(NamedTuple):
    """Draws of a mixture and the prior, ``(J, N, d)``, log weights and densities, ``(J, N)``."""

    vectors: Tensor
    log_weights: Tensor
    log_joint: Tensor

    def masses(self, mixture: Mixture) -> Tensor:
        """Return the posterior mass that belongs to each component, ``(M, N)``."""
        labels, weights = mixture.labels(self.vectors), self.log_weights.softmax(0)
        return torch.stack(
            [(weights * (labels == index)).sum(0) for index in range(len(mixture.loc))]
        )

    @property
    def effective(self) -> Tensor:
        """Effective draws, ``(N,)``."""
        return 1 / self.log_weights.softmax(0).square().sum(0)


@torch.no_grad()
def weigh(path: Path, mixture: Mixture, prior_draws: Tensor, num_draws: int) -> Weighted:
    """Draw from a mixture, join draws of the prior, and weigh all by the whole proposal."""
    vectors = torch.cat([mixture.sample(num_draws), prior_draws])
    latent, observed = path(vectors)
    share = len(prior_draws) / len(vectors)
    parts = [mixture.log_prob(vectors) + torch.tensor(1 - share).log()]
    if share:
        parts.append(latent + torch.tensor(share).log())
    joint = (latent + observed).double()
    joint = joint.masked_fill(torch.isnan(joint), -torch.inf)
    return Weighted(vectors, joint - torch.stack(parts).double().logsumexp(0), joint)


def num_prior_draws(num_draws: int) -> int:
    """Return how many draws of the prior join so many of a mixture."""
    return max(1, round(PRIOR_SHARE * num_draws))


def resampled(weights: Tensor, num_draws: int) -> Tensor:
    """Return places drawn by weights ``(J,)``, evenly spread, in random order, ``(K,)``."""
    ends = weights.double().cumsum(0)
    wanted = (
        torch.arange(num_draws, dtype=torch.double) + torch.rand((), dtype=torch.double)
    ) / num_draws
    places = torch.searchsorted(ends, wanted * ends[-1]).clamp(max=len(weights) - 1)
    return places[torch.randperm(num_draws)]
