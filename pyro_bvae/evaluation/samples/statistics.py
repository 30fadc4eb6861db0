"""Test statistics of predictive checks: from a table ``(N, D)`` to a number or one a feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.core.inputs.data import shown

#: A statistic: from data ``(N, D)`` to ``()`` or ``(D,)``.
TestStatistic = Callable[[Tensor], Tensor]


def _skewness(x: Tensor) -> Tensor:
    away = x - x.mean(0)
    return (away**3).mean(0) / away.square().mean(0).clamp(min=1e-300) ** 1.5


def _typical_correlation(x: Tensor) -> Tensor:
    """Return the root mean square correlation of different features, ``()``."""
    away = x - x.mean(0)
    unit = away / away.square().sum(0).sqrt().clamp(min=1e-300)
    products = (unit.T @ unit).square()
    others = max(products.numel() - len(products), 1)
    return ((products.sum() - products.diagonal().sum()) / others).clamp(min=0).sqrt()


#: The statistics by name.
STATISTICS: dict[str, TestStatistic] = {
    "mean": lambda x: x.mean(0),
    "standard deviation": lambda x: x.std(0),
    "share of zeros": lambda x: (x == 0).double().mean(0),
    "smallest": lambda x: x.amin(0),
    "largest": lambda x: x.amax(0),
    "median": lambda x: x.median(0).values,
    "skewness": _skewness,
    "correlation": _typical_correlation,
    "spread of totals": lambda x: x.sum(-1).std(),
}
#: The statistics that are taken where nobody asks for others.
DEFAULT = ("mean", "standard deviation", "share of zeros", "correlation", "spread of totals")


def statistics_of(
    chosen: Mapping[str, TestStatistic] | Sequence[str] | None,
) -> dict[str, TestStatistic]:
    """Return statistics by name, from names or a mapping of names to callables.

    Raises:
        InputError: for an unknown name, with the known ones, or an entry that is no callable.
    """
    if chosen is None:
        return {name: STATISTICS[name] for name in DEFAULT}
    if isinstance(chosen, Mapping):
        for name, function in chosen.items():
            if not (isinstance(name, str) and callable(function)):
                raise InputError(
                    "'statistics' must map names to callables of the data (N, D), got"
                    f" {shown(name)} with {shown(function)}"
                )
        return dict(chosen)
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    for name in names:
        if name not in STATISTICS:
            raise unknown_name("statistic", str(name), STATISTICS)
    return {name: STATISTICS[name] for name in names}


def applied(name: str, function: TestStatistic, x: Tensor) -> Tensor:
    """Return a statistic of a table ``(N, D)``, float64, ``()`` or ``(D,)``.

    Raises:
        InputError: for another shape.
    """
    value = torch.as_tensor(function(x)).double()
    if value.shape not in (torch.Size(), x.shape[1:]):
        raise InputError(
            f"statistic '{name}' must return one number, or one a feature ({x.shape[1]}), got shape"
            f" {tuple(value.shape)}"
        )
    return value
