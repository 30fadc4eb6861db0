"""The numbers of an evaluation, each with a sentence that explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

# How large a share of untrusted data the page warns of.
UNTRUSTED_SHARE = 0.05
# How the sentence of a guide that needs nothing ends.
GOOD = "the guide is as good as it needs to be"


class Row(NamedTuple):
    """A line of the headline table; the errors are empty where there is none."""

    name: str
    value: str
    standard_error: str
    monte_carlo_error: str
    meaning: str


ESTIMATES = {
    "evidence": (
        "Evidence, log p(x)",
        "The log density the model gives to a datum. Higher is better.",
    ),
    "elbo": (
        "ELBO",
        "A lower bound on the evidence, always with the rate at weight 1. It equals minus "
        "(distortion + rate).",
    ),
    "distortion": (
        "Distortion, D",
        "How badly a datum is rebuilt from its code: minus the mean reconstruction "
        "log-likelihood. Lower is better.",
    ),
    "rate": (
        "Rate, R",
        "How much the code says about the datum: the mean KL from the guide to the prior.",
    ),
    "objective": (
        "Objective, D + βR",
        "What training makes small: distortion plus β times the rate.",
    ),
    "variational_gap": (
        "Variational gap",
        "Evidence minus ELBO: how far the guide is from the exact posterior. The three gaps "
        "below add up to it.",
    ),
    "approximation_gap": (
        "Approximation gap",
        "What is lost because the guide's family is too small, even with the best member for "
        "each datum.",
    ),
    "beta_gap": (
        "β gap",
        "What is lost because the guide was fitted to the objective with β and not to the ELBO.",
    ),
    "amortization_gap": (
        "Amortization gap",
        "What is lost because one encoder serves all data. It may be negative when β is not 1.",
    ),
}


def headline(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return the lines of the headline table."""
    rows = []
    for key, (name, meaning) in ESTIMATES.items():
        rows.append(Row(name, *format_estimate(evaluation.get(key)), meaning))
        if key == "approximation_gap":
            rows += _families(evaluation.get("families") or {})
    if units := evaluation.get("active_units"):
        meaning = (
            "Latents that the data move: their posterior mean has variance over the data above "
            "0.01."
        )
        rows.append(
            Row("Active units", f"{units['count']} of {len(units['active'])}", "", "", meaning)
        )
    return [*rows, *_counts(evaluation)]


def _families(families: Mapping[str, Any]) -> list[Row]:
    meaning = "What a guide of this richer family would leave of the approximation gap."
    return [
        Row(f"– with a {name} guide", *format_estimate(left), meaning)
        for name, left in families.items()
    ]


def _counts(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return how many data's evidence and refits can be trusted."""
    rows, num_data, weights = [], evaluation.get("num_data"), evaluation.get("pareto_k") or {}
    meaning = (
        "Data whose importance weights are too uneven, by their Pareto k, for the evidence to be "
        "trusted."
    )
    if weights.get("untrusted") is not None:
        rows.append(
            Row("Untrusted evidence", f"{weights['untrusted']} of {num_data}", "", "", meaning)
        )
    elif (share := weights.get("share_above_0.7")) is not None:
        rows.append(Row("Untrusted evidence", f"{100 * share:.1f}%", "", "", meaning))
    if (certified := (evaluation.get("refits") or {}).get("certified")) is not None:
        meaning = (
            "Data whose best guides, which the parts of the gap are measured from, are certified "
            "to be the best."
        )
        rows.append(Row("Certified refits", f"{certified} of {num_data}", "", "", meaning))
    return rows


def verdict(evaluation: Mapping[str, Any], problems: int = 0) -> tuple[str, str]:
    """Return the verdict as a headline, and its limits; both empty for an evaluation without one.

    Args:
        evaluation: Content of ``evaluation.json``.
        problems: How many remarks of the training name something to fix: a good guide is then no
            reason for rest.
    """
    first, _, others = (evaluation.get("verdict") or "").partition(". ")
    first = first.removesuffix(".")
    if problems and first.endswith(GOOD):
        first += (
            f", but the training is not: {problems} {'remark' if problems == 1 else 'remarks'} "
            "below"
        )
    return first[:1].upper() + first[1:], others


def summary(evaluation: Mapping[str, Any]) -> str:
    """Return the result in one sentence."""
    evidence, gap, units = (
        evaluation.get(key) for key in ("evidence", "variational_gap", "active_units")
    )
    if evidence is None or gap is None:
        return "This run was evaluated without an estimate of the evidence."
    value, error, _ = format_estimate(evidence)
    used = (
        ""
        if units is None
        else f", and {units['count']} of {len(units['active'])} latents are active"
    )
    uncertain = f" (standard error {error})" if error else ""
    return (
        f"Under the model, a datum has a log density of {value} nats{uncertain}; "
        f"the ELBO lies {format_estimate(gap)[0]} nats below it{used}."
    )


def notes(evaluation: Mapping[str, Any], conditional: bool) -> list[str]:
    """Return the notes on the trust that the numbers deserve."""
    results = []
    if conditional:
        given = evaluation.get("given") or "context"
        results.append(
            f"Every density here is conditional: it is that of the data given their {given}."
        )
    if evaluation.get("gaps_note"):
        results.append(f"About the gaps: {evaluation['gaps_note']}")
    if evaluation.get("kl_note"):
        results.append(f"No KL of each latent: {evaluation['kl_note']}")
    if evaluation.get("verdict"):
        return results  # it states its own limits
    if (evaluation.get("refits") or {}).get("converged") is False:
        results.append(
            "The local refits did not converge: the three parts of the gap are rough, their sum "
            "is not."
        )
    if ((evaluation.get("pareto_k") or {}).get("share_above_0.7") or 0.0) > UNTRUSTED_SHARE:
        results.append(
            "Many data have Pareto k above 0.7: the evidence, and with it the gap, may be too low."
        )
    return results


def format_estimate(estimate: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Return value, standard error and Monte Carlo error, in digits of the standard error."""
    if estimate is None or not _is_number(estimate.get("value")):
        return "not available", "", ""
    value, error, noise = (
        estimate.get(key) for key in ("value", "standard_error", "monte_carlo_error")
    )
    decimals = (
        min(4, max(2, -math.floor(math.log10(error)))) if _is_number(error) and error > 0 else 2
    )
    mark = " (untrusted)" if estimate.get("trusted") is False else ""
    return (
        f"{value:.{decimals}f}".replace("-", "−") + mark,
        f"{error:.{decimals}f}" if _is_number(error) else "",
        f"{noise:.2g}" if _is_number(noise) else "",
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
