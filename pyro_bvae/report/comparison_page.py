"""The page of a comparison: its verdict, the numbers of each model, and where they differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_bvae import plots
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.comparison import Comparison
from pyro_bvae.evaluation.comparison.result import GAPS
from pyro_bvae.evaluation.estimate import METHODS
from pyro_bvae.report.rendering import Page, Table
from pyro_bvae.report.sections import Section

_MEANINGS = (
    ("Evidence", "log p(x), nats a datum, ± its standard error over data."),
    ("Behind the best", "paired difference, ± its standard error over the same data, in which what"
     " is hard for both models cancels."),
    ("Interval", "where the difference lies on other data like these."),
    ("Wins", "share of the data with the largest evidence."),
    ("Weight", "share in the mixture of the models that predicts these data best (stacking; Yao et"
     " al. 2018)."),
    ("Untrusted", "data whose evidence no estimator could vouch for; their allowance is in the"
     " interval."),
)  # fmt: skip
_GAP_MEANINGS = (
    ("Variational", "evidence minus ELBO, the sum of the other three."),
    ("Approximation", "the guide's family is too small."),
    ("β", "the guide was fitted to another objective."),
    ("Amortization", "one encoder for all data."),
)


@public
def write_comparison(result: Comparison, output: str | os.PathLike[str]) -> Path:
    """Write one HTML page, with its figures inside it, about a comparison of models.

    Args:
        result: The comparison.
        output: Path of the page, which appears whole or not at all.

    Returns:
        The path.
    """
    path, page = Path(output), comparison_page(result)
    with atomic_write(path) as stream:
        stream.write(page)
    return path


def comparison_page(result: Comparison) -> str:
    """Return the page as HTML."""
    verdict, limits = split_verdict(result.verdict)
    given = f", given their {result.given}" if result.given else ""
    notes = [
        f"No gaps of {name}: {gaps}." for name, gaps in result.gaps.items() if isinstance(gaps, str)
    ]
    whole = 100 * result.level
    differences = Section(
        "Datum by datum",
        plots.paired_differences(result),
        "Each dot is a datum: how much more evidence the best model gives it. Diamond: mean;"
        " stroke: median. A mean far from the bulk of the dots is the work of few data.",
    )
    behind = Section(
        "Behind the best",
        plots.comparison(result, titled=False),
        f"Paired differences with their {whole:g}% intervals, which hold for all pairs together."
        " Of a grey model no difference can be seen, or it cannot be measured.",
    )
    page = Page(
        f"{len(result.names)} models compared",
        f"Evidence of {result.num_data} held-out data{given}, in nats a datum."
        f" {_estimators(result)}",
        verdict,
        limits,
        notes,
        [_models(result), behind, differences, *_pairs(result), *_gaps(result)],
    )
    return page.render()


def split_verdict(verdict: str) -> tuple[str, str]:
    """Return the first sentence of a verdict, and the others; a full stop in a number is none."""
    first, stop, others = verdict.partition(". ")
    return first + ("." if stop else ""), others


def _models(result: Comparison) -> Table:
    rows = [
        (
            f"{row['model']}" + (f" ({row['seeds']} seeds)" if row["seeds"] > 1 else ""),
            f"{_number(row['evidence'])} ± {row['standard_error']:.2f}",
            "best" if not row["rank"] else
            f"{_number(row['difference'])} ± {row['difference_standard_error']:.2f}",
            "" if not row["rank"] else f"{_number(row['low'])} to {_number(row['high'])}",
            f"{100 * row['share_won']:.0f}%",
            f"{row['weight']:.2f}",
            f"{row['untrusted']}",
        )
        for row in result.rows()
    ]  # fmt: skip
    used = ("Effective number of models in the mixture", f"{result.effective_models:.1f}.")
    columns = ["Model", *(name for name, _ in _MEANINGS)]
    return Table("The models", columns, rows, (*_MEANINGS, used), first_is_best=True)


def _pairs(result: Comparison) -> Sequence[Table]:
    """Return the differences of all pairs, where there are more than those from the best."""
    if len(result.names) < 3:
        return []
    rows = [
        (
            f"{pair.better} − {pair.worse}",
            f"{_number(pair.value)} ± {pair.standard_error:.2f}",
            f"{_number(pair.low)} to {_number(pair.high)}",
            "yes" if pair.seen else "no" if pair.measured else "unmeasured",
        )
        for pair in result.pairs
    ]
    columns = ("Pair", "Difference", "Interval", "Seen")
    return [Table("All pairs", columns, rows)]


def _gaps(result: Comparison) -> Sequence[Table]:
    """Return the inference gaps of the models, where they were measured."""
    rows = [
        (row["model"], *(_number(row[f"{part}_gap"]) for part in GAPS))
        for row in result.rows() if isinstance(result.gaps.get(row["model"]), tuple)
    ]  # fmt: skip
    if not rows:
        return []
    columns = ("Model", *(name for name, _ in _GAP_MEANINGS))
    return [Table("What each guide loses, in nats", columns, rows, _GAP_MEANINGS)]


def _estimators(result: Comparison) -> str:
    """Return which estimators measured how many evidences, and with how many samples."""
    each = [own for models in result.models.values() for own in models]
    counts = {
        name: sum(int((own.methods == number).sum()) for own in each if own.methods is not None)
        for number, name in enumerate(METHODS)
    }
    samples = f"{each[0].num_samples} samples for each datum"
    if not sum(counts.values()):
        return f"By importance sampling, {samples}."
    total = sum(len(own.per_datum) for own in each)
    shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"The estimator that answered, of {total} evidences: {shown}; {samples}."


def _number(value: Any) -> str:
    return f"{value:.2f}".replace("-", "−")
