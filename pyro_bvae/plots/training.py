"""Figures of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_bvae.core.inputs.public import public
from pyro_bvae.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    as_array,
    draw_line,
    lowest,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    pass


@public
def training_curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw distortion, rate and objective over the epochs, on training and validation data.

    Args:
        history: Columns of ``metrics.csv`` by name: ``epoch``, ``distortion``, ``rate``,
            ``objective`` (nats), and where known ``beta`` and the columns that start with
            ``validation_``; NaN is no value. The validation objective is taken at the last β, so
            that epochs can be compared.

    Returns:
        Three panels, and a fourth with β if it changes; the epoch of the lowest validation
        objective is marked.
    """
    epoch, beta = as_array(history["epoch"]), as_array(history.get("beta", ()))
    changes = bool((beta != beta[-1:]).any())
    figure = new_figure(10, 6.2) if changes else new_figure(12, 3.8)
    panels = figure.subplots(2, 2).flatten() if changes else figure.subplots(1, 3)
    titles = {"distortion": "Distortion D", "rate": "Rate R", "objective": "Objective, D + βR"}
    best = lowest(epoch, as_array(history.get("validation_objective", ())))
    if changes and best is not None:
        titles["objective"] += " (validation: at the last β)"
    for axes, (name, title) in zip(panels, titles.items(), strict=False):
        tidy(axes, title, "epoch", "nats per datum")
        draw_line(axes, epoch, history[name], color=BLUE, label="training")
        draw_line(
            axes,
            epoch,
            history.get(f"validation_{name}", ()),
            color=ORANGE,
            label="validation",
            dashes=(4, 1.5),
        )
        if best is not None:
            label = f"epoch {best:g}: lowest\nvalidation objective"
            axes.axvline(best, color=INK, linewidth=1, linestyle=":", label=label)
    panels[0].legend(frameon=False, fontsize=9)
    if changes:
        tidy(panels[3], "β, the weight of the rate", "epoch", "β")
        draw_line(panels[3], epoch, beta, color=GREEN, label="β")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
