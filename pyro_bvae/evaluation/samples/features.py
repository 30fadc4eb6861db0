"""Spaces to compare data and samples in: principal components, and a classifier's layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import PREDICTIVE_STREAM, stream_seed

#: A map from rows ``(N, D)`` to features ``(N, F)``.
Features = Callable[[Tensor], Tensor]
# Below this share of the largest variance a principal component is rounding.
_NEGLIGIBLE = 1e-10
# Steps of a classifier's fit, and how many data are in each.
_STEPS, _BATCH = 2000, 64


def as_rows(name: str, values: Values) -> Tensor:
    """Return data as a table of doubles, ``(N, ...)`` to ``(N, D)``.

    Raises:
        InputError: for anything but rows of finite numbers.
    """
    given = (
        values.detach().cpu()
        if isinstance(values, Tensor)
        else torch.as_tensor(np.asarray(values, dtype=float))
    )
    if given.dim() < 2 or not given.numel():
        raise InputError(f"'{name}' must have shape (N, D), got {tuple(given.shape)}")
    rows = given.flatten(1).double()
    check_finite(name, rows)
    return rows


def sklearn_seed(seed: int, *path: int) -> int:
    """Return the seed that scikit-learn takes for a stream of the samples' scores."""
    return stream_seed(seed, PREDICTIVE_STREAM, *path) % 2**32


def fitted_network(x: Tensor, targets: Any, hidden: int, seed: int, steps: int = _STEPS) -> Any:
    """Return scikit-learn's perceptron of one hidden layer, fitted to rows and classes."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.neural_network import MLPClassifier

    batch = min(_BATCH, len(x))
    passes = math.ceil(steps * batch / len(x))
    network = MLPClassifier(
        (hidden,), batch_size=batch, learning_rate_init=3e-3, max_iter=passes, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is meant
        network.fit(x.float().numpy(), targets)
    return network


@public
class PrincipalFeatures:
    r"""The leading principal components of data, each with mean 0 and variance 1 over them.

    .. math:: f_i(x) = v_i^\top (x - \bar x) / \sqrt{\lambda_i}

    Args:
        x: The data, ``(N, D)``.
        num_components: How many components at most; those without variance are left out.

    Raises:
        InputError: if the data do not vary or cannot be used.
    """

    def __init__(self, x: Values, num_components: int = 32) -> None:
        check_count("num_components", num_components)
        rows = as_rows("x", x)
        self.mean = rows.mean(0)
        centred = rows - self.mean
        variances, directions = (
            part.flip(-1) for part in torch.linalg.eigh(centred.T @ centred / len(rows))
        )
        if float(variances[0]) <= _NEGLIGIBLE * float(rows.square().mean()):
            raise InputError(
                f"'x' must vary to have principal components, but its {len(rows)} rows are the same"
            )
        kept = min(num_components, int((variances > _NEGLIGIBLE * variances[0]).sum()))
        self.directions = directions[:, :kept] / variances[:kept].sqrt()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of rows, ``(N, D)`` to ``(N, F)``."""
        return (x.double() - self.mean) @ self.directions


@public
class LabelClassifier:
    """A classifier of labels: its hidden layer is a space, its probabilities score samples.

    It is scikit-learn's perceptron of one hidden layer. Its output on data it was not fitted to
    is kept, as a standard for that on samples. Being sure of something that is like no datum
    is a fault that classifiers have.

    Args:
        x: The data, ``(N, D)``.
        labels: The class of each, whole numbers, ``(N,)``.
        hidden: Width of the hidden layer, and so the number of features.
        held_out: Share of the data that it is not fitted to.
        seed: Seed of the fit and of the choice of these data.

    Attributes:
        classes: The labels that there are, ``(C,)``.
        shares: The share of each class in the data, ``(C,)``.
        accuracy: Share of the held-out data whose class it finds.
        held_out: Its probabilities there, ``(H, C)``.

    Raises:
        InputError: if the labels are not one for each datum, or all the same, or if the data cannot
            be used.
    """

    def __init__(
        self, x: Values, labels: Values, *, hidden: int = 128, held_out: float = 0.2, seed: int = 0
    ) -> None:
        check_count("hidden", hidden)
        if not 0 < held_out < 1:
            raise InputError(f"'held_out' must lie between 0 and 1, got {held_out}")
        rows = as_rows("x", x)
        truth = _classes(labels, len(rows))
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(sklearn_seed(seed, 0))
        )
        kept_out, fitted = order.tensor_split([max(1, round(held_out * len(rows)))])
        results, counts = truth[fitted].unique(return_counts=True)
        if len(results) < 2:
            raise InputError(
                "'labels' must hold at least two classes to tell apart, got only"
                f" {truth.unique().tolist()}"
            )
        self.mean, self.scale = rows[fitted].mean(0), rows[fitted].std().clamp(min=1e-12)
        self._network = fitted_network(
            self._scaled(rows[fitted]), truth[fitted].numpy(), hidden, sklearn_seed(seed, 1)
        )
        self.classes, self.shares = results, counts.double() / counts.sum()
        self.held_out = self.probabilities(rows[kept_out])
        self.accuracy = float((results[self.held_out.argmax(1)] == truth[kept_out]).double().mean())

    def _scaled(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) / self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """Return the last hidden layer at rows, ``(N, D)`` to ``(N, F)``."""
        weight, bias = (
            torch.from_numpy(part[0]).double()
            for part in (self._network.coefs_, self._network.intercepts_)
        )
        return torch.relu(self._scaled(x) @ weight + bias)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probability of each class at rows, ``(N, D)`` to ``(N, C)``."""
        return torch.from_numpy(
            self._network.predict_proba(self._scaled(x).float().numpy())
        ).double()


def _classes(labels: Values, num_data: int) -> Tensor:
    """Return labels as integers, one for each datum."""
    given = (
        labels.detach().cpu() if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    )
    if given.dim() != 1 or len(given) != num_data:
        raise InputError(
            f"'labels' must be one for each of the {num_data} data, got shape {tuple(given.shape)}"
        )
    check_finite("labels", given)
    if not bool((given == given.long()).all()):
        raise InputError(
            f"'labels' must be whole numbers, got {float(given[given != given.long()][0])}"
        )
    return given.long()
