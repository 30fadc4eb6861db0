"""The oracle itself: its closed forms against quadrature, brute force and each other."""

import math

import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.oracle import LinearGaussian, optimum


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian(torch.randn(6, 2), 0.7, torch.randn(6))


def test_evidence_is_the_integral_over_the_latents(linear: LinearGaussian) -> None:
    x = linear.sample(5)
    grid = torch.linspace(-9, 9, 601, dtype=torch.double)
    z = torch.cartesian_prod(grid, grid)
    joint = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    means = z @ linear.weight.T + linear.bias
    for row, expected in zip(x, linear.evidence(x), strict=True):
        log_joint = joint + torch.distributions.Normal(means, linear.noise_scale).log_prob(row).sum(
            -1
        )
        integral = log_joint.logsumexp(0) + 2 * math.log(float(grid[1] - grid[0]))
        assert integral == pytest.approx(float(expected), abs=1e-6)


def test_bound_of_the_posterior_is_the_evidence_where_it_is_diagonal() -> None:
    orthogonal = torch.linalg.qr(torch.randn(6, 2)).Q * torch.tensor([2.0, 0.5])
    linear = LinearGaussian(orthogonal, 0.3)
    x = linear.sample(20)
    gaps = linear.gaps(x, *linear.best_diagonal(x))
    for gap in gaps:
        assert gap.abs().max() < 1e-10


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_best_diagonal_guide_is_a_maximum_of_the_objective(
    linear: LinearGaussian, beta: float
) -> None:
    x = linear.sample(10)
    loc, scale = (value.clone().requires_grad_() for value in linear.best_diagonal(x, beta))
    objective = linear.distortion(x, loc, scale) + beta * linear.rate(loc, scale)
    for gradient in torch.autograd.grad(objective.sum(), (loc, scale)):
        assert gradient.abs().max() < 1e-8
    worse = linear.distortion(x, loc + 0.01, scale * 1.01) + beta * linear.rate(
        loc + 0.01, scale * 1.01
    )
    assert (worse > objective).all()


def test_approximation_gap_is_the_one_of_the_precision_matrix() -> None:
    linear = LinearGaussian(torch.tensor([[1.0, 0.8], [0.5, 1.0], [1.0, 1.0]]), 0.7)
    x = linear.sample(4)
    precision = linear.precision()
    expected = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert expected > 0.01  # the test is about correlated posteriors
    assert torch.allclose(
        linear.gaps(x, *linear.best_diagonal(x)).approximation, expected.expand(4)
    )


@pytest.mark.parametrize(
    ("eigenvalue", "variance", "beta", "expected"), [(3.0, 1.0, 2.0, 0.106), (3.0, 0.3, 4.0, 0.771)]
)
def test_beta_gap_of_the_trained_optimum(
    eigenvalue: float, variance: float, beta: float, expected: float
) -> None:
    weight = torch.tensor([[math.sqrt(eigenvalue - beta * variance)]])
    linear = LinearGaussian(weight, math.sqrt(variance))
    # One axis: the mean over data whose variance is the eigenvalue, which the decoder at its
    # optimum does not match.
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.double) * math.sqrt(eigenvalue)
    beta_gap = linear.gaps(x, *linear.best_diagonal(x, beta), training_beta=beta)
    assert float(beta_gap.beta.mean()) == pytest.approx(expected, abs=6e-4)
    assert beta_gap.amortization.abs().max() < 1e-10
    posterior = linear.best_diagonal(x)
    exact = linear.gaps(x, *posterior, training_beta=beta)
    assert torch.allclose(exact.amortization, -exact.beta)


def test_gaps_add_up(linear: LinearGaussian) -> None:
    x = linear.sample(30)
    loc, scale = linear.best_diagonal(x, 4.0)
    gaps = linear.gaps(x, loc + 0.3, 1.4 * scale, training_beta=4.0)
    assert torch.allclose(gaps.variational, gaps.approximation + gaps.beta + gaps.amortization)
    assert (gaps.approximation >= 0).all() and (gaps.beta >= 0).all()


def test_optimum_has_the_slope_of_its_beta() -> None:
    eigenvalues = torch.logspace(-1, 1, 12)
    for beta in (0.3, 1.0, 3.0):
        below, above = (
            optimum(eigenvalues, 0.5, beta * 0.999),
            optimum(eigenvalues, 0.5, beta * 1.001),
        )
        slope = (above.rate - below.rate) / (above.distortion - below.distortion)
        assert slope == pytest.approx(-1 / beta, rel=5e-3)
        assert torch.equal(optimum(eigenvalues, 0.5, beta).active, eigenvalues > beta * 0.25)


def test_optimum_is_what_its_linear_vae_measures() -> None:
    eigenvalues, noise, beta = torch.tensor([4.0, 2.0, 0.3], dtype=torch.double), 0.6, 2.0
    best = optimum(eigenvalues, noise, beta)
    linear = LinearGaussian(torch.diag((eigenvalues - beta * noise**2).clamp(min=0).sqrt()), noise)
    # Two data an axis whose mean of squares is the eigenvalue, the other axes likewise by the
    # tensor product.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.double)] * 3)
    x = signs * eigenvalues.sqrt()
    loc, scale = linear.best_diagonal(x, beta)
    assert float(linear.rate(loc, scale).mean()) == pytest.approx(best.rate, abs=1e-10)
    assert float(linear.distortion(x, loc, scale).mean()) == pytest.approx(
        best.distortion, abs=1e-10
    )


def test_samples_have_the_model_covariance(linear: LinearGaussian) -> None:
    x = linear.sample(40_000, seed=3)
    covariance = linear.weight @ linear.weight.T + linear.noise_scale**2 * torch.eye(6)
    variances = covariance.diagonal()
    errors = (covariance**2 + torch.outer(variances, variances)).sqrt() / 200
    assert ((x.T.cov() - covariance).abs() / errors).max() < 4.5  # 21 entries


def test_vae_guide_is_the_best_diagonal_guide_with_its_factors(linear: LinearGaussian) -> None:
    x = linear.sample(7)
    loc, scale = linear.best_diagonal(x, 3.0)
    guide = linear.amortized_vae(3.0, mean_factor=0.8, scale_factor=1.5).encoder(x)
    assert torch.allclose(guide.mean, 0.8 * loc) and torch.allclose(guide.stddev, 1.5 * scale)


def test_noise_must_be_positive() -> None:
    with pytest.raises(InputError, match="'noise_scale' must be positive, got 0"):
        LinearGaussian(torch.ones(2, 1), 0)
