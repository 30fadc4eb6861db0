"""Finding the modules behind a function, and running them in eval mode."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


def owner(function: Callable[..., Any]) -> nn.Module | None:
    """Return the module that a bound method, or a module used as a function, belongs to, through handlers too."""
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args)
        return next(
            (results for part in parts if callable(part) and (results := owner(part)) is not None),
            None,
        )
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a function can reach: its owner, and those in its closure and its globals."""
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
    """Run the body with every module in eval mode, and restore each one's mode afterwards.

    The modules behind ``functions`` are switched at once, and any other that the body calls just
    before it runs: a function may reach modules through lists, helpers and handlers that cannot be
    seen from outside.
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
    """Return the tensors at which a backward pass from a value leaves gradients: its graph knows, whoever owns them."""
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


# Attributes from object to object after which a search for a tensor's name gives up.
_DEPTH = 8


def names_in(**holders: Any) -> dict[int, str]:
    """Return where tensors are found in objects, by identity: names of parameters, attributes and variables.

    Functions are searched through their closures, defaults and globals; a tensor may be used and
    not be found.

    Args:
        **holders: The objects, each under the name that begins the names in it.
    """
    results: dict[int, str] = {}
    seen: dict[int, Any] = {}  # with the objects, so that no identity is used twice
    for name, holder in holders.items():
        _note_names(name, holder, results, seen, _DEPTH)
    return results


def _note_names(
    name: str, value: Any, results: dict[int, str], seen: dict[int, Any], depth: int
) -> None:
    if isinstance(value, Tensor):
        results.setdefault(id(value), name)
        return
    if depth == 0 or id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, nn.Module):
        for parameter_name, parameter in value.named_parameters():
            results.setdefault(id(parameter), f"{name}.{parameter_name}")
    for inner, part in _inside(value):
        _note_names(f"{name}.{inner}", part, results, seen, depth - 1)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, with names."""
    if isinstance(value, dict):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(index), part) for index, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif inspect.ismethod(value):
        yield from (
            (value.__name__, value.__func__),
            (type(value.__self__).__name__, value.__self__),
        )
    elif inspect.isfunction(value):
        with suppress(ValueError):  # a variable that has no value yet
            variables = inspect.getclosurevars(inspect.unwrap(value))
            yield from (*variables.nonlocals.items(), *variables.globals.items())
        yield from (("defaults", value.__defaults__), ("keywords", value.__kwdefaults__))
    elif isinstance(value, nn.Module):
        yield from value.named_children()
        yield from ((key, part) for key, part in vars(value).items() if not key.startswith("_"))
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        yield from vars(value).items()
