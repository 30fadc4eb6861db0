"""The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn: no download."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.splits import Splits, split


@cache
def _table() -> Any:
    """Return scikit-learn's table, a text file whose reading takes a tenth of a second."""
    from sklearn.datasets import load_digits

    return load_digits()


@public
def digits(*, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> Splits:
    """Return scikit-learn's digits, grey values in [0, 1], ``(N, 64)``, with labels.

    Args:
        validation: Fraction or number of data; 0 for none.
        test: Fraction or number of data.
        seed: Of the random split.
    """
    bunch = _table()
    dataset = Dataset(
        x=torch.from_numpy(bunch.data).float() / 16,
        labels=torch.from_numpy(bunch.target).long().clone(),
        image_shape=(1, 8, 8),
        label_names=tuple(str(name) for name in bunch.target_names),
    )
    return split(dataset, validation=validation, test=test, seed=seed, name="digits")
