"""The columns that a page colours data by: label, measurements, factors and covariates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_bvae.report.live.points import Points, label_name

Array = NDArray[Any]


def columns_of(points: Points, record: Any = None) -> list[dict[str, Any]]:
    """Return the columns of data: a name, a value for each datum, and the classes if it has any.

    Args:
        points: The data.
        record: The record of the run's data, which has the names of covariates.
    """
    data, context = points.data, points.data.context
    columns = []
    if data.labels is not None:
        labels = np.asarray(data.labels)
        known = np.unique(labels)
        names = [label_name(data, int(label)) for label in known]
        columns.append(_classes("label", np.searchsorted(known, labels), names))
    columns += [_numbers("evidence", points.evidence), _numbers("Pareto k", points.pareto_k)]
    if data.factors is not None:
        names = list(data.factor_names) or [f"factor {i}" for i in range(data.factors.shape[1])]
        columns += [_numbers(*own) for own in zip(names, np.asarray(data.factors).T, strict=True)]
    if context is not None and context.size_factor is not None:
        columns.append(_numbers("size factor", np.asarray(context.size_factor)[:, 0]))
    if context is not None and context.covariates is not None:
        columns += _covariates(np.asarray(context.covariates), getattr(record, "cells", None))
    return [each for each in columns if len(set(each["values"]) - {None}) > 1]


def _covariates(values: Array, cells: Any) -> Iterator[dict[str, Any]]:
    """Yield the covariates: by the columns that they were made of, where these are known."""
    start = 0
    if cells is not None:
        for name, classes in cells.all_categories:
            own = values[:, start : start + len(classes)]
            yield _classes(name, own.argmax(1), classes)
            start += len(classes)
        for name, mean, deviation in cells.scales:
            yield _numbers(name, mean + deviation * values[:, start])
            start += 1
    for place in range(start, values.shape[1]):
        yield _numbers(f"covariate {place}", values[:, place])


def numbers(values: Array) -> list[float | None]:
    """Return numbers as JSON has them, those that are not finite as missing."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _numbers(name: str, values: Array) -> dict[str, Any]:
    return {"name": name, "values": numbers(values)}


def _classes(name: str, values: Array, names: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "values": [int(value) for value in values], "classes": list(names)}


def spread_of(run: Any, points: Points, rows: Sequence[int], draws: int = 10) -> torch.Tensor:
    """Return the standard deviation of the decoder's means over draws from the guide, ``(R, D)``.

    Args:
        run: A loaded run.
        points: The data.
        rows: The places of R of them.
        draws: Draws of each datum.
    """
    data = points.data[torch.as_tensor(list(rows))]
    guide = run.vae.posterior(data.x, data.context)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        means = [run.vae.decode(guide.sample(), data.context).double() for _ in range(draws)]
    return torch.stack(means).std(0)
