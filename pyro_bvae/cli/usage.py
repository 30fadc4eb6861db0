"""The words of a command line, checked before tyro parses them: one line for each mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import tyro

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.bounds import OptionType, option_types, quoted

_HELP = ("-h", "--help")
_SHELLS = ("bash", "zsh", "tcsh", "fish")
# Options that cannot be given together.
_EXCLUDING = (
    ("resume", "overwrite"), ("target_rate", "schedule"), ("target_rate", "warmup_epochs"),
    ("epochs", "steps"),
    ("budget", "full"), ("budget", "plan"), ("full", "plan"),
)  # fmt: skip
# Options that have no effect but with some values of another.
_SCALED = ("normal", "normal-per-feature", "normal-fixed", "laplace", "student-t")
_EFFECTIVE = {
    "prior_components": ("prior", ("mixture", "vamp")),
    "dispersion": ("likelihood", ("negative-binomial", "zero-inflated-negative-binomial")),
    "likelihood_scale": ("likelihood", _SCALED),
    "warmup_epochs": ("schedule", ("linear", "cosine")),
}


class UsageError(InputError):
    """A command line that does not follow its syntax."""


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: The name of its field, as Python spells it.
        type: The type of its value or values.
    """

    name: str
    type: OptionType

    @property
    def flag(self) -> str:
        """The option as it is typed; of a positional argument, its name in the help."""
        named = next((note.metavar for note in self.type.notes if hasattr(note, "metavar")), None)
        return named or "--" + self.name.replace("_", "-")

    @property
    def is_positional(self) -> bool:
        """Whether it is given by its place alone."""
        return tyro.conf.Positional in self.type.notes

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.type.kinds == (bool,)

    def check(self, value: str) -> None:
        """Raise unless a value that was typed can be one of this option's type.

        Raises:
            UsageError: with the value, and those that are accepted.
        """
        kinds, optional = self.type.kinds, type(None) in self.type.kinds
        if not value or "\0" in value:
            raise UsageError(f"{self.flag} must be {_value_words(self.type)}, got {quoted(value)}")
        if value == "None" and (optional or kinds == (str,)):
            return
        fits = True
        if get_origin(kinds[0]) is Literal:
            fits = value in get_args(kinds[0])
        elif bool in kinds:
            fits = value in ("True", "False")
        elif int in kinds or float in kinds:
            fits = _is_number(value, int if int in kinds else float)
        if not fits:
            raise UsageError(f"{self.flag} must be {_value_words(self.type)}, got {quoted(value)}")


@cache
def options_of(command: type) -> dict[str, Option]:
    """Return the options of a command by the names of their fields, those of its parts too."""
    options: dict[str, Option] = {}
    for name, kind in option_types(command).items():
        if is_dataclass(kind.kinds[0]):
            options |= options_of(kind.kinds[0])  # type: ignore[arg-type]
        elif tyro.conf.Suppress not in kind.notes:
            options[name] = Option(name, kind)
    return options


def check_usage(commands: Mapping[str, type], words: Sequence[str]) -> frozenset[str]:
    """Return the names of the options that are given, if the words of a command line can be parsed.

    Raises:
        UsageError: for a command or an option that is none, for values that are missing, too many
            or of another type. Of an option that is given twice the last values count.
        InputError: for options that exclude each other.
    """
    if any(word in _HELP for word in words):
        return frozenset()
    if not words:
        raise UsageError(f"a command must be given: {_either(commands)}")
    first, *rest = words
    if first.startswith("--tyro-"):
        if rest and rest[0] not in _SHELLS:
            raise UsageError(f"unknown shell {quoted(rest[0])}; known: {', '.join(_SHELLS)}")
        return frozenset()
    if first in commands:
        return _Words(first, commands).check(rest)
    if _is_flag(first):
        raise UsageError(
            f"an option must follow its command, got {quoted(first)} before one;"
            f" the commands are {_either(commands, 'and')}"
        )
    nearest = _nearest(first, commands)
    hint = f" Did you mean '{nearest}'?" if nearest else ""
    raise UsageError(f"unknown command {quoted(first)}.{hint} Known: {', '.join(commands)}.")


def without_effect(given: frozenset[str], command: Any) -> list[str]:
    """Return a line on each option that is given and has no effect in the command's configuration.

    Names that are none are left to the command.
    """
    lines = []
    if {"preset", "resume"} <= given:
        lines.append("--preset has no effect with --resume: a run keeps its own options")
    if {"split", "data"} <= given:
        lines.append("--split has no effect with --data: it is a part of the run's own data")
    for name in given & _EFFECTIVE.keys():
        other, values = _EFFECTIVE[name]
        if (value := getattr(command.config, other)) not in values:
            flag, needed = (f"--{each.replace('_', '-')}" for each in (name, other))
            lines.append(f"{flag} has no effect with {needed} {value}, but with {_either(values)}")
    return lines


class _Words:
    """The words after a command: options, their values, and positional arguments."""

    def __init__(self, command: str, commands: Mapping[str, type]) -> None:
        self.command, self.commands = command, commands
        options = options_of(commands[command]).values()
        self.options = {option.flag: option for option in options if not option.is_positional}
        self.places = [option for option in options if option.is_positional]
        self.given: dict[str, Option] = {}
        self.filled: set[str] = set()  # positional arguments that have a value

    def check(self, words: Sequence[str]) -> frozenset[str]:
        """Return the names of the options that are given, or raise as :func:`check_usage` does."""
        rest, ended = list(words), False  # whether `--` has ended the options
        while rest:
            word = rest.pop(0)
            if word == "--" and not ended:
                ended = True
            elif ended or not _is_flag(word):
                self._take_place(word)
            else:
                rest = self._take_option(word, rest)
        if empty := [*self._empty(), *self._lacking()]:
            raise UsageError(f"{self.command} needs {empty[0].flag}{self._see_help()}")
        for pair in _EXCLUDING:
            if self.given.keys() >= set(pair):
                one, other = (self.given[name].flag for name in pair)
                raise InputError(f"'{one}' and '{other}' exclude each other")
        return frozenset(self.given)

    def _empty(self) -> list[Option]:
        """Return the positional arguments that have no value yet."""
        return [place for place in self.places if place.name not in self.filled]

    def _lacking(self) -> list[Option]:
        """Return the options without a default that are not given."""
        needed = {
            each.name
            for each in fields(self.commands[self.command])
            if each.default is MISSING and each.default_factory is MISSING
        }
        return [
            option
            for option in self.options.values()
            if option.name in needed and option.name not in self.given
        ]

    def _take_place(self, word: str) -> None:
        """Check a positional argument."""
        if not self.places:
            raise UsageError(
                f"unexpected argument {quoted(word)} of {self.command}{self._see_help()}"
            )
        place = self.places[0]
        place.check(word)
        self.filled.add(place.name)
        if not place.type.many:
            self.places.pop(0)

    def _take_option(self, word: str, rest: list[str]) -> list[str]:
        """Check an option and its values, and return the words after them."""
        self.places = self._empty()  # several values of one stand together
        flag, attached, value = word.partition("=")
        option = self._known(flag)
        self.given[option.name] = option
        if option.is_switch:
            if attached:
                raise UsageError(f"{flag} takes no value, got {quoted(value)}")
            return rest
        count = 0
        if not attached or option.type.many:
            # The last words are positional arguments, where some are still to come.
            room = len(rest) - len(self._empty()) if option.type.many else 1
            stop = (i for i, each in enumerate(rest) if i >= room or _is_flag(each))
            count = next(stop, len(rest))
        values = [value] * bool(attached) + rest[:count]
        if not values and not option.type.many:
            got = f"the option {rest[0]}" if rest else "none"
            raise UsageError(f"{flag} needs a value, {_value_words(option.type)}; got {got}")
        for each in values:
            option.check(each)
        return rest[count:]

    def _known(self, flag: str) -> Option:
        """Return the option of a name."""
        spelled = flag.replace("_", "-") if flag.startswith("--") else flag
        option = self.options.get(spelled)
        if option is None and spelled.startswith("--no-"):
            option = self.options.get("--" + spelled.removeprefix("--no-"))
            option = option if option is not None and option.is_switch else None
        if option is not None:
            return option
        takers = [name for name, other in self.commands.items() if spelled in _flags(other)]
        nearest = _nearest(spelled, self.options)
        hint = f". Did you mean '{nearest}'?" if nearest else self._see_help()
        if takers:
            hint = f", but of {', '.join(takers)}{self._see_help()}"
        raise UsageError(f"'{flag}' is no option of {self.command}{hint}")

    def _see_help(self) -> str:
        return f"; see pyro-bvae {self.command} --help"


def _flags(command: type) -> set[str]:
    return {option.flag for option in options_of(command).values() if not option.is_positional}


def _is_flag(word: str) -> bool:
    """Return whether a word is an option, and no value such as -1, -.5 or -inf."""
    if len(word) < 2 or word[0] != "-":
        return False
    return not (word[1].isdigit() or word[1] == "." or _is_number(word, float))


def _is_number(word: str, kind: type[int] | type[float]) -> bool:
    try:
        kind(word)
    except ValueError:
        return False
    return True


def _value_words(kind: OptionType) -> str:
    """Return the values that can be typed, in words."""
    first = kind.kinds[0]
    names = {int: "an integer", float: "a number", Path: "a path"}
    words = [names.get(first, "a word")]
    if get_origin(first) is Literal:
        words = [str(choice) for choice in get_args(first)]
    elif first is bool:
        words = ["True", "False"]
    return _either([*words, "None"] if type(None) in kind.kinds else words)


def _either(words: Iterable[str], last: str = "or") -> str:
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the name that a word most likely stands for: its beginning, initials, or a slip."""
    plain = word.strip("-").replace("_", "-").lower()
    names = {name.strip("-"): name for name in known}
    if not plain:
        return None
    for found in (
        [name for name in names if name.startswith(plain)],
        [name for name in names if "".join(part[0] for part in name.split("-")) == plain],
        difflib.get_close_matches(plain, names, n=1, cutoff=0.65),
        [name for name in names if {*name.split("-")} & {*plain.split("-")}],
    ):
        if found:
            return names[min(found, key=len)]
    return None
