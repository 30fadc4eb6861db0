"""Scores from classifiers: SAP, of one latent at a time, and explicitness, of all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.disentanglement.arrays import Array, Values, halves, paired
from pyro_bvae.evaluation.disentanglement.linear_svm import Machines
from pyro_bvae.evaluation.disentanglement.score import Score, bootstrap_errors

# The inverse weight of the ridge of SAP's classifiers, as in Locatello et al. 2019.
_SAP_C = 0.01


@public
def sap(
    codes: Values,
    factors: Values,
    *,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Score:
    r"""Return separated attribute predictability: the lead of the latent that best tells a factor.

    .. math:: \mathrm{SAP} = \frac1F \sum_j \big( A_{(1) j} - A_{(2) j} \big),

    where :math:`A_{dj}` is the accuracy, on the second half of the data, of a linear support vector
    machine that was trained on latent d in the first, with balanced classes. A linear classifier
    cannot tell the middle one of several values on a line, and guessing is right now and then: a
    perfect code reaches 0.38 in the field's reference as here, not 1.

    Args:
        codes: The representation, shape ``(N, D)``, D at least 2; scale matters, as in the
            reference.
        factors: Classes of the data, shape ``(N, F)``.
        factor_names: Name of each factor.
        num_bootstrap: How often the test data are drawn again for the interval, with the
            classifiers held; 0 for none.
        seed: Seed of the draws.

    Returns:
        The score and that of each factor. Reference: Kumar et al. 2018.

    Raises:
        InputError: if a value of a factor is in one half only, or for codes and factors that cannot
            be used.
    """
    data = paired(codes, factors, factor_names, least_latents=2)
    train, test = halves(data)
    num_latents, num_factors = data.codes.shape[1], len(data.names)
    right = np.empty((len(test.codes), num_latents, num_factors))
    for d in range(num_latents):
        for j in range(num_factors):
            machines = Machines(train.codes[:, d], train.classes[:, j], _SAP_C)
            right[:, d, j] = machines.predict(test.codes[:, d]) == test.classes[:, j]
    flat = right.reshape(len(right), -1)

    def statistic(weights: Array) -> Array:
        accuracy = (weights @ flat).reshape(num_latents, num_factors) / len(flat)
        second, first = np.sort(accuracy, axis=0)[-2:]
        return np.array([(first - second).mean(), *(first - second)])

    errors = bootstrap_errors(statistic, len(flat), num_bootstrap, seed)
    return Score.of("SAP", statistic(np.ones(len(flat))), errors, data.names, len(data.codes))


@public
def explicitness(
    codes: Values,
    factors: Values,
    *,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Score:
    r"""Return how well a linear classifier of all latents tells the values of a factor.

    The mean over factors of the mean over their values of the area under the ROC curve, on the
    second half of the data, of a logistic regression trained on the first. It is 0.5 for codes that
    tell nothing, and not rescaled. A value in the middle of a line is not told by a linear
    classifier: a perfect code of ordered factors need not reach 1.

    Args:
        codes: The representation, shape ``(N, D)``; each latent is scaled to unit variance.
        factors: Classes of the data, shape ``(N, F)``.
        factor_names: Name of each factor.
        num_bootstrap: How often the test data are drawn again for the interval, with the
            classifiers held; 0 for none.
        seed: Seed of the draws.

    Returns:
        The score and that of each factor. Reference: Ridgeway and Mozer 2018.

    Raises:
        InputError: if a value of a factor is in one half only, or for codes and factors that cannot
            be used.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import
    from threadpoolctl import threadpool_limits

    data = paired(codes, factors, factor_names)
    train, test = (half.codes.astype(float) for half in halves(data))
    classes = [half.classes for half in halves(data)]
    spread = train.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    areas = []
    with threadpool_limits(1):  # threads that wait for each other cost more than the sums
        for j, size in enumerate(data.sizes):
            shares = np.empty((len(test), size))
            for value in range(size):
                machine = LogisticRegression(solver="newton-cholesky").fit(
                    train / scale, classes[0][:, j] == value
                )
                shares[:, value] = _placements(
                    machine.decision_function(test / scale), classes[1][:, j] == value
                )
            areas.append(_Areas(shares, classes[1][:, j]))

    def statistic(weights: Array) -> Array:
        each = np.array([factor.mean(weights) for factor in areas])
        return np.array([each.mean(), *each])

    errors = bootstrap_errors(statistic, len(test), num_bootstrap, seed)
    return Score.of(
        "explicitness", statistic(np.ones(len(test))), errors, data.names, len(data.codes)
    )


class _Areas:
    """The areas under the ROC curves of a factor's values, of weighted data."""

    def __init__(self, shares: Array, classes: Array) -> None:
        self.shares, self.classes = shares, classes
        self.own = shares[np.arange(len(shares)), classes]
        self.whole = np.bincount(classes, self.own) / np.bincount(classes)

    def mean(self, weights: Array) -> float:
        """Return the mean over values of the area's first-order change with each datum's weight."""
        counts = np.bincount(self.classes, weights)
        own = np.bincount(self.classes, weights * self.own)
        others = (weights @ self.shares - own) / (weights.sum() - counts)
        mine = np.divide(own, counts, out=self.whole.copy(), where=counts > 0)
        return float((mine + others - self.whole).mean())


def _placements(scores: Array, member: Array) -> Array:
    """Return the share of others below each member, and of members above each other.

    Ties count one half.

    The mean of either is the area under the ROC curve (DeLong et al. 1988).
    """
    from scipy.stats import rankdata

    ranks, placed = rankdata(scores), np.empty(len(scores))
    for mine, sign in ((member, 1.0), (~member, -1.0)):
        below = (ranks[mine] - rankdata(scores[mine])) / (~mine).sum()
        placed[mine] = below if sign > 0 else 1 - below
    return placed
