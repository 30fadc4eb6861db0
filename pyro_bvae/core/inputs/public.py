"""The decorators of public functions: arguments of the stated kinds, one thread at a time."""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.turns import turn

_F = TypeVar("_F", bound=Callable[..., Any])

# The errors of a path that stands for no file: a directory, one below a file, a loop of links.
_NO_PATH = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
# Parts of the messages by which torch says that there is no memory, or that there can be none.
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
)


def public(function: _F) -> _F:
    """Return a function or class that takes arguments as their annotations say, or refuses them.

    Integers and numbers of NumPy and torch, arrays, tables and lists are converted where they
    plainly stand for the annotated kind. The arguments ``model, guide, *args`` are those of a
    program, see :func:`~pyro_bvae.core.inputs.programs.program_arguments`.

    Raises:
        InputError: naming the argument, its value and the kind that would be accepted; where a
            path stands for no file; and where memory for the work cannot be had.
    """
    if not isinstance(function, type):
        return _entry(function, nullcontext)  # type: ignore[no-any-return]
    function.__init__ = _entry(function.__init__, nullcontext)  # type: ignore[misc]
    return function


def exclusive(function: _F) -> _F:
    """Return a :func:`public` function that other threads of the package wait for.

    Pyro's handlers and parameter store, and torch's generators, are those of the process: see
    :func:`~pyro_bvae.core.inputs.turns.turn`.
    """
    return _entry(function, turn)  # type: ignore[no-any-return]


def _entry(function: Any, held: Callable[[], AbstractContextManager[None]]) -> Any:
    code = inspect.unwrap(function).__code__
    names = code.co_varnames[: code.co_argcount]
    is_program = names[:2] == ("model", "guide") and code.co_flags & inspect.CO_VARARGS
    has_options = bool(code.co_flags & inspect.CO_VARKEYWORDS)

    @functools.cache
    def kinds() -> dict[str, Any]:
        from pyro_bvae.core.inputs.kinds import kinds_of

        return kinds_of(inspect.unwrap(function))

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        known = kinds()
        if is_program and len(args) > 1:
            from pyro_bvae.core.inputs.programs import program_arguments

            args = program_arguments(*args, name=function.__name__, partial=has_options)
        given = [
            known[name].check(name, value) if name in known else value
            for name, value in zip(names, args, strict=False)
        ]
        named = {
            name: known[name].check(name, value) if name in known else value
            for name, value in kwargs.items()
        }
        try:
            with held():
                return function(*given, *args[len(given) :], **named)
        except OSError as error:
            if error.errno not in _NO_PATH:
                raise
            raise InputError(f"{error.filename}: {error.strerror}") from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{function.__name__} asks for more memory than there is: {reason}"
                ) from error
            raise

    return checked
