"""DCI: disentanglement, completeness and informativeness, by a classifier of each factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import BOOTSTRAP_STREAM, FIT_STREAM, stream_seed
from pyro_bvae.evaluation.disentanglement.arrays import Paired, Values, halves, paired
from pyro_bvae.evaluation.disentanglement.score import Array, Score, check_bootstrap, generator

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class DCI:
    """Disentanglement, completeness and informativeness, and their ingredients.

    Attributes:
        disentanglement: Whether each latent matters to one factor only, with a part for each
            latent.
        completeness: Whether each factor is told by one latent only, with a part for each factor.
        informativeness: Accuracy of the classifiers on the second half of the data, with a part for
            each factor.
        train_accuracy: Their accuracy on the first half, which trained them.
        importances: Of each latent (row) for each factor (column), which add up to 1 over latents.
    """

    disentanglement: Score
    completeness: Score
    informativeness: Score
    train_accuracy: float
    importances: pd.DataFrame

    @property
    def scores(self) -> tuple[Score, Score, Score]:
        """The three scores."""
        return self.disentanglement, self.completeness, self.informativeness

    def __str__(self) -> str:
        return "\n".join(str(score) for score in self.scores)


@public
def dci(
    codes: Values,
    factors: Values,
    *,
    predictor: Any = None,
    factor_names: Sequence[str] = (),
    num_bootstrap: int = 4,
    seed: int = 0,
) -> DCI:
    r"""Return disentanglement, completeness and informativeness.

    With :math:`R_{dj}`, how much a classifier of factor j looks at latent d, and H the entropy of
    its rows or columns made to add up to 1,

    .. math:: \mathrm{D} = \sum_d \frac{\sum_j R_{dj}}{\sum_{dj} R_{dj}} \Big(1 - \frac{H(R_{d
        \cdot})}{\log F}\Big),
        \quad \mathrm{C} = \sum_j \frac{\sum_d R_{dj}}{\sum_{dj} R_{dj}} \Big(1 - \frac{H(R_{\cdot
        j})}{\log D}\Big),

    and I the accuracy of the classifiers. All three are 1 for a perfect code. Codes that tell
    nothing still have an accuracy: that of guessing.

    Each boosted classifier takes a hundred trees a class: seconds for 2,000 data, minutes for
    50,000. A forest takes a tenth of that, but its importances, and so its scores, are others. The
    errors need fits of their own: both halves of the training data, split at random, are fitted and
    tested apart, and the squared difference of the two, over 4, is the variance; few pairs of
    halves tell it to about a third.

    Args:
        codes: The representation, shape ``(N, D)``, D at least 2.
        factors: Classes of the data, shape ``(N, F)``, F at least 2.
        predictor: A scikit-learn classifier with ``feature_importances_``, copied for each fit;
            None for gradient boosting at its defaults, as in the field's reference.
        factor_names: Name of each factor.
        num_bootstrap: Fits of half the data for the interval, in pairs; 0 for none.
        seed: Seed of the splits and of the classifiers.

    Returns:
        The three scores with their parts, and the importances. Reference: Eastwood and Williams
        2018.

    Raises:
        InputError: if a value of a factor is in one half only, or for codes and factors that cannot
            be used.
    """
    import pandas as pd
    from sklearn.ensemble import GradientBoostingClassifier  # slow to import

    check_bootstrap(num_bootstrap)
    data = paired(codes, factors, factor_names, least_latents=2, least_factors=2)
    parts = halves(data)
    if predictor is not None and (isinstance(predictor, type) or not hasattr(predictor, "fit")):
        raise InputError(
            f"'predictor' must be a classifier of scikit-learn's, got {shown(predictor)}"
        )
    classifier = GradientBoostingClassifier() if predictor is None else predictor
    table, trained, accuracy = _fit(classifier, *parts, seed)
    rng = generator(seed, BOOTSTRAP_STREAM)
    differences = []
    for _ in range(-(-num_bootstrap // 2)):
        orders = [rng.permutation(len(part.codes)) for part in parts]
        apart = []
        for side in (0, 1):
            one, other = (
                part.take(order[side::2]) for part, order in zip(parts, orders, strict=True)
            )
            importances, _, right = _fit(classifier, one, other, seed)
            apart.append(_values(importances, right))
        differences.append(apart[0] - apart[1])
    errors = np.sqrt(np.mean(np.square(differences), 0) / 4) if differences else None
    (num_data, num_latents), num_factors = data.codes.shape, len(data.names)
    edges = [1 + num_latents, 2 + num_latents + num_factors]
    values = np.split(_values(table, accuracy), edges)
    spreads = [None] * 3 if errors is None else np.split(errors, edges)
    names = ("DCI disentanglement", "DCI completeness", "DCI informativeness")
    labels = (data.latents, data.names, data.names)
    scores = [Score.of(*of, num_data) for of in zip(names, values, spreads, labels, strict=True)]
    first, second, third = scores
    return DCI(
        first,
        second,
        third,
        float(trained.mean()),
        pd.DataFrame(table, data.latents, list(data.names)),
    )


def _fit(predictor: Any, train: Paired, test: Paired, seed: int) -> tuple[Array, Array, Array]:
    """Return importances ``(D, F)``, and accuracies on training and test data, ``(F,)``."""
    from sklearn.base import clone

    columns = []
    for j, (target, truth) in enumerate(zip(train.classes.T, test.classes.T, strict=True)):
        model = clone(predictor)
        if "random_state" in model.get_params():
            model.set_params(random_state=stream_seed(seed, FIT_STREAM, j) % 2**32)
        model.fit(train.codes, target)
        accuracies = (
            np.mean(model.predict(part) == known)
            for part, known in ((train.codes, target), (test.codes, truth))
        )
        columns.append((np.abs(model.feature_importances_), *accuracies))
    importances, trained, accuracy = zip(*columns, strict=True)
    return np.stack(importances, 1), np.array(trained), np.array(accuracy)


def _values(importances: Array, accuracy: Array) -> Array:
    """Return the three scores, each before its parts, as one vector."""
    weights = importances / (importances.sum() or 1.0)
    rows, columns = _concentration(importances), _concentration(importances.T)
    scores = (
        weights.sum(1) @ rows,
        rows,
        weights.sum(0) @ columns,
        columns,
        accuracy.mean(),
        accuracy,
    )
    return np.concatenate([np.atleast_1d(score) for score in scores])


def _concentration(table: Array) -> Array:
    """Return one less the relative entropy of each row; 0 for a row of zeros."""
    from scipy.special import xlogy

    totals = table.sum(1, keepdims=True)
    shares = np.divide(table, totals, out=np.full_like(table, 1 / table.shape[1]), where=totals > 0)
    return np.clip(1 + xlogy(shares, shares).sum(1) / np.log(table.shape[1]), 0.0, 1.0)
