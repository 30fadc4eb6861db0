"""Scores from groups of data that share the value of a factor: β-VAE score and FactorVAE score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import BOOTSTRAP_STREAM, GROUP_STREAM
from pyro_bvae.evaluation.disentanglement.arrays import Paired, Values, halves, paired
from pyro_bvae.evaluation.disentanglement.score import Array, Score, check_bootstrap, generator
from pyro_bvae.evaluation.marginal.bounds import ACTIVE_VARIANCE

# From training and test data and a generator to the accuracy and the share of each factor's groups
# that are recognised.
_Accuracy = Callable[[Paired, Paired, np.random.Generator], Array]


@public
def beta_vae_score(
    codes: Values,
    factors: Values,
    *,
    num_groups: int = 2000,
    group_size: int = 64,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 30,
    seed: int = 0,
) -> Score:
    r"""Return how well the factor that pairs of data share can be told from how their codes differ.

    A group is L pairs that share the value of one factor j: from
    :math:`\frac1L \sum_l |z_{l1} - z_{l2}|` a linear classifier, trained on groups of the first
    half of the data, tells j for groups of the second. Chance is 1 / F. A rotated code can still
    score high: the metric asks for a trace of each factor, not a latent of its own.

    Args:
        codes: The representation, shape ``(N, D)``; the scale of a latent does not matter.
        factors: Classes of the data, shape ``(N, F)``, F at least 2.
        num_groups: Groups to train on, and as many to test on.
        group_size: L, pairs in a group.
        factor_names: Name of each factor.
        num_bootstrap: How often data and groups are drawn again for the interval; 0 for none.
        seed: Seed of all draws.

    Returns:
        The accuracy, and the share of each factor's groups that are told. Reference: Higgins et al.
        2017.

    Raises:
        InputError: if a value of a factor has fewer than two data in a half, or for codes and
            factors that cannot be used.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import
    from threadpoolctl import threadpool_limits

    def accuracy(train: Paired, test: Paired, rng: np.random.Generator) -> Array:
        features, targets = _differences(train, num_groups, group_size, rng)
        shown, truth = _differences(test, num_groups, group_size, rng)
        scale = _positive(features.std(0))
        with threadpool_limits(1):  # threads that wait for each other cost more than the sums
            model = LogisticRegression(solver="newton-cholesky").fit(features / scale, targets)
        return _shares(model.predict(shown / scale) == truth, truth, len(train.names))

    return _score(
        "β-VAE score",
        accuracy,
        codes,
        factors,
        factor_names,
        (num_groups, group_size, num_bootstrap),
        seed,
    )


@public
def factor_vae_score(
    codes: Values,
    factors: Values,
    *,
    num_groups: int = 2000,
    group_size: int = 64,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 30,
    seed: int = 0,
) -> Score:
    r"""Return the accuracy of the least varying latent as a sign of the factor that data share.

    A group is L data with the same value of one factor j. Its vote is the latent of smallest
    variance, relative to the variance over all data. Each latent stands for the factor that most of
    its votes in the first half of the data are for; the score is the share of votes in the second
    half that are right. Chance is about 1 / F. Latents with less than 0.01 of the largest variance
    are idle and have no vote; of a code that is constant, all votes are for one.

    Args:
        codes: The representation, shape ``(N, D)``.
        factors: Classes of the data, shape ``(N, F)``, F at least 2.
        num_groups: Groups to train on, and as many to test on.
        group_size: L, data in a group.
        factor_names: Name of each factor.
        num_bootstrap: How often data and groups are drawn again for the interval; 0 for none.
        seed: Seed of all draws.

    Returns:
        The accuracy, and the share of each factor's groups that are told. Reference: Kim and Mnih
        2018.

    Raises:
        InputError: if a value of a factor has fewer than two data in a half, or for codes and
            factors that cannot be used.
    """

    def accuracy(train: Paired, test: Paired, rng: np.random.Generator) -> Array:
        spread = train.codes.var(0)
        idle = spread <= ACTIVE_VARIANCE * spread.max()
        votes, targets = _votes(train, spread, idle, num_groups, group_size, rng)
        shown, truth = _votes(test, spread, idle, num_groups, group_size, rng)
        counts = np.zeros((train.codes.shape[1], len(train.names)))
        np.add.at(counts, (votes, targets), 1)
        return _shares(counts.argmax(1)[shown] == truth, truth, len(train.names))

    options = num_groups, group_size, num_bootstrap
    return _score("FactorVAE score", accuracy, codes, factors, factor_names, options, seed)


def _score(
    name: str,
    accuracy: _Accuracy,
    codes: Values,
    factors: Values,
    factor_names: Sequence[str],
    options: tuple[int, int, int],
    seed: int,
) -> Score:
    """Return the accuracy with its spread over data and groups that are drawn again."""
    num_groups, group_size, num_bootstrap = options
    check_count("num_groups", num_groups)
    check_count("group_size", group_size)
    check_bootstrap(num_bootstrap)
    data = paired(codes, factors, factor_names, least_factors=2)
    parts = halves(data)
    for part in parts:
        columns = data.names, part.classes.T, part.sizes, part.values
        for factor, known, size, each in zip(*columns, strict=True):
            counts = np.bincount(known, minlength=size)
            if counts.min() < 2:
                raise InputError(
                    "'factors' must have each value at least twice in each half of the data, for"
                    f" pairs that share it, but '{factor}' is {each[counts.argmin()]:g} once; leave"
                    " out values that are so rare"
                )
    values = accuracy(*parts, generator(seed, GROUP_STREAM))
    rng = generator(seed, GROUP_STREAM, BOOTSTRAP_STREAM)
    draws = []
    for _ in range(num_bootstrap):
        again = [part.take(rng.integers(len(part.codes), size=len(part.codes))) for part in parts]
        draws.append(accuracy(again[0], again[1], rng))
    errors = np.std(draws, axis=0, ddof=1) if draws else None
    return Score.of(name, values, errors, data.names, len(data.codes))


def _differences(
    data: Paired, num_groups: int, size: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the mean absolute difference of codes in each group, ``(M, D)``, and its factor."""
    targets = np.sort(rng.integers(len(data.names), size=num_groups))
    rows = []
    for j, count in enumerate(np.bincount(targets, minlength=len(data.names))):
        first = rng.integers(len(data.codes), size=(count, size))
        second = _sharing(data.classes[:, j], data.classes[first, j], rng)
        rows.append(np.abs(data.codes[first] - data.codes[second]).mean(1))
    return np.concatenate(rows), targets


def _votes(
    data: Paired, spread: Array, idle: Array, num_groups: int, size: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the latent that varies least in each group, ``(M,)``, and the shared factor."""
    targets = np.sort(rng.integers(len(data.names), size=num_groups))
    votes = []
    for j, count in enumerate(np.bincount(targets, minlength=len(data.names))):
        fixed = data.classes[rng.integers(len(data.codes), size=(count, 1)), j]
        members = _sharing(data.classes[:, j], np.repeat(fixed, size, 1), rng)
        relative = data.codes[members].var(1) / _positive(spread)
        votes.append(np.where(idle, np.inf, relative).argmin(1))
    return np.concatenate(votes), targets


def _sharing(classes: Array, wanted: Array, rng: np.random.Generator) -> Array:
    """Return, for each class that is wanted, one of the data that have it, at random."""
    order = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    starts = np.cumsum(counts) - counts
    return order[starts[wanted] + (rng.random(wanted.shape) * counts[wanted]).astype(int)]


def _shares(right: Array, truth: Array, num_factors: int) -> Array:
    """Return the share of groups that are told, of all and of each factor; 0 for no group."""
    counts = np.bincount(truth, minlength=num_factors)
    each = np.bincount(truth, right, minlength=num_factors) / np.maximum(counts, 1)
    return np.array([right.mean(), *each])


def _positive(scale: Array) -> Array:
    return np.where(scale > 0, scale, 1.0)
