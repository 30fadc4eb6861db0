"""Finding the modules behind a function, and running them in eval mode."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


def owner(function: Callable[..., Any]) -> nn.Module | None:
    """Return the module that a bound method, or a module used as a function, belongs to, through handlers too."""
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args)
        return next((found for part in parts if callable(part) and (found := owner(part)) is not None), None)
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a function can reach: its owner, and those in its closure and its globals."""
    if isinstance(function, functools.partial):  # Pyro's handlers wrap a function so, with it among the arguments
        arguments = [argument for argument in (*function.args, *function.keywords.values()) if callable(argument)]
        return [module for part in (function.func, *arguments) for module in modules_of(part)]
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
    """Run the body with every module in eval mode, and restore each one's mode afterwards.

    The modules behind ``functions`` are switched at once, and any other that the body calls just before it runs: a
    function may reach modules through lists, helpers and handlers that cannot be seen from outside.
    """
    switched: list[nn.Module] = []

    def switch(module: nn.Module, *_: Any) -> None:
        if module.training:
            module.training = False
            switched.append(module)

    for function in functions:
        for module in modules_of(function):
            for part in module.modules():
                switch(part)
    hook = register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        hook.remove()
        for module in switched:
            module.training = True


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
