"""Pareto-smoothed importance weights and their Pareto k by ArviZ (Vehtari et al. 2024)."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.evaluation.estimate import pareto_k_limit

# Fewer weights than this have no tail to fit.
_LEAST_SAMPLES = 25
# Nats below the smallest positive weight where weights of zero stand while the tail is fitted.
_FAR = 100.0


def _arviz_psis(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth along the last axis with ArviZ 0.x, or 1.x, where the sign differs."""
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz import psislw

        return psislw(log_weights)
    return array_stats.psislw(-log_weights, axis=-1)


def smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the upper tail of each datum's weights by quantiles of a fitted Pareto.

    Args:
        log_weights: Shape ``(K, N)``.

    Returns:
        The smoothed log weights, ``(K, N)``, float64, on the scale of the given ones, and the tail
        shape k, ``(N,)``. k is 0 where the log weights are constant to rounding, which is a perfect
        guide; infinite, never trusted, where K is below 25 or a weight is infinite or NaN: such
        weights stay as they are. Weights of zero are no tail.
    """
    rounding = 16 * torch.finfo(log_weights.dtype).eps
    weights = log_weights.detach().double().cpu()
    k = torch.full(weights.shape[1:], torch.inf, dtype=torch.double)
    zero = torch.isneginf(weights)
    finite = (torch.isfinite(weights) | zero).all(0) & ~zero.all(0)
    weights = torch.where(zero, torch.where(zero, torch.inf, weights).amin(0) - _FAR, weights)
    spread = weights.amax(0) - weights.amin(0)
    constant = finite & (spread <= rounding * (1 + weights.abs().amax(0)))
    k[constant] = 0.0
    usable = finite & ~constant
    smoothed = weights.clone()
    if weights.shape[0] >= _LEAST_SAMPLES and bool(usable.any()):
        rows = weights[:, usable].T
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the returned k reports a heavy tail
            ours, shape = (
                torch.from_numpy(np.array(part, dtype=float)) for part in _arviz_psis(rows.numpy())
            )
        # ArviZ normalises; the smallest weight, which is never smoothed, says by how much.
        least = rows.argmin(-1, keepdim=True)
        smoothed[:, usable] = (ours + (rows.gather(-1, least) - ours.gather(-1, least))).T
        k[usable] = shape
    return smoothed.masked_fill(zero, -torch.inf), torch.where(torch.isnan(k), torch.inf, k)


def pareto_k(log_weights: Tensor) -> Tensor:
    """Return the tail shape of each datum's weights, ``(K, N)`` to ``(N,)``."""
    return smooth(log_weights)[1]


def tail_size(num_samples: int) -> int:
    r"""Return the number of weights in the fitted tail, :math:`\min(K / 5, 3 \sqrt K)`."""
    return max(1, min(math.ceil(0.2 * num_samples), math.ceil(3 * math.sqrt(num_samples))))


def error_of_k(k: Tensor, num_samples: int) -> Tensor:
    r"""Return the standard error of a Pareto k of M weights, about :math:`(1 + k) / \sqrt{M}`.

    It is the error of the maximum of the likelihood for k above -1/2 (Smith 1987); lighter tails
    are taken as -1/2.
    """
    return (1 + k.clamp(min=-0.5)) / math.sqrt(tail_size(num_samples))


# Effective draws that a trusted average has at least, or half of all draws where those are few; and
# how many of draws with tails leave no doubt of a k below its limit.
_LEAST_EFFECTIVE, _MANY_EFFECTIVE = 100, 1000
# Errors of a fitted k by which it must lie below its limit.
_ERRORS_OF_K = 2.0
# Log weights whose largest lies above their mean weight by less, in nats, are even: the fit of
# their tail says nothing. With tails around the guide a larger weight would have been drawn; draws
# of the guide alone have to agree better.
_EVEN, _EVEN_ALONE = 1.0, 0.1


def has_reliable_weights(
    log_weights: Tensor, k: Tensor, effective: Tensor, has_tails: bool
) -> Tensor:
    r"""Say which data's average weight and its error can be trusted, ``(K, N)`` to ``(N,)``.

    Pareto k is an estimate, and it is lowest where the tail was not drawn. So it must lie below its
    limit by two of its errors, or by itself where 1,000 draws are effective; and the effective
    sample must be 100, or half of the draws. Draws of a guide alone cannot show the weights beyond
    it: without wider tails around it k must lie below 0, where weights are bounded.

    Args:
        log_weights: Log weights.
        k: Their fitted shapes, ``(N,)``.
        effective: Their effective sample sizes, ``(N,)``.
        has_tails: Whether the draws come from a proposal that reaches further than the guide.
    """
    num_samples = len(log_weights)
    limit = pareto_k_limit(num_samples) if has_tails else 0.0
    k, effective = k.to(log_weights.device), effective.to(log_weights.device)
    light = k + _ERRORS_OF_K * error_of_k(k, num_samples) <= limit
    if has_tails:
        light |= (k <= limit) & (effective >= _MANY_EFFECTIVE)
    largest = log_weights.double().amax(0)
    above = largest - log_weights.double().logsumexp(0) + math.log(num_samples)
    even = above <= (_EVEN if has_tails else _EVEN_ALONE)
    enough = effective >= min(_LEAST_EFFECTIVE, num_samples / 2)
    even &= torch.isfinite(k) & (pareto_k_limit(num_samples) >= 0)
    return (light | even) & enough


# A mean of numbers with a heavier tail than this has no error: their variance is infinite.
_VARIANCE_LIMIT = 0.5
# A datum of which a single sample makes more than this part of the variance has too few samples for
# an error.
_LARGEST_PART = 0.5


def has_reliable_mean(samples: Tensor, rounding: float = 0.0) -> Tensor:
    r"""Return the data whose mean and standard error can be trusted, ``(K, N)`` to ``(N,)``.

    The heavier of the two tails of all deviations from the data's means, fitted as one, must have a
    finite variance by two errors of its shape, and no single sample may make half of the variance
    of a datum. Samples that are constant to rounding have no error.

    Args:
        samples: The samples.
        rounding: Relative rounding of the densities that they are made of.
    """
    values = samples.detach().double().cpu()
    deviations = values - values.mean(0)
    rounding = 4 * max(rounding, 4 * torch.finfo(samples.dtype).eps)
    constant = deviations.abs().amax(0) <= rounding * (1 + values.abs().amax(0))
    deviations = deviations.masked_fill(constant, 0.0)
    squares = deviations.square()
    finite = torch.isfinite(deviations).all(0)
    even = squares.amax(0) <= torch.where(
        squares.sum(0) > 0, _LARGEST_PART * squares.sum(0), torch.inf
    )
    pooled = deviations[:, finite].flatten()
    if len(pooled) < _LEAST_SAMPLES or not bool((pooled != 0).any()):
        return finite & even
    tiny = torch.finfo(pooled.dtype).tiny
    ends = torch.stack([pooled - pooled.min(), pooled.max() - pooled], 1).clamp(min=0) + tiny
    k = pareto_k(ends.log()).max()
    return finite & even & (k + _ERRORS_OF_K * error_of_k(k, len(pooled)) <= _VARIANCE_LIMIT)
