"""Posterior predictive checks.

A model that is right passes them, and one that is wrong does not.
"""

import math

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


def counts(dispersion: float) -> Tensor:
    torch.manual_seed(0)
    return NegativeBinomialCounts(LOG_MEAN.expand(N, D), torch.tensor(dispersion)).sample()


def checks_of(x: Tensor, dispersion: float, num_copies: int = 20) -> CountChecks:
    """Return the checks of a model whose latent says nothing about the counts."""

    def model(x: Tensor) -> None:
        with pyro.plate("cells", len(x)):
            pyro.sample("size", dist.Normal(0.0, 1.0))
            likelihood = NegativeBinomialCounts(
                LOG_MEAN.expand(len(x), D), torch.tensor(dispersion)
            )
            pyro.sample("counts", likelihood.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("cells", len(x)):
            pyro.sample("size", dist.Normal(torch.zeros(len(x)), 1.0))

    return count_checks(model, guide, x, num_copies=num_copies, seed=1)


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


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="'num_copies' must be at least 2, got 1"):
        checks_of(counts(0.5), 0.5, num_copies=1)
