"""Figures of information: the parts of the KL, and active latents against labels and factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.information.decomposition import KLDecomposition
from pyro_bvae.evaluation.information.factors import LatentReading
from pyro_bvae.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    TEXT,
    Array,
    draw_gap_rows,
    new_figure,
    number,
    plain,
    tidy,
)

# Rows that a heat map shows at most, so that its numbers can be read.
_MOST_ROWS = 24
# The share of the colours up to which a number is faint, and its colour.
_NOTABLE, _FAINT = 0.35, "#8A8A8A"


@public
def kl_parts(parts: KLDecomposition) -> Figure:
    """Draw the mean KL and the parts that add up to it, with two Monte Carlo errors to either side.

    Args:
        parts: Result of :func:`pyro_bvae.decompose_kl`.
    """
    split = parts.total_correlation is not None
    named: list[Any] = [("=  mutual information I(x; z)", BLUE, parts.mutual_information)]
    if split:
        named += [("+  total correlation", ORANGE, parts.total_correlation)]
        named += [("+  dimension-wise KL", GREEN, parts.dimension_wise_kl)]
    else:
        named += [("+  KL(q(z) || p(z))", ORANGE, parts.marginal_kl)]
    rows = [
        ("mean KL", BLUE, parts.rate.to_dict()),
        *((name, colour, part.to_dict()) for name, colour, part in named),
    ]
    share = (
        100 * parts.mutual_information.value / parts.rate.value
        if parts.rate.value > 0
        else math.nan
    )
    title = f"Mean KL of {number(parts.rate.value)} nats"
    title += f": {share:.0f}% of it tells data apart" if math.isfinite(share) else ""
    figure = new_figure(9, 1.9 + 0.5 * len(rows))
    axes = figure.subplots()
    draw_gap_rows(axes, rows, "monte_carlo_error")
    near = parts.limit < 2 * parts.rate.value  # a line far off would leave the bars no room
    if near:
        axes.axvline(parts.limit, color=INK, linewidth=1.2, linestyle=":")
    limit = f"log N = {number(parts.limit)}{', dotted,' if near else ''} is the most that I can be"
    notes = f"nats (lines: ± 2 Monte Carlo errors); {limit}"
    tidy(axes, title, notes, "", grid="x")
    return figure


@public
def latent_reading(reading: LatentReading) -> Figure:
    """Draw the KL of active latents, and heat maps of correlation and mutual information.

    Args:
        reading: Result of :func:`pyro_bvae.evaluation.read_latents`.

    Returns:
        A row for each active latent, largest KL first, in up to three panels side by side.
    """
    rows = list(reading.correlation.index)[:_MOST_ROWS]
    panels = [
        ("Correlation", reading.correlation),
        ("Mutual information, nats", reading.mutual_information),
    ]
    panels = [(title, table.loc[rows]) for title, table in panels if rows and table.shape[1]]
    widths = [2.2, *(max(2.2, 0.62 * table.shape[1] + 0.8) for _, table in panels)]
    figure = new_figure(1.2 + sum(widths), 1.9 + 0.42 * max(3, len(rows)))
    figure.suptitle(
        _headline(reading), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK
    )
    first, *others = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_sizes(first, reading, rows)
    for axes, (title, table) in zip(others, panels, strict=True):
        _draw_map(axes, title, table.to_numpy(float), signed=title == "Correlation")
        names = [plain(name) for name in table.columns]
        turn = 0 if max(map(len, names)) <= 4 else 40
        axes.set_xticks(range(len(names)), names, rotation=turn, ha="right" if turn else "center")
    classes = reading.correlation.shape[1] - reading.mutual_information.shape[1] + 1
    if (
        panels and 1 < classes < reading.correlation.shape[1]
    ):  # a gap between the classes and the factors
        others[0].axvline(classes - 0.5, color="white", linewidth=6)
        others[1].axvline(0.5, color="white", linewidth=6)
    return figure


def _headline(reading: LatentReading) -> str:
    active = f"{int(reading.latents['active'].sum())} of {len(reading.latents)} latents are active"
    sizes = np.nan_to_num(np.abs(reading.correlation.to_numpy(float)))
    if not sizes.size:
        return active
    row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
    value = number(float(reading.correlation.iloc[row, column]))  # type: ignore[arg-type]
    name, latent = plain(reading.correlation.columns[column]), reading.correlation.index[row]
    return f"{active}; the closest tie is {latent} with {name} (r = {value})"


def _draw_sizes(axes: Axes, reading: LatentReading, rows: list[str]) -> None:
    """Draw the KL of each active latent, or the variance of its mean where there is no KL."""
    known = reading.reason is None
    values = reading.latents.loc[rows, "kl" if known else "mean_variance"].to_numpy(float)
    axes.barh(range(len(rows)), values, color=BLUE, height=0.7)
    for place, value in enumerate(values):
        axes.annotate(
            number(value),
            (value, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    tidy(axes, "Mean KL, nats" if known else "Variance of mean", "", "", grid="x")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.margins(x=0.3)
    if not rows:
        axes.text(
            0.5, 0.5, "none is active", ha="center", va="center", transform=axes.transAxes, **TEXT
        )


def _draw_map(axes: Axes, title: str, values: Array, *, signed: bool) -> None:
    """Draw a table as colours with its numbers, faint where they are small.

    The colour of information I is :math:`1 - e^{-2I}`, which for two normals is the square of their
    correlation: from nothing to all, whatever the entropy of a factor.
    """
    shades = values if signed else -np.expm1(-2 * values)
    axes.imshow(
        shades, aspect="auto", vmin=-1 if signed else 0, vmax=1, cmap="RdBu" if signed else "Blues"
    )
    for (row, column), value in np.ndenumerate(values):
        words = number(value) if np.isfinite(value) else "–"
        shade = abs(shades[row, column]) if np.isfinite(value) else 0.0
        colour = "white" if shade > 0.6 else INK if shade > _NOTABLE else _FAINT
        weight = "bold" if shade > _NOTABLE else "normal"
        axes.text(
            column,
            row,
            words,
            ha="center",
            va="center",
            fontsize=9,
            color=colour,
            fontweight=weight,
        )
    tidy(axes, title, "blue: rises with it; red: falls" if signed else "dark: tells it", "")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
