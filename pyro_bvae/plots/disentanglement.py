"""Figures of disentanglement: every score with its interval beside its nulls."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.disentanglement import Disentanglement
from pyro_bvae.plots.style import BLUE, GREEN, GREY, INK, ORANGE, TEXT, new_figure, number, tidy

# Mark and colour of each null.
_NULLS = {"rotated": ("o", ORANGE), "untrained": ("s", GREEN), "shuffled": ("D", INK)}


@public
def disentanglement_scores(result: Disentanglement) -> Figure:
    """Draw every score as a bar with its 95% interval, and its nulls as marks on the same row.

    Args:
        result: Result of :func:`pyro_bvae.evaluation.disentanglement.disentanglement` or
            ``score_codes``.
    """
    table = result.table
    places, values = np.arange(len(table)), table["value"].to_numpy(float)
    nulls = [name for name in _NULLS if name in table.columns]
    most = table[nulls].max(axis=1).to_numpy(float)
    above = int((table["low"].fillna(table["value"]).to_numpy(float) > most).sum())
    figure = new_figure(9, 2.2 + 0.5 * len(table))
    axes = figure.subplots()
    axes.barh(places, values, color=BLUE, height=0.6)
    spread = np.nan_to_num(np.abs(table[["low", "high"]].to_numpy(float) - values[:, None])).T
    axes.errorbar(values, places, xerr=spread, color=INK, fmt="none", capsize=4)
    for name in nulls:
        mark, colour = _NULLS[name]
        style: dict[str, Any] = {"edgecolors": "white", "linewidths": 1.0, "s": 60, "zorder": 4}
        axes.scatter(table[name], places, marker=mark, color=colour, label=name, **style)
    ends = np.maximum(values + spread[1], most)
    for place, value, end in zip(places, values, ends, strict=True):
        axes.annotate(
            number(value), (end, place), (10, 0), textcoords="offset points", va="center", **TEXT
        )
    title = f"{above} of {len(table)} scores are above all their nulls"
    tidy(axes, title, f"score over {result.num_data:,} data (lines: 95% interval)", "", grid="x")
    axes.set_yticks(places, list(table.index))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.axvline(1, color=GREY, linewidth=1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=10, title="nulls")
    return figure
