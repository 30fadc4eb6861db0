"""Posterior predictive checks.

A model that is right passes them, and one that is wrong does not.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae import plots
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import NegativeBinomialCounts
from pyro_bvae.evaluation import count_checks
from pyro_bvae.evaluation.samples import CountChecks

N, D = 400, 5
LOG_MEAN = torch.linspace(-1, 2, D)


def counts(dispersion: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return NegativeBinomialCounts(LOG_MEAN.expand(N, D), torch.tensor(dispersion)).sample()


def checks_of(
    x: Tensor, dispersion: float, num_copies: int = 20, log_mean: Tensor = LOG_MEAN, **options: Any
) -> CountChecks:
    """Return the checks of a model whose latent says nothing about the counts."""

    def model(x: Tensor) -> None:
        with pyro.plate("cells", len(x)):
            pyro.sample("size", dist.Normal(0.0, 1.0))
            likelihood = NegativeBinomialCounts(
                log_mean.expand(len(x), D), torch.tensor(dispersion)
            )
            pyro.sample("counts", likelihood.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("cells", len(x)):
            pyro.sample("size", dist.Normal(torch.zeros(len(x)), 1.0))

    return count_checks(model, guide, x, num_copies=num_copies, seed=1, **options)


def test_the_right_model_draws_what_was_seen() -> None:
    x = counts(0.5)
    checks = checks_of(x, 0.5)
    assert torch.equal(checks.zero_share.observed, (x == 0).double().mean(0))
    assert torch.allclose(checks.variance.observed, x.double().var(0)) and torch.equal(
        checks.total.observed, x.sum(1)
    )
    for statistic in (checks.zero_share, checks.mean, checks.variance):
        assert statistic.simulated.shape == (20, D)
        spread = statistic.simulated.std(0)
        assert ((statistic.observed - statistic.simulated.mean(0)).abs() < 4 * spread).all()
    assert checks.total.simulated.shape == (20, N)


def test_a_model_with_too_little_spread_is_seen_to_have_it() -> None:
    checks = checks_of(counts(0.5), 1e4)  # a Poisson, all but in name
    for statistic, sign in ((checks.zero_share, 1), (checks.variance, 1)):
        off = sign * (statistic.observed - statistic.simulated.mean(0)) / statistic.simulated.std(0)
        assert off[2:].min() > 6
    assert "zeros" in str(checks) and "simulated" in str(checks)


def test_the_checks_follow_their_seed_and_are_drawn() -> None:
    x = counts(0.5)
    first, second = checks_of(x, 0.5), checks_of(x, 0.5)
    assert torch.equal(first.total.simulated, second.total.simulated)
    figure = plots.count_checks(first)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 3 and all(titles)
    drawn = figure.axes[0].lines[1].get_xdata()
    assert math.isclose(float(drawn[0]), float(first.zero_share.observed[0]))


def test_the_verdict_is_misfit_where_zeros_are_ten_standard_deviations_off() -> None:
    right, wrong = checks_of(counts(0.5), 0.5), checks_of(counts(0.5), 1e4)
    assert not right.faults and right.verdict.startswith("the share of zeros lies within 4")
    away = wrong.zeros.observed - wrong.zeros.simulated.mean()
    assert away / wrong.zeros.simulated.std() > 10
    zeros, features = wrong.faults
    assert wrong.verdict == f"misfit: {zeros}; {features}"
    assert f"{float(wrong.zeros.observed):.2%} of the counts are zeros" in zeros
    assert "above" in zeros and features.startswith("the share of zeros is off in 4 of 5 features")
    written = wrong.to_dict()
    assert written["misfit_features"] == 4 and written["faults"] == wrong.faults


def test_right_models_are_no_misfits_over_seeds() -> None:
    found = [checks_of(counts(0.5, seed), 0.5).faults for seed in range(12)]
    assert sum(map(bool, found)) <= 1  # a t of 19 degrees is beyond 4 in 8 of 10,000 features


def test_a_batch_without_its_counts_is_named() -> None:
    x = counts(0.5)
    batch = torch.arange(N) % 4
    lost = (batch == 2)[:, None] & (torch.rand(N, D, generator=torch.Generator()) < 0.4)
    options = {"groups": batch, "group_names": ("a", "b", "c", "d")}
    assert not checks_of(x, 0.5, **options).faults
    fault = checks_of(x.masked_fill(lost, 0), 0.5, **options).faults[-1]
    assert fault.startswith("the share of zeros is off in 1 of 4 batches, the worst c (")
    rare = x.clone()
    rare[:, 0] = 0
    rare[0, 0] = 1  # a single count is no misfit of a gene that is never drawn
    log_mean = LOG_MEAN.clone()
    log_mean[0] = -20.0
    assert not checks_of(rare, 0.5, log_mean=log_mean).faults


def test_bad_input_is_refused_in_words() -> None:
    for groups, words in (
        (torch.zeros(3), r"shape \(400,\)"),
        (torch.full((N,), -1.0), "whole numbers from 0"),
        (torch.full((N,), 2), "none in 0"),
    ):
        with pytest.raises(InputError, match=words):
            checks_of(counts(0.5), 0.5, groups=groups)
    with pytest.raises(InputError, match="'feature_names' must be 5 names, got 1"):
        checks_of(counts(0.5), 0.5, feature_names=("a",))
    with pytest.raises(InputError, match="'num_copies' must be at least 2, got 1"):
        checks_of(counts(0.5), 0.5, num_copies=1)
