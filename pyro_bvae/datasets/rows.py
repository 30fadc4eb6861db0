"""Rows of data in any container as a data set."""

from __future__ import annotations

from typing import Any

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import as_data, is_table, named
from pyro_bvae.core.protocols import num_features_of, takes_missing
from pyro_bvae.datasets.dataset import Dataset


def as_dataset(data: Any, vae: Any = None) -> Dataset:
    """Return a data set as it is, and rows of numbers as one.

    Args:
        data: A :class:`Dataset`, a tensor ``(N, D)`` or images, an array, a table or a nested list.
        vae: A model, in whose type the rows are, and which may take NaN as missing.

    Raises:
        InputError: for anything else.
    """
    if is_table(data):
        own = next(vae.parameters(), None) if hasattr(vae, "parameters") else None
        x = as_data("x", data, own, num_features_of(vae))
        return Dataset(x, missing=takes_missing(vae))
    if not isinstance(data, Dataset):
        raise InputError(f"'data' must be a tensor (N, D) or a Dataset, got {named(data)}")
    return data
