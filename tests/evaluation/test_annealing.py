"""Annealing held to exact evidence, its moves to the densities that they must leave alone."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_bvae import BetaVAE, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.evaluation import annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal import (
    AnnealingSettings,
    Sandwich,
    annealing,
    annealing_run,
    chains,
)
from pyro_bvae.evaluation.marginal.hmc import Path, evaluate_path, hmc_step
from pyro_bvae.evaluation.marginal.temperatures import find_plan
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.program.differentiability import check_differentiable
from pyro_bvae.program.program import open_program

Pair = tuple[Callable[..., None], Callable[..., None]]
one = torch.ones((), dtype=torch.double)

QUICK = AnnealingSettings(
    num_temperatures=40, num_chains=64, leapfrog_steps=2, pilot_temperatures=10
)
# So few temperatures that nothing is near the posterior: the mean weight is p(x) all the same.
HASTY = AnnealingSettings(
    num_temperatures=3, num_chains=2, leapfrog_steps=1, pilot_chains=4, pilot_temperatures=4
)


@pytest.fixture
def linear() -> LinearGaussian:
    weight = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]])
    return LinearGaussian(weight, 0.5, torch.tensor([0.1, -0.2, 0.3, 0.0]))


# -- the moves
# --------------------------------------------------------------------------------------------------

PRECISION = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.6]], dtype=torch.double)
PULL = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)


def correlated(u: Tensor) -> tuple[Tensor, Tensor]:
    return -0.5 * u.square().sum(-1), -0.5 * (u @ PRECISION * u).sum(-1) + u @ PULL


def draw_correlated(count: int, temperature: Tensor) -> Tensor:
    precision = torch.eye(3, dtype=torch.double) + temperature[:, None, None] * PRECISION
    mean = torch.linalg.solve(precision, temperature[:, None] * PULL)
    return dist.MultivariateNormal(mean, precision_matrix=precision).sample((count,))


def quartic(u: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(u[..., 0]), -u.pow(4).sum(-1) / 4


def draw_quartic(count: int, temperature: Tensor) -> Tensor:
    size = dist.Gamma(0.25 * one, 1.0).sample((count, 2, 1))
    return (4 * size / temperature[:, None]).pow(0.25) * (2 * torch.rand_like(size).round() - 1)


def half_line(u: Tensor) -> tuple[Tensor, Tensor]:
    """An exponential density: none at all, not even a number, below zero."""
    return torch.where(u > 0, -u, math.nan).sum(-1), -u.sum(-1)


def draw_half_line(count: int, temperature: Tensor) -> Tensor:
    return dist.Exponential(1 + temperature[:, None]).sample((count,))


# Of each: the path, exact draws at a temperature, and a step size at which a good part of the moves
# is rejected.
TARGETS = {
    "a correlated normal": (correlated, draw_correlated, 1.0),
    "a quartic": (quartic, draw_quartic, 0.9),
    "a half-line": (half_line, draw_half_line, 0.25),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_move_leaves_its_density_alone_and_is_its_own_reverse(name: str) -> None:
    path, draw, size = TARGETS[name]
    temperature = torch.tensor([0.4, 1.0], dtype=torch.double)  # of two data, each its own
    before = draw(40_000, temperature)
    state = evaluate_path(path, before)
    step = torch.full(before.shape[1:], size, dtype=torch.double)
    step[1] *= 0.8
    state, acceptance = hmc_step(path, state, temperature, step, 3)
    assert acceptance.shape == (40_000, 2) and bool(((acceptance >= 0) & (acceptance <= 1)).all())
    assert 0.2 < float(acceptance.mean()) < 0.93
    after = state.vectors
    moved = (after != before).any(-1).double().mean()
    assert float(moved) == pytest.approx(
        float(acceptance.mean()), abs=4.5 * 0.5 / math.sqrt(80_000)
    )
    for mine, theirs in zip(state[1:], path(after), strict=True):
        assert torch.allclose(mine, theirs)

    def features(u: Tensor) -> Tensor:
        return torch.cat([u, u.square(), u[..., :1] * u[..., -1:].abs()], -1)

    old, new = features(before), features(after)
    for difference in (
        new - old,  # invariance
        (old.unsqueeze(-1) * new.unsqueeze(-2) - new.unsqueeze(-1) * old.unsqueeze(-2)).flatten(
            -2
        ),  # reversibility
    ):
        error = difference.std(0) / math.sqrt(len(difference))
        assert bool((difference.mean(0).abs() <= 5 * error).all())


def test_the_plan_takes_steps_of_equal_length() -> None:
    """From a normal to one a thousand times narrower equal lengths are equal steps in the log of
    the precision."""

    def narrowing(u: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * u.square().sum(-1), -0.5 * 1000 * u.square().sum(-1)

    start = torch.randn(32, 2, 3, dtype=torch.double)
    settings = AnnealingSettings(num_temperatures=30, pilot_chains=32)
    plan = find_plan(narrowing, start, settings)
    assert plan.temperatures.shape == (31, 2) and plan.steps.shape == (30, 2, 3)
    assert (plan.temperatures[0] == 0).all() and (plan.temperatures[-1] == 1).all()
    assert bool((plan.temperatures.diff(dim=0) >= 0).all()) and bool((plan.steps > 0).all())
    lengths = (1 + 1000 * plan.temperatures).log().diff(dim=0)
    # Evenly spaced temperatures would go half of the way in the first step.
    assert float(lengths.max()) < 0.25 * math.log(1001)
    # The scales follow: about the standard deviations of the densities, times one step size.
    ratio = plan.steps[-5:].mean() / plan.steps[:5].mean()
    assert 1 / 100 < float(ratio) < 1 / 8
    accepted = []
    for temperature, step in zip(plan.temperatures[1:], plan.steps, strict=True):
        state = evaluate_path(narrowing, start / (1 + 1000 * temperature).sqrt().unsqueeze(-1))
        accepted.append(float(hmc_step(narrowing, state, temperature, step, 5)[1].mean()))
    assert 0.5 < sum(accepted) / len(accepted) < 0.95


def test_a_pilot_run_that_must_end_arrives() -> None:
    settings = AnnealingSettings(num_temperatures=4, pilot_temperatures=3, pilot_length=1e-3)
    plan = find_plan(correlated, torch.randn(8, 5, 3, dtype=torch.double), settings)
    assert (plan.temperatures[-1] == 1).all() and bool(torch.isfinite(plan.steps).all())
    assert 0 < plan.cost <= 8 * 5 * 3 * 2 * 6


# -- the evidence
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_annealing_finds_the_evidence(linear: LinearGaussian, start: Any) -> None:
    x, vae = linear.sample(8), linear.amortized_vae(mean_factor=0.7, scale_factor=1.4)
    settings = AnnealingSettings(
        num_temperatures=200, num_chains=64, leapfrog_steps=1, pilot_temperatures=20
    )
    estimate = annealed_evidence(vae.model, vae.guide, x, start=start, settings=settings)
    assert estimate.trusted and estimate.num_samples == 64
    assert (
        abs(estimate.value - float(linear.evidence(x).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.1
    )
    assert estimate.per_datum.shape == estimate.effective_sample_size.shape == (8,)


def test_the_error_is_the_spread_over_seeds(linear: LinearGaussian) -> None:
    x, vae = linear.sample(40), linear.amortized_vae()
    settings = AnnealingSettings(
        num_temperatures=12, num_chains=32, leapfrog_steps=2, pilot_temperatures=6
    )
    runs = [
        annealed_evidence(vae.model, vae.guide, x, settings=settings, seed=seed)
        for seed in range(3)
    ]
    # 40 data of 3 seeds: each datum's three values spread by its error, which is claimed at its 90%
    # upper limit.
    spread = torch.stack([run.per_datum for run in runs]).var(0).mean().sqrt()
    claimed = torch.stack([run.errors.square().mean().sqrt() for run in runs]).mean()  # type: ignore[union-attr]
    assert float(claimed / spread) == pytest.approx(chains.upper_limit(32, 0.1) ** 0.5, abs=0.35)


def counts(visits: Tensor, flips: Tensor) -> None:
    with pyro.plate("people", len(visits)):
        rate = pyro.sample("rate", dist.Gamma(2 * one, 0.5))
        coin = pyro.sample("coin", dist.Beta(2 * one, 1.5))
        pyro.sample("visits", dist.Poisson(rate), obs=visits)
        pyro.sample("flips", dist.Bernoulli(coin.unsqueeze(-1)).to_event(1), obs=flips)


def guide_of_counts(visits: Tensor, flips: Tensor) -> None:
    heads = flips.sum(-1)
    with pyro.plate("people", len(visits)):
        pyro.sample("coin", dist.Beta(1.5 + heads, 1 + flips.shape[-1] - heads))
        pyro.sample("rate", dist.LogNormal(((visits + 1.5) / 2).log(), 0.6 * (visits + 1).rsqrt()))


def exact_counts(visits: Tensor, flips: Tensor) -> Tensor:
    """A negative binomial, and a beta-binomial for one order of heads and tails."""
    heads, tails = flips.sum(-1), (1 - flips).sum(-1)

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    flipped = log_beta(2 + heads, 1.5 + tails) - log_beta(2 * one, 1.5 * one)
    return dist.GammaPoisson(2 * one, 0.5).log_prob(visits) + flipped


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_positive_and_bounded_latents_are_annealed_together(start: Any) -> None:
    visits = torch.tensor([0.0, 1.0, 3.0, 9.0, 20.0], dtype=torch.double)
    flips = (torch.arange(6) < torch.tensor([0, 2, 3, 5, 6])[:, None]).double()
    settings = replace(QUICK, num_chains=256)
    estimate = annealed_evidence(
        counts, guide_of_counts, visits, flips, start=start, settings=settings
    )
    exact = exact_counts(visits, flips)
    assert estimate.trusted
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error < 0.1
    errors = (1 / estimate.effective_sample_size - 1 / 257).sqrt()
    assert ((estimate.per_datum - exact).abs() < 5 * errors).all()


def hasty_pair(
    linear: LinearGaussian,
) -> tuple[Pair, Callable[[Sandwich], Tensor], tuple[Tensor, ...]]:
    vae = linear.amortized_vae(mean_factor=0.8, scale_factor=1.3)
    return (
        (vae.model, vae.guide),
        lambda results: linear.evidence(results.simulated["x"]),
        (linear.sample(2000),),
    )


def counted_pair(
    linear: LinearGaussian,
) -> tuple[Pair, Callable[[Sandwich], Tensor], tuple[Tensor, ...]]:
    args = (torch.zeros(2000, dtype=torch.double), torch.zeros(2000, 2, dtype=torch.double))
    return (
        (counts, guide_of_counts),
        lambda results: exact_counts(*results.simulated.values()),
        args,
    )


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("make", [hasty_pair, counted_pair], ids=["linear", "counts"])
def test_weights_of_three_temperatures_have_the_right_means(
    make: Callable[..., Any], start: Any
) -> None:
    """Forward p(x), in reverse 1 / p(x), however poor the annealing.

    The laws that all of it rests on.
    """
    # Little noise of the data would leave three temperatures with weights that have no variance.
    linear = LinearGaussian(torch.tensor([[0.7, 0.3], [0.2, 0.6], [0.3, 0.2]]), 0.8)
    pair, exact_of, args = make(linear)
    results = bidirectional_evidence(*pair, *args, start=start, settings=HASTY)
    exact = exact_of(results)
    for ratio in ((results.lower.per_datum - exact).exp(), (exact - results.upper.per_datum).exp()):
        error = float(ratio.std()) / math.sqrt(len(ratio))
        assert error < 0.08
        assert abs(float(ratio.mean()) - 1) < 4 * error
    assert results.lower.value < float(exact.mean()) < results.upper.value


def noise_of(estimate: Estimate) -> float:
    """The error of the mean, without the allowance for data that are not trusted."""
    assert estimate.errors is not None
    return float(estimate.errors.square().sum().sqrt()) / len(estimate.errors)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_sandwich_holds_the_truth(linear: LinearGaussian, start: Any) -> None:
    x, vae = linear.sample(24), linear.amortized_vae(mean_factor=0.8, scale_factor=1.2)
    settings = replace(QUICK, num_temperatures=80)
    results = bidirectional_evidence(vae.model, vae.guide, x, start=start, settings=settings)
    exact = float(linear.evidence(results.simulated["x"]).mean())
    assert results.lower.value - 3 * results.lower.monte_carlo_error < exact
    assert exact < results.upper.value + 3 * results.upper.monte_carlo_error
    assert abs(exact - results.lower.value) < 4 * noise_of(results.lower) < 0.1
    assert (
        abs(exact - results.upper.value)
        < 4 * math.hypot(noise_of(results.upper), results.gap.standard_error)
        < 0.2
    )
    assert results.gap.value == pytest.approx(results.upper.value - results.lower.value)
    assert abs(results.gap.value) < 4 * results.gap.monte_carlo_error
    assert (
        results.gap.standard_error
        <= results.gap.monte_carlo_error
        <= results.upper.monte_carlo_error
    )
    noise = torch.hypot(results.lower.errors, results.upper.errors)
    assert results.gap.monte_carlo_error >= float(noise.square().sum().sqrt()) / 24
    assert results.gap.cost == results.lower.cost + results.upper.cost


def test_annealing_needs_no_good_guide(linear: LinearGaussian) -> None:
    """One whose weights cannot be trusted is where importance sampling fails, and a start like any
    other."""
    x, vae = linear.sample(8), linear.amortized_vae(mean_factor=0.2, scale_factor=0.4)
    estimate = annealed_evidence(vae.model, vae.guide, x, settings=QUICK)

    def far(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(torch.full((len(x), 2), 50.0, dtype=torch.double), 0.1).to_event(1)
            )

    other = annealed_evidence(vae.model, far, x, settings=QUICK)
    assert torch.equal(estimate.per_datum, other.per_datum)


# -- the plan is frozen
# -------------------------------------------------------------------------------------------


def test_both_directions_follow_one_plan(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reverse makes the moves of the forward run in reverse order, of the same step sizes.

    None follows a chain.
    """
    plans, moves = [], []

    def planned(*args: Any) -> Any:
        plans.append(find_plan(*args))
        return plans[-1]

    def recorded(path: Path, state: Any, temperature: Tensor, step: Tensor, num_steps: int) -> Any:
        moves.append((temperature.clone(), step.clone()))
        return hmc_step(path, state, temperature, step, num_steps)

    monkeypatch.setattr(annealing_run, "find_plan", planned)
    monkeypatch.setattr(annealing_run, "hmc_step", recorded)
    x, vae = linear.sample(5), linear.amortized_vae()
    settings = AnnealingSettings(
        num_temperatures=7, num_chains=4, leapfrog_steps=1, pilot_temperatures=5
    )
    bidirectional_evidence(vae.model, vae.guide, x, settings=settings)
    assert len(plans) == 1
    plan = list(zip(plans[0].temperatures[1:], plans[0].steps, strict=True))
    forward, backward = moves[: 7 - 1], moves[7 - 1 :][-7:]
    for (temperature, step), (planned_temperature, planned_step) in zip(
        forward, plan, strict=False
    ):
        assert torch.equal(temperature, planned_temperature) and torch.equal(step, planned_step)
    for (temperature, step), (planned_temperature, planned_step) in zip(
        backward, reversed(plan), strict=True
    ):
        assert torch.equal(temperature, planned_temperature) and torch.equal(step, planned_step)
    # What comes between moves apart the chains that share an exact draw, at the posterior itself.
    assert (
        all(bool((temperature == 1).all()) for temperature, _ in moves[7 - 1 : -7])
        and len(moves) > 20
    )


def test_the_plan_is_made_without_the_chains(linear: LinearGaussian) -> None:
    """Another number of chains has the same plan, so the first ones have no say in it."""
    x, vae, plans = linear.sample(5), linear.amortized_vae(), []
    for num_chains in (3, 9):
        settings = AnnealingSettings(
            num_temperatures=4, num_chains=num_chains, pilot_temperatures=5
        )
        with open_program(vae.model, vae.guide, (x,)) as program:
            plans.append(
                annealing_run.AnnealingRun(
                    program, (x,), "prior", settings, 5, ProgressBar(disable=True)
                ).plan
            )
    assert torch.equal(plans[0].steps, plans[1].steps) and torch.equal(
        plans[0].temperatures, plans[1].temperatures
    )


# -- simulated data
# -----------------------------------------------------------------------------------------------


def test_simulated_data_come_from_the_model(linear: LinearGaussian) -> None:
    x, vae = torch.full((600, 4), 9.0, dtype=torch.double), linear.amortized_vae()
    settings = replace(HASTY, num_temperatures=1, num_chains=16)
    results = bidirectional_evidence(vae.model, vae.guide, x, settings=settings)  # two blocks
    simulated = results.simulated["x"]
    assert simulated.shape == (600, 4) and len(simulated.unique()) == 2400
    assert results.lower.per_datum.shape == results.upper.per_datum.shape == (600,)
    covariance = linear.weight @ linear.weight.T + 0.25 * torch.eye(4)
    assert torch.allclose(simulated.T.cov(), covariance, atol=4.5 * 2.2 * math.sqrt(2 / 600))
    assert torch.allclose(simulated.mean(0), linear.bias, atol=4.5 * 1.3 / math.sqrt(600))


def test_what_is_not_modelled_stays_as_it_is() -> None:
    """Exposures are arguments, not data: the simulated counts are those of the given ones."""
    exposures = torch.tensor([0.2, 1.0, 4.0, 20.0], dtype=torch.double).repeat(6)
    seen: list[Tensor] = []

    def model(x: Tensor, exposure: Tensor) -> None:
        seen.append(exposure)
        with pyro.plate("days", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2 * one, 0.5))
            pyro.sample("visits", dist.Poisson(exposure * rate), obs=x)

    def guide(x: Tensor, exposure: Tensor) -> None:
        with pyro.plate("days", len(x)):
            pyro.sample("rate", dist.LogNormal(((x + 2) / (exposure + 0.5)).log(), (x + 2).rsqrt()))

    results = bidirectional_evidence(
        model, guide, torch.ones(24, dtype=torch.double), exposures, settings=QUICK
    )
    assert all(torch.equal(exposure, exposures) for exposure in seen if len(exposure) == 24)
    visits = results.simulated["visits"]
    assert float(visits[exposures == 20].mean()) > 20 * float(visits[exposures == 0.2].mean())
    exact = float(dist.GammaPoisson(2 * one, 0.5 / exposures).log_prob(visits).mean())
    for estimate in (results.lower, results.upper):
        assert (
            abs(estimate.value - exact)
            < 4 * math.hypot(noise_of(estimate), results.gap.standard_error)
            < 0.4
        )


def test_data_that_are_no_arguments_are_replaced_by_conditioning(linear: LinearGaussian) -> None:
    x, vae = linear.sample(24), linear.amortized_vae()

    def model(noise: Tensor) -> None:
        with pyro.plate("rows", len(noise)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(vae.decoder.network(z), noise.unsqueeze(-1)).to_event(1), obs=x
            )

    def guide(noise: Tensor) -> None:
        with pyro.plate("rows", len(noise)):
            pyro.sample("z", vae.encoder(x))

    noise = torch.full((24,), 0.5, dtype=torch.double)
    seen = annealed_evidence(model, guide, noise, start="guide", settings=QUICK)
    assert abs(seen.value - float(linear.evidence(x).mean())) < 4 * seen.monte_carlo_error
    results = bidirectional_evidence(model, guide, noise, settings=QUICK)
    exact = float(linear.evidence(results.simulated["x"]).mean())
    assert not torch.equal(results.simulated["x"], x)
    for estimate in (results.lower, results.upper):
        assert (
            abs(estimate.value - exact)
            < 4 * math.hypot(noise_of(estimate), results.gap.standard_error)
            < 0.25
        )
    with pytest.raises(
        InputError, match=r"observed site 'x' is none of the arguments.*start from the prior"
    ):
        bidirectional_evidence(model, guide, noise, start="guide", settings=QUICK)


def test_a_factor_simulates_no_data() -> None:
    """It tilts the density of the latents, whose draws would then be none of the posterior."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0 * one, 1.0))
            pyro.factor("bonus", -0.5 * z.square())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 3, 0.6))

    x = torch.linspace(-1, 1, 6, dtype=torch.double)
    with pytest.raises(
        InputError,
        match="site 'bonus' of the model is a factor, from which no data can be simulated",
    ):
        bidirectional_evidence(model, guide, x, settings=HASTY)
    estimate = annealed_evidence(model, guide, x, settings=QUICK)
    # exp(-z²/2) of a standard normal is a normal of half its variance, times the root of that.
    exact = dist.Normal(0, math.sqrt(1.5)).log_prob(x).mean() - 0.5 * math.log(2)
    assert abs(estimate.value - float(exact)) < 4 * estimate.monte_carlo_error < 0.06


# -- any program
# --------------------------------------------------------------------------------------------------


def test_chains_one_at_a_time() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.reshape(len(x), 2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.9).to_event(1))

    x = torch.randn(300, 2, dtype=torch.double)
    settings = AnnealingSettings(
        num_temperatures=3, num_chains=2, leapfrog_steps=2, pilot_chains=2, pilot_temperatures=2
    )
    for start in ("prior", "guide"):
        with pytest.warns(UserWarning, match="run one particle at a time"):
            results = bidirectional_evidence(model, guide, x, start=start, settings=settings)
        exact = dist.Normal(0, math.sqrt(2)).log_prob(results.simulated["x"]).sum(-1)
        for ratio in (
            (results.lower.per_datum - exact).exp(),
            (exact - results.upper.per_datum).exp(),
        ):
            error = float(ratio.std()) / math.sqrt(300)
            assert abs(float(ratio.mean()) - 1) < 4 * error < 0.4


def test_plates_within_and_beside_the_data_are_annealed() -> None:
    """Two groups of three measurements of each datum, with a latent each.

    Plates on both sides of the data.
    """

    def rows(x: Tensor) -> tuple[Any, Any, Any]:
        return (
            pyro.plate("groups", 2, dim=-3),
            pyro.plate("data", len(x), dim=-2),
            pyro.plate("times", 3, dim=-1),
        )

    def model(x: Tensor) -> None:
        groups, data, times = rows(x)
        with data:
            level = pyro.sample("level", dist.Normal(0 * one, 1.0))
            with groups, times:
                drift = pyro.sample("drift", dist.Normal(level, 1.0))
                pyro.sample("x", dist.Normal(drift, 0.5), obs=x.movedim(1, 0))

    def guide(x: Tensor) -> None:
        groups, data, times = rows(x)
        with data:
            pyro.sample("level", dist.Normal(x.mean((1, 2)).unsqueeze(-1), 0.5))
            with groups, times:
                pyro.sample("drift", dist.Normal(x.movedim(1, 0), 0.5))

    x = torch.randn(6, 2, 3, dtype=torch.double)
    settings = replace(QUICK, leapfrog_steps=3)
    estimate = annealed_evidence(model, guide, x, start="guide", settings=settings)
    covariance = torch.ones(6, 6, dtype=torch.double) + 1.25 * torch.eye(6)
    exact = dist.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x.flatten(1))
    assert estimate.trusted
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error < 0.2


def test_a_guide_with_auxiliary_sites_is_no_start(linear: LinearGaussian) -> None:
    x, vae = linear.sample(4), linear.amortized_vae()
    guide = AutoNormal(vae.model)
    guide(x)
    message = (
        r"chains can start at a guide only where.*\['z', 'z_unconstrained'\].*start from the prior"
    )
    for function in (annealed_evidence, bidirectional_evidence):
        with pytest.raises(InputError, match=message):
            function(vae.model, guide, x, start="guide", settings=HASTY)
    assert annealed_evidence(vae.model, guide, x, settings=QUICK).trusted


# -- manners
# --------------------------------------------------------------------------------------------------


def test_annealing_leaves_everything_alone_and_repeats_itself(linear: LinearGaussian) -> None:
    x, vae = linear.sample(4), linear.amortized_vae()
    vae.decoder.train()
    pyro.param("mine", torch.ones(2))
    state, names = torch.get_rng_state(), list(pyro.get_param_store().keys())
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    runs = [
        bidirectional_evidence(vae.model, vae.guide, x, settings=HASTY, seed=seed)
        for seed in (1, 1, 2)
    ]
    for part in ("lower", "upper"):
        first, same, other = (getattr(run, part).per_datum for run in runs)
        assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(runs[0].simulated["x"], runs[1].simulated["x"])
    assert (
        torch.equal(state, torch.get_rng_state()) and list(pyro.get_param_store().keys()) == names
    )
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in vae.parameters())
    assert vae.decoder.training


def test_every_datum_has_chains_of_its_own(linear: LinearGaussian) -> None:
    """Equal data in two blocks.

    Their estimates are independent, as their errors are taken to be.
    """
    x, vae = linear.sample(1).expand(600, -1), linear.amortized_vae()
    estimate = annealed_evidence(vae.model, vae.guide, x, settings=replace(HASTY, num_chains=16))
    assert len(estimate.per_datum.unique()) == 600


@pytest.mark.parametrize(
    ("function", "directions"), [(annealed_evidence, 1), (bidirectional_evidence, 2)]
)
def test_a_progress_bar_ends_at_its_total(
    linear: LinearGaussian,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    directions: int,
) -> None:
    bars = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        bars.append(ProgressBar(*args, file=io.StringIO(), **kwargs))
        return bars[-1]

    monkeypatch.setattr(annealing, "ProgressBar", recorded)
    vae, x = linear.amortized_vae(), linear.sample(9)
    function(vae.model, vae.guide, x, settings=HASTY, progress=True)
    assert bars[0].n == bars[0].total == 9 * 3 * directions


def test_the_cost_is_counted_in_evaluations(linear: LinearGaussian) -> None:
    vae, x = linear.amortized_vae(), linear.sample(10)
    rows = []
    vae.decoder.register_forward_hook(
        lambda _module, inputs, _output: rows.append(inputs[0][..., 0].numel())
    )
    spent = []
    for num_temperatures, pilot_temperatures in ((10, 3), (10, 6), (30, 6)):
        rows.clear()
        settings = AnnealingSettings(
            num_temperatures,
            8,
            4,
            pilot_chains=6,
            pilot_length=1e-3,
            pilot_temperatures=pilot_temperatures,
        )
        estimate = annealed_evidence(vae.model, vae.guide, x, settings=settings)
        spent.append((estimate.cost, sum(rows)))
    # What is not counted is the same each time: looking the program over, and where chains start
    # and end.
    assert len({counted - decoded for counted, decoded in spent}) == 1
    assert spent[2][0] == pytest.approx(spent[2][1], rel=0.15)
    both = bidirectional_evidence(vae.model, vae.guide, x, settings=settings)
    assert both.upper.cost == 10 * 8 * (30 + 20) * (4 + 1)


def test_chains_that_disagree_or_hardly_move_are_not_trusted(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, vae = linear.sample(6), linear.amortized_vae()
    poor = annealed_evidence(
        vae.model, vae.guide, x, settings=replace(HASTY, num_temperatures=2, num_chains=64)
    )
    assert poor.untrusted > 3 and not bool(poor.reliable[poor.effective_sample_size < 16].any())
    # Data that say next to nothing: all weights are alike, whether or not the chains move.
    vague = LinearGaussian(0.1 * linear.weight, 5.0).amortized_vae()
    settings = replace(QUICK, num_temperatures=25)
    assert annealed_evidence(vague.model, vague.guide, x, settings=settings).trusted

    def stuck(*args: Any) -> Any:
        plan = find_plan(*args)
        return plan._replace(steps=1e4 * plan.steps)

    monkeypatch.setattr(annealing_run, "find_plan", stuck)
    estimate = annealed_evidence(vague.model, vague.guide, x, settings=settings)
    assert (estimate.effective_sample_size > 60).all() and estimate.untrusted == 6


def narrowing() -> Pair:
    """A prior N(0, 1) and a likelihood of noise 0.3 in each of some dimensions.

    A guide of half the posterior's sd.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.09, 0.5 * 0.3 / math.sqrt(1.09)).to_event(1))

    return model, guide


def exact_narrowing(x: Tensor) -> Tensor:
    return dist.Normal(0, math.sqrt(1.09)).log_prob(x).sum(-1)


@pytest.mark.parametrize(
    ("temperatures", "num_chains", "latents", "start"),
    [
        (60, 32, 10, "prior"),
        (10, 8, 10, "prior"),
        (10, 8, 1, "guide"),
        (10, 32, 1, "guide"),
        (10, 32, 4, "guide"),
    ],
)
def test_few_temperatures_are_not_trusted(
    temperatures: int, num_chains: int, latents: int, start: Any
) -> None:
    """By chance a few chains agree, and miss by nats: their effective sample says nothing of it."""
    x = torch.ones(100, latents, dtype=torch.double)
    settings = AnnealingSettings(temperatures, num_chains)
    estimate = annealed_evidence(*narrowing(), x, start=start, settings=settings)
    alike = estimate.effective_sample_size >= 0.25 * num_chains
    assert int(alike.sum()) >= 12  # these were trusted
    low, high = (
        estimate.per_datum + sign * 1.96 * estimate.errors for sign in (-1, 1)
    )  # without the allowance
    exact = exact_narrowing(x)
    missed = ~((low <= exact) & (exact <= high))
    assert int((missed & alike).sum()) >= 2
    # 5% of intervals miss; three of a hundred data are that by chance.
    assert int((missed & estimate.reliable).sum()) <= 3 and estimate.untrusted >= 90


@pytest.mark.parametrize(("start", "latents"), [("guide", 1), ("guide", 4)])
def test_enough_temperatures_are_trusted_and_hold_the_truth(start: Any, latents: int) -> None:
    x = torch.ones(200, latents, dtype=torch.double)
    settings = AnnealingSettings(100, 32, leapfrog_steps=3)
    estimate = annealed_evidence(*narrowing(), x, start=start, settings=settings)
    claimed = torch.hypot(estimate.errors, estimate.biases)
    covered = ((estimate.per_datum - exact_narrowing(x)).abs() <= 1.96 * claimed)[estimate.reliable]
    assert len(covered) >= 180
    assert float(covered.double().mean()) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(covered))


def test_a_spread_of_few_chains_is_known_to_within_a_chi_square() -> None:
    torch.manual_seed(0)
    for num_chains in (16, 32):
        log_weights = 2 * torch.randn(num_chains, 10_000, dtype=torch.double)
        share = log_weights.var(0) * chains.upper_limit(num_chains, 0.05) >= 4
        assert float(share.double().mean()) == pytest.approx(
            0.95, abs=4 * math.sqrt(0.05 * 0.95 / 10_000)
        )
        moving = torch.ones(10_000, dtype=torch.double)
        assert float(chains.trusted(log_weights, 60, moving, moving).double().mean()) < 0.02
        assert bool(chains.trusted(0.1 * log_weights, 60, moving, moving).all())
        assert not bool(
            chains.trusted(0.3 * log_weights, 10, moving, moving).double().mean() > 0.02
        )
    assert math.isinf(chains.upper_limit(1, 0.05))


def test_bounds_that_lie_apart_are_not_trusted(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reverse chains that do not part from the draw they share agree with each other, and not with
    the lower bound."""
    settings = replace(QUICK, num_temperatures=80)
    x, vae = linear.sample(12), linear.amortized_vae()
    assert bidirectional_evidence(vae.model, vae.guide, x, settings=settings).upper.untrusted <= 1
    run = annealing_run.AnnealingRun.backward

    def stuck(self: Any, latents: Any) -> Any:
        results = run(self, latents)
        return results._replace(average=results.average._replace(value=results.average.value + 1.0))

    monkeypatch.setattr(annealing_run.AnnealingRun, "backward", stuck)
    results = bidirectional_evidence(vae.model, vae.guide, x, settings=settings)
    assert results.upper.untrusted == results.gap.untrusted == 12 and results.lower.untrusted <= 1
    assert results.upper.monte_carlo_error >= results.gap.monte_carlo_error > 0


def test_one_temperature_is_importance_sampling_from_the_prior(linear: LinearGaussian) -> None:
    """Its value is right, and so few temperatures are not trusted."""
    noisy = LinearGaussian(0.5 * linear.weight, 1.5)
    x, vae = noisy.sample(6), noisy.amortized_vae()
    settings = AnnealingSettings(
        num_temperatures=1, num_chains=2000, pilot_chains=2, pilot_temperatures=1
    )
    estimate = annealed_evidence(vae.model, vae.guide, x, settings=settings)
    assert not estimate.trusted and estimate.errors is not None
    noise = float(estimate.errors.square().sum().sqrt()) / len(x)
    assert abs(estimate.value - float(noisy.evidence(x).mean())) < 4 * noise < 0.06


def test_one_chain_of_one_datum_has_no_error(linear: LinearGaussian) -> None:
    vae = linear.amortized_vae()
    settings = AnnealingSettings(
        num_temperatures=3, num_chains=1, pilot_chains=2, pilot_temperatures=3
    )
    results = bidirectional_evidence(vae.model, vae.guide, linear.sample(1), settings=settings)
    assert all(math.isnan(part.monte_carlo_error) and not part.trusted for part in results[:3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_temperatures": 0}, "'num_temperatures' must be a positive integer, got 0"),
        ({"num_chains": 2.5}, "'num_chains' must be a positive integer, got 2.5"),
        ({"leapfrog_steps": -1}, "'leapfrog_steps' must be a positive integer, got -1"),
        ({"pilot_temperatures": True}, "'pilot_temperatures' must be a positive integer, got True"),
        ({"pilot_chains": 1}, "'pilot_chains' must be at least 2 to have a spread, got 1"),
        ({"acceptance": 1.0}, "'acceptance' must lie between 0 and 1, got 1.0"),
        ({"acceptance": math.nan}, "'acceptance' must lie between 0 and 1, got nan"),
        ({"pilot_length": 0.0}, "'pilot_length' must be positive, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AnnealingSettings(**settings)


def test_there_are_two_starts(linear: LinearGaussian) -> None:
    vae = linear.amortized_vae()
    for function in (annealed_evidence, bidirectional_evidence):
        with pytest.raises(InputError, match="'start' must be 'prior' or 'guide', got 'posterior'"):
            function(vae.model, vae.guide, linear.sample(2), start="posterior")


# -- refusals
# --------------------------------------------------------------------------------------------------


def program_of(
    latent: Callable[[], dist.Distribution], plated: bool = True, name: str = "z"
) -> Pair:
    def model(x: Tensor) -> None:
        z = None if plated else pyro.sample(name, latent())
        with pyro.plate("data", len(x)):
            z = pyro.sample(name, latent()) if plated else z
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        if not plated:
            pyro.sample("z", latent())
        else:
            with pyro.plate("data", len(x)):
                pyro.sample("z", latent())

    return model, guide


@pytest.mark.parametrize("function", [annealed_evidence, bidirectional_evidence])
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (program_of(lambda: dist.Bernoulli(0.5 * one)), "latent ('z' )?is discrete"),
        (
            program_of(lambda: dist.Normal(0 * one, 1.0), plated=False),
            "share no vectorised plate.*'z'",
        ),
        (
            program_of(lambda: dist.Normal(0 * one, 1.0), name="h"),
            "the guide has no site for the model's latent 'h'",
        ),
    ],
    ids=["discrete", "no plate", "no guide site"],
)
def test_programs_without_per_datum_weights_are_refused(
    function: Callable[..., Any], pair: Pair, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        function(*pair, torch.zeros(3, dtype=torch.double), settings=HASTY)


def blocked(how: Callable[[Tensor], Tensor]) -> Pair:
    """Two latents, and a likelihood that lets no gradient back to the second."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            seen = pyro.sample("seen", dist.Normal(0 * one, 1.0))
            lost = pyro.sample("lost", dist.Normal(0 * one, 1.0))
            pyro.sample("x", dist.Normal(seen + how(lost), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("seen", dist.Normal(x / 3, 0.8))
            pyro.sample("lost", dist.Normal(x / 3, 0.8))

    return model, guide


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda z: z.detach(), "the model's density has no gradient in latent 'lost'"),
        (lambda z: (z > 0).double(), "the model's density has no gradient in latent 'lost'"),
        (
            lambda z: torch.from_numpy(z.numpy()),
            r"cannot be differentiated in its latents \['lost', 'seen'\].*numpy",
        ),
    ],
    ids=["detached", "thresholded", "numpy"],
)
def test_a_model_without_a_gradient_is_refused_by_the_name_of_its_latent(
    how: Callable[[Tensor], Tensor], message: str
) -> None:
    x = torch.zeros(3, dtype=torch.double)
    for function in (annealed_evidence, bidirectional_evidence):
        with pytest.raises(InputError, match=message):
            function(*blocked(how), x, settings=HASTY)
    # A local refit would climb the rest of the objective, and be certified on it.
    with pytest.raises(InputError, match=message):
        inference_gaps(*blocked(how), x, num_samples=10)


def test_a_latent_that_the_data_do_not_depend_on_needs_no_gradient() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.double)
    estimate = annealed_evidence(*blocked(torch.zeros_like), x, settings=QUICK)
    exact = float(dist.Normal(0, math.sqrt(2)).log_prob(x).mean())
    assert abs(estimate.value - exact) < 4 * estimate.monte_carlo_error < 0.1


def test_a_density_that_only_ends_somewhere_needs_no_gradient() -> None:
    """A uniform one is the same wherever it is not zero, and where it ends may depend on another
    latent."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Uniform(0 * one, 1.0))
            pyro.sample(
                "x", dist.Normal(pyro.sample("below", dist.Uniform(0 * one, top)), 1.0), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "below", dist.Uniform(0 * one, pyro.sample("top", dist.Uniform(0 * one, 1.0)))
            )

    with open_program(model, guide, (torch.zeros(20, dtype=torch.double),)) as program:
        check_differentiable(program)


def test_weights_that_are_no_numbers_are_refused() -> None:
    """A decoder that overflows for some latents.

    The likelihood there is no number, and no weight.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * one, 1.0))
            loc = torch.where((z > 1) & (x > 2), math.nan, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * 0 - 5, 0.1))

    x = torch.tensor([0.0, 1.0, 3.0], dtype=torch.double)
    with pytest.raises(InputError, match="the log weights of datum 2 of a block of 3 are NaN"):
        annealed_evidence(model, guide, x, settings=QUICK)


def test_float32_is_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, generator=generator)
    linear = LinearGaussian(weight, 1.0)
    vae: BetaVAE = linear.amortized_vae(mean_factor=0.9).float()
    x = linear.sample(8)
    estimate = annealed_evidence(vae.model, vae.guide, x.float(), start="guide", settings=QUICK)
    assert estimate.per_datum.dtype == torch.double
    assert (
        abs(estimate.value - float(linear.evidence(x).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.1
    )
