"""Shares of the draws in each mode against those of the posterior, and their correction.

Chains that stay in their own modes have shares that say where they started. Within each mode they
are sound all the
same: mixed by the modes' masses they are draws from the posterior.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.seeds import PROPOSAL_STREAM, seeded
from pyro_bvae.evaluation.inversion.methods import Draws
from pyro_bvae.evaluation.inversion.mixture import resampled
from pyro_bvae.evaluation.inversion.scout import Scouted

# Chains whose r-hat is above have not mixed (Vehtari et al. 2021 ask for 1.01 in print).
MOST_R_HAT = 1.05
# Below so many effective draws in all, chains that seem to have mixed have had no time to differ.
LEAST_EFFECTIVE = 50.0
# Shares may differ by this much, and by three standard errors.
_TOLERANCE = 0.02
# A chain that has this share of its draws in a mode says something of it.
_LEAST_VISIT = 0.25


@dataclass(frozen=True, eq=False)
class FoundModes:
    """The modes of one posterior, the heaviest first.

    Attributes:
        z: The latents at each mode, ``(M, L)``.
        masses: The share of the posterior in each, by importance weights, ``(M,)``; by Laplace's
            approximation where these could not be had.
        shares: The share of the draws in each, ``(M,)``.
        looked: From where it was looked, in words.
        joined: Whether the draws of chains that kept to their modes were mixed by the masses.
        missed: Why the draws are not those of all modes, in words, or None.
    """

    z: Tensor
    masses: Tensor
    shares: Tensor
    looked: str
    joined: bool
    missed: str | None

    def __str__(self) -> str:
        count = len(self.masses)
        seen = f"{count} mode{'s' if count > 1 else ''} found from {self.looked}"
        if count == 1:
            return seen
        masses = ", ".join(f"{mass:.1%}" for mass in self.masses.tolist())
        how = "; chains kept to their modes, and were mixed by these masses" if self.joined else ""
        return f"{seen}, with {masses} of the mass{how}"


@dataclass(frozen=True)
class Occupied:
    """Draws of one problem, whether they have mixed, and the modes that they lie in."""

    draws: Draws
    r_hat: float
    effective: float
    modes: FoundModes | None


def occupy(
    results: Draws, vectors: Tensor | None, scouted: Scouted | None, num_seated: int, seed: int
) -> Occupied:
    """Compare the draws of one problem with its modes, and mix chains that kept to their own.

    Args:
        results: The draws, of one problem.
        vectors: The same in unconstrained coordinates, ``(C, K, d)``.
        scouted: The modes, of one problem; None where nobody looked.
        num_seated: How many modes, the heaviest first, had a chain that started there.
        seed: Of the resampling.
    """
    fit = results.pareto_k is not None
    followed = torch.cat([value.flatten(2) for value in results.sites.values()], 2)
    spread = torch.nan if fit else float(r_hat(followed).max())
    effective = float(effective_draws(followed).min())
    if results.effective is not None:
        effective = min(effective, float(results.effective[0]))
    if scouted is None or vectors is None:
        return Occupied(results, spread, effective, None)
    keep = _kept(scouted)
    masses = scouted.masses[keep, 0]
    labels = _labels(scouted, vectors, keep)
    visits = torch.stack(
        [(labels == index).double().mean(1) for index in range(len(keep))]
    )  # (M, C)
    modes = FoundModes(scouted.z[keep, 0], masses, visits.mean(1), scouted.looked, False, None)
    if len(keep) == 1:
        return Occupied(results, spread, effective, modes)
    right = _agree(visits, masses, scouted, num_seated, fit, effective)
    if right and (fit or (spread <= MOST_R_HAT and effective >= LEAST_EFFECTIVE)):
        return Occupied(results, spread, effective, modes)
    if not fit and float(scouted.effective[0]) > 0:
        joined = _join(results, followed, labels, visits, masses, seed)
        if joined is not None:
            draws, spread, effective = joined
            modes = replace(modes, shares=masses, joined=True)
            return Occupied(draws, spread, min(effective, float(scouted.effective[0])), modes)
    return Occupied(
        results, spread, effective, modes if right else replace(modes, missed=_words(modes))
    )


def _kept(scouted: Scouted) -> Tensor:
    """Return the modes with mass, the heaviest first."""
    masses = scouted.masses[:, 0]
    order = masses.argsort(descending=True)
    return order[: int(scouted.counts[0])]


def _labels(scouted: Scouted, vectors: Tensor, keep: Tensor) -> Tensor:
    mixture = replace(
        scouted.mixture,
        loc=scouted.mixture.loc[keep],
        factors=scouted.mixture.factors[keep],
        log_shares=torch.zeros_like(scouted.mixture.log_shares[keep]),
    )
    return mixture.labels(vectors.flatten(0, 1).unsqueeze(1))[:, 0].reshape(vectors.shape[:2])


def _agree(
    visits: Tensor, masses: Tensor, scouted: Scouted, num_seated: int, fit: bool, effective: float
) -> bool:
    """Whether the draws lie in the modes as the mass does, within errors of both."""
    shares, chains = visits.mean(1), visits.shape[1]
    known = float(scouted.effective[0])
    if (
        known == 0
    ):  # of masses nothing is known for sure: chains that left a mode for good say that it is small
        return bool((shares[num_seated:] > 0).all())
    independent = max(effective, 1.0) if fit or chains == 1 else torch.inf
    drawn = visits.var(1) / chains if chains > 1 else torch.zeros_like(shares)
    error = (drawn + masses * (1 - masses) * (1 / known + 1 / independent)).sqrt()
    return bool(((shares - masses).abs() <= _TOLERANCE + 3 * error).all()) and bool(
        (shares > 0).all()
    )


def _join(
    results: Draws, followed: Tensor, labels: Tensor, visits: Tensor, masses: Tensor, seed: int
) -> tuple[Draws, float, float] | None:
    """Mix the draws in each mode by its mass; None where those within a mode have not mixed."""
    worst, per_draw = 0.0, 0.0
    for index, mass in enumerate(masses.tolist()):
        chains = (visits[index] >= _LEAST_VISIT).nonzero()[:, 0].tolist()
        if len(chains) < 2:
            return None
        parts = [followed[chain][labels[chain] == index] for chain in chains]
        length = min(len(part) for part in parts)
        within = torch.stack([part[:length] for part in parts])
        spread, effective = float(r_hat(within).max()), float(effective_draws(within).min())
        if not (spread <= MOST_R_HAT and effective >= LEAST_EFFECTIVE / len(masses)):
            return None
        worst, per_draw = max(worst, spread), per_draw + mass**2 / effective
    drawn = torch.stack([(labels == index).double().mean() for index in range(len(masses))])
    weights = (masses.double() / masses.sum() / drawn.clamp(min=1e-12)).cpu()[
        labels.flatten().cpu()
    ]
    with seeded(seed, PROPOSAL_STREAM, 1):
        places = resampled(weights, labels.numel())
    sites = {
        name: value.flatten(0, 1)[places.to(value.device)].reshape(value.shape)
        for name, value in results.sites.items()
    }
    return replace(results, sites=sites), worst, 1 / per_draw


def _words(modes: FoundModes) -> str:
    masses = ", ".join(f"{mass:.1%}" for mass in modes.masses.tolist())
    shares = ", ".join(f"{share:.1%}" for share in modes.shares.tolist())
    return (
        f"the posterior has {len(modes.masses)} modes with {masses} of its mass, and the draws lie"
        f" in them with {shares} (from {modes.looked})"
    )


def r_hat(draws: Tensor) -> Tensor:
    """Return the rank-normalised split r-hat of each quantity, ``(C, K, *)`` to ``(*)``.

    NaN for a quantity that is stuck. Reference: Vehtari et al. 2021, by ArviZ's code.
    """
    return _each("rhat", draws)


def effective_draws(draws: Tensor) -> Tensor:
    """Return the bulk effective sample size of each quantity, ``(C, K, *)`` to ``(*)``."""
    return _each("ess", draws)


def _each(name: str, draws: Tensor) -> Tensor:
    flat = (
        draws.detach().cpu().double().flatten(2)
        if draws.dim() > 2
        else draws.detach().cpu().double().unsqueeze(2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a chain that stands still divides by zero, and gives NaN
        values = [_arviz(name, column.numpy()) for column in flat.unbind(2)]
    return torch.tensor(values, dtype=torch.double).reshape(draws.shape[2:])


def _arviz(name: str, draws: np.ndarray) -> float:
    """Return a diagnostic of chains ``(C, K)`` by the ArviZ that is installed: 0.x, or 1.x."""
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        import arviz

        return float(getattr(arviz, name)(draws))
    return float(getattr(array_stats, name)(draws, chain_axis=0, draw_axis=1))
