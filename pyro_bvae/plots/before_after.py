"""The figure of a guide before and after it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.plots.style import BLUE, GREEN, INK, ORANGE, TEXT, new_figure, number, tidy, title_of

_PARTS = (("approximation", BLUE), ("beta", GREEN), ("amortization", ORANGE))
_LABELS = {"beta": "β gap"}


@public
def before_and_after(improvement: Mapping[str, Any]) -> Figure:
    """Draw the parts of the variational gap before and after a guide was trained on.

    Args:
        improvement: The numbers, as :meth:`pyro_bvae.training.ImprovedGuide.to_dict` returns them
            and ``improvement.json`` of a run holds them.

    Returns:
        A bar for each, stacked from the three parts (negative ones left of zero), with a diamond at
        the whole and its Monte Carlo error, twice its length to either side.
    """
    states = {name: improvement.get(name) for name in ("before", "after")}
    if not all(isinstance(state, Mapping) and "variational" in state for state in states.values()):
        raise InputError("'improvement' must have the gaps 'before' and 'after', as to_dict() has")
    figure = new_figure(9, 2.9)
    axes = figure.subplots()
    for place, state in enumerate(states.values()):
        assert state is not None
        ends = {True: 0.0, False: 0.0}
        for name, colour in _PARTS:
            value = float(state[name]["value"])
            label = _LABELS.get(name, name) if place == 0 else None
            axes.barh(place, value, left=ends[value >= 0], color=colour, height=0.6, label=label)
            ends[value >= 0] += value
        whole = float(state["variational"]["value"])
        length = 2 * float(state["variational"]["monte_carlo_error"] or 0.0)
        axes.errorbar(whole, place, xerr=length, color=INK, fmt="D", markersize=5, capsize=4)
        axes.annotate(f"◆ {number(whole)}", (max(ends[True], whole + length), place), (8, 0),
                      textcoords="offset points", va="center", **TEXT)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(states)), list(states))
    axes.set_ylim(len(states) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.legend(loc="lower right", frameon=False)
    title, _ = title_of(str(improvement.get("verdict") or "Variational gap"))
    note = "variational gap, nats per datum (lines: ± 2 Monte Carlo errors)"
    tidy(axes, title.split(";")[0], note, "", grid="x")
    return figure
