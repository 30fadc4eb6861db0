"""The page of a sweep: its rate-distortion curve, and the numbers of all its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyro_bvae import plots
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.evaluation import rate_distortion
from pyro_bvae.evaluation.information.curve import RateDistortion
from pyro_bvae.report.rendering import Page, Table
from pyro_bvae.report.runs_page import figures as charts
from pyro_bvae.report.runs_page import runs_table
from pyro_bvae.report.sections import Section
from pyro_bvae.report.traversals import side_by_side
from pyro_bvae.runs import LoadedSweep, choose_data

# Test data of each run behind the curve at most.
_MOST_DATA = 500


def sweep_page(sweep: LoadedSweep, evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of a sweep as HTML.

    Args:
        sweep: The sweep.
        evaluations: By the name of a run, the content of its ``evaluation.json``.
    """
    first = sweep[0]
    assert first.config is not None
    notes = _remarks(sweep)
    if len({(each.get("num_data"), each.get("seed")) for each in evaluations.values()}) > 1:
        notes.append("The runs were evaluated on other numbers of data, or with other seeds.")
    best = _best(sweep, evaluations)
    own = {name: evaluations[name] for name in sweep.names}
    verdict = f"The evidence is largest at {best}."
    pictures = side_by_side(dict(zip(sweep.names, sweep, strict=True)), own)
    parts: list[Table | Section] = [*charts(own), runs_table(own), *pictures]
    limits = f"Whether the difference can be seen is told by pyro-bvae compare {sweep.directory}."
    figures: list[Section] = []
    try:
        curve = _curve(sweep)
    except InputError as error:
        notes.append(f"No rate-distortion curve: {error}.")
    else:
        verdict += _words(curve)
        caption = "Rate and distortion of the test data, at each β the mean over its seeds."
        figures = [Section("Rate against distortion", plots.rate_distortion(curve), caption)]
    links = [
        (name, f"{name}/report.html") for name in sweep.names
        if (sweep.directory / name / "report.html").exists()
    ]  # fmt: skip
    title = f"{len(sweep)} β-VAEs on {first.config.data.dataset}, a sweep"
    return Page(title, _lead(sweep), verdict, limits, notes, [*figures, *parts], links).render()


def _remarks(sweep: LoadedSweep) -> list[str]:
    """Return a note for each piece of advice, with the grave remarks that lead to it."""
    runs: dict[str, list[str]] = {}
    for name, run in zip(sweep.names, sweep, strict=True):
        for remark in run.history.remarks:
            if remark.grave:
                runs.setdefault(remark.advice, []).append(f"{name}: {remark.seen}")
    return [
        f"{listed(seen, 3)}. {advice[:1].upper()}{advice[1:]}." for advice, seen in runs.items()
    ]


def _lead(sweep: LoadedSweep) -> str:
    seeds = {member.seed for member in sweep.members}
    settings = ", ".join(sweep.by_setting)
    several = f", {len(seeds)} seeds each" if len(seeds) > 1 else ""
    return f"Settings: {settings}{several}. Each run is measured on its own test data."


def _curve(sweep: LoadedSweep) -> RateDistortion:
    few = [
        run.with_splits(replace(run.splits, test=choose_data(run.splits.test, _MOST_DATA, 0)))
        for run in sweep if run.splits is not None
    ]  # fmt: skip
    return rate_distortion(few)


def _words(curve: RateDistortion) -> str:
    """Return the finding on a curve; a curve of one or two points has none."""
    if len(curve.points) < 3:
        return ""
    if not curve.monotone:
        return " The rate does not fall with β throughout: train longer, or with more seeds."
    return f" The rate-distortion curve bends most at β = {curve.knee:g}."


def _best(sweep: LoadedSweep, evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the setting of the largest mean evidence over seeds."""
    values: dict[str, list[float]] = {}
    for member in sweep.members:
        evidence = evaluations[member.directory.name].get("evidence") or {}
        if isinstance(value := evidence.get("value"), float):
            values.setdefault(member.setting, []).append(value)
    if not values:
        return "no setting: none was measured"
    means = {setting: sum(own) / len(own) for setting, own in values.items()}
    best = max(means, key=lambda setting: means[setting])
    kind = "β = " if best.startswith("beta") else "a rate of "
    value = f"{kind}{best.removeprefix('beta').removeprefix('rate')}"
    return f"{value}, {means[best]:.2f} nats a datum".replace("-", "−")
