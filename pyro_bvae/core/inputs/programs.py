"""The arguments of a measurement of any program: model, guide, and those of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.inputs.data import MISMATCH, as_data, as_tensor, check_observed, shown
from pyro_bvae.core.module_modes import owner
from pyro_bvae.core.protocols import ChecksData, num_features_of


def program_arguments(
    model: Any, guide: Any, *args: Any, name: str = "evidence", partial: bool = False
) -> tuple[Any, ...]:
    """Return model, guide and their arguments, converted where the meaning is plain.

    A module with functions ``model`` and ``guide`` stands for both. A data set stands for its x and
    context. The data of a :class:`~pyro_bvae.BetaVAE` are made floating-point rows in its type and
    on its device; those of any other program stay as they are, but arrays and tables are tensors.

    Args:
        model: Pyro model, or the module of both.
        guide: Pyro guide, or the first argument.
        *args: The arguments of both.
        name: The function that was called, for messages.
        partial: Whether model and guide are given more arguments than these.

    Raises:
        InputError: if model or guide is no function, or their data cannot be used.
    """
    line = f"{name}(vae.model, vae.guide, x)"
    if _is_pair(model) and (guide is model or not callable(guide)):
        args = args if guide is model else (guide, *args)
        model, guide = model.model, model.guide
    for role, function in (("model", model), ("guide", guide)):
        if isinstance(function, type) or not callable(function):
            raise InputError(
                f"'{role}' must be a Pyro function, got {shown(function)}; write {line}"
            )
        if _is_pair(function) and isinstance(function, ChecksData):  # an EasyGuide is callable
            raise InputError(f"'{role}' must be a Pyro function, got a module of two: write {line}")
    args = _converted(owner(model), args)
    for role, function in (("model", model), ("guide", guide)):
        _check_signature(role, function, args, line, partial)
    return model, guide, *args


def _is_pair(value: Any) -> bool:
    """Whether a module holds both functions of a program."""
    functions = (getattr(value, name, None) for name in ("model", "guide"))
    return not isinstance(value, type) and all(map(callable, functions))


def _converted(vae: nn.Module | None, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args:
        return args
    first, *others = args
    if isinstance(getattr(first, "x", None), Tensor) and hasattr(first, "context"):
        if getattr(first, "stochastic_binarization", False):
            raise InputError("'x' must be drawn from its probabilities: take data.binarized(seed)")
        if first.context is not None and not others:
            others = [first.context]
        first = first.x
    if not isinstance(vae, ChecksData):
        like = next(vae.parameters(), None) if vae else None
        return tuple(_as_argument(arg, like) for arg in (first, *others))
    own = next(vae.parameters(), None)
    x = as_data("x", first, own, num_features_of(vae))
    check_observed(x)
    check_finite("x", x.masked_fill(torch.isnan(x), 0))
    if others:
        others[0] = as_context(others[0], x)
    return (x, *others)


def _as_argument(value: Any, like: Tensor | None) -> Any:
    """Return an argument of a person's own program, arrays and tables as tensors of their shape."""
    if isinstance(value, np.ndarray) or hasattr(value, "to_numpy"):
        tensor = as_tensor(value)
        if tensor is MISMATCH:
            raise InputError(f"an argument must hold numbers, got {shown(value)}")
        target = torch.empty(0) if like is None else like
        kind = target.dtype if tensor.is_floating_point() else tensor.dtype
        value = tensor.to(target.device, kind)
    if isinstance(value, Tensor) and value.dim() and not len(value):
        raise InputError(f"empty data set: an argument has shape {tuple(value.shape)}")
    return value


@contextmanager
def fitting_networks(vae: Any) -> Iterator[None]:
    """Run a model for the first time, and name networks that do not fit each other or the data.

    Raises:
        InputError: with torch's reason, for a model of parts; another program keeps its error.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        known = isinstance(error, InputError) or not isinstance(vae, ChecksData)
        if known or "shape" not in str(error).lower():
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the model's networks do not fit each other, or the data: {reason}"
        ) from error


def as_context(context: Any, x: Tensor) -> Context | None:
    """Return a context in the type and on the device of its data.

    Raises:
        InputError: for anything but a :class:`~pyro_bvae.Context` of arrays, or None.
    """
    if context is None:
        return None
    if not isinstance(context, Context):
        raise InputError(f"'context' must be a Context or None, got {shown(context)}")
    return context.map(lambda part: _as_part(part, x))


def _as_part(part: Any, x: Tensor) -> Any:
    """Return a part of a context as a tensor like x; the check of contexts refuses other values."""
    tensor = as_tensor(part)
    return part if tensor is MISMATCH else tensor.detach().to(x.device, x.dtype)


def _check_signature(
    role: str, function: Callable[..., Any], args: tuple[Any, ...], line: str, partial: bool
) -> None:
    """Raise unless a function can be called with as many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        (signature.bind_partial if partial else signature.bind)(*args)
    except TypeError as error:
        if not isinstance(owner(function), ChecksData):
            line = (
                f"{line.split('(', maxsplit=1)[0]}(model, guide, {', '.join(signature.parameters)})"
            )
        raise InputError(
            f"'{role}' cannot be called with {len(args)} arguments, {error}; write {line}"
        ) from None
