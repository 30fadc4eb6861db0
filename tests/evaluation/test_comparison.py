"""Comparisons of models, held to closed-form evidences and to planted ties."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from pyro_bvae import InputError
from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.comparison import Comparison, compare_programs, stacking_weights
from pyro_bvae.oracle import LinearGaussian


def oracles(shift: float = 0.3) -> tuple[LinearGaussian, LinearGaussian]:
    """Return the true model of some data, and one whose weights are off."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 2, generator=generator, dtype=torch.double)
    other = weight + shift * torch.randn(6, 2, generator=generator, dtype=torch.double)
    return LinearGaussian(weight, 0.7), LinearGaussian(other, 0.7)


def expected_difference(true: LinearGaussian, other: LinearGaussian) -> float:
    """Return the mean of ``log p(x) - log q(x)`` under the true model, a divergence of normals."""

    def covariance(model: LinearGaussian) -> Tensor:
        noise = model.noise_scale**2 * torch.eye(len(model.weight), dtype=torch.double)
        return model.weight @ model.weight.T + noise

    zero = torch.zeros(6, dtype=torch.double)
    normals = [
        torch.distributions.MultivariateNormal(zero, covariance(each)) for each in (true, other)
    ]
    return float(torch.distributions.kl_divergence(*normals))


def exact(values: Tensor) -> Estimate:
    """Return the estimate of values without an error."""
    return Estimate.over_data(values, torch.zeros(len(values)))


def spoilt(oracle: LinearGaussian, x: Tensor) -> tuple[object, object]:
    """Return model and guide of an oracle whose guide is somewhat too wide."""
    loc, scale = oracle.best_diagonal(x)
    vae = oracle.vae(loc, 1.2 * scale)
    return vae.model, vae.guide


@pytest.mark.parametrize("measured", [False, True])
def test_the_interval_of_a_difference_covers(measured: bool) -> None:
    """In at least 93% of 1,000 data sets, by exact and by importance-weighted evidences."""
    true, other = oracles()
    size, repetitions = 25, 1000
    x = true.sample(size * repetitions, seed=1)
    if measured:
        estimates = [
            estimate
            for place, oracle in enumerate((true, other))
            for estimate in [_evidence(oracle, x, seed=place)]
        ]
    else:
        estimates = [exact(oracle.evidence(x)) for oracle in (true, other)]
    truth = expected_difference(true, other)
    covered = 0
    for place in range(repetitions):
        rows = slice(place * size, (place + 1) * size)
        comparison = Comparison.of(
            {"true": estimates[0].take(rows), "other": estimates[1].take(rows)}
        )
        low, high = comparison.difference("true", "other").interval
        covered += low <= truth <= high
    assert covered >= 930


def _evidence(oracle: LinearGaussian, x: Tensor, seed: int) -> Estimate:
    from pyro_bvae import evidence

    model, guide = spoilt(oracle, x)
    return evidence(model, guide, x, num_samples=40, seed=seed)


def test_one_model_under_two_seeds_is_told_to_be_no_different() -> None:
    true, _ = oracles()
    x = true.sample(60 * 50, seed=2)
    first, second = (_evidence(true, x, seed=seed) for seed in (11, 12))
    told = 0
    for place in range(50):
        rows = slice(60 * place, 60 * (place + 1))
        verdict = Comparison.of({"a": first.take(rows), "b": second.take(rows)}).verdict
        told += "No difference can be seen" in verdict
    assert told >= 45


def test_paired_differences_are_seen_where_single_means_hide_them() -> None:
    true, other = oracles(0.1)
    x = true.sample(400, seed=3)
    comparison = compare_programs(
        {"other": spoilt(other, x), "true": spoilt(true, x)}, x, num_samples=500
    )
    assert comparison.names == ["true", "other"]
    apart = comparison.difference("true", "other")
    truth = float((true.evidence(x) - other.evidence(x)).mean())
    assert abs(apart.value - truth) < 4 * apart.monte_carlo_error + apart.bias
    assert apart.seen
    assert apart.standard_error < 0.5 * comparison.models["true"][0].standard_error
    assert comparison.verdict.startswith("true explains these data better than other")
    assert comparison.weights["true"] > 0.9
    back = comparison.difference("other", "true")
    assert back.value == pytest.approx(-apart.value)
    assert back.share_won == pytest.approx(1 - apart.share_won)


def test_intervals_of_more_models_are_wider() -> None:
    true, other = oracles()
    x = true.sample(100, seed=4)
    values = {"a": exact(true.evidence(x)), "b": exact(other.evidence(x))}
    two = Comparison.of(values).difference("a", "b")
    three = Comparison.of({**values, "c": exact(other.evidence(x) - 1)}).difference("a", "b")
    width = two.interval[1] - two.interval[0], three.interval[1] - three.interval[0]
    assert width[1] > 1.1 * width[0]


def test_the_spread_between_training_seeds_is_in_the_interval() -> None:
    """Of two names whose models differ by their seeds alone, no difference is seen."""
    generator = torch.Generator().manual_seed(5)
    told = 0
    for _ in range(200):
        base = torch.randn(300, generator=generator, dtype=torch.double)
        models = {
            name: [
                exact(
                    base
                    + 0.5 * torch.randn(1, generator=generator, dtype=torch.double)
                    + 0.1 * torch.randn(300, generator=generator, dtype=torch.double)
                )
                for _ in range(4)
            ]
            for name in ("a", "b")
        }
        told += not Comparison.of(models).pairs[0].seen
    assert told >= 180
    alone = Comparison.of({name: each[0] for name, each in models.items()})
    assert alone.pairs[0].seen  # one seed of each differs, and says nothing of others
    assert "another training seed" in alone.verdict


def test_untrusted_data_are_neither_dropped_nor_believed() -> None:
    values = torch.linspace(-3, -2, 100).double()
    trusted = exact(values)
    reliable = torch.ones(100, dtype=torch.bool)
    reliable[:30] = False
    doubtful = Estimate.over_data(
        values + 0.5, torch.full((100,), 0.01), torch.where(reliable, 0.0, 4.0), reliable=reliable
    )
    comparison = Comparison.of({"a": trusted, "b": doubtful})
    pair = comparison.difference("b", "a")
    assert pair.untrusted == 30 and not pair.measured and not pair.seen
    assert pair.bias == pytest.approx(1.2)
    assert "b cannot be compared with a: the evidence of up to 30 of 100 data" in comparison.verdict
    assert pair.value == pytest.approx(0.5)


def test_stacking_weights_are_the_maximum() -> None:
    generator = torch.Generator().manual_seed(6)
    log_densities = torch.randn(3, 500, generator=generator, dtype=torch.double)
    weights = stacking_weights(log_densities)

    def score(candidate: Tensor) -> float:
        return float((candidate.log()[:, None] + log_densities).logsumexp(0).mean())

    assert float(weights.sum()) == pytest.approx(1)
    best = score(weights)
    for _ in range(200):
        other = torch.distributions.Dirichlet(torch.ones(3).double()).sample()
        assert score(0.98 * weights + 0.02 * other) <= best + 1e-9
    assert stacking_weights(torch.stack([log_densities[0], log_densities[0] - 5]))[0] > 0.999


def test_what_cannot_be_compared_is_refused() -> None:
    values = exact(torch.zeros(10))
    with pytest.raises(InputError, match="at least two models, got a"):
        Comparison.of({"a": values})
    with pytest.raises(InputError, match="same data, two or more; got numbers of data 9, 10"):
        Comparison.of({"a": values, "b": values.take(slice(9))})
    with pytest.raises(InputError, match="'level' must lie between 0 and 1, got 95"):
        Comparison.of({"a": values, "b": values}, level=95)
    comparison = Comparison.of({"a": values, "b": values})
    with pytest.raises(InputError, match="unknown model 'c'"):
        comparison.difference("a", "c")
    assert "No difference can be seen between a and b" in comparison.verdict
    assert math.isclose(comparison.effective_models, 2)
    assert str(comparison).count("\n") == 4


@pytest.mark.slow
def test_gaps_stand_beside_the_comparison_and_the_elbo_is_not_believed() -> None:
    """Of the better model with the poorer guide, by closed forms."""
    true, other = oracles()
    x = true.sample(24, seed=7)
    guides = {"true": true.best_diagonal(x), "other": other.best_diagonal(x)}
    guides["true"] = guides["true"][0], 4.0 * guides["true"][1]
    models = {"true": true, "other": other}
    vaes = {name: models[name].vae(*guides[name]) for name in models}
    result = compare_programs(
        {name: (vae.model, vae.guide) for name, vae in vaes.items()}, x, gaps=True, num_samples=1000
    )
    table = result.table()
    for name, oracle in models.items():
        exact_gaps = oracle.gaps(x, *guides[name])
        (measured,) = result.gaps[name]
        for part in ("variational", "approximation", "amortization"):
            truth = float(getattr(exact_gaps, part).mean())
            error = 4 * getattr(measured, part).monte_carlo_error + 0.02
            assert table.loc[name, f"{part}_gap"] == pytest.approx(truth, abs=error)
        assert table.loc[name, "beta_gap"] == 0
    assert result.best == "true"
    assert "By the ELBO other would come first" in result.verdict
    assert "amortization" in str(result)
    assert "variational_gap" not in compare_programs(
        {name: (vae.model, vae.guide) for name, vae in vaes.items()}, x, num_samples=200
    ).table()  # fmt: skip


def test_a_model_without_gaps_says_why() -> None:
    true, _ = oracles()
    x = true.sample(4, seed=8)
    pair = spoilt(true, x)
    result = compare_programs(
        {"a": pair, "b": pair}, x, gaps=True, training_betas={"b": [0.0]}, num_samples=200
    )
    assert result.gaps["b"] == "'training_beta' must be positive for the gaps to be finite, got 0"
    assert "b      none, since 'training_beta'" in str(result)
    assert math.isnan(result.table().loc["b", "variational_gap"])
    assert result.to_dict()["models"][0].keys() == result.to_dict()["models"][1].keys()


def test_the_table_has_the_promised_columns_and_is_drawn_by_arviz() -> None:
    arviz = pytest.importorskip("arviz")
    true, other = oracles()
    x = true.sample(50, seed=9)
    values = {name: exact(each.evidence(x)) for name, each in (("b", other), ("a", true))}
    result = Comparison.of(values)
    table = result.table()
    promised = (
        "evidence standard_error monte_carlo_error difference difference_standard_error"
        " difference_monte_carlo_error weight untrusted"
    )
    assert {*promised.split()} <= {*table.columns} and list(table.index) == ["a", "b"]
    assert list(table["rank"]) == [0, 1]
    pair = result.difference("a", "b")
    assert isinstance(pair, Estimate) and result.best == "a"
    assert table.loc["b", "difference"] == pair.value
    assert float((true.evidence(x) - other.evidence(x)).mean()) == pytest.approx(pair.value)
    assert table["share_won"].sum() == pytest.approx(1)
    assert table.loc["a", "share_won"] == pytest.approx(pair.share_won)
    names = {
        "evidence": "elpd_loo", "standard_error": "se", "difference": "elpd_diff",
        "difference_standard_error": "dse",
    }  # fmt: skip
    arviz.plot_compare(table.rename(columns=names).assign(scale="log", warning=False))


def test_a_density_of_zero_is_no_number_in_a_file() -> None:
    values = torch.zeros(10, dtype=torch.double)
    impossible = values.clone()
    impossible[3] = -math.inf
    result = Comparison.of({"a": exact(values), "b": exact(impossible)})
    assert "b: the evidence of 1 of 10 data is not finite" in result.verdict
    assert result.to_dict()["pairs"][0]["value"] is None
    json.dumps(result.to_dict(), allow_nan=False)
