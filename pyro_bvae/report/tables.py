"""The numbers of an evaluation, each with a sentence that explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from pyro_bvae.core.errors import listed
from pyro_bvae.evaluation.rows import rows_of

# How large a share of untrusted data the page warns of.
UNTRUSTED_SHARE = 0.05
# How many of the untrusted data are named.
SHOWN = 10
# How the sentence of a guide that needs nothing ends.
GOOD = "the guide is as good as it needs to be"


class Row(NamedTuple):
    """A line of the headline table; the errors are empty where there is none."""

    name: str
    value: str
    standard_error: str
    monte_carlo_error: str
    meaning: str


def headline(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return the lines of the headline table."""
    rows = [
        Row(label, *format_estimate(estimate), meaning)
        for label, meaning, estimate in rows_of(evaluation, evaluation.get("families") or {})
    ]
    if units := evaluation.get("active_units"):
        meaning = (
            "Latents that the data move: their posterior mean has variance over the data above "
            "0.01."
        )
        rows.append(
            Row("Active units", f"{units['count']} of {len(units['active'])}", "", "", meaning)
        )
    return [*rows, *_counts(evaluation)]


def _counts(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return how many data's evidence and refits can be trusted."""
    rows, num_data = [], evaluation.get("num_data")
    if (untrusted := (evaluation.get("pareto_k") or {}).get("untrusted")) is not None:
        meaning = (
            "Data whose importance weights are too uneven, by their Pareto k, for the evidence to"
            " be trusted"
        )
        if estimators := evaluation.get("estimators"):
            named = estimators.get("untrusted_rows") or []
            meaning += ", and whose annealing chains disagree or were beyond the budget"
            meaning += f": rows {listed(named, SHOWN)}" if named else ""
        rows.append(Row("Untrusted evidence", f"{untrusted} of {num_data}", "", "", f"{meaning}."))
    if data := (evaluation.get("estimators") or {}).get("data"):
        meaning = (
            "Which estimator answered for how many data: importance samples from the guide, from"
            " guide and refits together, or annealing."
        )
        counts = ", ".join(f"{name} {count}" for name, count in data.items() if count)
        rows.append(Row("Evidence by estimator", counts, "", "", meaning))
    refits = evaluation.get("refits") or {}
    if (certified := refits.get("certified")) is not None:
        meaning = (
            "Data whose best guides, which the parts of the gap are measured from, are certified "
            "to be the best."
        )
        rows.append(
            Row(
                "Certified refits",
                f"{certified} of {refits.get('num_data', num_data)}",
                "",
                "",
                meaning,
            )
        )
    return rows


def verdict(evaluation: Mapping[str, Any], problems: int = 0) -> tuple[str, str]:
    """Return the verdict as a headline, and its limits; both empty for an evaluation without one.

    A first look has none, and says by which command there is one.

    Args:
        evaluation: Content of ``evaluation.json``.
        problems: How many remarks of the training name something to fix: a good guide is then no
            reason for rest.
    """
    if command := evaluation.get("first_look"):
        count = evaluation.get("num_data")
        return f"None yet: this is a first look at {count} data", f"`{command}` gives one."
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


def trained(config: Mapping[str, str], run: Any) -> str:
    """Return the model and its training in a sentence.

    Args:
        config: The settings by their dotted names.
        run: The run, whose training data are counted; None to count none.
    """
    value = {name.rpartition(".")[2]: setting for name, setting in config.items()}
    nouns = {
        "prior": "{} prior", "likelihood": "{} likelihood", "posterior": "{} guide",
        "network": f"{{}} networks ({value.get('hidden', 'none')})", "latent_dim": "{} latents",
        "epochs": "{} epochs", "seed": "seed {}",
    }  # fmt: skip
    parts = [noun.format(value[name]) for name, noun in nouns.items() if name in value]
    data = None if run is None else getattr(run.splits, "train", None)
    if data is not None:
        parts.append(f"trained on {len(data):,} data of {data.num_features:,} features")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if parts else ""


def data_name(config: Mapping[str, str], dataset: str) -> str:
    """Return the name of the data: of your own data, that of the file or folder.

    Args:
        config: The settings by their dotted names.
        dataset: The name of the data set.
    """
    path = config.get("data.path", "none")
    return Path(path).name if dataset in ("file", "h5ad") and path != "none" else dataset


def key_numbers(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the names, values and errors of the numbers of the first screen."""
    names = {"evidence": "Evidence", "elbo": "ELBO", "variational_gap": "Gap between them"}
    if (few := few_gaps(evaluation)) is not None:
        names["variational_gap"] += f", of {few} of the data"
    known = {name: format_estimate(evaluation.get(key)) for key, name in names.items()}
    return [(name, value, error) for name, (value, error, _) in known.items()]


def few_gaps(evaluation: Mapping[str, Any]) -> int | None:
    """Return of how many data the gaps are, where these are fewer than those of the evidence."""
    data = evaluation.get("num_data")
    count = (evaluation.get("refits") or {}).get("num_data", data)
    return None if count == data else count


def notes(evaluation: Mapping[str, Any], conditional: bool) -> list[str]:
    """Return the notes on the trust that the numbers deserve."""
    results = []
    if conditional:
        given = evaluation.get("given") or "context"
        results.append(
            f"Every density here is conditional: it is that of the data given their {given}."
        )
    if (few := few_gaps(evaluation)) is not None:
        results.append(
            f"The gaps are those of {few} of the {evaluation['num_data']} data, as many as the"
            " time for the evaluation allowed, and they add up for these."
        )
    if evaluation.get("first_look"):
        results.append(
            "This run has not been evaluated: the numbers are a first look at few data. "
            f"{evaluation['first_look']} measures evidence and gaps."
        )
    elif evaluation.get("gaps_note"):
        results.append(f"About the gaps: {evaluation['gaps_note']}")
    if evaluation.get("kl_note"):
        results.append(f"No KL of each latent: {evaluation['kl_note']}")
    if faults := (evaluation.get("counts") or {}).get("faults"):
        results.append(f"Misfit of the counts: {'; '.join(faults)}.")
    if evaluation.get("verdict"):
        return results  # it states its own limits
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
