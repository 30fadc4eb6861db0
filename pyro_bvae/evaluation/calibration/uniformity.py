r"""Are ranks uniform: an exact simultaneous test of their distribution function, and its bands.

Of n ranks that are uniform on 0, ..., L, the number below each place is binomial, and their joint
law is that of a walk with Poisson steps that ends at n. So the probability that the walk stays
within any bands is a chain of short convolutions (Säilynoja, Bürkner and Vehtari 2022 have it with
binomial steps). The statistic is the smallest two-sided binomial tail over all places, its p-value
the probability of as small a one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.public import public

# Places at which the distribution function is compared, at most.
_MOST_POINTS = 100
# Below it the difference of a probability from 1 is rounding.
_ROUNDING = 1e-11


@public
def uniformity_p_value(ranks: Tensor, num_ranked: int) -> float:
    """Return the exact p-value of independent ranks that are to be uniform.

    Args:
        ranks: Whole numbers from 0 to ``num_ranked``, ``(n,)``.
        num_ranked: L, the draws that each truth was ranked among.

    Raises:
        InputError: for no ranks, or ranks out of their range.
    """
    check_count("num_ranked", num_ranked)
    check_finite("ranks", ranks)
    lowest, highest = (int(ranks.min()), int(ranks.max())) if ranks.numel() else (0, -1)
    if ranks.dim() != 1 or not 0 <= lowest <= highest <= num_ranked:
        raise InputError(
            f"'ranks' must be whole numbers from 0 to {num_ranked}, (n,), got shape"
            f" {tuple(ranks.shape)} from {lowest} to {highest}"
        )
    edges = _edges(num_ranked)
    cumulative = np.bincount(ranks.long().cpu().numpy(), minlength=num_ranked + 1).cumsum()
    tails = _tails(len(ranks), edges / (num_ranked + 1), cumulative[edges - 1])
    level = float(tails.min())
    inside = _probability_inside(len(ranks), edges / (num_ranked + 1), level * (1 + 1e-9))
    p_value = 1 - inside
    return p_value if p_value > _ROUNDING else min(1.0, level * len(edges))


@public
def rank_bands(
    num_ranks: int, num_ranked: int, level: float = 0.95
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bands that hold the whole distribution function of ranks with a probability.

    Args:
        num_ranks: n, the number of ranks.
        num_ranked: L, the draws that each truth is ranked among.
        level: The probability, between 0 and 1.

    Returns:
        The places as shares of 1, and the lowest and highest share of ranks below each, ``(P,)``.

    Raises:
        InputError: for a level that does not lie between 0 and 1.
    """
    check_count("num_ranks", num_ranks)
    check_count("num_ranked", num_ranked)
    if not 0 < level < 1:
        raise InputError(f"'level' must lie between 0 and 1, got {level}")
    shares = _edges(num_ranked) / (num_ranked + 1)
    low, high = np.log(1e-12), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        wide = _probability_inside(num_ranks, shares, float(np.exp(middle))) >= level
        low, high = (middle, high) if wide else (low, middle)
    lower, upper = _allowed(num_ranks, shares, float(np.exp(low)))
    return (
        torch.as_tensor(shares),
        torch.as_tensor(lower / num_ranks),
        torch.as_tensor(upper / num_ranks),
    )


def _edges(num_ranked: int) -> np.ndarray:
    """Return the places between which ranks are counted, without the last, ``(P,)``."""
    inner = np.linspace(0, num_ranked + 1, min(num_ranked + 1, _MOST_POINTS) + 1)[1:-1]
    return np.unique(inner.round().astype(int))


def _tails(count: int, shares: np.ndarray, below: np.ndarray) -> np.ndarray:
    from scipy.stats import binom

    return np.asarray(
        2 * np.minimum(binom.cdf(below, count, shares), binom.sf(below - 1, count, shares))
    )


def _allowed(count: int, shares: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest number below each place whose tails are above the level."""
    from scipy.stats import binom

    lower = binom.ppf(level / 2, count, shares).astype(int)
    upper = binom.isf(level / 2, count, shares).astype(int)
    # The ends of the inverse functions may lie at the level itself.
    lower = lower + (_tails(count, shares, lower) <= level)
    upper = upper - (_tails(count, shares, upper) <= level)
    return np.clip(lower, 0, count), np.clip(upper, 0, count)


def _probability_inside(count: int, shares: np.ndarray, level: float) -> float:
    """Return the probability that the tails of all places stay above a level."""
    from scipy.stats import poisson

    lower, upper = _allowed(count, shares, level)
    if np.any(lower > upper):
        return 0.0
    numbers = np.arange(count + 1)
    state, first = np.ones(1), 0  # of walks, by the number below the place, from ``first`` on
    widths = np.diff(shares, prepend=0, append=1)
    for width, low, high in zip(widths, [*lower, count], [*upper, count], strict=True):
        steps = poisson.pmf(numbers[: high - first + 1], count * width)
        state = np.convolve(state, steps)[max(low - first, 0) : high - first + 1]
        first = max(low, first)
    return float(state[0] / poisson.pmf(count, count)) if len(state) else 0.0
