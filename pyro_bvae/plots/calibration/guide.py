"""The figure of a guide's calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.calibration import GuideCalibration, rank_bands
from pyro_bvae.plots.style import new_figure, tidy

# Quantities that are drawn, those of the smallest p-values, and their colours.
_MOST = 8
_COLOURS = (
    "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B5B5B",
)  # fmt: skip


@public
def guide_calibration(calibration: GuideCalibration | Mapping[str, Any]) -> Figure:
    """Draw the ranks of true values among the guide's draws with their exact bands, and coverage.

    Args:
        calibration: Result of :func:`pyro_bvae.evaluation.calibrate_guide`, or its ``to_dict()``.

    Raises:
        InputError: for a mapping without these numbers.
    """
    result = (
        calibration.to_dict() if isinstance(calibration, GuideCalibration) else dict(calibration)
    )
    if not {"quantities", "num_simulations", "num_draws"} <= result.keys():
        raise InputError(
            "'calibration' must have 'quantities', 'num_simulations' and 'num_draws', as to_dict()"
            f" has; got {listed(list(result)) or 'nothing'}"
        )
    chosen = sorted(result["quantities"], key=lambda each: float(each["p_value"]))[:_MOST]
    figure = new_figure(12, 4.5)
    ranks, widths = figure.subplots(1, 2, width_ratios=(3, 2))
    places, low, high = (
        part.numpy() for part in rank_bands(result["num_simulations"], result["num_draws"])
    )
    tidy(
        ranks,
        "Ranks of the truth: share below, minus the share expected",
        "rank among the guide's draws, as a share",
        "too many low ranks above 0, too few below",
    )
    ranks.fill_between(
        places, low - places, high - places, color="#DDDDDD", label="95% of right guides, whole"
    )
    shares = np.arange(1, result["num_draws"] + 2) / (result["num_draws"] + 1)
    for each, colour in zip(chosen, _COLOURS, strict=False):
        below = np.cumsum(each["counts"]) / result["num_simulations"] - shares
        label = f"{each['name']} (p {each['p_value']:.2g})"
        ranks.plot(np.r_[0, shares], np.r_[0, below], color=colour, linewidth=1.3, label=label)
    ranks.legend(
        frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13)
    )
    tidy(widths, "The guide's 90% intervals", "share that holds the truth", "", grid="x")
    for row, (each, colour) in enumerate(zip(chosen, _COLOURS, strict=False)):
        value, lowest, highest = each["coverage"]
        widths.plot([lowest, highest], [row, row], color=colour, linewidth=2)
        widths.plot(value, row, "o", color=colour)
    widths.axvline(float(chosen[0]["level"]), color="grey", linewidth=1, linestyle=":")
    widths.set_yticks(range(len(chosen)), [each["name"] for each in chosen])
    widths.invert_yaxis()
    return figure
