"""The numbers of an evaluation in order, each with its name and its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Row(NamedTuple, Generic[T]):
    """One number of an evaluation.

    Attributes:
        label: Its name.
        meaning: A sentence on it.
        estimate: The number with its errors; None where it cannot be had.
    """

    label: str
    meaning: str
    estimate: T | None


#: Key in ``evaluation.json`` -> label and meaning, in the order in which they are shown.
QUANTITIES: dict[str, tuple[str, str]] = {
    "evidence": (
        "Evidence, log p(x)",
        "The log density the model gives to a datum. Higher is better.",
    ),
    "elbo": (
        "ELBO",
        "A lower bound on the evidence, always with the rate at weight 1. It equals minus"
        " (distortion + rate).",
    ),
    "distortion": (
        "Distortion, D",
        "How badly a datum is rebuilt from its code: minus the mean reconstruction log-likelihood."
        " Lower is better.",
    ),
    "rate": (
        "Rate, R",
        "How much the code says about the datum: the mean KL from the guide to the prior.",
    ),
    "objective": (
        "Objective, D + βR",
        "Training makes it small: distortion plus β times the rate.",
    ),
    "variational_gap": (
        "Variational gap",
        "Evidence minus ELBO: how far the guide is from the exact posterior. The three gaps below"
        " add up to it.",
    ),
    "approximation_gap": (
        "Approximation gap",
        "The loss of a guide's family that is too small, even with the best member for each datum.",
    ),
    "beta_gap": (
        "β gap",
        "The loss of a guide that was fitted to the objective with β and not to the ELBO.",
    ),
    "amortization_gap": (
        "Amortization gap",
        "The loss of one encoder that serves all data. It may be negative when β is not 1.",
    ),
}


def rows_of(estimates: Mapping[str, T | None], families: Mapping[str, T]) -> list[Row[T]]:
    """Return a row for each quantity, and below the approximation gap one for each richer family.

    Args:
        estimates: The numbers by their keys in ``evaluation.json``.
        families: The approximation gaps that richer families would leave, by name.
    """
    rows: list[Row[T]] = []
    for key, (label, meaning) in QUANTITIES.items():
        rows.append(Row(label, meaning, estimates.get(key)))
        if key == "approximation_gap":
            left = "The approximation gap that a guide of this richer family would leave."
            rows += [Row(f"– with a {name} guide", left, gap) for name, gap in families.items()]
    return rows
