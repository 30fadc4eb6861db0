"""The rate-distortion curve of one decoder: the closed form's, with bounds on both sides."""

import math

import pytest
import torch

from pyro_bvae import plots
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import rate_distortion_curve
from pyro_bvae.evaluation.information import DecoderCurve
from pyro_bvae.evaluation.information.decoder_chains import with_stops
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.oracle import LinearGaussian

WEIGHT = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]])
LINEAR = LinearGaussian(WEIGHT, 0.5)
SIX = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
TWELVE = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0, 4.0)
FEW = AnnealingSettings(num_temperatures=60, num_chains=16, leapfrog_steps=3)


@pytest.fixture(scope="module")
def curve() -> DecoderCurve:
    vae = LINEAR.amortized_vae(4.0)
    return rate_distortion_curve(vae.model, vae.guide, LINEAR.sample(40), betas=SIX, settings=FEW)


def test_the_curve_is_the_closed_form_to_four_errors(curve: DecoderCurve) -> None:
    assert curve.betas == list(SIX)
    for point in curve.points:
        exact = LINEAR.tempered_point(LINEAR.sample(40), point.beta)
        for estimate, values in zip((point.rate, point.distortion), exact, strict=True):
            value = float(values.mean())
            assert abs(estimate.value - value) < 4 * estimate.monte_carlo_error + 0.01 * value
            assert estimate.monte_carlo_error < 0.08 * abs(value)


def test_bounds_hold_the_curve_of_simulated_data_between_them(curve: DecoderCurve) -> None:
    assert curve.bounds is not None
    for pair in curve.bounds:
        error = math.hypot(pair.lower.rate.monte_carlo_error, pair.upper.rate.monte_carlo_error)
        assert abs(pair.gap) < 4 * error + 0.1
    assert max(abs(pair.gap) for pair in curve.bounds) > 0


def test_the_guide_is_nearest_to_the_beta_it_was_fitted_to(curve: DecoderCurve) -> None:
    assert curve.nearest_beta == 4.0
    excess = dict(zip(curve.betas, curve.excess, strict=True))
    x = LINEAR.sample(40)
    gap = LINEAR.gaps(x, *LINEAR.best_diagonal(x, 4.0)).variational.mean()
    assert excess[1.0] == pytest.approx(float(gap), abs=0.1)
    assert all(value > -0.1 for value in excess.values())
    assert curve.needed_rate is not None and curve.needed_rate < curve.guide_rate.value + 0.05


def test_the_curve_prints_itself_as_a_table_and_a_figure(curve: DecoderCurve) -> None:
    text = str(curve)
    assert "the guide: rate" in text and "on data of its own the curve is known to" in text
    table = curve.table()
    assert list(table.index) == list(SIX) and bool(table["rate"].is_monotonic_decreasing)
    figure = plots.decoder_curve(curve, {"β = 1": (3.0, 1.5)})
    (axes,) = figure.axes
    assert axes.get_xlabel().startswith("distortion") and len(axes.lines) >= 2


def test_stops_are_passed_exactly_and_between_them_the_plan_is_kept() -> None:
    plan = torch.linspace(0, 1, 11).double()[:, None] ** torch.tensor([1.0, 2.0]).double()
    rungs, moves, places = with_stops(plan, torch.ones(10, 2, 3), [0.25, 0.5, 1.0])
    assert torch.equal(rungs[places], torch.tensor([[0.25] * 2, [0.5] * 2, [1.0] * 2]).double())
    assert bool((rungs.diff(dim=0) >= 0).all()) and bool((rungs[0] == 0).all())
    assert len(moves) == len(rungs) - 1 and abs(len(rungs) - 11) <= 2


@pytest.mark.slow
def test_twelve_points_of_the_linear_oracle_within_one_percent() -> None:
    x, vae = LINEAR.sample(1000), LINEAR.amortized_vae()
    found = rate_distortion_curve(
        vae.model,
        vae.guide,
        x,
        betas=TWELVE,
        settings=AnnealingSettings(num_temperatures=150, num_chains=16),
        bounds=False,
    )
    for point in found.points:
        for estimate, values in zip(
            (point.rate, point.distortion), LINEAR.tempered_point(x, point.beta), strict=True
        ):
            assert estimate.value == pytest.approx(float(values.mean()), rel=0.01), point.beta


@pytest.mark.parametrize("betas", [(), (0.0, 1.0), (-1.0,), (math.inf,), (math.nan, 1.0)])
def test_betas_that_are_not_positive_are_refused(betas: tuple[float, ...]) -> None:
    vae = LINEAR.amortized_vae()
    with pytest.raises(InputError, match="'betas' must be positive"):
        rate_distortion_curve(vae.model, vae.guide, LINEAR.sample(3), betas=betas)
