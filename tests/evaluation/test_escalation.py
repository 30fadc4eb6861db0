"""Evidence that escalates: each datum by the cheapest estimator that can be trusted."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae import InputError, evidence
from pyro_bvae.evaluation.marginal import AnnealingSettings, Escalation
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.oracle import LinearGaussian

QUICK = Escalation(
    refit=RefitSettings(max_rounds=8, num_starts=0),
    annealing=AnnealingSettings(num_temperatures=200, num_chains=16),
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


def test_the_budget_bounds_the_cost_and_names_the_rest() -> None:
    x, loc, scale = data(40, seed=3)
    args = x, loc + 30 * scale, scale
    whole = evidence(linear, given, *args, num_samples=500, method=QUICK)
    assert whole.untrusted < 4
    budget = whole.cost // 2
    half = Escalation(budget, QUICK.refit, QUICK.annealing)
    few = evidence(linear, given, *args, num_samples=500, method=half)
    assert few.cost <= budget
    assert 0 < few.untrusted < 40
    assert few.methods is not None and int((few.methods == 0).sum()) == few.untrusted


@pytest.mark.parametrize("method", ["annealing", "AUTO", None, 3])
def test_other_methods_are_refused(method: object) -> None:
    args = data(3, seed=4)
    with pytest.raises(InputError, match="'method' must be 'importance'"):
        evidence(linear, given, *args, method=method)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'budget' must be a positive integer or None, got 0"):
        Escalation(budget=0)
