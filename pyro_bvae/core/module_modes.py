"""Finding the modules behind a function, and running them in eval mode."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_bvae.core.errors import InputError


def owner(function: Callable[..., Any]) -> nn.Module | None:
    """Return the module that a method or a callable belongs to, through Pyro's handlers too."""
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args)
        return next(
            (results for part in parts if callable(part) and (results := owner(part)) is not None),
            None,
        )
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a function can reach: its owner, its closure's and its globals'."""
    if isinstance(
        function, functools.partial
    ):  # Pyro's handlers wrap a function so, with it among the arguments
        arguments = [
            argument
            for argument in (*function.args, *function.keywords.values())
            if callable(argument)
        ]
        return [module for part in (function.func, *arguments) for module in modules_of(part)]
    module = owner(function)
    if module is not None:
        return [module]
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return []
    variables = inspect.getclosurevars(function)
    return [
        value
        for value in (*variables.nonlocals.values(), *variables.globals.values())
        if isinstance(value, nn.Module)
    ]


@contextmanager
def evaluating(*functions: Callable[..., Any]) -> Iterator[None]:
    """Run the body with the modules that functions reach in eval mode, and restore each mode.

    They are found through attributes, containers, closures, defaults, helpers and handlers, as in
    :func:`names_in`. Other modules, such as those that another thread trains, are left alone.
    """
    reached = [value for _, value in _reachable({"": functions}) if isinstance(value, nn.Module)]
    switched = {part for module in reached for part in module.modules() if part.training}
    try:
        for module in switched:
            module.training = False
        yield
    finally:
        for module in switched:
            module.training = True


# Functions by which a module draws, or moves its statistics, in train mode, each with an argument
# ``training``.
_MODAL = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    functional.batch_norm,
)


class EvalModeCheck(TorchFunctionMode):
    """Refuses dropout and batch norm in train mode, of modules out of reach, in this thread.

    Raises:
        InputError: at such an operation.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one operation, and do it."""
        if func in _MODAL:
            given = inspect.signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            # Without running statistics batch norm takes those of the batch in either mode.
            if given.arguments["training"] and given.arguments.get("running_mean", 0) is not None:
                raise InputError(
                    f"the program runs {func.__name__} in train mode, in a module that cannot be"
                    " reached from model and guide: call .eval() on that module before, or make"
                    " it an attribute of the module that uses it"
                )
        return func(*args, **(kwargs or {}))


@contextmanager
def frozen(*functions: Callable[..., Any]) -> Iterator[None]:
    """Run the body with the parameters of the modules behind ``functions`` as constants."""
    modules = {module for function in functions for module in modules_of(function)}
    trained = {
        parameter
        for module in modules
        for parameter in module.parameters()
        if parameter.requires_grad
    }
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def leaves(value: Tensor) -> list[Tensor]:
    """Return the tensors at which a backward pass from a value leaves gradients, by its graph."""
    nodes: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    results: dict[int, Tensor] = {}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            results[id(node.variable)] = node.variable
        nodes += [inner for inner, _ in node.next_functions]
    return list(results.values())


def names_in(**holders: Any) -> dict[int, str]:
    """Return the places of tensors in objects, by identity: parameters, attributes, variables.

    Functions are searched through their closures, defaults and globals; a tensor may be used and
    not be found.

    Args:
        **holders: The objects, each under the name that begins the names in it.
    """
    names: dict[int, str] = {}
    for name, value in _reachable(holders):
        if isinstance(value, Tensor):
            names.setdefault(id(value), name)
        elif isinstance(value, nn.Module):
            for parameter_name, parameter in value.named_parameters():
                names.setdefault(id(parameter), f"{name}.{parameter_name}")
    return names


# Attributes from object to object after which a search gives up.
_DEPTH = 8
# Packages whose functions and classes refer to no module or tensor of a user's.
_PACKAGES = {"torch", "pyro", "pyro_bvae", "numpy", "scipy", "pandas", "sklearn", "matplotlib"}
_LIBRARIES = sys.stdlib_module_names | _PACKAGES
_PLAIN = (str, bytes, int, float, complex, type(None), logging.Logger)
_OWN = frozenset(vars(nn.Module()))  # attributes that every module has


def _reachable(holders: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield objects and all that they reach, each once and with a name, the nearest first."""
    seen: dict[int, Any] = {}  # with the objects, so that no identity is used twice
    level = list(holders.items())
    for _ in range(_DEPTH + 1):
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, _PLAIN) or id(value) in seen:
                continue
            seen[id(value)] = value
            yield name, value
            below += ((f"{name}.{inner}", part) for inner, part in _inside(value))
        level = below


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that an object holds, or a function refers to, with names."""
    if isinstance(value, dict):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((str(index), part) for index, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif inspect.ismethod(value):
        yield from (
            (value.__name__, value.__func__),
            (type(value.__self__).__name__, value.__self__),
        )
    elif isinstance(value, property):
        yield "fget", value.fget
    elif inspect.isfunction(value):
        yield from _referred(value)
    elif isinstance(value, type):
        if not _is_library(value.__module__):
            yield from vars(value).items()
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | ModuleType):
        if isinstance(value, nn.Module):
            yield from value.named_children()
        yield from ((key, part) for key, part in vars(value).items() if key not in _OWN)
        kinds = (kind for kind in type(value).__mro__ if not _is_library(kind.__module__))
        yield from ((kind.__name__, kind) for kind in kinds)


def _referred(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield a function's closure, globals and defaults, and the function that it wraps."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a variable that has no value yet
            yield name, cell.cell_contents
    if not _is_library(function.__module__):
        names = dict.fromkeys(_names_of(function.__code__))
        for name in [name for name in names if name in function.__globals__]:
            value = function.__globals__[name]
            yield name, value
            if isinstance(value, ModuleType) and not _is_library(value.__name__):
                yield from (
                    (f"{name}.{key}", part) for key, part in vars(value).items() if key in names
                )
    yield from (("defaults", function.__defaults__), ("keywords", function.__kwdefaults__))
    yield from vars(function).items()


def _names_of(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a function, and in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)


def _is_library(name: str | None) -> bool:
    return (name or "").partition(".")[0] in _LIBRARIES
