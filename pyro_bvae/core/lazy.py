"""Doors: the public names of a package stand once, in its stub, and are imported on first use."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_bvae.core.moved import load_moved, new_place


def door(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package from the stub beside it.

    Type checkers read the same stub, so that a name is spelled in one place only. A submodule is
    imported on first use as well, whether or not the stub lists it.

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of the package; the stub has the same name and the suffix ``.pyi``.
    """
    origins = exports(Path(file).with_suffix(".pyi"))

    def __getattr__(name: str) -> Any:
        module, original = origins.get(name, (package, name))
        if module != package:
            value = getattr(import_module(module), original)
        elif name not in origins and new_place(package, name) is not None:
            return load_moved(package, name)  # not kept: each use warns
        else:
            value = _submodule(package, original)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(origins)
    return __getattr__, lambda: [*names], names


def exports(stub: Path) -> dict[str, tuple[str, str]]:
    """Return the module and the name there of each name that a stub imports, by public name."""
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _submodule(package: str, name: str) -> ModuleType:
    """Import a submodule; a name that is none is missing, as an attribute."""
    missing = AttributeError(f"module {package!r} has no attribute {name!r}")
    if name.startswith("__"):
        raise missing
    try:
        return import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise missing from None
