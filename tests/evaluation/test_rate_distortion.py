"""The rate-distortion curve.

The closed form's on optimal linear VAEs, with its slopes, errors and refusals.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pyro_bvae import BetaVAE, rate_distortion
from pyro_bvae.core.errors import InputError
from pyro_bvae.oracle import LinearGaussian, optimum
from pyro_bvae.plots import rate_distortion as draw

NOISE = 0.5
EIGENVALUES = torch.tensor([9.0, 4.0, 1.5, 0.6, 0.2, 0.1], dtype=torch.double)
BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)


def data(count: int = 4000) -> Tensor:
    """Return data whose sample covariance is exactly the planted one."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x = x - x.mean(0)
    root = torch.linalg.cholesky(torch.cov(x.T, correction=0))
    return torch.linalg.solve_triangular(root, x.T, upper=False).T * EIGENVALUES.sqrt()


def optimal(beta: float) -> BetaVAE:
    """Return the linear VAE at the optimum of the β-objective."""
    weight = torch.diag((EIGENVALUES - beta * NOISE**2).clamp(min=0).sqrt())
    return LinearGaussian(weight, NOISE).amortized_vae(beta)


def exact(beta: float) -> tuple[float, float]:
    result = optimum(EIGENVALUES, NOISE, beta)
    return result.rate, result.distortion


def test_the_curve_is_the_closed_form() -> None:
    curve = rate_distortion([(beta, optimal(beta)) for beta in BETAS], data(), num_samples=400)
    assert curve.betas == list(BETAS)
    for point in curve.points:
        rate, distortion = exact(point.beta)
        assert point.rate.value == pytest.approx(rate, abs=1e-9)  # a closed form for these data
        assert (
            abs(point.distortion.value - distortion) < 4 * point.distortion.monte_carlo_error + 1e-9
        )
    assert curve.monotone
    assert curve.convex
    nats = 6 * math.log(2)
    assert curve.bits_per_dimension[0] == pytest.approx(
        (exact(0.1)[0] / nats, curve.points[0].distortion.value / nats)
    )


def test_slopes_are_those_of_the_law() -> None:
    for beta in BETAS:
        pair = [(beta * factor, optimal(beta * factor)) for factor in (0.95, 1.05)]
        (slope,) = rate_distortion(pair, data(), num_samples=800).slopes
        assert slope.law == pytest.approx(-1 / (beta * math.sqrt(0.95 * 1.05)))
        # The noise of the two distortions is shared, so that little is left of it in their
        # difference.
        assert slope.value == pytest.approx(-1 / beta, rel=0.02)


def test_a_chord_lies_between_the_slopes_at_its_ends() -> None:
    curve = rate_distortion([(beta, optimal(beta)) for beta in (0.5, 2.0)], data(), num_samples=400)
    (slope,) = curve.slopes
    assert -1 / 0.5 < slope.value < -1 / 2.0


def test_seeds_of_one_beta_are_one_point() -> None:
    runs = [
        SimpleNamespace(beta=beta, seed=seed, vae=optimal(beta))
        for beta in (1.0, 0.1, 5.0)
        for seed in range(2)
    ]
    sweep = SimpleNamespace(runs=runs, validation=data(500))
    curve = rate_distortion(sweep, num_samples=20)
    assert curve.betas == [0.1, 1.0, 5.0]
    assert [len(point.rates) for point in curve.points] == [2, 2, 2]
    assert curve.knee == 1.0
    assert "knee at β = 1" in str(curve)


def test_a_curve_that_is_none_is_said() -> None:
    curve = rate_distortion(
        [(1.0, optimal(5.0)), (2.0, optimal(1.0)), (3.0, optimal(0.1))], data(500), num_samples=20
    )
    assert not curve.monotone
    bent = rate_distortion(
        [(1.0, optimal(0.1)), (1.5, optimal(0.12)), (2.0, optimal(5.0))], data(500), num_samples=20
    )
    assert bent.monotone


def test_what_does_not_change_has_no_slope() -> None:
    curve = rate_distortion(
        [(100.0, optimal(100.0)), (200.0, optimal(200.0))], data(100), num_samples=5
    )
    assert math.isnan(curve.slopes[0].value)
    assert (
        rate_distortion([(0.0, optimal(0.1)), (1.0, optimal(1.0))], data(100), num_samples=5).slopes
        == []
    )


def test_the_figure_has_every_point() -> None:
    curve = rate_distortion(
        [(beta, optimal(beta)) for beta in (0.1, 1.0, 5.0)], data(200), num_samples=5
    )
    exact_curve = [exact(beta) for beta in (0.1, 1.0, 5.0)]
    analytic = ([d for _, d in exact_curve], [r for r, _ in exact_curve])
    figure = draw(curve, analytic, published=[("others", 3.0, 4.0)])
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"β = 0.1", "others"} <= texts
    assert len([text for text in texts if "knee" in text]) == 1


@pytest.mark.parametrize(
    ("sweep", "given", "message"),
    [
        ([], data(10), "'sweep' must hold at least one model, got none"),
        ([(1.0, optimal(1.0))], None, "'data' must be given"),
        ([(-1.0, optimal(1.0))], data(10), "'beta' must be non-negative and finite, got -1.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(sweep: object, given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rate_distortion(sweep, given)
