"""Checkpoints: written whole or not at all, read without executing code."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_bvae.core.atomic_files import atomic_write, make_directory
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public

_FORMAT = "pyro_bvae.checkpoint"
_VERSION = 1


@public
def checkpoint_path(run: Path, which: str) -> Path:
    """Return the path of the checkpoint ``last`` or ``best`` of a run directory."""
    return run / "checkpoints" / f"{which}.pt"


@public
def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; an earlier one at the same path survives any failure.

    Raises:
        WriteError: if the file system does not take it.
    """
    make_directory(path.parent)
    # Put together in memory: the errors of torch's own writer on a full disk mislead.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "version": _VERSION, **state}, buffer)
    with atomic_write(path, "wb") as stream:
        stream.write(buffer.getbuffer())


@public
def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without executing its content.

    Raises:
        InputError: if the file is missing, truncated, or no checkpoint of this package.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint at {path}")
    with path.open("rb") as stream, warnings.catch_warnings():
        # torch warns of files of other origins, which are refused below.
        warnings.simplefilter("ignore")
        try:
            state = torch.load(stream, map_location=device, weights_only=True)
        except Exception as error:  # whose type a damaged file may choose
            raise InputError(
                f"{path} cannot be read as a checkpoint: it is truncated or of another origin"
            ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise InputError(f"{path} is not a checkpoint of pyro_bvae")
    if state.get("version") != _VERSION:
        raise InputError(
            f"{path} has checkpoint version {state.get('version')}; this package reads {_VERSION}"
        )
    return state


@public
def load_weights(vae: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a module.

    Raises:
        InputError: if they do not fit.
    """
    try:
        vae.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not fit this model: {reason}") from error
