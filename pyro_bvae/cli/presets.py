"""The defaults of a command line that trains: of a preset, or of the run that is continued."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from pyro_bvae.cli.usage import options_of
from pyro_bvae.runs.presets import NONE, PRESETS, TAKEN, as_flags, preset_options

if TYPE_CHECKING:
    from pyro_bvae.runs.config import TrainConfig


def _listed() -> str:
    """Return each preset with its data and the options that it sets."""
    default = {name: f", by itself of {data}" for data, name in TAKEN.items()}
    return "; ".join(
        f"{name} (for {preset.data}{default.get(name, '')}): {as_flags(preset.options, ', ', '')}"
        for name, preset in PRESETS.items()
    )


PresetName = Annotated[
    str | None,
    Doc(
        "Options that go together, chosen on held-out data, which options that are given replace;"
        f" {NONE} for the defaults. {_listed()}."
    ),
]


def with_defaults(command: Any, given: frozenset[str]) -> Any:
    """Return the command whose options are the defaults of another; None where it has its own.

    Args:
        command: A ``Train`` or ``Sweep`` as it is without a preset.
        given: The names of the options that are given.

    Raises:
        InputError: for an unknown preset, or a run that cannot be continued.
    """
    if command.resume:
        return command.resumed()
    name = command.preset or TAKEN.get(command.config.data.dataset)
    if name is None:
        return None
    kind: type = type(command)
    default, known = kind(), options_of(kind)
    options = {key: each for key, each in preset_options(name, given).items() if key in known}
    return replace(default, preset=name, config=default.config.with_options(**options))


def preset_line(name: str | None, config: TrainConfig) -> str:
    """Return a line that says the preset of a configuration, and the options that it has set."""
    if name is None or name == NONE:
        return ""
    options = preset_options(name)
    kept = {key: value for key, value in options.items() if getattr(config, key) == value}
    return f"preset {name}: {as_flags(kept)} (--preset {NONE} for the defaults)"
