"""A data set into training, validation and test parts, at random or by counts."""

from __future__ import annotations

import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets.base import Dataset, Splits
from pyro_bvae.datasets.streams import SPLIT_STREAM, stream_generator


def held_out_count(name: str, value: float, total: int) -> int:
    """Return how many of ``total`` data a fraction in [0, 1) or a whole number of them stands for.

    Raises:
        InputError: if it is neither, or stands for less than one datum without being zero.
    """
    fraction = isinstance(value, float)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < (1 if fraction else total):
        raise InputError(f"'{name}' must be a fraction in [0, 1) or a number of data below {total}, got {value!r}")
    count = round(value * total) if fraction else int(value)
    if value > 0 and count == 0:
        raise InputError(f"'{name}' = {value} of {total} data leaves it empty; give a larger part, or 0")
    return count


def part_sizes(total: int, validation: float, test: float) -> tuple[int, int, int]:
    """Return how many of ``total`` data train, validate and test, each of the last two a fraction or a number.

    Raises:
        InputError: if the training or the test part would be empty.
    """
    num_validation = held_out_count("validation", validation, total)
    num_test = held_out_count("test", test, total)
    if num_test == 0:
        raise InputError(f"'test' must hold at least one datum, got {test!r}")
    num_train = total - num_validation - num_test
    if num_train < 1:
        raise InputError(
            f"'validation' = {validation} and 'test' = {test} take all {total} data: none is left to train on"
        )
    return num_train, num_validation, num_test


def split(dataset: Dataset, *, validation: float, test: float, seed: int, name: str) -> Splits:
    """Split at random, as a pure function of the seed.

    Args:
        dataset: The N data.
        validation: A fraction below 1 (a float) or a number of data (an int); 0 for no validation part.
        test: Likewise, but at least one datum.
        seed: Of the random order.
        name: The name of the result.

    Raises:
        InputError: if a part would be empty.
    """
    sizes = part_sizes(len(dataset), validation, test)
    order = torch.randperm(len(dataset), generator=stream_generator(seed, 0, SPLIT_STREAM))
    train_rows, validation_rows, test_rows = order.split(list(sizes))
    return Splits(
        train=dataset[train_rows],
        validation=dataset[validation_rows] if len(validation_rows) else None,
        test=dataset[test_rows],
        name=name,
    )
