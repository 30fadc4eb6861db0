"""Figures of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.samples.predictive_checks import CountChecks
from pyro_bvae.plots.style import as_array, new_figure, tidy

OBSERVED, SIMULATED = "#1A1A1A", "#0072B2"


@public
def count_checks(checks: CountChecks) -> Figure:
    """Draw zeros, variance against mean, and library size, observed beside simulated.

    Args:
        checks: Result of :func:`pyro_bvae.evaluation.count_checks`.
    """
    figure = new_figure(12, 4)
    zeros, variance, total = figure.subplots(1, 3)
    observed, simulated = (as_array(values) for values in checks.zero_share)
    tidy(zeros, "Share of zeros of each feature", "observed", "simulated", grid="both")
    zeros.plot([0, 1], [0, 1], color="grey", linewidth=1, label="equal")
    zeros.errorbar(
        observed,
        simulated.mean(0),
        2 * simulated.std(0),
        fmt="o",
        color=SIMULATED,
        markersize=3,
        linewidth=0.7,
    )
    tidy(variance, "Variance of each feature", "mean (log)", "variance (log)", grid="both")
    seen = as_array(checks.mean.observed) > 0
    mean, spread = as_array(checks.mean.observed)[seen], as_array(checks.variance.observed)[seen]
    variance.scatter(mean, spread, s=14, color=OBSERVED, label="observed")
    means, spreads = (
        as_array(part.simulated)[:, seen].mean(0) for part in (checks.mean, checks.variance)
    )
    variance.scatter(means, spreads, s=14, color=SIMULATED, label="simulated")
    ends = np.array([mean.min(), mean.max()])
    poisson: dict[str, Any] = {"color": "grey", "linewidth": 1, "linestyle": ":"}
    variance.plot(ends, ends, label="Poisson: variance = mean", **poisson)
    variance.set_xscale("log")
    variance.set_yscale("log")
    variance.legend(frameon=False)
    tidy(total, "Total of each datum", "total count", "number of data")
    observed, simulated = (as_array(values) for values in checks.total)
    edges = np.histogram_bin_edges(np.concatenate([observed, simulated.ravel()]), bins=40)
    total.hist(observed, edges, color="#B8B8B8", label="observed")
    heights = np.mean([np.histogram(copy, edges)[0] for copy in simulated], axis=0)
    total.stairs(heights, edges, color=SIMULATED, linewidth=2, label="simulated")
    total.legend(frameon=False)
    return figure
