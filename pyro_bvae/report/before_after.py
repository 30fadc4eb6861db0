"""The section of the page about a guide that was trained on: its gaps before and after."""

from __future__ import annotations

from typing import Any

from pyro_bvae import plots
from pyro_bvae.report.tables import format_estimate
from pyro_bvae.runs.improvement.record import read_improvement


def before_and_after(run: Any) -> tuple[str, Any, str] | None:
    """Return title, figure and caption; None for a run whose guide was trained with its model.

    Args:
        run: A loaded run.
    """
    directory = getattr(run, "directory", None)
    improvement = None if directory is None else read_improvement(directory)
    if improvement is None or "after" not in improvement:
        return None
    gaps = [format_estimate(improvement[name]["variational"])[0] for name in ("before", "after")]
    evidence = [format_estimate(improvement[name]["evidence"])[0] for name in ("before", "after")]
    beta = improvement["before"]["training_beta"]
    caption = (
        f"The guide of {improvement['run']} was trained on at β = 1 (before: β = {beta:g}), with"
        f" decoder and prior as they were. On {improvement['num_data']} test data the variational"
        f" gap is {gaps[1]} nats, and was {gaps[0]}; the evidence is a number of the model alone,"
        f" estimated as {evidence[0]} before and {evidence[1]} after."
    )
    return "Before and after", plots.before_and_after(improvement), caption
