"""Named parts and class labels, shared by file readers, which put the path before an error."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, listed

_LARGEST = 2**53  # the whole numbers that every type of number tells apart
PARTS = ("train", "validation", "test")
WHOLE = "all"
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.0)?")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def check_parts(results: list[str], where: str) -> None:
    """Raise unless the parts are train and test, with or without validation.

    Raises:
        InputError: naming the results.
    """
    if not {"train", "test"} <= set(results) <= set(PARTS):
        raise InputError(
            f"{where} must be 'train', 'test' and maybe 'validation', got "
            f"{listed([repr(result) for result in results], 10)}"
        )


def encode_labels(values: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as integers.

    Args:
        values: Whole numbers, which stay as they are, or text, which is numbered in sorted order,
            ``(N,)``.

    Returns:
        Long labels ``(N,)`` and the names of the classes, empty for numbers.

    Raises:
        InputError: if a label is missing or a fraction.
    """
    if values.ndim != 1:
        raise InputError(f"labels must have shape (N,), got {values.shape}")
    if values.dtype.kind in "US":
        try:
            text = values.astype(str)
        except UnicodeDecodeError as error:
            raise InputError(f"labels must be text, got bytes that are none: {error}") from error
        names, codes = np.unique(text, return_inverse=True)
        return torch.from_numpy(codes.astype(np.int64)), tuple(str(name) for name in names)
    if values.dtype.kind not in "biuf":
        raise InputError(f"labels must be whole numbers or text, got type {values.dtype}")
    if values.dtype.kind == "f":
        bad = ~(np.isfinite(values) & (values == np.round(values)))
        if bad.any():
            raise InputError(
                f"labels must be whole numbers or text, got {values[bad][0]} in row "
                f"{int(bad.argmax()) + 1}"
            )
    large = np.abs(values.astype(np.float64)) > _LARGEST
    if large.any():
        raise InputError(
            f"labels must be below 2^53 in size, got {values[large][0]} in row "
            f"{int(large.argmax()) + 1}"
        )
    return torch.from_numpy(values.astype(np.int64)), ()


def encode_text(values: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels that were read as text as integers.

    Where all are whole numbers, each in one spelling, they stay numbers; otherwise every text is a
    class, so that ``01``, ``1``, ``NA`` and ``None`` are four.

    Args:
        values: Text, ``(N,)``.

    Returns:
        As of :func:`encode_labels`.

    Raises:
        InputError: if all are numbers and one is a fraction, which is no class.
    """
    spellings = np.unique(values)
    if all(_NUMBER.fullmatch(text) for text in spellings):
        numbers = spellings.astype(float)
        is_whole = all(_WHOLE_NUMBER.fullmatch(text) for text in spellings)
        is_fraction = np.isfinite(numbers) & (numbers != np.round(numbers))
        if (is_whole and len(np.unique(numbers)) == len(spellings)) or is_fraction.any():
            return encode_labels(values.astype(float))
    return encode_labels(values)
