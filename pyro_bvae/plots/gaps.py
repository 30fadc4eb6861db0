"""Figures of the inference gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.rows import QUANTITIES
from pyro_bvae.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    TEXT,
    as_array,
    draw_gap_rows,
    draw_spread,
    new_figure,
    number,
    plain,
    tidy,
    title_of,
)

if TYPE_CHECKING:
    from pyro_bvae.evaluation import InferenceGaps


def _label(key: str) -> str:
    return QUANTITIES[key][0].lower()


GAP_PARTS = (
    (f"=  {_label('approximation_gap')}", BLUE, "approximation_gap"),
    (f"+  {_label('beta_gap')}", GREEN, "beta_gap"),
    (f"+  {_label('amortization_gap')}", ORANGE, "amortization_gap"),
)


@public
def gap_bar(
    evaluation: Mapping[str, Any],
    error: Literal["standard_error", "monte_carlo_error"] = "standard_error",
) -> Figure:
    """Draw the variational gap and the parts that add up to it, under the verdict on them.

    Args:
        evaluation: Content of ``evaluation.json``: estimates (``value``, ``standard_error``,
            ``monte_carlo_error``, in nats) under ``elbo``, ``evidence`` and ``..._gap``; a part may
            be None, with the reason in ``gaps_note``. Where known, ``verdict`` is the title and
            ``families`` are drawn below. :func:`inference_gaps` takes the gaps themselves.
        error: Which error the lines show, twice its length to either side.

    Returns:
        A row for the total, stacked from its parts (negative ones left of zero), a row for each
        part, and one for each richer family: the approximation gap that it would leave.
    """
    for key in ("variational_gap", "evidence", "elbo"):
        if key not in evaluation:
            raise InputError(f"'evaluation' must have '{key}', as evaluation.json has")
    parts = [(sign, colour, evaluation.get(key)) for sign, colour, key in GAP_PARTS]
    known = [(sign, colour, part) for sign, colour, part in parts if part is not None]
    complete = len(known) == len(parts)
    rows = [
        (_label("variational_gap"), BLUE, evaluation["variational_gap"]),
        *(known if complete else []),
    ]
    families = (evaluation.get("families") or {}) if complete else {}
    below = [
        (f"{_label('approximation_gap')}\nwith a {plain(name)} guide", BLUE, left)
        for name, left in families.items()
    ]
    value = {
        key: number(evaluation[key]["value"]) for key in ("variational_gap", "evidence", "elbo")
    }
    title = f"Variational gap: the ELBO is {value['variational_gap']} nats below the evidence"
    advice, limits = title_of(evaluation.get("verdict") or title)
    kind = "standard errors over data" if error == "standard_error" else "Monte Carlo errors"
    notes = [
        f"nats per datum (lines: ± 2 {kind})",
        f"evidence {value['evidence']},  ELBO {value['elbo']}",
        *limits,
    ]
    if not complete:
        notes += wrap(
            f"parts not shown: {plain(evaluation.get('gaps_note') or 'not estimated')}", 100
        )
    figure = new_figure(
        9, 1.7 + 0.5 * (len(rows) + len(below)) + 0.2 * (len(notes) + advice.count("\n"))
    )
    axes = figure.subplots()
    draw_gap_rows(axes, rows, error, below)
    tidy(axes, advice, "\n".join(notes), "", grid="x")
    return figure


@public
def inference_gaps(
    gaps: InferenceGaps, error: Literal["standard_error", "monte_carlo_error"] = "standard_error"
) -> Figure:
    """Draw inference gaps, split into their parts, and those of richer families, under the verdict.

    Args:
        gaps: Result of :func:`pyro_bvae.inference_gaps`.
        error: Which error the lines show, twice its length to either side.
    """
    estimates = {"elbo": gaps.elbo, "evidence": gaps.evidence, "variational_gap": gaps.variational}
    estimates |= {key: getattr(gaps, key.removesuffix("_gap")) for _, _, key in GAP_PARTS}
    families = {name: gap.to_dict() for name, gap in gaps.families.items()}
    described = {name: estimate.to_dict() for name, estimate in estimates.items()}
    return gap_bar({**described, "families": families, "verdict": gaps.verdict}, error)


@public
def per_datum_gaps(gaps: InferenceGaps) -> Figure:
    """Draw the gap of every datum and its parts: a small loss of all data, or a large one of few.

    Args:
        gaps: Result of :func:`pyro_bvae.inference_gaps`.

    Returns:
        A row for the variational gap and each part: a dot for each datum, a box for the middle half
        of the data, a line at their mean.
    """
    rows = [(_label("variational_gap"), INK, gaps.variational)]
    rows += [
        (name, colour, getattr(gaps, key.removesuffix("_gap"))) for name, colour, key in GAP_PARTS
    ]
    whole = as_array(gaps.variational.per_datum)
    figure = new_figure(9, 4.2)
    axes = figure.subplots()
    for place, (_, colour, part) in enumerate(rows):
        draw_spread(axes, place, as_array(part.per_datum), colour)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    worst = np.sort(whole)[::-1][: max(1, len(whole) // 10)]
    share = worst.sum() / whole.sum() if whole.sum() > 0 else math.nan
    title = f"Gaps of {len(whole)} data: the worst tenth make {100 * share:.0f}% of the whole"
    note = "nats of a datum (dots: data; box: middle half; line: mean)"
    tidy(axes, title if math.isfinite(share) else f"Gaps of {len(whole)} data", note, "", grid="x")
    return figure


_STACKED = (("approximation", BLUE), ("beta", GREEN), ("amortization", ORANGE))
_SHORT = {"beta": "β gap"}


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
        for name, colour in _STACKED:
            value = float(state[name]["value"])
            label = _SHORT.get(name, name) if place == 0 else None
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
