"""Scores from a table of mutual information between latents and factors: MIG and modularity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.disentanglement.arrays import Array, Paired, Values, paired
from pyro_bvae.evaluation.disentanglement.score import Score, bootstrap_errors

if TYPE_CHECKING:
    import pandas as pd

# Nats below which a mutual information is the rounding of sums that cancel.
_ROUNDING = 1e-12

#: Bins of equal width that each latent is cut into, as in Locatello et al. 2019.
NUM_BINS = 20


@public
def mutual_information(
    codes: Values, factors: Values, *, bins: int = NUM_BINS, factor_names: Sequence[str] = ()
) -> pd.DataFrame:
    r"""Return the mutual information of every latent with every factor, in nats.

    Of the counts of a latent's bins and a factor's values:
    :math:`I(z_d; v_j) = \sum p(b, v) \log \frac{p(b, v)}{p(b) p(v)}`. The scores of the
    field are defined by it; it is too large by about :math:`(B - 1)(K_j - 1) / 2N`, and
    :func:`pyro_bvae.evaluation.read_latents` has an estimate without bins.

    Args:
        codes: The representation, shape ``(N, D)``.
        factors: Classes of the data, shape ``(N, F)``.
        bins: B, bins of equal width between a latent's smallest and largest code.
        factor_names: Name of each factor.

    Returns:
        A row for each latent, a column for each factor.

    Raises:
        InputError: if there are fewer data than bins, or for codes and factors that cannot be used.
    """
    import pandas as pd

    data = paired(codes, factors, factor_names)
    return pd.DataFrame(_information(_cells(data, bins)).table, data.latents, list(data.names))


@public
def mutual_information_gap(
    codes: Values,
    factors: Values,
    *,
    bins: int = NUM_BINS,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Score:
    r"""Return the lead of the latent that tells most of a factor, as a share of its entropy.

    .. math:: \mathrm{MIG} = \frac1F \sum_j \frac{I(z_{(1)}; v_j) - I(z_{(2)}; v_j)}{H(v_j)}

    It is 1 for a code with one latent for each factor, up to the mutual information that latents
    and factors have by chance in few data: 0.994 for the field's perfect code of 4,000.

    Args:
        codes: The representation, shape ``(N, D)``, D at least 2.
        factors: Classes of the data, shape ``(N, F)``.
        bins: Bins of equal width for each latent.
        factor_names: Name of each factor.
        num_bootstrap: How often the data are drawn again for the interval; 0 for none.
        seed: Seed of the draws.

    Returns:
        The score and that of each factor. Reference: Chen et al. 2018.

    Raises:
        InputError: if there are fewer data than bins, or for codes and factors that cannot be used.
    """
    data = paired(codes, factors, factor_names, least_latents=2)

    def statistic(result: _Information) -> Array:
        second, first = np.sort(result.table, axis=0)[-2:]
        # A factor that did not vary in data drawn again tells no gap.
        gaps = np.divide(
            first - second, result.entropies, out=np.zeros_like(first), where=result.entropies > 0
        )
        return np.array([gaps.mean(), *gaps])

    cells = _cells(data, bins)
    errors = bootstrap_errors(
        lambda w: statistic(_information(cells, w)), len(data.codes), num_bootstrap, seed
    )
    return Score.of("MIG", statistic(_information(cells)), errors, data.names, len(data.codes))


@public
def modularity(
    codes: Values,
    factors: Values,
    *,
    bins: int = NUM_BINS,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Score:
    r"""Return how far each latent tells of one factor only.

    .. math:: \frac1D \sum_d \Big( 1 - \frac{\sum_{j \ne j_d} I(z_d; v_j)^2}{(F - 1)\, I(z_d;
        v_{j_d})^2} \Big),
        \quad j_d = \arg\max_j I(z_d; v_j)

    A latent that is constant counts 0. One of pure noise does not: the ratio is of chance
    information. A perfect code with two idle latents of seven has 0.89, and noise alone 0.72, in
    the field's reference as here. Read it beside the null of shuffled factors.

    Args:
        codes: The representation, shape ``(N, D)``.
        factors: Classes of the data, shape ``(N, F)``, F at least 2.
        bins: Bins of equal width for each latent.
        factor_names: Name of each factor.
        num_bootstrap: How often the data are drawn again for the interval; 0 for none.
        seed: Seed of the draws.

    Returns:
        The score and that of each latent. Reference: Ridgeway and Mozer 2018.

    Raises:
        InputError: if there are fewer data than bins, or for codes and factors that cannot be used.
    """
    data = paired(codes, factors, factor_names, least_factors=2)

    def statistic(result: _Information) -> Array:
        squares = result.table**2
        largest = squares.max(1)
        others = (squares.sum(1) - largest) / (squares.shape[1] - 1)
        each = 1 - np.divide(others, largest, out=np.ones_like(others), where=largest > 0)
        return np.array([each.mean(), *each])

    cells = _cells(data, bins)
    errors = bootstrap_errors(
        lambda w: statistic(_information(cells, w)), len(data.codes), num_bootstrap, seed
    )
    return Score.of(
        "modularity", statistic(_information(cells)), errors, data.latents, len(data.codes)
    )


class _Cells(NamedTuple):
    """The cell of bins and values that each datum falls into, for each latent and factor."""

    places: list[list[Array]]  # D x F of (N,)
    shapes: list[tuple[int, int]]  # F of (bins, values)


class _Information(NamedTuple):
    table: Array  # (D, F)
    entropies: Array  # (F,)


def _cells(data: Paired, bins: int) -> _Cells:
    check_count("bins", bins)
    if len(data.codes) < bins:
        raise InputError(
            f"'bins' must be at most the number of data, {len(data.codes)}, got {bins}"
        )
    binned = []
    for column in data.codes.T.astype(float):
        low, high = column.min(), column.max()
        if high - low <= 4 * bins * np.spacing(max(abs(low), abs(high))):  # constant to rounding
            binned.append(np.zeros(len(column), int))
            continue
        # The edge at the right is left out, so that the largest code falls into the last bin.
        edges = np.histogram(column, bins)[1][:-1]
        binned.append(np.digitize(column, edges) - 1)
    places = [
        [column * size + classes for size, classes in zip(data.sizes, data.classes.T, strict=True)]
        for column in binned
    ]
    return _Cells(places, [(bins, int(size)) for size in data.sizes])


def _information(cells: _Cells, weights: Array | None = None) -> _Information:
    """Return mutual information and entropies, of data that count as often as their weights say."""
    table = np.empty((len(cells.places), len(cells.shapes)))
    entropies = np.empty(len(cells.shapes))
    for d, row in enumerate(cells.places):
        for j, (places, shape) in enumerate(zip(row, cells.shapes, strict=True)):
            joint = np.bincount(places, weights, minlength=shape[0] * shape[1]).reshape(
                shape
            ) / len(places)
            entropies[j] = -_sum_log(joint.sum(0))
            shared = _sum_log(joint) - _sum_log(joint.sum(1)) + entropies[j]
            table[d, j] = shared if shared > _ROUNDING else 0.0
    return _Information(table, entropies)


def _sum_log(p: Array) -> float:
    from scipy.special import xlogy

    return float(xlogy(p, p).sum())
