"""The page of a comparison: its verdict first, every number, nothing fetched, nothing believed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from pyro_bvae import plots
from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.comparison import Comparison
from pyro_bvae.report import rendering, write_comparison
from pyro_bvae.report.comparison_page import comparison_page, split_verdict


def comparison(*names: str, shift: float = 0.5, seeds: int = 1) -> Comparison:
    """Return a comparison of models that lie apart by planted differences."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, generator=generator, dtype=torch.double) - 20

    def estimate(place: int) -> Estimate:
        noise = 0.1 * torch.randn(40, generator=generator, dtype=torch.double)
        errors = torch.full((40,), 0.01)
        return Estimate.over_data(base - shift * place + noise, errors, num_samples=100)

    models = {name: [estimate(place) for _ in range(seeds)] for place, name in enumerate(names)}
    return Comparison.of(models, given="size factor")


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "DPI", 20)


def test_the_verdict_stands_before_the_numbers_and_the_figures() -> None:
    page = comparison_page(comparison("a", "b", "c"))
    order = [page.index(part) for part in ("Verdict", "a explains these data better than b and c",
                                           "<h2>The models", "<table", "<img", "<h2>All pairs")]  # fmt: skip
    assert order == sorted(order)
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "The models", "Behind the best", "Datum by datum", "All pairs"
    ]  # fmt: skip
    assert "given their size factor" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_the_numbers_of_the_page_are_those_of_the_table() -> None:
    result = comparison("a", "b", seeds=2)
    page = comparison_page(result)
    for row in result.rows():
        assert f"{row['evidence']:.2f}".replace("-", "−") in page
        assert f"{100 * row['share_won']:.0f}%" in page
    assert "a (2 seeds)" in page and "All pairs" not in page
    assert "spread between training seeds" in page


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    path = write_comparison(
        comparison("<script>alert(1)</script>", "$x_{1}$ & co"), tmp_path / "c.html"
    )
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "&amp; co" in page


def test_gaps_and_their_absence_are_told() -> None:
    result = comparison("a", "b")
    page = comparison_page(Comparison(result.models, gaps={"a": "a reason", "b": "a reason"}))
    assert "No gaps of a: a reason." in page and "What each guide loses" not in page


def test_a_verdict_is_a_headline_and_its_limits() -> None:
    text = "a explains these data better than b, by 1.50 nats a datum (between 1.20 and 1.80)."
    assert split_verdict(f"{text} And more. And more.") == (text, "And more. And more.")
    assert split_verdict("One.") == ("One.", "")


def test_figures_stand_a_density_of_zero() -> None:
    result = comparison("a", "b")
    values = result.per_datum[1].clone()
    values[0] = -math.inf
    broken = Comparison.of({"a": result.models["a"][0], "b": Estimate.over_data(values)})
    axes = plots.paired_differences(broken).axes[0]
    assert len(axes.collections[0].get_offsets()) == 39
    plots.paired_differences(comparison("a", "b", "c")).canvas.draw()
    assert plots.comparison(result, titled=False).axes[0].get_title(loc="left") == ""
