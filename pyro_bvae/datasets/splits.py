"""A data set into training, validation and test parts, at random or by counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.seeds import SPLIT_STREAM, stream_generator

BINARIZE_MODES = ("none", "dynamic", "static")


def held_out_count(name: str, value: float, total: int) -> int:
    """Return how many of ``total`` data a fraction in [0, 1) or a whole number of them stands for.

    Raises:
        InputError: if it is neither, or stands for less than one datum without being zero.
    """
    fraction = isinstance(value, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < (1 if fraction else total)
    ):
        raise InputError(
            f"'{name}' must be a fraction in [0, 1) or a number of data below {total}, got "
            f"{value!r}"
        )
    count = round(value * total) if fraction else int(value)
    if value > 0 and count == 0:
        raise InputError(
            f"'{name}' = {value} of {total} data leaves it empty; give a larger part, or 0"
        )
    return count


def part_sizes(total: int, validation: float, test: float) -> tuple[int, int, int]:
    """Return how many of ``total`` data train, validate and test, from two fractions or numbers.

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
            f"'validation' = {validation} and 'test' = {test} take all {total} data: none is "
            "left to train on"
        )
    return num_train, num_validation, num_test


def parts_of(
    order: np.ndarray, sizes: tuple[int, int, int], strata: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the data that train, validate and test, each in the order of a permutation.

    With strata, each part has each stratum in proportion, to about one datum.

    Args:
        order: A permutation of N data.
        sizes: How many train, validate and test.
        strata: The stratum of each datum, ``(N,)``.
    """
    if strata is None:
        return np.split(order, np.cumsum(sizes)[:2])
    codes = np.unique(strata, return_inverse=True)[1]
    rest = order[np.argsort(codes[order], kind="stable")]  # by stratum, at random in each
    part = np.zeros(len(order), dtype=int)
    for number in (2, 1):  # evenly spaced among those that are left
        places = ((np.arange(sizes[number]) + 0.5) * len(rest) / max(sizes[number], 1)).astype(int)
        part[rest[places]] = number
        rest = np.delete(rest, places)
    return [order[part[order] == number] for number in range(3)]


@public
def split(
    dataset: Dataset,
    *,
    validation: float,
    test: float,
    seed: int,
    name: str,
    stratify: bool = False,
) -> Splits:
    """Split at random, as a pure function of the seed.

    Args:
        dataset: The N data.
        validation: A fraction below 1 (a float) or a number of data (an int); 0 for no validation
            part.
        test: Likewise, but at least one datum.
        seed: Of the random order.
        name: The name of the result.
        stratify: Have each label in proportion in each part.

    Raises:
        InputError: if a part would be empty, or data to be stratified have no labels.
    """
    if stratify and dataset.labels is None:
        raise InputError("'stratify' takes data with labels, got data without")
    strata = dataset.labels.cpu().numpy() if stratify and dataset.labels is not None else None
    sizes = part_sizes(len(dataset), validation, test)
    order = torch.randperm(len(dataset), generator=stream_generator(seed, 0, SPLIT_STREAM))
    train_rows, validation_rows, test_rows = (
        torch.from_numpy(rows) for rows in parts_of(order.numpy(), sizes, strata)
    )
    return Splits(
        train=dataset[train_rows],
        validation=dataset[validation_rows] if len(validation_rows) else None,
        test=dataset[test_rows],
        name=name,
    )


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set; the validation part is dense and may be None."""

    train: Dataset | LazyDataset
    validation: Dataset | None
    test: Dataset | LazyDataset
    name: str

    def __post_init__(self) -> None:
        for part, data in (("validation", self.validation), ("test", self.test)):
            if data is not None and data.num_features != self.train.num_features:
                raise InputError(
                    "the parts must have the same features: training has "
                    f"{self.train.num_features}, "
                    f"{part} has {data.num_features}"
                )
        for part in ("train", "validation", "test"):
            data = getattr(self, part)
            if getattr(data, "missing", False) and bool(torch.isnan(data.x).all()):
                raise InputError(
                    f"nothing is observed: every entry of the {len(data)} data of part '{part}' is "
                    "missing"
                )

    def binarized(self, mode: str, seed: int = 0) -> Splits:
        """Return the parts with binary pixels.

        Args:
            mode: ``none``: as they are. ``dynamic``: training data drawn anew every epoch,
                validation and test drawn once. ``static``: all drawn once.
            seed: Of the pixels that are drawn once.
        """
        if mode not in BINARIZE_MODES:
            raise unknown_name("binarization", mode, BINARIZE_MODES)
        if mode == "none":
            return self
        if not isinstance(self.train, Dataset) or not isinstance(self.test, Dataset):
            raise InputError(
                f"'binarize' = '{mode}' is for pixels, got data that are dense only in the batch"
            )
        dynamic = mode == "dynamic"
        train = (
            self.train.dynamically_binarized() if dynamic else self.train.binarized(seed, part=0)
        )
        validation = None if self.validation is None else self.validation.binarized(seed, part=1)
        return replace(
            self, train=train, validation=validation, test=self.test.binarized(seed, part=2)
        )
