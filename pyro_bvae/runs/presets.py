"""Presets: options that were chosen together on held-out training data, by name.

Each is what a table in ``analysis/results`` says was best, not what a person has to know.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from pyro_bvae.core.errors import unknown_name

#: The name that leaves every option at its own default.
NONE = "none"


class Preset(NamedTuple):
    """Options that go together.

    Attributes:
        data: The data that they are for, in words.
        options: Options of a configuration by name.
    """

    data: str
    options: dict[str, Any]


PRESETS: dict[str, Preset] = {
    "counts-nb": Preset(
        "counts of cells by genes",
        {
            "likelihood": "negative-binomial",
            "posterior": "full-rank",
            "activation": "relu",
            "hidden": (128,),
            "encoder_hidden": (256, 256),
            "latent_dim": 10,
            "learning_rate": 1e-2,
            "steps": 4000,
            "sleep": 1.0,
        },
    ),
    "mnist-mlp": Preset("images of handwriting", {"start_at_mean": True}),
    "table": Preset(
        "tables of real numbers",
        {
            "likelihood": "normal-per-feature",
            "standardize": True,
            "hidden": (64, 64),
            "latent_dim": 5,
            "batch_size": 64,
        },
    ),
}

#: The presets that data sets take by themselves.
TAKEN: dict[str, str] = {"h5ad": "counts-nb"}


def preset_options(name: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Return the options of a preset but those that are given, which replace them.

    Args:
        name: One of :data:`PRESETS`, or :data:`NONE` for no option.
        given: Names of options. Given epochs replace steps too.

    Raises:
        InputError: for another name.
    """
    if name == NONE:
        return {}
    if name not in PRESETS:
        raise unknown_name("preset", name, [*PRESETS, NONE])
    replaced = {*given, *(["steps"] if "epochs" in given else [])}
    return {key: each for key, each in PRESETS[name].options.items() if key not in replaced}


def as_flags(options: dict[str, Any], between: str = " ", dashes: str = "--") -> str:
    """Return options as they are typed, or as a list of them."""
    typed = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,) * (not isinstance(value, bool))
        words = [f"{each:g}" if isinstance(each, float) else str(each) for each in values]
        typed.append(" ".join([dashes + name.replace("_", "-"), *words]))
    return between.join(typed)
