"""``improvement.json`` of a run whose guide was trained on: the guide's parts, before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_bvae.core.disk.digests import read_file
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.files import check_text
from pyro_bvae.runs.build import Shape, build_vae
from pyro_bvae.runs.catalogue import POSTERIORS
from pyro_bvae.runs.config import TrainConfig
from pyro_bvae.training.improvement.guide import with_own_encoder

IMPROVEMENT = "improvement.json"


def improvement_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the content of the file."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("utf-8")


def read_improvement(directory: Path) -> dict[str, Any] | None:
    """Return what the file of a run says; None for a run whose guide was trained with its model.

    Raises:
        InputError: if the file was changed since it was written, or is of another origin.
    """
    path = directory / IMPROVEMENT
    if not path.exists():
        return None
    check_text(path)
    content = read_file(path)
    try:
        saved = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    guide = saved.get("guide") if isinstance(saved, dict) else None
    if not (
        isinstance(guide, dict)
        and guide.get("posterior") in (None, *POSTERIORS)
        and isinstance(guide.get("hidden"), list)
    ):
        raise InputError(f"{path} is no improvement of a guide")
    result: dict[str, Any] = saved
    return result


def build_improved(config: TrainConfig, shape: Shape, guide: Mapping[str, Any]) -> Any:
    """Return the untrained model of a run whose encoder is apart from its prior.

    Args:
        config: The configuration of the model.
        shape: The properties of its data.
        guide: ``posterior`` and ``hidden`` of the encoder: None and none for those of the model.
    """
    return with_own_encoder(build_vae(config, shape), build_encoder(config, shape, guide))


def build_encoder(config: TrainConfig, shape: Shape, guide: Mapping[str, Any]) -> Any:
    """Return an untrained encoder of another family or size; None where neither is another."""
    options: dict[str, Any] = {}
    if guide["posterior"] is not None:
        options["posterior"] = guide["posterior"]
    if guide["hidden"]:
        options["encoder_hidden"] = tuple(guide["hidden"])
    return build_vae(config.with_options(**options), shape).encoder if options else None
