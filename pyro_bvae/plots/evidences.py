"""The figure of a comparison of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    TEXT,
    new_figure,
    number,
    plain,
    tidy,
    title_of,
)

if TYPE_CHECKING:
    from pyro_bvae.evaluation.comparison import Comparison


@public
def comparison(result: Comparison, *, titled: bool = True) -> Figure:
    """Draw how far each model lies behind the best, with the interval of the paired difference.

    Args:
        result: The comparison.
        titled: Whether the verdict is the title.

    Returns:
        A row a model. An orange row lies behind the best by more than its interval; of a grey row
        no difference can be seen, or it cannot be measured.
    """
    best, *others = result.names
    figure = new_figure(8.5, 1.9 + 0.5 * len(result.names))
    axes = figure.subplots()
    title, notes = title_of(result.verdict) if titled else ("", [])
    tidy(axes, title, "evidence behind the best, nats a datum", "", grid="x")
    axes.plot(0, 0, "D", color=BLUE, markersize=7)
    best_value = float(result.per_datum[0].mean())
    axes.annotate(f"evidence {number(best_value)}", (0, 0), (-10, 0),
                  textcoords="offset points", ha="right", va="center", **TEXT)  # fmt: skip
    for place, name in enumerate(others, 1):
        pair = result.difference(best, name)
        low, high = pair.interval
        colour = ORANGE if pair.seen else GREY
        axes.plot([-high, -low], [place, place], color=INK, linewidth=1.5)
        axes.plot(-pair.value, place, "o", color=colour, markeredgecolor=INK, markersize=8)
        words = f"{number(-pair.value)}" + ("" if pair.measured else "  untrusted")
        axes.annotate(words, (-low, place), (8, 0), textcoords="offset points", va="center", **TEXT)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(result.names)), [plain(name) for name in result.names])
    axes.set_ylim(len(result.names) - 0.5, -0.6)
    axes.margins(x=0.25)
    if notes:
        figure.text(0.02, -0.02, "\n".join(notes), va="top", fontsize=9, color=INK)
    return figure


@public
def paired_differences(result: Comparison) -> Figure:
    """Draw, datum by datum, how much more evidence the best model gives than each other.

    Args:
        result: The comparison.

    Returns:
        A row a model, a dot a datum: right of zero where the best model wins. The diamond is the
        mean, the vertical stroke the median; beyond the 1st and the 99th percentile of all rows,
        dots lie at the edge.
    """
    best, *others = result.names
    figure = new_figure(8.5, 1.4 + 0.8 * len(others))
    axes = figure.subplots()
    tidy(axes, "", f"evidence under {plain(best)} minus that under the other, nats", "", grid="x")
    rows = [(result.per_datum[0] - values).numpy() for values in result.per_datum[1:]]
    rows = [row[np.isfinite(row)] for row in rows]
    everything = np.concatenate([*rows, np.zeros(1)])
    low, high = np.percentile(everything, (1, 99))
    draws = np.random.default_rng(0)
    for place, (name, row) in enumerate(zip(others, rows, strict=True)):
        shifts = draws.uniform(-0.22, 0.22, len(row))
        axes.scatter(row.clip(low, high), place + shifts, s=10, color=BLUE, alpha=0.35, linewidth=0)
        if len(row):
            axes.plot(np.median(row), place, "|", color=INK, markersize=22, markeredgewidth=2)
            axes.plot(row.mean(), place, "D", color=ORANGE, markeredgecolor=INK, markersize=8)
        share = result.difference(best, name).share_won
        words = f"{plain(best)} wins {100 * share:.0f}%"
        axes.annotate(words, (1, place - 0.36), xycoords=("axes fraction", "data"), ha="right",
                      va="center", **TEXT)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(others)), [plain(name) for name in others])
    axes.set_ylim(len(others) - 0.5, -0.6)
    return figure
