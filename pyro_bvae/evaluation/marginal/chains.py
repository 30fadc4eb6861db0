r"""Evidence and its error from the log weights of a few independent chains.

The log weight of a chain is a sum over temperatures. Where the path is followed closely it is a sum
of many small pieces, so about normal, with the variance :math:`s^2` and the mean :math:`\log p(x) -
s^2 / 2` (Jarzynski 1997; Grosse et al. 2013). The largest of a few weights says little of their
tail; the spread of their logs says more, as a normal spread is known to within a chi-square. So
each claim is one about the largest variance that the chains leave possible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bvae.evaluation.estimate import pareto_k_limit
from pyro_bvae.evaluation.marginal.averages import (
    Average,
    degrees_of_freedom,
    effective_sample_size,
    normalized_weights,
    plain,
    variance_limit,
)

# Effective share of the weights below which chains disagree too much; log weights of variance log 4
# have a quarter.
_LEAST_SHARE, _LEAST_ACCEPTANCE = 0.25, 0.2
# Levels of the two upper limits of a variance: of the one that errors are taken from, and the one
# that trust is.
_ERROR_LEVEL, _TRUST_LEVEL = 0.1, 0.05
# So many weights show their own tail.
_MANY = 100
# Fewer chains show no spread, and fewer temperatures make no sum that is near normal.
_LEAST_CHAINS, _LEAST_TEMPERATURES = 11, 25


def upper_variance(values: Tensor) -> Tensor:
    """Return twice the mean square of the values above the mean, ``(C, N)`` to ``(N,)``.

    Only the upper tail can hide weight: chains that fall short of the others weigh little.
    """
    above = (values - values.mean(0)).clamp(min=0)
    return 2 * above.square().sum(0) / max(len(values) - 1, 1)


def upper_limit(num_chains: int, level: float) -> float:
    """Return the upper confidence limit of a normal variance over its estimate."""
    from scipy import stats

    return (
        float((num_chains - 1) / stats.chi2.ppf(level, num_chains - 1))
        if num_chains > 1
        else float("inf")
    )


def average(log_weights: Tensor) -> Average:
    r"""Return the plain average of chains' weights, with the error of the largest likely variance.

    The error is the usual one times the root of the 90% upper limit of the weights' variance: 1.6
    for 8 chains whose weights are near normal, 1.2 for 32, more where few of them are large. So a
    spread that is small by chance, by which chains are also called trusted, makes no small error.

    Args:
        log_weights: Shape ``(C, N)``.
    """
    usual = plain(log_weights)
    degrees = degrees_of_freedom(normalized_weights(log_weights))
    error = usual.error * variance_limit(degrees, _ERROR_LEVEL).sqrt()
    return usual._replace(error=error, bias=0.5 * torch.nan_to_num(error).square())


def shortfall(log_weights: Tensor) -> Tensor:
    """Return how far the evidence may lie above untrusted chains, ``(C, N)`` to ``(N,)``.

    The mean of normal log weights lies half of their variance below it, which is taken at its 95%
    upper limit.
    """
    if len(log_weights) < 2:
        return torch.zeros_like(log_weights[0])
    return 0.5 * upper_variance(log_weights) * upper_limit(len(log_weights), _TRUST_LEVEL)


def trusted(
    log_weights: Tensor, num_temperatures: int, acceptance: Tensor, pareto_k: Tensor
) -> Tensor:
    r"""Return which data's chains can be trusted, ``(N,)``.

    With the 95% upper limit :math:`\bar s^2` of the variance of the log weights, all of:

    - The effective share of normal log weights of that variance, :math:`\exp(-\bar s^2)`, is at
      least a quarter.
    - So is the share of the weights themselves.
    - At least a fifth of the moves is accepted.
    - There are at least 11 chains of at least 25 temperatures: fewer chains show no spread, and log
      weights of fewer temperatures are no sum that is near normal.

    Of 100 chains or more the Pareto k is estimated, and stands for the limits on :math:`\bar s`.

    Args:
        log_weights: Shape ``(C, N)``.
        num_temperatures: Number of increments that each is the sum of.
        acceptance: Mean probability of acceptance, ``(N,)``.
        pareto_k: Estimated from the weights, ``(N,)``.
    """
    num_chains = len(log_weights)
    share = effective_sample_size(log_weights) / num_chains
    moving = (share >= _LEAST_SHARE) & (acceptance >= _LEAST_ACCEPTANCE)
    if num_chains < _LEAST_CHAINS or num_temperatures < _LEAST_TEMPERATURES:
        return torch.zeros_like(moving)
    if num_chains >= _MANY:
        return moving & (pareto_k <= pareto_k_limit(num_chains))
    largest = upper_variance(log_weights) * upper_limit(num_chains, _TRUST_LEVEL)
    return moving & ((-largest).exp() >= _LEAST_SHARE)
