"""Finding the modules behind a function, and running them in eval mode."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def owner(function: Callable[..., Any]) -> nn.Module | None:
    """Return the module that a bound method, or a module used as a function, belongs to."""
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a function can reach: its owner, and those in its closure and its globals."""
    if isinstance(function, functools.partial):
        return modules_of(function.func)
    module = owner(function)
    if module is not None:
        return [module]
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return []
    variables = inspect.getclosurevars(function)
    return [
        value for value in (*variables.nonlocals.values(), *variables.globals.values()) if isinstance(value, nn.Module)
    ]


@contextmanager
def evaluating(*functions: Callable[..., Any]) -> Iterator[None]:
    """Run the body with the modules behind ``functions`` in eval mode, and restore each one's mode afterwards."""
    modules = {part for function in functions for module in modules_of(function) for part in module.modules()}
    training = [part for part in modules if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def frozen(*functions: Callable[..., Any]) -> Iterator[None]:
    """Run the body with no parameter of the modules behind ``functions`` requiring a gradient, and restore that."""
    modules = {module for function in functions for module in modules_of(function)}
    trained = {parameter for module in modules for parameter in module.parameters() if parameter.requires_grad}
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
