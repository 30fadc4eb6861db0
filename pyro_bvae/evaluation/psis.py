"""Pareto-smoothed importance weights and their Pareto k, by ArviZ's own code (Vehtari et al. 2024)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

# Fewer weights than this have no tail to fit.
_LEAST_SAMPLES = 25


def _arviz_psis(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth along the last axis with the ArviZ that is installed: 0.x, or 1.x, where the sign differs."""
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz import psislw

        return psislw(log_weights)
    return array_stats.psislw(-log_weights, axis=-1)


def smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the upper tail of each datum's weights by the quantiles of a generalised Pareto fitted to it.

    Args:
        log_weights: Shape ``(K, N)``.

    Returns:
        The smoothed log weights, ``(K, N)``, float64, on the scale of the given ones, and the tail shape k, ``(N,)``.
        k is 0 where the log weights are constant to rounding, which is a perfect guide; infinite, never trusted, where
        K is below 25 or a weight is not finite: such weights stay as they are.
    """
    rounding = 16 * torch.finfo(log_weights.dtype).eps
    weights = log_weights.detach().double().cpu()
    k = torch.full(weights.shape[1:], torch.inf, dtype=torch.double)
    finite = torch.isfinite(weights).all(0)
    spread = weights.amax(0) - weights.amin(0)
    constant = finite & (spread <= rounding * (1 + weights.abs().amax(0)))
    k[constant] = 0.0
    usable = finite & ~constant
    smoothed = weights.clone()
    if weights.shape[0] >= _LEAST_SAMPLES and bool(usable.any()):
        rows = weights[:, usable].T
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a heavy tail is what the returned k says
            ours, shape = (torch.from_numpy(np.array(part, dtype=float)) for part in _arviz_psis(rows.numpy()))
        # ArviZ normalises; the smallest weight, which is never smoothed, says by how much.
        least = rows.argmin(-1, keepdim=True)
        smoothed[:, usable] = (ours + (rows.gather(-1, least) - ours.gather(-1, least))).T
        k[usable] = shape
    return smoothed, torch.where(torch.isnan(k), torch.inf, k)


def pareto_k(log_weights: Tensor) -> Tensor:
    """Return the tail shape of each datum's weights, ``(K, N)`` to ``(N,)``, as :func:`smooth` does."""
    return smooth(log_weights)[1]
