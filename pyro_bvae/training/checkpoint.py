"""Checkpoints: written whole or not at all, read without executing code, and checked."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from pyro_bvae.core.atomic_files import SUMS, make_directory
from pyro_bvae.core.disk.digests import check_sums, place_of, read_file, write_files
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.core.inputs.public import public
from pyro_bvae.training.history import History

_FORMAT = "pyro_bvae.checkpoint"
_VERSION = 1
# Options that may be others than those that a checkpoint was trained with.
_FREE = ("epochs", "steps", "device", "data_root")


@public
def checkpoint_path(run: Path, which: str) -> Path:
    """Return the path of the checkpoint ``last`` or ``best`` of a run directory."""
    return run / "checkpoints" / f"{which}.pt"


@public
def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; an earlier one at the same path survives any failure.

    One in a folder ``checkpoints`` is of the run directory above it, which gets its digest.

    Raises:
        WriteError: if the file system does not take it.
    """
    make_directory(path.parent)
    write_files({path: _packed(state)}, begin=_is_of_run(path))


def save_epoch(run: Path, history: History, state: dict[str, Any], *, best: bool) -> None:
    """Write the files of an epoch: ``metrics.csv``, ``last.pt``, and ``best.pt`` if it is best.

    Raises:
        WriteError: if the file system does not take them.
    """
    content = _packed(state)
    which = ("best", "last") if best else ("last",)
    checkpoints = {checkpoint_path(run, name): content for name in which}
    write_files({run / "metrics.csv": history.to_csv(), **checkpoints}, begin=True)


def configuration(run: Path) -> dict[str, Any]:
    """Return the content of ``config.json`` in a run directory, for its checkpoints.

    Raises:
        InputError: if the file was changed since it was written.
    """
    try:
        content = read_file(run / "config.json")
    except FileNotFoundError:
        return {}
    try:
        options = json.loads(content)
    except (ValueError, RecursionError):  # a file of another origin
        return {}
    return options if isinstance(options, dict) else {}


@public
def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without executing its content.

    Raises:
        InputError: if the file is missing, changed, truncated, or no checkpoint of this package.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint at {path}")
    content = read_file(path)
    with warnings.catch_warnings():
        # torch warns of files of other origins, which are refused below.
        warnings.simplefilter("ignore")
        try:
            _check_archive(content)
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except Exception as error:  # whose type a damaged file may choose
            raise InputError(
                f"{path} cannot be read as a checkpoint: it is truncated or of another origin"
            ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise InputError(f"{path} is not a checkpoint of pyro_bvae")
    if state.get("version") != _VERSION:
        raise InputError(
            f"{path} has checkpoint version {state.get('version')}, of another version of"
            f" pyro_bvae; this one reads {_VERSION}: upgrade pyro_bvae"
        )
    if _is_of_run(path):
        check_sums(path, state.get("digests"))
    return state


def check_configuration(state: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Raise unless a checkpoint was trained with a configuration, as far as it knows it.

    Args:
        state: The content of the checkpoint.
        given: The options of the configuration by name.
        path: The file of the checkpoint, for the message.

    Raises:
        InputError: with the options, and their values.
    """
    # A file that was moved has the same data, which are looked at by themselves.
    free = ("path",) if {"row_means", "fingerprints"} & state.get("data", {}).keys() else ()
    if differ := differences(state.get("config", {}), given, free):
        raise InputError(f"{path} was trained with another configuration: {differ}")


def differences(
    known: Mapping[str, Any], given: Mapping[str, Any], free: Sequence[str] = ()
) -> str:
    """Return the options that have other values in a configuration than in a checkpoint.

    Args:
        known: Options of the checkpoint by name.
        given: Options of the configuration by name.
        free: Options that may differ, as the number of epochs, device and ``data_root`` may.
    """
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}
    return listed(
        [
            f"'{name}' was {_short(known[name])}, got {_short(value)}"
            for name, value in plain.items()
            if name in known and name not in (*_FREE, *free) and known[name] != value
        ]
    )


@public
def load_weights(vae: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a module.

    Raises:
        InputError: if they do not fit, or are not finite.
    """
    try:
        weights, own = state["model"], vae.state_dict()
        for name in weights.keys() & own.keys():
            if not _is_finite(weights[name]) and _is_finite(own[name]):
                raise InputError(f"{path} has weights that are not finite, in '{name}'")
        vae.load_state_dict(weights)
    except InputError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not fit this model: {reason}") from error


def _is_of_run(path: Path) -> bool:
    """Return whether a checkpoint lies where a run has it, and is no copy of its own."""
    return place_of(path)[1] != path.name


def _packed(state: Mapping[str, Any]) -> memoryview:
    """Return the content of a checkpoint's file."""
    # Put together in memory: the errors of torch's own writer on a full disk mislead.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "version": _VERSION, "digests": SUMS, **state}, buffer)
    return buffer.getbuffer()


def _check_archive(content: bytes) -> None:
    """Raise unless the records of an archive have their checksums, which torch does not look at."""
    with ZipFile(io.BytesIO(content)) as archive:
        # torch reads nothing at all from a record that is marked as a directory.
        marked = any(record.external_attr & 0x10 for record in archive.infolist())
        if marked or archive.testzip() is not None:
            raise BadZipFile


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
