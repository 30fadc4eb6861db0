"""Charts of a page: a table each, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Cell = str | float | None

# Features of a chart at most, and the shares of data that are named in one of ranges.
_MOST_FEATURES, _SHARES = 10, ("10%", "50%", "90%")


@dataclass(frozen=True)
class Chart:
    """A table that the page draws, and gives as CSV.

    Attributes:
        kind: ``lines`` (the first column across, a line for each other), ``bars`` (names, values,
            errors), ``profile`` (names, means, differences, data, and then, if known, spreads, and
            centres and units of each feature), ``ranges`` (names, and 10%, 50% and 90% of two
            groups), ``waterfall`` (names, from, to) or ``points`` (names, across, up).
        columns: The names of its columns.
        rows: Its rows.
        title: A heading, where a figure has several charts.
        options: ``log`` for an axis of β, ``unit``, and the like.
    """

    kind: Literal["lines", "bars", "profile", "ranges", "waterfall", "points"]
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; numbers that are not finite are missing."""
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        return {
            "kind": self.kind, "columns": list(self.columns), "rows": rows, "title": self.title,
            **self.options,
        }  # fmt: skip


def _cell(cell: Any) -> Cell:
    if isinstance(cell, str) or cell is None:
        return cell
    number = float(cell)
    return float(f"{number:.7g}") if math.isfinite(number) else None


def gap_chart(evaluation: Mapping[str, Any]) -> Chart | None:
    """Return the way from the ELBO to the evidence, by the parts of the gap; None without them."""
    value = {
        name: (evaluation.get(name) or {}).get("value")
        for name in ("elbo", "evidence", "variational_gap")
    }
    if any(each is None for each in value.values()):
        return None
    rows: list[Sequence[Cell]] = []
    place = value["elbo"]
    named = {
        "approximation_gap": "Approximation",
        "beta_gap": "β",
        "amortization_gap": "Amortization",
    }
    for key, name in reversed(named.items()):
        if (part := evaluation.get(key)) is None:
            continue
        rows.append((name, place, place + part["value"], part.get("standard_error")))
        if key == "approximation_gap":
            for family, gain in (evaluation.get("families") or {}).items():
                rows.append(
                    (
                        f"– with a {family} guide",
                        place,
                        place + gain["value"],
                        gain.get("standard_error"),
                    )
                )
        place += part["value"]
    if not rows:
        rows = [
            (
                "Variational gap",
                place,
                value["evidence"],
                evaluation["variational_gap"].get("standard_error"),
            )
        ]
    columns = ("part", "from", "to", "standard error")
    return Chart(
        "waterfall",
        columns,
        rows,
        options={
            "unit": "nats",
            "ends": ["ELBO", "evidence"],
            "start": value["elbo"],
            "end": value["evidence"],
        },
    )


def kl_chart(evaluation: Mapping[str, Any], names: Sequence[str] = ()) -> Chart | None:
    """Return the KL of each latent, the largest first; None where it is unknown."""
    kl, units = evaluation.get("kl_per_dimension"), evaluation.get("active_units")
    if kl is None or units is None:
        return None
    values, errors = kl["values"], kl.get("standard_errors") or [None] * len(kl["values"])
    used = [latent for latent in range(len(values)) if units["active"][latent]]
    rows: list[Sequence[Cell]] = [
        (names[latent] if names else f"z{latent}", values[latent], errors[latent])
        for latent in sorted(used, key=lambda latent: -values[latent])
    ]
    if others := [values[latent] for latent in range(len(values)) if latent not in used]:
        rows.append((f"{len(others)} inactive, together", sum(others), None))
    return Chart("bars", ("latent", "KL in nats", "standard error"), rows, options={"unit": "nats"})


def training_charts(history: Any) -> list[Chart]:
    """Return objective, distortion, rate and β against the epochs."""
    names = {
        "Objective": ("objective", "validation_objective"), "Distortion": ("distortion",),
        "Rate": ("rate",), "β": ("beta",),
    }  # fmt: skip
    epochs = list(history.get("epoch", ()))
    charts = []
    for title, keys in names.items():
        known = {key: list(history[key]) for key in keys if len(history.get(key, ()))}
        if not known:
            continue
        words = [key.replace("_", " ") for key in known]
        rows = list(zip(epochs, *known.values(), strict=True))
        charts.append(Chart("lines", ("epoch", *words), rows, title))
    return charts


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature ``(D,)``, without missing entries."""
    known = ~torch.isnan(x)
    count = known.sum(0).clamp(min=1)
    values = torch.where(known, x, torch.zeros_like(x)).double()
    mean = values.sum(0) / count
    variance = (torch.where(known, values - mean, torch.zeros_like(values)) ** 2).sum(0) / count
    return mean, torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()


def profile_chart(
    names: Sequence[str], mean: Tensor, datum: Tensor, scale: tuple[Tensor, Tensor] | None = None
) -> Chart:
    """Return the features of a datum beside its reconstruction, the largest ones.

    Args:
        names: The D names of the features.
        mean: The reconstruction, ``(D,)``.
        datum: The datum, ``(D,)``.
        scale: Mean and standard deviation of each feature, in which features of several units are
            drawn; None to draw them as they are.
    """
    sizes = mean.abs() if scale is None else ((mean - scale[0]) / scale[1]).abs()
    rows: list[Sequence[Cell]] = []
    for i in sizes.argsort(descending=True, stable=True)[:_MOST_FEATURES].tolist():
        made, seen = float(mean[i]), float(datum[i])
        units = () if scale is None else (None, float(scale[0][i]), float(scale[1][i]))
        rows.append((names[i], made, made - seen, seen, *units))
    columns = ["feature", "decoded mean", "mean − datum", "datum"]
    if scale is not None:
        columns += ["± over draws", "mean of the data", "standard deviation of the data"]
    return Chart("profile", columns, rows)


def ranges_chart(names: Sequence[str], data: Tensor, drawn: Tensor) -> Chart:
    """Return the range of each feature in the data and in draws of the model.

    Features whose ranges differ most come first, in standard deviations of the data.

    Args:
        names: The D names of the features.
        data: The data, ``(N, D)``.
        drawn: Draws of the model, ``(M, D)``.
    """
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    own, others = (
        torch.cat(
            [torch.nanquantile(part, shares, dim=0) for part in each.double().split(1000, 1)], 1
        )
        for each in (data, drawn)  # in parts, since torch takes 16 million numbers at most
    )
    centre, unit = moments(data)
    off = ((others - own) / unit).abs().nan_to_num().amax(0)
    rows = [
        (names[i], *own[:, i].tolist(), *others[:, i].tolist(), float(centre[i]), float(unit[i]))
        for i in off.argsort(descending=True, stable=True)[:_MOST_FEATURES].tolist()
    ]
    groups = [f"{share} of the {name}" for name in ("data", "draws") for share in _SHARES]
    columns = ("feature", *groups, "mean of the data", "standard deviation of the data")
    return Chart("ranges", columns, rows)
