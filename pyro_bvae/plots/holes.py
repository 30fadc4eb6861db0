"""Figures of holes: prior against aggregated posterior, and data decoded in and out of holes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.information.holes import HoleMass
from pyro_bvae.plots.style import (
    BLUE,
    INK,
    ORANGE,
    TEXT,
    Values,
    as_array,
    mosaic,
    new_figure,
    tidy,
)

# Bins of the histograms, and their reach below the threshold, in units of that above.
_BINS, _BELOW = 50, 1.2


@public
def log_densities(result: HoleMass) -> Figure:
    """Draw log q(z) over draws of the prior and over encoded held-out data, and where holes begin.

    Args:
        result: Result of :func:`pyro_bvae.evaluation.information.holes`.
    """
    prior, data = as_array(result.log_density), as_array(result.held_out)
    high = max(float(prior.max()), float(data.max()))
    # Deep in a hole the density of narrow posteriors is thousands of nats down: the first bin holds
    # all that is.
    low = max(
        result.threshold - _BELOW * (high - result.threshold),
        min(float(prior.min()), result.threshold) - 0.1,
    )
    edges = np.linspace(low, high, _BINS + 1)
    figure = new_figure(8, 4)
    axes = figure.subplots()
    axes.axvspan(low, result.threshold, color="#F1F1F1", zorder=0)
    groups = (data, BLUE, "encoded held-out data"), (prior, ORANGE, "draws of the prior")
    for values, colour, name in groups:
        style: dict[str, Any] = {
            "weights": np.full(len(values), 100 / len(values)),
            "color": colour,
            "label": name,
        }
        axes.hist(np.clip(values, low, high), edges.tolist(), alpha=0.6, **style)
    axes.axvline(result.threshold, color=INK, linewidth=1.5, linestyle=(0, (4, 3)))
    axes.set_xlim(low, high)
    mass, share = 100 * result.hole_mass.value, 100 * result.share
    caption = f"holes: {mass:.1f}% of the prior,\n{share:g}% of held-out data"
    room = result.threshold - low > 0.35 * (high - low)
    axes.margins(y=0.25)
    place: dict[str, Any] = {"ha": "right" if room else "left", "va": "top"}
    place |= {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(caption, (result.threshold, 1), (-6 if room else 6, -6), **place, **TEXT)
    title = f"{mass:.1f}% of the prior lies where hardly any data are encoded"
    xlabel = "log q(z) of the aggregated posterior, nats (first bin: that or less)"
    tidy(axes, title, xlabel, "share, %")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@public
def hole_samples(
    result: HoleMass, inside: Values, outside: Values, image_shape: Sequence[int]
) -> Figure:
    """Draw decoded draws of the prior inside and outside of the holes, one row above the other.

    Args:
        result: Result of :func:`pyro_bvae.evaluation.information.holes`.
        inside: Decoded ``result.inside(count)``, shape ``(S, D)``.
        outside: Decoded ``result.outside(count)``, shape ``(T, D)``.
        image_shape: ``(H, W)``, or ``(C, H, W)`` with 1 or 3 channels.

    Raises:
        InputError: if there is nothing of either, or if they are no pictures of that shape.
    """
    rows = [as_array(outside), as_array(inside)]
    if (
        any(row.ndim != 2 for row in rows)
        or rows[0].shape[1] != rows[1].shape[1]
        or not sum(map(len, rows))
    ):
        raise InputError(
            f"'inside' and 'outside' must be images (S, D) of one width, got {rows[1].shape} and "
            f"{rows[0].shape}"
        )
    images = np.full((2, max(map(len, rows)), rows[0].shape[1]), np.nan)
    for blank, row in zip(images, rows, strict=True):
        blank[: len(row)] = row
    share = 100 * result.hole_mass.value
    names = (
        f"not in a hole\n({100 - share:.0f}% of the prior)",
        f"in a hole\n({share:.0f}% of the prior)",
    )
    return mosaic(
        images, image_shape, "Samples of the prior, outside and inside of the holes", rows=names
    )
