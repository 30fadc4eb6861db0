"""Trained runs and programs compared on the data that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation.comparison import Comparison, compare_programs
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.runs._evaluate import choose_data
from pyro_bvae.runs.directory import Run, load

# Options of the data by which the evidence of a datum has other units or another condition.
_UNITS = ("binarize", "size_factor", "missing")


@exclusive
def compare(
    models: Mapping[str, Any],
    data: Tensor | Dataset | None = None,
    context: Context | None = None,
    *,
    num_data: int | None = 500,
    method: Literal["importance", "auto"] | Escalation = "auto",
    checkpoint: str = "best",
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Say which of several trained models explains the same held-out data best.

    Args:
        models: By name, a run (a directory or a :class:`Run`), a module with ``model`` and
            ``guide``, or a pair ``(model, guide)``; a list of these for several training seeds.
        data: The data; by default the test data that all runs have in common.
        context: Their context.
        num_data: Data to measure at most, chosen by ``seed``; None for all.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evidence`: by default, data whose
            weights cannot be trusted are measured again by refits and annealing.
        checkpoint: Checkpoint of runs that are given by their directory, ``best`` or ``last``.
        seed: Seed of the choice and of the draws.
        **options: As of :func:`~pyro_bvae.evaluation.comparison.compare_programs`: ``level``,
            ``num_samples``, ``proposal``, ``progress``.

    Returns:
        Evidences, paired differences with their intervals, stacking weights and a verdict.

    Raises:
        InputError: for runs without data in common, or whose evidences have other units or
            conditions; as of :func:`~pyro_bvae.evidence`.
    """
    opened = {name: [_open(name, each, checkpoint) for each in _listed(given)]
              for name, given in models.items()}  # fmt: skip
    held = {name: each for name, own in opened.items() for each in own if isinstance(each, Run)}
    _check_conditions(held)
    chosen = _data(opened, data, context)
    chosen = choose_data(chosen, num_data, seed).dense()
    args = arguments(chosen.x, chosen.context)
    pairs = {}
    for name, own in opened.items():
        for each in own:
            if isinstance(each, Run):
                each.vae.check_data(*args)
        pairs[name] = [_pair(each) for each in own]
    return compare_programs(pairs, *args, method=method, seed=seed, **options)


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list) else [given]


def _open(name: str, given: Any, checkpoint: str) -> Any:
    """Return a run for its directory, and anything else as it is."""
    if isinstance(given, str | PathLike):
        return load(Path(given), checkpoint=checkpoint)
    is_pair = isinstance(given, tuple) and len(given) == 2 and all(map(callable, given))
    if not (isinstance(given, Run) or is_pair or hasattr(given, "guide")):
        raise InputError(
            f"'{name}' must be a run, a module with 'model' and 'guide', or a pair (model, guide),"
            f" got {type(given).__name__}"
        )
    return given


def _pair(opened: Any) -> Any:
    part = opened.vae if isinstance(opened, Run) else opened
    return part if isinstance(part, tuple) else (part.model, part.guide)


def _check_conditions(held: Mapping[str, Run]) -> None:
    """Raise if two runs were given other conditions or units."""
    configs = {name: run.config for name, run in held.items() if run.config is not None}
    for option in _UNITS:
        values = {name: getattr(config.data, option) for name, config in configs.items()}
        if len(set(values.values())) > 1:
            first, *others = values
            other = next(name for name in others if values[name] != values[first])
            raise InputError(
                f"'{first}' and '{other}' cannot be compared: '{option}' was"
                f" {values[first]} and {values[other]}, so their evidences are of other quantities"
            )


def _data(
    opened: Mapping[str, Sequence[Any]], data: Tensor | Dataset | None, context: Context | None
) -> Any:
    """Return the data to compare on."""
    if data is not None:
        given = as_dataset(data, next(_modules(opened), None))
        return given if context is None else replace(given, context=context)
    runs = [each for own in opened.values() for each in own]
    if not all(isinstance(each, Run) for each in runs):
        raise InputError("'data' must be given for models that are no runs with data of their own")
    parts = [each.part("test").dense() for each in runs]
    if len({part.num_features for part in parts}) > 1:
        raise InputError(
            "the runs have data of different features:"
            f" {sorted({part.num_features for part in parts})}"
        )
    keys = [_keys(part) for part in parts]
    common = set(keys[0]).intersection(*keys[1:])
    trained = set().union(*(_keys(each.part("train").dense()) for each in runs))
    rows = [place for place, key in enumerate(keys[0]) if key in common - trained]
    if len(rows) < 2:
        raise InputError(
            f"the runs have {len(rows)} test data in common that none was trained on, of"
            f" {len(parts[0])}: train them with the same split, or give 'data'"
        )
    return parts[0][torch.tensor(rows)]


def _modules(opened: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    """Yield the modules among the models."""
    for own in opened.values():
        for each in own:
            part = each.vae if isinstance(each, Run) else each
            if hasattr(part, "parameters"):
                yield part


def _keys(data: Dataset) -> list[bytes]:
    """Return the content of each datum, as bytes."""
    columns = [data.x, *(part for part in data.context or () if part is not None)]
    whole = torch.cat([column.double() for column in columns], 1).cpu().numpy()
    return [row.tobytes() for row in whole]
