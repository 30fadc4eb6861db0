"""Functions that a person gives, and the values that they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_bvae.core.errors import InputError


def called(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return the value of a person's function, whose error becomes one line.

    Args:
        name: Name of the argument by which it was given, for the message.
        function: The function.
        *args: Its arguments.

    Raises:
        InputError: with the error that it raised, which is the cause of this one.
    """
    try:
        return function(*args)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"'{name}' raised {type(error).__name__}: {error}") from error


def as_distribution(role: str, value: Any) -> Any:
    """Return the value of a part of a model, which has to be a distribution of vectors.

    Args:
        role: The part: ``prior``, ``decoder`` or ``encoder``.
        value: The value that it returned.

    Raises:
        InputError: naming the part, if it is no distribution, or one of scalars or matrices.
    """
    from pyro_bvae.core.inputs.data import shown

    shape = getattr(value, "event_shape", None)
    if isinstance(value, type) or shape is None or not callable(getattr(value, "log_prob", None)):
        raise InputError(f"'{role}' must return a distribution, got {shown(value)}")
    if len(shape) != 1:
        wanted = "D" if role == "decoder" else "L"
        raise InputError(
            f"'{role}' must return a distribution of event shape ({wanted},), got {tuple(shape)};"
            " .to_event(1) makes the last dimension one of events"
        )
    return value
