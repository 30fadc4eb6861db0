"""Content of a checkpoint that no training writes, such as moments of another shape: one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.record import Members, fingerprints, in_order, sampled
from pyro_bvae.training.checkpoint import load_checkpoint

# Entries that each checkpoint has, and those that some have, with their types.
_ENTRIES: dict[str, Any] = {
    "model": Mapping, "optimizer": Mapping, "history": list, "best": Real, "stale": int,
    "settings": Mapping,
}  # fmt: skip
_FURTHER: dict[str, Any] = {
    "remarks": list, "objective": str, "controller": Mapping, "config": Mapping, "digests": str,
    "data": Mapping, "job": str, "asleep": int,
}  # fmt: skip
_COLUMNS = ("epoch", "beta", "learning_rate", "objective", "distortion", "rate")
_SETTINGS: dict[str, Any] = {
    "beta": str, "learning_rate": str, "batch_size": int, "gradient_clip": Real | None,
    "seed": int, "precision": str,
}  # fmt: skip
# Fields of a remark, and those of version 0.1.0, with their types.
_REMARKS: tuple[dict[str, Any], ...] = (
    {"code": str, "severity": str, "subject": tuple, "message": str, "advice": str, "when": str},
    {"when": str, "seen": str, "advice": str, "grave": bool},
)
# Data by which the training data are known again, now and by earlier versions.
_ROWS, _EARLIER_ROWS = 1000, 20
_OPTIONS = ("lr", "betas", "eps", "weight_decay")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def check_state(state: Mapping[str, Any], path: Path) -> None:
    """Raise unless a checkpoint has the entries that a training writes.

    Args:
        state: Its content.
        path: Its file, for the message.

    Raises:
        InputError: with the entry, and its value.
    """
    try:
        _check_types("a checkpoint", state, _ENTRIES)
        _check_types("a checkpoint", state, _FURTHER, all_there=False)
        _check_types("'settings'", state["settings"], _SETTINGS)
        _check_numbers(state)
        for name, weight in state["model"].items():
            if not isinstance(weight, Tensor):
                raise InputError(f"weight {name!r} must be a tensor, got {type(weight).__name__}")
        _check_history(state["history"])
        for remark in state.get("remarks", ()):
            _check_remark(remark)
        _check_identity(state.get("data", {}))
        _check_controller(state["settings"]["beta"], state.get("controller", {}))
    except InputError as error:
        raise InputError(f"{path} is no checkpoint of a training run: {error}") from error


def check_training(
    state: Mapping[str, Any], parameters: Sequence[Tensor], data: Any, path: Path
) -> None:
    """Raise unless a training of some parameters on some data can go on from a checkpoint.

    Args:
        state: Its content, as of :func:`check_state`.
        parameters: The parameters that are to be trained further, by Adam.
        data: The training data.
        path: Its file, for the message.

    Raises:
        InputError: with the parameter and the shapes, or the option and its value.
    """
    try:
        _check_optimizer(state["optimizer"], parameters)
    except InputError as error:
        raise InputError(f"cannot resume {path}: {error}") from error
    check_identity(state.get("data", {}), data, path)


def identity_of(data: Any) -> dict[str, Any]:
    """Return the properties by which training data are known again, empty for a loader.

    ``num_data``, ``num_features``, ``feature_names`` where there are any, and ``fingerprints`` of
    some data evenly spaced.
    """
    if not isinstance(data, Dataset | LazyDataset):
        return {}
    known: dict[str, Any] = {"num_data": len(data), "num_features": data.num_features}
    if data.feature_names:
        known["feature_names"] = list(data.feature_names)
    return known | {"fingerprints": fingerprints(data, sampled(len(data), _ROWS))[0].tolist()}


def as_trained(path: Path, *parts: Any) -> tuple[Any, ...]:
    """Return data with their features in the order of a checkpoint's; others as they are.

    Args:
        path: The file of the checkpoint.
        *parts: The data: only those of a data set in memory have names of features.

    Raises:
        InputError: if the checkpoint cannot be read.
    """
    if not any(isinstance(data, Dataset) and data.feature_names for data in parts):
        return parts
    check_state(state := load_checkpoint(path), path)
    names = state.get("data", {}).get("feature_names", ())

    def ordered(data: Any) -> Any:
        own = data.feature_names if isinstance(data, Dataset) else ()
        return in_order(data, names) if own and sorted(own) == sorted(names) else data

    return tuple(ordered(data) for data in parts)


def check_identity(saved: Mapping[str, Any], data: Any, path: Path) -> None:
    """Raise unless data are those that a checkpoint was trained with.

    Args:
        saved: The result of :func:`identity_of` for those.
        data: The data.
        path: The file of the checkpoint, for the message.

    Raises:
        InputError: with the property that differs.
    """
    changed = f"{path} was trained with other data"
    if not isinstance(data, Dataset | LazyDataset):
        return
    given = {"num_data": len(data), "num_features": data.num_features}
    for name in given.keys() & saved.keys():
        if saved[name] != given[name]:
            raise InputError(f"{changed}: '{name}' was {_shown(saved[name])}, got {given[name]}")
    names = zip(saved.get("feature_names", ()), data.feature_names, strict=False)
    for place, (name, own) in enumerate(names, 1):
        if name != own:
            raise InputError(f"{changed}: feature {place} was {_shown(name)}, got {_shown(own)}")
    row = _changed_row(saved, data)
    if row is not None:
        raise InputError(
            f"{changed}, of the same number: its file or its split has changed, first in row"
            f" {row + 1} of the training data"
        )


def _changed_row(saved: Mapping[str, Any], data: Dataset | LazyDataset) -> int | None:
    """Return the number of the first of some data that is not as it was; None for none."""
    if "fingerprints" in saved:
        return Members(data.index, np.array(saved["fingerprints"])).changed(data)
    if "row_means" not in saved or isinstance(data, LazyDataset):
        return None
    rows = sampled(len(data), _EARLIER_ROWS)
    means = data[torch.from_numpy(rows)].x.double().nan_to_num().mean(1).tolist()
    # Pictures are decoded, and numbers rounded, not quite alike everywhere.
    allowed = 1e-3 * max(abs(mean) for mean in saved["row_means"]) + 1e-9
    pairs = zip(rows, saved["row_means"], means, strict=True)
    return next((int(row) for row, a, b in pairs if not abs(a - b) <= allowed), None)


def _check_types(
    whole: str, values: Mapping[str, Any], kinds: Mapping[str, Any], *, all_there: bool = True
) -> None:
    for name, kind in kinds.items():
        if name not in values:
            if all_there:
                raise InputError(f"{whole} must have '{name}'")
            continue
        value = values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"'{name}' must not be {_shown(value)}")


def _check_numbers(state: Mapping[str, Any]) -> None:
    if math.isnan(state["best"]):
        raise InputError("'best' must be a number, got nan")
    settings = state["settings"]
    for name, value, least in (
        ("stale", state["stale"], 0),
        ("batch_size", settings["batch_size"], 1),
        ("seed", settings["seed"], 0),
    ):
        if value < least:
            raise InputError(f"'{name}' must be at least {least}, got {value}")


def _check_history(rows: list[Any]) -> None:
    """Raise unless each row has the same finite numbers, of the epochs one after the other."""
    if not rows:
        raise InputError("'history' must have an epoch, got none")
    for number, row in enumerate(rows, 1):
        of = f"'history' of epoch {number}"
        if not isinstance(row, Mapping):
            raise InputError(f"{of} must be a mapping, got {_shown(row)}")
        for column in _COLUMNS:
            if column not in row:
                raise InputError(f"{of} must have '{column}'")
        if row.keys() != rows[0].keys():
            raise InputError(f"{of} must have the columns of the first")
        for column, value in row.items():
            number_like = isinstance(value, Real) and not isinstance(value, bool)
            if not (isinstance(column, str) and number_like and math.isfinite(value)):
                raise InputError(
                    f"{of} has {column!r} = {_shown(value)}, which is no finite number"
                )
        if row["epoch"] != number or row["beta"] < 0:
            raise InputError(f"{of} has epoch {row['epoch']}, beta {row['beta']}")


def _check_remark(remark: Any) -> None:
    known = [
        kinds
        for kinds in _REMARKS
        if isinstance(remark, Mapping) and remark and set(remark) <= set(kinds)
    ]
    kinds = known[0] if known else {}
    if not known or len(remark) < len(kinds) - ("grave" in kinds):
        raise InputError(f"'remarks' has {_shown(remark)}")
    for name, value in remark.items():
        if not isinstance(value, kinds[name]):
            raise InputError(f"'remarks' has '{name}' = {_shown(value)}")


def _check_identity(data: Mapping[str, Any]) -> None:
    kinds = {
        "num_data": int, "num_features": int, "row_means": list, "fingerprints": list,
        "feature_names": list,
    }  # fmt: skip
    _check_types("'data'", data, kinds, all_there=False)
    for name, most in (("row_means", _EARLIER_ROWS), ("fingerprints", _ROWS)):
        numbers = data.get(name, [])
        if not all(map(_is_number, numbers)):
            raise InputError(f"'data' has '{name}' = {_shown(numbers)}")
        if numbers and len(numbers) != min(data.get("num_data", 0), most):
            raise InputError(f"'data' has {len(numbers)} '{name}'")


def _check_controller(beta: str, controller: Mapping[str, Any]) -> None:
    if not beta.startswith("TargetRate("):
        return
    state = controller.get("state")
    if not isinstance(state, Tensor) or state.shape != (3,) or not bool(state.isfinite().all()):
        raise InputError(f"'controller' must have three finite numbers, got {_shown(state)}")


def _check_optimizer(saved: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
    """Raise unless Adam of some parameters can go on from a saved state."""
    _check_types("'optimizer'", saved, {"state": Mapping, "param_groups": list})
    groups, moments = saved["param_groups"], saved["state"]
    if len(groups) != 1 or not isinstance(groups[0], Mapping):
        raise InputError(f"'param_groups' must be one mapping, got {_shown(groups)}")
    keys = groups[0].get("params")
    if not isinstance(keys, list) or len(keys) != len(parameters):
        raise InputError("other parameters of the model were trained")
    _check_options(groups[0])
    for key, parameter in zip(keys, parameters, strict=True):
        if key in moments:
            _check_moments(moments[key], parameter, key)
    if surplus := [key for key in moments if key not in keys]:
        raise InputError(f"the optimizer has moments of no parameter, {_shown(surplus[0])}")


def _check_options(group: Mapping[str, Any]) -> None:
    """Raise unless the options of Adam are numbers, and its switches are none."""
    for name in _OPTIONS:
        value = group.get(name)
        pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
        if not (pair if name == "betas" else _is_number(value)):
            raise InputError(f"'{name}' of the optimizer is {_shown(value)}")
    for name in group.keys() - {*_OPTIONS, "params"}:  # versions of torch differ in these
        if not (group[name] is None or isinstance(group[name], bool)):
            raise InputError(f"'{name}' of the optimizer is {_shown(group[name])}")


def _check_moments(moments: Any, parameter: Tensor, key: object) -> None:
    of = f"of parameter {key}"
    if not isinstance(moments, Mapping) or not {"step", *_MOMENTS[:2]} <= set(moments):
        raise InputError(f"the moments {of} are {_shown(moments)}")
    for name, value in moments.items():
        if name == "step":
            if not _is_number(value) or value < 0:
                raise InputError(f"'step' {of} is {_shown(value)}")
            continue
        if name not in _MOMENTS or not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError(f"'{name}' {of} is {_shown(value)}")
        if value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, must have {tuple(parameter.shape)}"
            raise InputError(f"'{name}' {of} has the shape {shapes}")
        if not bool(value.isfinite().all()) or (name != "exp_avg" and bool((value < 0).any())):
            raise InputError(f"'{name}' {of} has numbers that no training gives")


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number, which may be a tensor of one entry."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and math.isfinite(value.item())
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    """Return a value in few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
