"""Whether chains have mixed: r-hat and effective sample size, by ArviZ's own code (Vehtari et al. 2021)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

# Chains whose r-hat is above have not mixed (1.01 is what Vehtari et al. 2021 ask of a
# publication).
MOST_R_HAT = 1.05
# Below so many effective draws in all, chains that seem to have mixed have had no time to differ.
LEAST_EFFECTIVE = 50.0


def r_hat(draws: Tensor) -> Tensor:
    """Return the rank-normalised split r-hat of each quantity, ``(C, K, *)`` to ``(*)``; NaN for one that is stuck."""
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
