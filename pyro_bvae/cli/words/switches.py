"""Words of a command line put into one form: switches with and without a value, and ``~``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from pyro_bvae.cli.usage import Option, options_of
from pyro_bvae.core.inputs.bounds import option_types

_VALUES = ("True", "False")
# Options of text that are paths.
_PATHS = ("path", "data_root")


def completed(commands: Mapping[str, type], words: Sequence[str]) -> list[str]:
    """Return a command line whose options of True and False are all typed in the form they take.

    ``--compile``, ``--compile True`` and ``--no-compile`` are accepted of each of them alike.

    Args:
        commands: The commands by name.
        words: The command line.
    """
    if not words or words[0] not in commands:
        return list(words)
    known = {option.flag: option for option in options_of(commands[words[0]]).values()}
    done, rest = [words[0]], list(words[1:])
    while rest and rest[0] != "--":
        flag, attached, value = rest.pop(0).partition("=")
        plain = flag.replace("_", "-") if flag.startswith("--") else flag
        option, off = known.get(plain), plain.startswith("--no-")
        if option is None and off and not attached:
            option = known.get("--" + plain.removeprefix("--no-"))
        if option is None or bool not in option.type.kinds or option.is_positional:
            done.append(flag + attached + value)
        elif option.is_switch:
            done.append(_switch(option, flag, attached, value, rest))
        elif off and plain not in known:
            done += [option.flag, "False"]
        elif attached or (rest and not rest[0].startswith("-")):
            done.append(flag + attached + value)
        else:
            done += [option.flag, "True"]
    return [*done, *rest]


def _switch(option: Option, flag: str, attached: str, value: str, rest: list[str]) -> str:
    """Return a switch without the value that follows it, if that is True or False."""
    follows = rest.pop(0) if not attached and rest and rest[0] in _VALUES else ""
    said = value if attached else follows
    if said not in _VALUES or flag != option.flag:
        return flag + attached + value
    return option.flag if said == "True" else option.flag.replace("--", "--no-", 1)


def at_home(command: Any) -> Any:
    """Return a command whose paths that begin with ``~`` lie in the home directory.

    Args:
        command: A data class of options, parts of it included.
    """
    changes = {}
    own: Any = type(command)
    for name, kind in option_types(own).items():
        value = getattr(command, name)
        if is_dataclass(value):
            changes[name] = at_home(value)
        elif Path in kind.kinds or name in _PATHS:
            changes[name] = _at_home(value)
    return replace(command, **changes) if changes else command


def _at_home(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))  # noqa: PTH111 (a user who is none is no error)
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111
