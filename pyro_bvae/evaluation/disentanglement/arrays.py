"""Codes and factors as every metric takes them: checked, a class for each value of a factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import Values

Array = NDArray[Any]

# A factor is continuous when it takes more values than this share of the data.
_MOST_VALUES = 0.5


class Paired(NamedTuple):
    """Codes and factors of the same data.

    Attributes:
        codes: Shape ``(N, D)``, floating, of the precision they came in.
        classes: Place of each datum's value among the values of a factor, shape ``(N, F)``.
        sizes: Number of values of each factor, shape ``(F,)``.
        names: Names of the factors.
        values: The values of each factor, in order.
    """

    codes: Array
    classes: Array
    sizes: Array
    names: tuple[str, ...]
    values: tuple[Array, ...]

    @property
    def latents(self) -> list[str]:
        """Names of the latents."""
        return [f"z{place}" for place in range(self.codes.shape[1])]

    def take(self, rows: Any) -> Paired:
        """Return some of the data: a slice, a mask or indices."""
        return self._replace(codes=self.codes[rows], classes=self.classes[rows])


def paired(
    codes: Values,
    factors: Values,
    factor_names: Sequence[str] = (),
    *,
    least_latents: int = 1,
    least_factors: int = 1,
) -> Paired:
    """Check codes and factors, and number the values of each factor.

    Args:
        codes: The representation, shape ``(N, D)``.
        factors: Known factors of the data, shape ``(N, F)``: numbers that stand for classes.
        factor_names: Name of each factor.
        least_latents: How many latents a metric takes.
        least_factors: How many factors it takes.

    Raises:
        InputError: if a shape or a value cannot be used, a factor does not vary, or is continuous.
    """
    rows, known = _matrix("codes", codes), _matrix("factors", factors)
    if len(rows) != len(known):
        raise InputError(
            f"'factors' must have a row for each of the {len(rows)} codes, got {len(known)}"
        )
    for name, array, least, kind in (
        ("codes", rows, least_latents, "latents"),
        ("factors", known, least_factors, "factors"),
    ):
        if array.shape[1] < least:
            raise InputError(
                f"'{name}' must have at least {least} {kind}, one column each, got {array.shape[1]}"
            )
    if len(factor_names) not in (0, known.shape[1]):
        raise InputError(
            f"'factor_names' must name {known.shape[1]} factors, got {len(factor_names)}"
        )
    names = tuple(factor_names) or tuple(f"factor {place}" for place in range(known.shape[1]))
    results = [_classes(name, column) for name, column in zip(names, known.T, strict=True)]
    values, classes = tuple(part[0] for part in results), np.stack([part[1] for part in results], 1)
    return Paired(rows, classes, np.array([len(part) for part in values]), names, values)


def halves(data: Paired) -> tuple[Paired, Paired]:
    """Return the first half of the data, to train on, and the second, to test on, in order.

    Raises:
        InputError: if a value of a factor is missing in one of them, as where data are sorted by a
            factor.
    """
    middle = len(data.codes) // 2
    parts = data.take(slice(middle)), data.take(slice(middle, None))
    for half, part in zip(("first", "second"), parts, strict=True):
        for place, name in enumerate(data.names):
            missing = np.bincount(part.classes[:, place], minlength=data.sizes[place]) == 0
            if missing.any():
                value = data.values[place][missing.argmax()]
                raise InputError(
                    "'factors' must have every value in the first half, to train, and in the"
                    " second, to test: "
                    f"'{name}' is never {value:g} in the {half}; shuffle the rows, or leave out"
                    " values that are so rare"
                )
    return parts


def _matrix(name: str, values: Values) -> Array:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or 0 in array.shape:
        raise InputError(
            f"'{name}' must be numbers of shape (N, *), got {array.dtype} of shape {array.shape}"
        )
    array = array if array.dtype.kind == "f" and array.itemsize >= 4 else array.astype(float)
    bad = ~np.isfinite(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"'{name}' must be finite, got {array[index]} at index {index}")
    return array


def _classes(name: str, column: Array) -> tuple[Array, Array]:
    """Return the values of a factor, and the place of each datum's among them."""
    values, classes = np.unique(column, return_inverse=True)
    if len(values) == 1:
        raise InputError(
            f"'factors' must vary, but '{name}' is {values[0]:g} for all {len(column)} data; leave"
            " it out"
        )
    if len(values) > _MOST_VALUES * len(column):
        raise InputError(
            f"'factors' must be classes, but '{name}' takes {len(values)} values in {len(column)}"
            " data; cut it into bins first, as numpy.digitize does"
        )
    return values, classes
