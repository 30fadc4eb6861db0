"""Pareto k of importance weights, by ArviZ's own Pareto-smoothed importance sampling (Vehtari et al. 2024)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

# Fewer weights than this have no tail to fit.
_LEAST_SAMPLES = 25


def _arviz_k(log_weights: np.ndarray) -> np.ndarray:
    """Return Pareto k along the last axis with the ArviZ that is installed: 0.x, or 1.x, where the sign differs."""
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz import psislw

        return np.asarray(psislw(log_weights)[1])
    return np.asarray(array_stats.psislw(-log_weights, axis=-1)[1])


def pareto_k(log_weights: Tensor) -> Tensor:
    """Return the tail shape of each datum's weights.

    Args:
        log_weights: Shape ``(K, N)``.

    Returns:
        Shape ``(N,)``, float64. 0 where the log weights are constant to rounding, which is a perfect guide; infinite,
        never trusted, where K is below 25 or a weight is not finite.
    """
    weights = log_weights.detach().cpu()
    rounding = 16 * torch.finfo(weights.dtype).eps
    weights = weights.double()
    k = torch.full(weights.shape[1:], torch.inf, dtype=torch.double)
    finite = torch.isfinite(weights).all(0)
    spread = weights.amax(0) - weights.amin(0)
    constant = finite & (spread <= rounding * (1 + weights.abs().amax(0)))
    k[constant] = 0.0
    usable = finite & ~constant
    if weights.shape[0] >= _LEAST_SAMPLES and bool(usable.any()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a heavy tail is what the returned k says
            k[usable] = torch.from_numpy(_arviz_k(weights[:, usable].T.numpy()).astype(float))
    return torch.where(torch.isnan(k), torch.inf, k)
