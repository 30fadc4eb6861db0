"""Evaluations in a given time: held to closed forms, and their counts give the same numbers again."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Evaluation, evaluate_within
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.evaluation.plan import Budget, Plan, seconds_of
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.within_budget import _Timed
from pyro_bvae.oracle import LinearGaussian

QUICK = Escalation(
    refit=RefitSettings(max_rounds=2, steps_per_round=10, check_particles=16, num_starts=1)
)
LINEAR = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]]), 0.5)
X = LINEAR.sample(30, seed=1)
VAE = LINEAR.amortized_vae(mean_factor=0.95, scale_factor=1.2)
PLAN = Plan(num_data=20, num_samples=500, gap_blocks=(4, 6), gap_samples=500)


def measured(within: Any, **options: Any) -> Evaluation:
    options = {"method": QUICK, "seed": 3, **options}
    return evaluate_within(VAE.model, VAE.guide, X, within=within, **options)


@pytest.fixture(scope="module")
def planned() -> Evaluation:
    return measured(PLAN)


def test_every_datum_has_the_evidence_of_its_own_row(planned: Evaluation) -> None:
    evidence, drawn = planned.evidence, planned.drawn
    assert drawn is not None and len(drawn) == 20 and drawn.tolist() == sorted(set(drawn.tolist()))
    exact = LINEAR.evidence(X[drawn])
    assert float(exact.std()) > 1  # rows that were mixed up would show
    assert evidence.errors is not None
    assert bool(((evidence.per_datum - exact).abs() < 5 * evidence.errors + 0.01).all())
    assert evidence.by_method == {"guide": 10, "refit": 10, "annealing": 0}


def test_gaps_are_those_of_the_first_data_that_were_drawn(planned: Evaluation) -> None:
    assert planned.gaps is not None and planned.plan == PLAN
    assert len(planned.gaps.certified) == 10
    assert planned.gaps.modes is not None and len(planned.gaps.modes) == 10
    with torch.no_grad():
        guide = VAE.encoder(X)
    exact = LINEAR.gaps(X, guide.mean, guide.stddev)[0]
    gap = planned.variational_gap
    assert len(gap.per_datum) == 10
    # Each is the gap of one of the data.
    apart = (gap.per_datum[:, None] - exact[None]).abs().min(1).values
    assert float(apart.max()) < 0.1
    written = planned.to_dict()
    assert written["num_data"] == 20 and written["refits"]["num_data"] == 10
    assert written["plan"] == PLAN.to_dict()


def test_a_plan_gives_the_same_numbers_again(planned: Evaluation) -> None:
    again = measured(PLAN)
    assert again.to_dict() == planned.to_dict()
    assert again.evidence.per_datum.equal(planned.evidence.per_datum)
    assert measured(PLAN, seed=4).to_dict() != planned.to_dict()


def test_a_budget_is_turned_into_a_plan_of_the_same_numbers(tmp_path: Path) -> None:
    begun = time.monotonic()
    evaluation = measured(2.0)
    taken = time.monotonic() - begun
    plan = evaluation.plan
    assert plan is not None and plan.num_gaps >= 4
    again = measured(plan)
    assert again.to_dict() == evaluation.to_dict()
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation.to_dict()))
    assert Plan.read(tmp_path / "evaluation.json") == plan
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    assert Plan.read(tmp_path / "plan.json") == plan
    assert taken < 60  # a busy machine may be slow, a budget that is not looked at never ends


def test_given_counts_hold_whatever_the_time() -> None:
    evaluation = measured(Budget(0.01, num_data=7, num_samples=30, gaps=False))
    assert evaluation.plan == Plan(7, 30, (), 0, evaluation.plan.annealing)  # type: ignore[union-attr]
    assert evaluation.gaps is None and evaluation.gaps_note == "not measured here"
    assert evaluation.evidence.num_samples == 30 and len(evaluation.evidence.per_datum) == 7
    assert measured(evaluation.plan).to_dict() == evaluation.to_dict()


def test_blocks_grow_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = _Timed(Budget(100.0), 0.0)
    pace.rate, sizes = 60_000.0, []
    while size := pace.block(10_000 - sum(sizes), untrusted=False):
        sizes.append(size)
        clock[0] += 1.0 + 0.25 * size  # a cost that does not grow with the data, and one that does
    assert sizes[0] == 9 and sizes[1] > 4 * sizes[0]
    assert 60 < clock[0] < 100
    assert sum(sizes) > 200


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("90", 90), ("1.5m", 90), ("2h", 7200)])
def test_times(text: str, seconds: float) -> None:
    assert math.isclose(seconds_of(text), seconds)


@pytest.mark.parametrize("text", ["", "0s", "-3s", "soon", "1d", "nan", "inf", "1" * 400])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="'budget' must be a time such as 60s"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(0), "'seconds' must be positive"),
        (lambda: Budget(1.0, num_data=0), "'num_data' must be a positive integer or None"),
        (lambda: Plan(0, 1), "'num_data' must be an integer, positive"),
        (lambda: Plan(4, 5, (3, 2), 5), "'gap_blocks' must be of at most the 4 data"),
        (lambda: Plan(4, 5, (3,)), "'gap_samples' must be positive"),
        (lambda: measured(Plan(31, 5)), "plans 31 data, and there are 30"),
        (lambda: measured(-1.0), "'seconds' must be positive"),
    ],
)
def test_counts_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[1]", "holds no plan"), ('{"num_data": 3}', "holds no plan")],
)
def test_files_without_a_plan(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Plan.read(tmp_path / "plan.json")
    with pytest.raises(InputError, match="there is no file"):
        Plan.read(tmp_path / "other.json")
