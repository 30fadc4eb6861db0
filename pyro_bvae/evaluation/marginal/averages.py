r"""Log evidence from log weights: plain, Pareto smoothed, or corrected by the jackknife.

:math:`\log \frac1K \sum_k w_k` is low by about :math:`\operatorname{Var}(w) / (2 K)` for weights of
mean 1. An average gives a value and the bias it leaves; each takes log weights
``(K, N)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.marginal.psis import smooth

# Weights whose pairs the second jackknife goes through one by one; the sums over the rest are
# series.
_LARGEST, _TERMS = 64, 10


class Average(NamedTuple):
    """The log evidence of each datum, every entry of shape ``(N,)``, float64.

    Attributes:
        value: Log of the mean weight.
        error: Its standard error by the delta method; NaN for K = 1.
        bias: How low it is estimated to be, to first order in 1 / K.
        pareto_k: The shape of the weights' upper tail.
    """

    value: Tensor
    error: Tensor
    bias: Tensor
    pareto_k: Tensor


Averaging = Callable[[Tensor], Average]


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Return the log of the mean weight of each datum, ``(K, N)`` to ``(N,)``, in float64."""
    return log_weights.double().logsumexp(0) - math.log(log_weights.shape[0])


def normalized_weights(log_weights: Tensor) -> Tensor:
    """Return the weights of each datum divided by their mean, ``(K, N)``: they average to 1."""
    return (log_weights.double() - log_mean_exp(log_weights)).exp()


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of each datum, ``(K, N)`` to ``(N,)``."""
    log_weights = log_weights.double()
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def error_of_mean(samples: Tensor) -> Tensor:
    """Return the standard error of the mean, ``(K, N)`` to ``(N,)``; NaN for K = 1."""
    if samples.shape[0] < 2:
        return torch.full(samples.shape[1:], math.nan, dtype=torch.double)
    return samples.double().std(0) / math.sqrt(samples.shape[0])


def variance_limit(degrees: Tensor, level: float) -> Tensor:
    """Return the upper limit of a normal variance over its estimate, by degrees of freedom."""
    from scipy.special import chdtri

    freedom = degrees.double().cpu()
    return (freedom / torch.from_numpy(chdtri(freedom.numpy(), 1 - level))).to(degrees.device)


def degrees_of_freedom(samples: Tensor) -> Tensor:
    r"""Return those of the samples' variance, :math:`2 K / (\kappa - 1)`, ``(K, N)`` to ``(N,)``.

    The variance of so many normal numbers is known as well as that of K of kurtosis :math:`\kappa`
    (Satterthwaite 1946). They are at most K - 1.
    """
    num_samples = len(samples)
    squares = (samples.double() - samples.double().mean(0)).square()
    kurtosis = squares.square().mean(0) / squares.mean(0).square()
    degrees = 2 * num_samples / (kurtosis - 1)
    return torch.nan_to_num(degrees, nan=math.inf).clamp(max=num_samples - 1)


def plain(log_weights: Tensor) -> Average:
    r"""Return the lower bound :math:`\log \frac1K \sum_k w_k` (Burda et al. 2016)."""
    # The delta method: log(mean w) moves by mean(w) / E[w] - 1.
    error = error_of_mean(normalized_weights(log_weights))
    return Average(
        log_mean_exp(log_weights),
        error,
        _first_bias(error),
        smooth(log_weights)[1].to(error.device),
    )


def pareto_smoothed(log_weights: Tensor) -> Average:
    """Return the plain average of Pareto-smoothed weights, steadier where the tail is heavy.

    Smoothing cuts the weights at their largest raw value, which makes them a little too small; the
    it moved the average by is counted as a bias. Reference: Vehtari, Simpson, Gelman, Yao and Gabry
    2024.
    """
    smoothed, k = smooth(log_weights)
    smoothed = smoothed.to(log_weights.device)
    error = error_of_mean(normalized_weights(smoothed))
    value = log_mean_exp(smoothed)
    moved = (value - log_mean_exp(log_weights)).abs()
    return Average(value, error, _first_bias(error) + moved, k.to(error.device))


def jackknife(order: int = 1) -> Averaging:
    r"""Return the average without the log's bias up to an order in 1 / K (JVI-1, JVI-2).

    .. math::
        J_1 &= K L_K - (K - 1) L_{K-1} \\
        J_2 &= \tfrac12 K^2 L_K - (K - 1)^2 L_{K-1} + \tfrac12 (K - 2)^2 L_{K-2}

    where :math:`L_{K-j}` is the mean of the log average weight over all subsets that leave j
    weights out. The result is no lower bound. Reference: Nowozin 2018.

    Args:
        order: 1 or 2.

    Raises:
        InputError: for another order; the average itself raises for no more samples than ``order``.
    """
    if order not in (1, 2):
        raise InputError(f"'order' of the jackknife must be 1 or 2, got {order!r}")

    def average(log_weights: Tensor) -> Average:
        num_samples = log_weights.shape[0]
        if num_samples <= order:
            raise InputError(
                f"the jackknife of order {order} needs more than {order} samples, got {num_samples}"
            )
        before = plain(log_weights)
        # Everything relative to the full mean, so that the large factors meet no large numbers.
        shares = normalized_weights(log_weights) / num_samples
        one_out = math.log(num_samples / (num_samples - 1)) + torch.log1p(-_below_one(shares)).mean(
            0
        )
        if order == 1:
            correction = -(num_samples - 1) * one_out
        else:
            two_out = math.log(num_samples / (num_samples - 2)) + _mean_log_two_out(shares)
            correction = (
                -((num_samples - 1) ** 2) * one_out + 0.5 * (num_samples - 2) ** 2 * two_out
            )
        return before._replace(value=before.value + correction, bias=torch.zeros_like(before.bias))

    return average


def _first_bias(error: Tensor) -> Tensor:
    return 0.5 * torch.nan_to_num(error).square()


def _below_one(shares: Tensor) -> Tensor:
    """Keep a single weight that is all of the sum from giving log(0)."""
    return shares.clamp(max=1 - torch.finfo(shares.dtype).eps)


def _mean_log_two_out(shares: Tensor) -> Tensor:
    r"""Return the mean of :math:`\log(1 - p_i - p_j)` over all pairs, ``(K, N)`` to ``(N,)``.

    Pairs with one of the 64 largest shares are summed as they are. All others have :math:`p_i + p_j
    < 2 / 65`, where ten terms of the series of the logarithm, sums of products of power sums, are
    exact to rounding.
    """
    num_samples = shares.shape[0]
    ordered = shares.sort(0, descending=True).values
    largest, rest = ordered[:_LARGEST], ordered[_LARGEST:]
    total = torch.zeros_like(shares[0])
    for index in range(len(largest)):
        total += torch.log1p(-_below_one(largest[index] + ordered[index + 1 :])).sum(0)
    if len(rest) > 1:
        powers = [
            torch.full_like(total, len(rest)),
            *(rest.pow(m).sum(0) for m in range(1, _TERMS + 1)),
        ]
        for m in range(1, _TERMS + 1):
            pairs = (
                sum(math.comb(m, r) * powers[r] * powers[m - r] for r in range(m + 1))
                - 2**m * powers[m]
            )
            total -= pairs / (2 * m)
    return total / (num_samples * (num_samples - 1) / 2)
