"""The page of several runs: their numbers against β, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.report.live.charts import Cell, Chart
from pyro_bvae.report.rendering import Page, Table
from pyro_bvae.report.sections import Section
from pyro_bvae.report.tables import format_estimate

Evaluations = Mapping[str, Mapping[str, Any]]
_COLUMNS = {
    "evidence": "Evidence", "elbo": "ELBO", "rate": "Rate", "distortion": "Distortion",
    "variational_gap": "Variational gap",
}  # fmt: skip
_MEANINGS = (
    ("Evidence", "log p(x), nats a datum, ± its standard error over data."),
    ("ELBO", "its lower bound at β = 1."),
    ("Rate", "nats that the code of a datum carries."),
    ("Distortion", "nats that the reconstruction loses."),
    ("Variational gap", "evidence minus ELBO."),
    ("Active", "latents that the data move."),
)
# Settings that are no property of a model.
_PLACES = ("device", "compile")


class Member(NamedTuple):
    """An evaluated run.

    Attributes:
        directory: Where it lies.
        evaluation: The content of its ``evaluation.json``.
        config: Its configuration, nested.
        record: The record of its data, if it has one.
        evidence: The evidence of each datum that was measured, if its file is there.
    """

    directory: Path
    evaluation: Mapping[str, Any]
    config: Mapping[str, Any]
    record: DataRecord | None
    evidence: np.ndarray | None


def runs_page(
    members: Mapping[str, Member],
    links: Sequence[tuple[str, str]],
    pictures: Sequence[Section] = (),
) -> str:
    """Return the page of several runs as HTML.

    It has their rates and distortions as points, their numbers against β, the paired differences of
    their evidences where they were measured on the same data, and the settings that differ.

    Args:
        members: The runs by their names.
        links: Texts and addresses of their pages.
        pictures: Sections of pictures, such as their traversals.
    """
    evaluations = {name: own.evaluation for name, own in members.items()}
    differences, notes = _differences(members), []
    if differences is None:
        notes.append(
            "The runs were measured on different data, or with different seeds: their evidences"
            " have no paired differences."
        )
    names = sorted({str(each["dataset"]) for each in evaluations.values()})
    compared = " ".join(str(own.directory) for own in members.values())
    page = Page(
        f"{len(members)} β-VAEs on {', '.join(names)}",
        "Each run as its own evaluation measured it.",
        _verdict(evaluations),
        f"Whether a difference can be seen is told by `pyro-bvae compare {compared}`.",
        notes,
        [
            *figures(evaluations),
            runs_table(evaluations),
            *(differences or ()),
            *pictures,
            *_settings({name: own.config for name, own in members.items()}),
        ],
        links,
    )
    return page.render()


def _verdict(evaluations: Evaluations) -> str:
    values = {
        name: each["evidence"]["value"]
        for name, each in evaluations.items()
        if each.get("evidence")
    }
    if not values:
        return "No evidence was measured."
    best = max(values, key=lambda name: values[name])
    value = f"{values[best]:.2f}".replace("-", "−")
    return f"The evidence is largest for {best}, {value} nats a datum."


def figures(evaluations: Evaluations) -> list[Section]:
    """Return the charts of several runs: rate against distortion, and numbers against β."""
    rows = [
        (name, each["distortion"]["value"], each["rate"]["value"], each.get("beta"))
        for name, each in evaluations.items() if each.get("distortion") and each.get("rate")
    ]  # fmt: skip
    columns = ("run", "distortion in nats", "rate in nats", "β")
    results = []
    if rows:
        caption = "Each point is a run, on its own test data."
        reading = "lower and further left is better; a point higher up has more in its codes."
        chart = Chart("points", columns, rows, options={"joined": len(rows) > 2})
        results.append(Section("Runs by rate and distortion", None, caption, reading, [chart]))
    if charts := _against_beta(evaluations):
        caption = "Means over the runs of one β, in nats a datum."
        reading = "the β of the largest evidence explains the data best."
        results.append(Section("Numbers against β", None, caption, reading, charts))
    return results


def _against_beta(evaluations: Evaluations) -> list[Chart]:
    betas = sorted({float(each["beta"]) for each in evaluations.values() if "beta" in each})
    if len(betas) < 2:
        return []
    charts = []
    for key, title in {**_COLUMNS, "active_units": "Active latents"}.items():
        rows: list[Sequence[Cell]] = []
        for beta in betas:
            own = [_value(each, key) for each in evaluations.values() if each.get("beta") == beta]
            known = [value for value in own if value is not None]
            if known:
                rows.append((beta, sum(known) / len(known)))
        if rows:
            options = {"log": betas[0] > 0, "marks": True}
            charts.append(Chart("lines", ("β", title.lower()), rows, title, options))
    return charts


def _value(evaluation: Mapping[str, Any], key: str) -> float | None:
    estimate = evaluation.get(key) or {}
    value = estimate.get("count" if key == "active_units" else "value")
    return None if value is None else float(value)


def runs_table(evaluations: Evaluations) -> Table:
    """Return the numbers of several runs."""
    rows = []
    for name, evaluation in evaluations.items():
        cells = []
        for key in _COLUMNS:
            value, error, _ = format_estimate(evaluation.get(key))
            cells.append(f"{value} ± {error}" if error and key == "evidence" else value)
        units = evaluation.get("active_units") or {}
        active = f"{units['count']} of {len(units['active'])}" if units else "unknown"
        rows.append((name, *cells, active))
    return Table("The runs", ["Run", *_COLUMNS.values(), "Active"], rows, _MEANINGS)


def _settings(configs: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return a table of the settings that differ, if there are any."""
    own = {name: dict(flat(config)) for name, config in configs.items()}
    keys = list(dict.fromkeys(key for config in own.values() for key in config))
    differ = [
        key for key in keys
        if len({config.get(key) for config in own.values()}) > 1
        and key.rpartition(".")[2] not in _PLACES
    ]  # fmt: skip
    if not differ:
        return []
    columns = ["Run", *(key.rpartition(".")[2].replace("_", " ") for key in differ)]
    rows = [(name, *(config.get(key, "none") for key in differ)) for name, config in own.items()]
    return [Table("Settings that differ", columns, rows)]


def _differences(members: Mapping[str, Member]) -> list[Table] | None:
    """Return the paired differences from the best run; None where the data are not the same."""
    known = {name: own.evidence for name, own in members.items() if own.evidence is not None}
    if len(known) < len(members) or len({_measured_on(own) for own in members.values()}) > 1:
        return None
    best = max(known, key=lambda name: float(known[name].mean()))
    rows = []
    for name, own in known.items():
        if name == best:
            continue
        gaps = own - known[best]
        error = f" ± {gaps.std(ddof=1) / np.sqrt(len(gaps)):.2f}" if len(gaps) > 1 else ""
        cell = f"{gaps.mean():.2f}".replace("-", "−") + error
        rows.append((name, cell, f"{100 * float((gaps > 0).mean()):.0f}%"))
    meaning = (
        ("Behind the best", "paired difference in nats a datum, ± its standard error over data."),
        ("Wins", f"share of the data that it explains better than {best}."),
    )
    return [Table(f"Evidence against {best}", ["Run", "Behind the best", "Wins"], rows, meaning)]


def _measured_on(member: Member) -> tuple[Any, ...]:
    """Return all that tells whether two runs were measured on the same data."""
    own = member.evaluation
    held = None if member.record is None else member.record.parts["test"].fingerprints.tobytes()
    choice = own.get("seed") if member.evidence is None else (own.get("seed"), len(member.evidence))
    return own.get("dataset"), own.get("split"), choice, held


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of every setting."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)
