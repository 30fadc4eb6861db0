"""The study of trust: its programs have the truth that they claim, and its reading finds what
fails."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
from trust_parts import bounds, guides, report

from pyro_bvae import elbo


@pytest.mark.parametrize("posterior", ["normal", "student-t"])
def test_a_setting_of_the_study_is_measured_against_its_truth(posterior: str) -> None:
    rows = guides.rows(guides.Cell("default", posterior, 2, 1000, 1.0, 0.0), 60)
    assert [row["average"] for row in rows] == list(guides.AVERAGES)
    assert all(row["trusted"] >= 55 and row["covered"] >= 50 for row in rows)


@pytest.mark.parametrize("model", ["linear", "exponential"])
def test_the_exact_bound_is_the_bound(model: str) -> None:
    cell = bounds.Cell(model, 0.3, 100, 1)
    program, guide, exact = bounds.program_of(cell)
    x = torch.full((20, 10), 0.0 if model == "linear" else bounds.COUNT, dtype=torch.double)
    estimate = elbo(program, guide, x, num_samples=4000)
    assert abs(estimate.value - exact) < 4 * estimate.monte_carlo_error < 0.1


def row(trusted: int, covered: int, **change: str) -> dict[str, str]:
    names = dict(
        zip(guides.Cell._fields, ("default", "normal", "2", "5000", "1.0", "0.0"), strict=True)
    )
    counts = {
        "average": "plain",
        "repetitions": "1000",
        "trusted": str(trusted),
        "covered": str(covered),
    }
    return {**names, **counts, **change}


def test_the_reading_finds_settings_that_cover_too_rarely() -> None:
    assert (
        not report.fails(row(1000, 940))
        and not report.fails(row(150, 90))
        and not report.fails(row(300, 265))
    )
    assert report.fails(row(1000, 890))
    low, high = report.interval(95, 100, 0.95)
    assert (
        low < 0.95 < high
        and report.interval(0, 0, 0.95) == (0.0, 1.0)
        and report.interval(5, 5, 0.95)[1] == 1.0
    )
    tables = {
        "guides": [row(1000, 950), row(1000, 890, ratio="0.5")],
        "annealing": [],
        "bounds": [],
        "gaps": [
            {"weight": "0.9", "found": "True", "flagged": "False"},
            {"weight": "1.0", "found": "True", "flagged": "True"},
        ],
        "inversions": [],
    }
    said = report.reading(tables)
    assert (
        "guides: 2000 of 2000 called trusted, of which the 95% interval holds the truth in 92.0%"
        in said
    )
    assert "1 of 1 pools of 200 or more trusted below 93%, 1 settings sure to be below" in said
    assert "100.0% trusted at least" in said
    assert (
        "gaps: 1 of 1 posteriors of two modes found or flagged; 1 of 1 of one mode flagged" in said
    )
    (line,) = report.summary(tables)
    assert (
        line["coverage_of_trusted"] == "0.920"
        and line["lowest_judged"] == "0.890"
        and line["failing_settings"] == 1
    )
    assert len(report.figure_of(tables).axes) == 2
    assert math.isclose(float(line["share_trusted"]), 1.0)
