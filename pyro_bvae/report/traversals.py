"""Traversals: images decoded as one latent moves, of a run and of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.plots.style import mosaic
from pyro_bvae.report.sections import NUM_STEPS, Section, most_used, traversed

# Latents of each run at most, and runs at most.
_MOST_LATENTS, _MOST_RUNS = 3, 12


def side_by_side(
    runs: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> list[Section]:
    """Return the traversals of several runs in one picture; none where they are of no images.

    All start at the same datum, the first of the first run's test data, and a run takes part if its
    model is of such images.

    Args:
        runs: Loaded runs by their names.
        evaluations: The content of the ``evaluation.json`` of each.
    """
    try:
        splits = next(iter(runs.values())).splits
    except InputError:  # other data lie in their place
        return []
    if splits is None or splits.test.image_shape is None:
        return []
    datum = splits.test[:1].dense()
    values = torch.linspace(-3, 3, NUM_STEPS)
    labels: list[str] = []
    pictures: list[Tensor] = []
    blank = torch.full((1, NUM_STEPS, datum.num_features), torch.nan)
    shown = [name for name, run in runs.items() if run.vae.num_features == datum.num_features]
    for name in shown[:_MOST_RUNS]:
        latents = most_used(evaluations[name], _MOST_LATENTS)
        if not latents:
            continue
        images = traversed(runs[name].vae, datum, latents, values)
        pictures += [blank, images] if pictures else [images]
        labels += [""] if labels else []
        labels += [f"{name}  z{latents[0]}", *(f"z{latent}" for latent in latents[1:])]
    if not pictures:
        return []
    title = "The latents of most KL of each run, around the same datum"
    columns = [f"{value:g}".replace("-", "−") for value in values.tolist()]
    figure = mosaic(
        np.asarray(torch.cat(pictures)), datum.image_shape, title, rows=labels, columns=columns,
        xlabel="value of the row's latent",
    )  # fmt: skip
    caption = f"Up to {_MOST_LATENTS} active latents of each run, each moved alone from −3 to 3."
    if len(shown) > _MOST_RUNS:
        caption += f" Shown are the first {_MOST_RUNS} of {len(shown)} runs."
    reading = "rows whose images change in one way only: latents that each have one meaning."
    return [Section("Traversals", figure, caption, reading)]
