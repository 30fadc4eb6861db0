"""Scores of samples against data as rows: neighbours, moments, and a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.samples.features import (
    PrincipalFeatures,
    as_rows,
    fitted_network,
    sklearn_seed,
)

# Rows that are held against all others at a time.
_BLOCK = 512
# Squared distances that differ by less than this share of the largest squared length are the same
# but for rounding.
_TIE = 1e-12
# Width of the critic's hidden layer, and the steps of its fit.
_HIDDEN, _STEPS = 64, 500


class NeighbourScores(NamedTuple):
    """Shares of samples and of data that lie among each other.

    Attributes:
        precision: Share of the samples that lie in a ball of the data.
        recall: Share of the data that lie in a ball of the samples.
        density: In how many balls of the data a sample lies, relative to the k that a datum of
            theirs would.
        coverage: Share of the data's balls that hold a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(real: Tensor, samples: Tensor, neighbours: int = 5) -> NeighbourScores:
    r"""Score samples by balls around the data, and data by balls around the samples.

    The ball :math:`B_k` of a point reaches to its k-th nearest neighbour in its own set. Where
    points share a distance, as those of counts and binary data do, density and coverage are means
    over the orders in which chance would put them, so that the expectation for samples drawn as the
    data are, 1 and :func:`expected_coverage`, holds for ties
    too: a sample at the rim of a ball counts as :math:`(k - l) / (e + 1)` of one where l data lie
    inside and e on it.

    .. math::
        \text{precision} = \frac1M \sum_j \mathbf{1}\Big[y_j \in \bigcup_i B_k(x_i)\Big], \quad
        \text{recall} = \frac1N \sum_i \mathbf{1}\Big[x_i \in \bigcup_j B_k(y_j)\Big] \\
        \text{density} = \frac{1}{k M} \sum_{ij} \mathbf{1}[y_j \in B_k(x_i)], \quad
        \text{coverage} = \frac1N \sum_i \mathbf{1}\Big[\exists j: y_j \in B_k(x_i)\Big]

    Time grows with the number of pairs, memory with a block of rows. References: Kynkäänniemi et
    al. 2019 (precision and recall), Naeem et al. 2020 (density and coverage).

    Args:
        real: Features of the data, ``(N, F)``.
        samples: Features of the samples, ``(M, F)``.
        neighbours: k.

    Raises:
        InputError: if there are no more data or samples than neighbours, or their features differ
            in number.
    """
    check_count("neighbours", neighbours)
    for name, rows in (("real", real), ("samples", samples)):
        if len(rows) <= neighbours:
            raise InputError(
                f"'{name}' must have more rows than the {neighbours} neighbours, got {len(rows)}"
            )
    if real.shape[1] != samples.shape[1]:
        raise InputError(
            f"'real' and 'samples' must have as many features, got {real.shape[1]} and"
            f" {samples.shape[1]}"
        )
    scale = max(float(rows.square().sum(1).max()) for rows in (real, samples))
    of_real, of_samples = (_balls(rows, neighbours, _TIE * scale) for rows in (real, samples))
    recalled = torch.zeros(len(real), dtype=torch.bool)
    inside, rim = (torch.zeros(len(real), dtype=torch.double) for _ in range(2))
    precise = 0
    for start, distances in _blocks(samples, real):
        within = distances <= of_real.outer
        precise += int(within.any(1).sum())
        deep = distances < of_real.inner
        inside += deep.sum(0)
        rim += (within & ~deep).sum(0)
        recalled |= (distances <= of_samples.outer[start : start + len(distances), None]).any(0)
    shares = precise / len(samples), float(recalled.double().mean())
    density = float((inside + rim * of_real.places / (of_real.rim + 1)).sum()) / (
        neighbours * len(samples)
    )
    # The probability that all places at a ball's rim fall to data, none to a sample.
    empty = torch.ones_like(rim)
    for taken in range(neighbours):
        share = (of_real.rim - taken).clamp(min=0) / (of_real.rim + rim - taken).clamp(min=1)
        empty = torch.where(taken < of_real.places, empty * share, empty)
    covered = torch.where(inside > 0, 1.0, 1 - empty)
    return NeighbourScores(*shares, density, float(covered.mean()))


class _Balls(NamedTuple):
    """Balls around rows, each entry ``(N,)``; a radius reaches to the k-th nearest row."""

    inner: Tensor
    outer: Tensor
    places: Tensor  # neighbours that are left to the rows at the rim
    rim: Tensor  # rows at the rim, at least as many


def expected_coverage(num_real: int, num_samples: int, neighbours: int) -> float:
    r"""Return the mean coverage of samples that are drawn as the data are.

    .. math:: 1 - \frac{(N - 1) \cdots (N - k)}{(M + N - 1) \cdots (M + N - k)}

    for N data and M samples: a ball is empty if its datum's k nearest of all others are data (Naeem
    et al. 2020). The mean density of such samples is 1.
    """
    factors = ((num_real - i) / (num_samples + num_real - i) for i in range(1, neighbours + 1))
    return 1 - math.prod(factors)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the squared Fréchet distance of two normals with the rows' moments.

    .. math::
        \|\mu_x - \mu_y\|^2 + \operatorname{tr}\big(\Sigma_x + \Sigma_y
            - 2 (\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2}\big)

    It is too large by about a constant times :math:`1/N + 1/M`. Reference: Heusel et al. 2017,
    there of a network's features of photographs.

    Args:
        x: Shape ``(N, F)``.
        y: Shape ``(M, F)``.
    """
    first, second = (torch.cov(rows.T).reshape(rows.shape[1], -1) for rows in (x, y))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    return max(float(apart + first.trace() + second.trace() - 2 * cross), 0.0)


class TwoSampleTest(NamedTuple):
    """How well a classifier tells samples from data on rows that it was not fitted to.

    Attributes:
        accuracy: Share of them that it tells right: 1/2 if there is nothing to tell.
        standard_error: Of the accuracy, for this classifier.
        p_value: Probability of an accuracy as high if both were of one distribution.
        num_held_out: How many rows, half of them samples.
    """

    accuracy: float
    standard_error: float
    p_value: float
    num_held_out: int


@public
def two_sample_test(x: Tensor, y: Tensor, *, critic: Any = None, seed: int = 0) -> TwoSampleTest:
    r"""Test whether two sets of rows are of one distribution, by a classifier of the two.

    It is fitted to one half of each and scored on the other, on as many of the one as of the other;
    its inputs are whitened principal components of the half that it is fitted to. If there is
    nothing to tell, the number of right answers is at most as spread as that of n tosses of a coin,
    and the p-value is that number's. Reference: Lopez-Paz and Oquab 2017.

    Args:
        x: Shape ``(N, D)``.
        y: Shape ``(M, D)``.
        critic: An unfitted classifier of scikit-learn's kind; None for a perceptron of one hidden
            layer.
        seed: Seed of the halves and of the perceptron.

    Raises:
        InputError: for fewer than four rows of either, or no variance to tell anything by.
    """
    from scipy.stats import binomtest  # slow to import

    x, y = as_rows("x", x), as_rows("y", y)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"'y' must have {x.shape[1]} features as 'x' has, got {y.shape[1]}")
    if critic is not None and (isinstance(critic, type) or not hasattr(critic, "fit")):
        raise InputError(f"'critic' must be a classifier of scikit-learn's, got {shown(critic)}")
    size = min(len(x), len(y))
    if size < 4:
        raise InputError(
            f"a two-sample test takes at least 4 rows of each, got {len(x)} and {len(y)}"
        )
    generator = torch.Generator().manual_seed(sklearn_seed(seed, 2))
    parts = [rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in (x, y)]
    half = size // 2
    fitted, held_out = (
        torch.cat([rows[piece] for rows in parts]) for piece in (slice(half), slice(half, None))
    )
    targets, truth = (
        torch.arange(2).repeat_interleave(count).numpy() for count in (half, size - half)
    )
    features = PrincipalFeatures(fitted)
    seen, unseen = (features(rows).float() for rows in (fitted, held_out))
    if critic is None:
        critic = fitted_network(seen, targets, _HIDDEN, sklearn_seed(seed, 3), _STEPS)
    else:
        critic.fit(seen.numpy(), targets)
    right = critic.predict(unseen.numpy()) == truth
    accuracy, count = float(right.mean()), len(truth)
    p_value = float(binomtest(int(right.sum()), count, 0.5, alternative="greater").pvalue)
    return TwoSampleTest(accuracy, math.sqrt(accuracy * (1 - accuracy) / count), p_value, count)


def _balls(rows: Tensor, neighbours: int, tie: float) -> _Balls:
    """Return the ball of each row to its k-th nearest other row; within ``tie`` is a tie."""
    results = []
    for start, distances in _blocks(rows, rows):
        place = torch.arange(len(distances))
        distances[place, start + place] = math.inf  # a row is no neighbour of its own
        reach = distances.topk(neighbours, dim=1, largest=False).values[:, -1:]
        inside = (distances < reach - tie).sum(1)
        rim = (distances <= reach + tie).sum(1) - inside
        results.append(((reach - tie)[:, 0], (reach + tie)[:, 0], neighbours - inside, rim))
    return _Balls(*(torch.cat(parts) for parts in zip(*results, strict=True)))


def _blocks(rows: Tensor, others: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the squared distances of some rows to all, ``(B, N)``, with the first's index."""
    lengths = others.square().sum(1)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        squares = torch.addmm(lengths.expand(len(block), -1), block, others.T, alpha=-2)
        yield start, (squares + block.square().sum(1, keepdim=True)).clamp_(min=0)
