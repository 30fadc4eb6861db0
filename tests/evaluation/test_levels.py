"""Two levels of latents for each datum: refits of independent guide sites, beside normal algebra."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae import evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.refit import RefitSettings

ONE = torch.tensor(1.0, dtype=torch.double)
X = torch.tensor([-1.5, 0.2, 2.0], dtype=torch.double)
# Of (top, code) given x: top ~ N(0, 1), code ~ N(top, 0.8), x ~ N(code, 0.6).
PRECISION = torch.tensor(
    [[1 + 0.8**-2, -(0.8**-2)], [-(0.8**-2), 0.8**-2 + 0.6**-2]], dtype=torch.double
)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(0 * ONE, 1.0))
        code = pyro.sample("code", dist.Normal(top, 0.8 * ONE))
        pyro.sample("x", dist.Normal(code, 0.6 * ONE), obs=x)


def independent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("top", dist.Normal(0.3 * x, ONE))
        pyro.sample("code", dist.Normal(0.7 * x, ONE))


def chained(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        code = pyro.sample("code", dist.Normal(0.7 * x, ONE))
        pyro.sample("top", dist.Normal(0.5 * code, ONE))


@pytest.mark.slow
def test_independent_sites_of_two_levels_are_refitted() -> None:
    exact = dist.Normal(0 * ONE, math.sqrt(1 + 0.64 + 0.36)).log_prob(X)
    approximation = float(PRECISION.diagonal().log().sum() - PRECISION.logdet()) / 2
    settings = RefitSettings(num_starts=0)
    gaps = inference_gaps(model, independent, X, num_samples=1000, settings=settings)
    error = 4 * gaps.approximation.monte_carlo_error + 0.01  # the gain that a certificate leaves
    assert gaps.approximation.value == pytest.approx(approximation, abs=error)
    assert gaps.evidence.value == pytest.approx(
        float(exact.mean()), abs=4 * gaps.evidence.monte_carlo_error
    )


def test_a_site_that_follows_another_is_refused_by_name_and_its_evidence_measured() -> None:
    with pytest.raises(InputError, match="guide site 'top' depends on other draws; pass"):
        inference_gaps(model, chained, X)
    measured = evidence(model, chained, X, num_samples=2000)
    exact = dist.Normal(0 * ONE, math.sqrt(2.0)).log_prob(X)
    assert bool(((measured.per_datum - exact).abs() < 4 * torch.as_tensor(measured.errors)).all())
