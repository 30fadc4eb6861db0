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
from pyro_bvae.runs.directory import Run
from pyro_bvae.runs.sweeps.reading import LoadedSweep, load

# Options of the data by which the evidence of a datum has other units or another condition.
_UNITS = ("binarize", "size_factor", "missing")
Models = Mapping[str, Any] | LoadedSweep | str | Path
Opened = Mapping[str, Sequence[Any]]


@exclusive
def compare(
    models: Models,
    data: Tensor | Dataset | str | Path | None = None,
    context: Context | None = None,
    *,
    num_data: int | None = 500,
    method: Literal["auto", "importance"] | Escalation = "auto",
    checkpoint: str = "best",
    gaps: bool = False,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Say which of several trained models explains the same held-out data best.

    Args:
        models: By name, a run (a directory or a :class:`Run`), a module with ``model`` and
            ``guide``, or a pair ``(model, guide)``; a list of these for several training seeds. Or
            a sweep, or its directory: each β or rate is a name, with its seeds.
        data: The data, or a file or folder of them, which each run reads as it read its own; by
            default the test data that all runs have in common.
        context: Their context; programs of other arguments are compared by
            :func:`~pyro_bvae.evaluation.comparison.compare_programs`.
        num_data: Data to measure at most, chosen by ``seed``; None for all.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evidence`: by default, data whose
            weights cannot be trusted are measured again by refits and annealing.
        checkpoint: Checkpoint of runs that are given by their directory, ``best`` or ``last``.
        gaps: Measure the inference gaps of each model too, at the β that it was trained with; they
            cost a refit of the guide to each datum.
        seed: Seed of the choice and of the draws.
        **options: As of :func:`~pyro_bvae.evaluation.comparison.compare_programs`: ``level``,
            ``num_samples``, ``proposal``, ``progress``.

    Returns:
        Evidences, paired differences with their intervals, stacking weights and a verdict.

    Raises:
        InputError: for runs without data in common, or whose evidences have other units or
            conditions; as of :func:`~pyro_bvae.evidence`.
    """
    opened = _opened(models, checkpoint)
    runs = [(name, each) for name, own in opened.items() for each in own if isinstance(each, Run)]
    _check_conditions(runs)
    _check_features(runs, data)
    whole = _data(opened, runs, data, context)
    for _, each in runs if data is not None else ():
        each.warn_of_training(whole)
    chosen = choose_data(whole, num_data, seed).dense()
    args = arguments(chosen.x, chosen.context)
    for _, each in runs:
        each.vae.check_data(*args)
    pairs = {name: [_pair(each) for each in own] for name, own in opened.items()}
    betas = {name: [getattr(each, "training_beta", 1.0) for each in own]
             for name, own in opened.items()}  # fmt: skip
    return compare_programs(
        pairs, *args, method=method, gaps=gaps, training_betas=betas, seed=seed, **options
    )


def _opened(models: Models, checkpoint: str) -> dict[str, list[Any]]:
    """Return the models of each name, with runs in the place of their directories."""
    swept: Any = load(models, checkpoint=checkpoint) if isinstance(models, str | Path) else models
    if isinstance(swept, Run):
        raise InputError(f"a comparison takes several runs, got the run {swept.directory}")
    if isinstance(swept, LoadedSweep):
        return dict(swept.by_setting)
    opened = {}
    for name, given in swept.items():
        listed = given if isinstance(given, list) else [given]
        opened[name] = [own for each in listed for own in _open(name, each, checkpoint)]
    return opened


def _open(name: str, given: Any, checkpoint: str) -> list[Any]:
    """Return a run for its directory, the seeds of a sweep, and anything else as it is."""
    if isinstance(given, str | PathLike):
        given = load(Path(given), checkpoint=checkpoint)
    if isinstance(given, LoadedSweep):
        if len(given.by_setting) > 1:
            raise InputError(
                f"'{name}' is the sweep {given.directory} of {len(given.by_setting)} settings: take"
                " its by_setting, or give the sweep alone"
            )
        return [*given]
    is_pair = isinstance(given, tuple) and len(given) == 2 and all(map(callable, given))
    if not (isinstance(given, Run) or is_pair or hasattr(given, "guide")):
        raise InputError(
            f"'{name}' must be a run, a module with 'model' and 'guide', or a pair (model, guide),"
            f" got {type(given).__name__}"
        )
    return [given]


def _pair(opened: Any) -> Any:
    part = opened.vae if isinstance(opened, Run) else opened
    return part if isinstance(part, tuple) else (part.model, part.guide)


def _check_conditions(runs: Sequence[tuple[str, Run]]) -> None:
    """Raise if two runs were given other conditions or units."""
    configs = [(name, run.config) for name, run in runs if run.config is not None]
    for option in _UNITS:
        values = [(name, getattr(config.data, option)) for name, config in configs]
        other = next((each for each in values if each[1] != values[0][1]), None)
        if other is not None:
            raise InputError(
                f"'{values[0][0]}' and '{other[0]}' cannot be compared: '{option}' was"
                f" {values[0][1]} and {other[1]}, so their evidences are of other quantities"
            )


def _check_features(runs: Sequence[tuple[str, Run]], data: Any) -> None:
    """Raise if two runs, or a run and the data, have other features, or another order of them."""
    known = [(f"'{name}'", *_features(run)) for name, run in runs]
    if isinstance(data, Dataset):
        known.append(("'data'", data.num_features, data.feature_names))
    for name, size, own in known[1:]:
        first = known[0][2]
        if known[0][1] != size:
            words = f"{known[0][1]} features and {size}"
        elif not first or not own or first == own:
            continue
        elif {*first} == {*own}:
            place = next(
                i for i, pair in enumerate(zip(first, own, strict=True)) if len({*pair}) > 1
            )
            words = (
                f"their features in another order: feature {place} is '{first[place]}' and"
                f" '{own[place]}'"
            )
        else:
            lost = next(each for each in first if each not in own)
            words = f"other features: '{lost}' of {known[0][0]} is none of {name}"
        raise InputError(f"{known[0][0]} and {name} cannot be compared: they have {words}")


def _features(run: Run) -> tuple[int, tuple[str, ...]]:
    """Return the number and the names of the features of a run."""
    part: Any = run.part("test") if run.record is None else run.record
    return part.num_features, part.feature_names


def _read(runs: Sequence[tuple[str, Run]], path: str | PathLike[str]) -> Any:
    """Return the data of a file as all runs read them."""
    if not runs:
        raise InputError(f"'data' must be numbers for models that are no runs, got the file {path}")
    (name, run), *others = runs
    first = run.read(path).dense()
    for other, each in others:
        own = each.read(path).dense()
        if own.x.shape != first.x.shape or _keys(own) != _keys(first):
            raise InputError(
                f"'{name}' and '{other}' cannot be compared: they read {path} otherwise"
            )
        _check_contexts((name, other), (first.context, own.context))
    return first


def _data(
    opened: Opened,
    runs: Sequence[tuple[str, Run]],
    data: Tensor | Dataset | str | Path | None,
    context: Context | None,
) -> Any:
    """Return the data to compare on."""
    if isinstance(data, str | PathLike):
        return _read(runs, data)
    if data is not None:
        given = as_dataset(data, next(_modules(opened), None))
        return given if context is None else replace(given, context=context)
    if len(runs) < sum(len(own) for own in opened.values()):
        raise InputError("'data' must be given for models that are no runs with data of their own")
    parts = [run.part("test").dense() for _, run in runs]
    places = [{key: row for row, key in enumerate(_keys(part))} for part in parts]
    common = set(places[0]).intersection(*places[1:])
    trained = {key for _, run in runs for key in _keys(run.part("train").dense())}
    rows = [row for key, row in places[0].items() if key in common - trained]
    layers = {getattr(run.config and run.config.data, "layer", None) for _, run in runs}
    if len(rows) < 2 or (len(layers) > 1 and len(common) < len(places[0])):
        raise InputError(
            f"the runs have {len(rows)} test data in common that none was trained on, of"
            f" {len(parts[0])}{_reason(runs)}: train them with the same data and split, or give"
            " 'data'"
        )
    for (name, _), part, place in zip(runs[1:], parts[1:], places[1:], strict=True):
        keys = [key for key in places[0] if key in common]
        sides = parts[0], part
        _check_contexts(
            (runs[0][0], name),
            [side.context and side.context.take(torch.tensor([where[key] for key in keys]))
             for side, where in zip(sides, (places[0], place), strict=True)],
        )  # fmt: skip
    return parts[0][torch.tensor(sorted(rows))]


def _check_contexts(names: tuple[str, str], contexts: Sequence[Context | None]) -> None:
    """Raise if the same data were given other size factors or covariates."""
    first, own = (each or Context() for each in contexts)
    for field in first._fields:
        sides = getattr(first, field), getattr(own, field)
        given = [side is not None for side in sides]
        if any(given) and not (
            all(given) and sides[0].shape == sides[1].shape and torch.equal(*sides)
        ):
            raise InputError(
                f"'{names[0]}' and '{names[1]}' cannot be compared: the same data have other"
                f" {field.replace('_', ' ')}s, on which their evidences are conditional"
            )


def _reason(runs: Sequence[tuple[str, Run]]) -> str:
    """Return the first difference in data that explains why there are none in common."""
    first, *others = runs
    for name, run in others:
        assert first[1].config is not None and run.config is not None
        own, theirs = first[1].config.options(), run.config.options()
        for option in (*vars(run.config.data), "seed"):
            if own[option] != theirs[option]:
                return (
                    f" ('{option}' of '{first[0]}' is {own[option]}, of '{name}' {theirs[option]})"
                )
    return ""


def _modules(opened: Opened) -> Iterator[Any]:
    """Yield the modules among the models."""
    for own in opened.values():
        for each in own:
            part = each.vae if isinstance(each, Run) else each
            if hasattr(part, "parameters"):
                yield part


def _keys(data: Dataset) -> list[bytes]:
    """Return the content of each datum, as bytes."""
    return [row.tobytes() for row in data.x.double().cpu().numpy()]
