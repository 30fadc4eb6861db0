"""Evidence that escalates: each datum by the cheapest estimator that can be trusted."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae import InputError, evidence
from pyro_bvae.evaluation import Estimate, evaluate, join_estimates
from pyro_bvae.evaluation.marginal import AnnealingSettings, Escalation, RefitProposal
from pyro_bvae.evaluation.marginal.escalation import escalate, nearer_bound
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.program.program import open_program

QUICK = Escalation(
    budget=10_000_000,
    refit=RefitSettings(max_rounds=2, num_starts=0),
    annealing=AnnealingSettings(num_temperatures=60, num_chains=12, leapfrog_steps=3),
)


def linear(x: Tensor, loc: Tensor, scale: Tensor) -> None:
    """A model of two latents in closed form, ``x = (z, z_1 + z_2) + noise``."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ ORACLE.weight.T, ORACLE.noise_scale).to_event(1), obs=x)


def given(x: Tensor, loc: Tensor, scale: Tensor) -> None:
    """A guide with given locations and scales."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


ORACLE = LinearGaussian(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.2]]).double(), 0.3)


def data(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return data and the best diagonal guide of each."""
    x = ORACLE.sample(count, seed=seed)
    loc, scale = ORACLE.best_diagonal(x)
    return x, loc, scale.expand_as(loc)


def test_data_that_can_be_trusted_stay_as_they_are() -> None:
    args = data(20, seed=1)
    plain = evidence(linear, given, *args, num_samples=500)
    auto = evidence(linear, given, *args, num_samples=500, method="auto")
    assert plain.untrusted == 0
    assert torch.equal(plain.per_datum, auto.per_datum)
    assert auto.cost == plain.cost
    assert auto.methods is not None and not auto.methods.any()


def test_untrusted_data_are_measured_again() -> None:
    """A guide that lies far off for half of the data: those alone are refitted, and right."""
    x, loc, scale = data(10, seed=2)
    loc = loc.clone()
    loc[::2] += 30 * scale[::2]
    plain = evidence(linear, given, x, loc, scale, num_samples=500)
    assert plain.untrusted == 5 and not plain.trusted
    auto = evidence(linear, given, x, loc, scale, num_samples=500, method=QUICK)
    assert auto.untrusted == 0
    assert auto.methods is not None
    assert auto.methods[::2].min() >= 1 and auto.methods[1::2].max() == 0
    assert torch.equal(auto.per_datum[1::2], plain.per_datum[1::2])
    assert auto.errors is not None
    off = (auto.per_datum - ORACLE.evidence(x)).abs()
    assert bool((off < 4 * auto.errors + 0.02).all())
    assert "by estimator: guide 5" in str(auto)
    assert auto.cost > plain.cost
    again = evidence(linear, given, x, loc, scale, num_samples=500, method=QUICK)
    assert torch.equal(auto.per_datum, again.per_datum) and auto.cost == again.cost


def heavy(x: Tensor) -> None:
    """A posterior on a shell, which no normal covers."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3).to(x), 2.0).to_event(1))
        pyro.sample("x", dist.Normal(z.norm(dim=-1, keepdim=True), 0.3).to_event(1), obs=x)


def narrow(x: Tensor) -> None:
    """A guide beside one point of the shell."""
    with pyro.plate("data", len(x)):
        loc = torch.tensor([1.0, 0.0, 0.0]).to(x)
        pyro.sample("z", dist.Normal(loc.expand(len(x), 3), 0.1).to_event(1))


def test_annealing_comes_last() -> None:
    x = torch.linspace(2, 4, 3).double().unsqueeze(-1)
    radius = torch.linspace(1e-3, 8, 400_001).double()
    density = dist.Normal(0.0, 2.0).log_prob(radius)
    log_area = (2 * radius.log() + torch.log(torch.tensor(4 * torch.pi)).double()) + (
        density + 2 * dist.Normal(0.0, 2.0).log_prob(torch.zeros(()).double())
    )
    exact = torch.stack(
        [
            (log_area + dist.Normal(radius, 0.3).log_prob(each)).logsumexp(0)
            + (radius[1] - radius[0]).log()
            for each in x.flatten()
        ]
    )
    auto = evidence(heavy, narrow, x, num_samples=500, method=QUICK)
    assert auto.methods is not None and bool((auto.methods == 2).all())
    assert auto.errors is not None and auto.reliable is not None
    off = (auto.per_datum - exact).abs()
    assert bool((off < 4 * auto.errors + 0.05)[auto.reliable].all())
    assert bool(auto.reliable.all())


@pytest.mark.slow
def test_the_budget_bounds_the_cost_and_names_the_rest() -> None:
    x, loc, scale = data(8, seed=3)
    args = x, loc + 30 * scale, scale
    longer = replace(QUICK, refit=RefitSettings(max_rounds=8, num_starts=0))
    whole = evidence(linear, given, *args, num_samples=500, method=longer)
    assert whole.untrusted == 0 and whole.budget == QUICK.budget
    for budget in (whole.cost // 2, 8 * 500 + 1):
        tight = replace(longer, budget=budget)
        few = evidence(linear, given, *args, num_samples=500, method=tight)
        assert few.cost <= budget == few.budget
        assert few.untrusted > 0 and few.methods is not None
        rows = few.untrusted_rows
        assert rows == (few.methods == 0).nonzero().flatten().tolist()
    assert rows == [*range(8)] and few.cost == 8 * 500


@pytest.mark.parametrize("method", ["annealing", "AUTO", None, 3])
def test_other_methods_are_refused(method: object) -> None:
    args = data(3, seed=4)
    with pytest.raises(
        InputError, match="'method' must be 'auto' or 'importance' or an Escalation, got"
    ):
        evidence(linear, given, *args, method=method)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'budget' must be a positive integer or None, got 0"):
        Escalation(budget=0)


def test_the_default_budget_is_a_hundred_times_the_samples_and_is_kept() -> None:
    x, loc, scale = data(3, seed=5)
    auto = evidence(linear, given, x, loc + 30 * scale, scale, num_samples=20, method="auto")
    assert auto.budget == 100 * 20 * 3
    assert auto.cost == 20 * 3 and auto.untrusted_rows == [0, 1, 2]
    assert auto.by_method == {"guide": 3, "refit": 0, "annealing": 0}
    assert auto.take([0, 2]).budget == 4000
    assert join_estimates([auto, auto]).budget == 12_000
    assert join_estimates([auto, auto]).by_method["guide"] == 6


def test_a_lower_bound_that_lies_below_another_is_not_taken() -> None:
    """Of two estimates the higher one stands where they part, and neither is trusted then."""

    def made(values: list[float], errors: list[float], sure: list[bool]) -> Estimate:
        parts = [
            torch.tensor(part, dtype=torch.double)
            for part in (values, errors, [0.0] * 4, [9.0] * 4)
        ]
        return Estimate.over_data(
            *parts[:3], effective_sample_size=parts[3], pareto_k=parts[3], num_samples=9, cost=1,
            reliable=torch.tensor(sure),
        )  # fmt: skip

    one = made([0.0, 0.0, 0.0, 5.0], [0.1] * 4, [True, False, True, True])
    other = made([0.1, -0.2, 5.0, 0.0], [0.05, 0.1, 0.1, 0.1], [True, True, True, False])
    nearer, second = nearer_bound(one, other)
    assert nearer.per_datum.tolist() == [0.1, -0.2, 5.0, 5.0]
    assert second.tolist() == [True, True, True, False]
    assert torch.as_tensor(nearer.reliable).tolist() == [True, True, False, True]
    assert nearer.cost == 2


def test_chains_from_a_refit_are_near_the_exact_evidence() -> None:
    """Data that only annealing answers, from refits that are put together row by row."""
    x, loc, scale = data(6, seed=6)
    first = evidence(linear, given, x, loc, scale, num_samples=100)
    assert first.reliable is not None
    doubted = replace(first, reliable=torch.tensor([True, False] * 3))
    proposal = RefitProposal(QUICK.refit)
    refits = []
    with open_program(linear, given, (x, loc, scale)) as program:
        for rows in (torch.arange(3), torch.arange(3, 6)):
            some = x[rows], loc[rows], scale[rows]
            refits.append((rows, proposal.fit(program, some, 0).guide))
    auto = escalate(
        linear, given, (x, loc, scale), doubted, None, QUICK, refits=refits, seed=0,
        data_plate=None, progress=False,
    )  # fmt: skip
    assert auto.methods is not None and auto.methods.tolist() == [1, 2] * 3
    assert auto.untrusted == 0 and auto.errors is not None
    off = (auto.per_datum - ORACLE.evidence(x)).abs()
    assert bool((off < 4 * auto.errors + 0.02).all())


@pytest.fixture(scope="module")
def evaluated() -> Any:
    """An evaluation whose budget is spent at its refits, and one that goes on."""
    x = torch.linspace(2, 4, 3).double().unsqueeze(-1)
    ways = (replace(QUICK, budget=1), QUICK)
    return [evaluate(heavy, narrow, x, method=way, num_samples=300, seed=2) for way in ways]


def test_an_evaluation_anneals_where_its_refits_are_not_trusted(evaluated: Any) -> None:
    spent, auto = evaluated
    assert spent.evidence.by_method == {"guide": 0, "refit": 3, "annealing": 0}
    assert spent.evidence.budget == spent.evidence.cost and spent.evidence.untrusted > 0
    assert auto.evidence.by_method["annealing"] > 0 == auto.evidence.by_method["guide"]
    assert auto.evidence.untrusted < spent.evidence.untrusted
    for each in evaluated:
        written = json.loads(json.dumps(each.to_dict(), allow_nan=False))
        assert written["estimators"] == {
            "data": each.evidence.by_method,
            "untrusted_rows": each.evidence.untrusted_rows,
            "budget": each.evidence.budget,
            "cost": each.evidence.cost,
        }


def test_the_gaps_are_of_the_evidence_that_stands_beside_them(evaluated: Any) -> None:
    spent, auto = evaluated
    gaps, old = auto.gaps, spent.gaps
    assert gaps.evidence is auto.evidence
    whole = auto.evidence.per_datum - auto.bound.elbo.per_datum
    torch.testing.assert_close(gaps.variational.per_datum, whole)
    parts = (gaps.approximation, gaps.beta, gaps.amortization)
    torch.testing.assert_close(sum(part.per_datum for part in parts), whole)
    kept = auto.evidence.methods == 1
    assert torch.equal(gaps.variational.per_datum[kept], old.variational.per_datum[kept])
    assert torch.equal(gaps.variational.errors[kept], old.variational.errors[kept])
    assert torch.equal(gaps.amortization.per_datum, old.amortization.per_datum)
    assert gaps.cost - old.cost == auto.evidence.cost - spent.evidence.cost > 0


def test_an_interrupted_escalation_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(2, 4, 3).double().unsqueeze(-1)
    before, store = torch.get_rng_state(), pyro.get_param_store().get_state()

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_bvae.evaluation.marginal.escalation.anneal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evidence(heavy, narrow, x, num_samples=100, method=QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert pyro.get_param_store().get_state() == store
    monkeypatch.undo()
    assert evidence(linear, given, *data(2, seed=1), num_samples=500, method=QUICK).untrusted == 0


def masked(x: Tensor, loc: Tensor, scale: Tensor) -> None:
    """The linear model with the last feature missing."""
    seen = torch.tensor([True, True, False])
    with pyro.plate("outer", 1, dim=-2), pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
        noise = dist.Normal(z @ ORACLE.weight.T, ORACLE.noise_scale).mask(seen)
        pyro.sample("x", noise.to_event(1), obs=x)


def masked_guide(x: Tensor, loc: Tensor, scale: Tensor) -> None:
    with pyro.plate("outer", 1, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def test_missing_features_and_a_named_data_plate_escalate_too() -> None:
    x, loc, scale = data(2, seed=7)
    seen = LinearGaussian(ORACLE.weight[:2], ORACLE.noise_scale)
    auto = evidence(
        masked, masked_guide, x, loc + 20 * scale, scale, num_samples=300, method=QUICK,
        data_plate="data",
    )  # fmt: skip
    assert auto.untrusted == 0 and auto.by_method["guide"] == 0 and auto.errors is not None
    assert bool(((auto.per_datum - seen.evidence(x[:, :2])).abs() < 4 * auto.errors + 0.02).all())


def test_a_single_datum_in_either_precision() -> None:
    for dtype in (torch.float32, torch.float64):
        x, loc, scale = (part.to(dtype) for part in data(1, seed=8))
        oracle_model = functools.partial(linear_in, dtype)
        auto = evidence(
            oracle_model, given, x, loc + 20 * scale, scale, num_samples=300, method=QUICK
        )
        assert auto.untrusted == 0 and auto.by_method["guide"] == 0 and auto.errors is not None
        off = (auto.per_datum - ORACLE.evidence(x.double())).abs()
        assert bool((off < 4 * auto.errors + 0.05).all())


def linear_in(dtype: torch.dtype, x: Tensor, loc: Tensor, scale: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
        mean = z @ ORACLE.weight.T.to(dtype)
        pyro.sample("x", dist.Normal(mean, ORACLE.noise_scale).to_event(1), obs=x)


def impossible(x: Tensor, loc: Tensor, scale: Tensor) -> None:
    """A model that gives the first datum no density anywhere."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ ORACLE.weight.T, ORACLE.noise_scale).to_event(1), obs=x)
        pyro.factor("none", torch.where(x[..., 0] > 50, -torch.inf, 0.0))


@pytest.mark.slow
def test_a_datum_without_density_stays_so_and_is_named() -> None:
    x, loc, scale = data(3, seed=9)
    x = x.clone()
    x[1, 0] = 60.0
    auto = evidence(impossible, given, x, loc, scale, num_samples=300, method=QUICK)
    assert auto.per_datum[1] == -torch.inf and auto.untrusted_rows == [1]
    assert bool(torch.isfinite(auto.per_datum[[0, 2]]).all())


def test_a_guide_that_is_a_point_is_refused() -> None:
    def point(x: Tensor, loc: Tensor, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(loc).to_event(1))

    with pytest.raises(InputError, match="Delta"):
        evidence(linear, point, *data(3, seed=4), num_samples=10, method="auto")
