"""Holes: planted gaps of known mass, quadrature, an aggregate that is the prior, and tests held to
SciPy."""

import math
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import energy_test, hole_mass
from pyro_bvae.evaluation.information import HoleMass, log_aggregate
from pyro_bvae.evaluation.information.energy import dimension_tests, holm
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.plots import hole_samples, log_densities
from pyro_bvae.posteriors import FullRankPosterior
from pyro_bvae.priors import NormalPrior

NORMAL = dist.Normal(0.0, 1.0)
Draw = Callable[[int, int], Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(x: Tensor) -> None:
    width = x.shape[1] // 2
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(width), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :width])


def guide(x: Tensor) -> None:
    """Posteriors that the data say outright: means, then scales."""
    loc, scale = x.chunk(2, 1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def said(loc: Tensor, scale: float | Tensor) -> Tensor:
    """Return data whose posteriors have these means and scales."""
    return torch.cat([loc, torch.as_tensor(scale, dtype=loc.dtype).expand_as(loc)], 1)


# -- planted holes
# --------------------------------------------------------------------------------------------------

GAP = 0.8


def around_gap(count: int, seed: int, width: int) -> Tensor:
    """Return data whose aggregate is the prior but for a slab, in which its first latent is never.

    |z0| < GAP.
    """
    uniform = 2 * torch.rand(count, generator=generator(seed), dtype=torch.double) - 1
    edge = NORMAL.cdf(torch.tensor(GAP, dtype=torch.double))
    first = NORMAL.icdf(edge + (1 - edge) * uniform.abs()) * uniform.sign()
    others = math.sqrt(1 - 0.3**2) * torch.randn(
        count, width - 1, generator=generator(seed + 1), dtype=torch.double
    )
    scale = torch.tensor([0.01, *[0.3] * (width - 1)], dtype=torch.double)
    return said(torch.cat([first[:, None], others], 1), scale)


@pytest.mark.parametrize("width", [1, 3])
def test_a_planted_gap_is_found_with_its_mass(width: int) -> None:
    results = hole_mass(
        model, guide, around_gap(6000, 0, width), held_out=around_gap(1500, 5, width)
    )
    mass = math.erf(GAP / math.sqrt(2))  # 58% of the prior
    assert results.hole_mass.value == pytest.approx(mass, rel=0.1)
    planted = (results.points[:, 0].abs() < GAP).numpy()
    assert roc_auc_score(planted, -results.log_density) >= 0.95
    assert results.p_value == 1 / 500
    first, *others = results.dimensions.itertuples()
    assert first.p_value < 1e-6 and first.hole_mass == pytest.approx(mass, rel=0.1)
    for other in others:
        assert other.p_value > 0.05 and other.hole_mass == pytest.approx(
            0.01, abs=4 * other.standard_error
        )


# Narrow clumps on a grid: the group of a datum is its posterior.
CENTRES = torch.cartesian_prod(*[torch.tensor([-1.2, 0.3, 1.3], dtype=torch.double)] * 2)
SPREAD = 0.25


def clumps(count: int, seed: int) -> Tensor:
    return said(CENTRES[torch.randint(len(CENTRES), (count,), generator=generator(seed))], SPREAD)


def by_quadrature(weights: Tensor, share: float) -> tuple[float, float]:
    """Return threshold and hole mass of a mixture of clumps by a sum over a grid."""
    axis = torch.linspace(-5, 5, 501, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    cell = float(axis[1] - axis[0]) ** 2
    each = dist.Normal(CENTRES[:, None], SPREAD).log_prob(grid).sum(2)
    log_q = (each + weights.log()[:, None]).logsumexp(0)
    order = log_q.argsort()
    below = (log_q.exp() * cell)[order].cumsum(0)
    threshold = float(log_q[order][int(torch.searchsorted(below, share))])
    prior = NORMAL.log_prob(grid).sum(1).exp() * cell
    return threshold, float(prior[log_q < threshold].sum())


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_threshold_and_mass_are_those_of_quadrature(share: float) -> None:
    data = clumps(3000, 0)
    results = hole_mass(model, guide, data, held_out=clumps(6000, 1), num_samples=8000, share=share)
    groups = torch.cdist(data[:, :2], CENTRES).argmin(1).bincount(
        minlength=len(CENTRES)
    ).double() / len(data)
    threshold, mass = by_quadrature(groups, share)
    assert results.hole_mass.value == pytest.approx(mass, rel=0.1)
    assert abs(results.hole_mass.value - mass) < 4 * results.hole_mass.standard_error
    assert results.threshold == pytest.approx(threshold, abs=0.15)
    direct = (
        dist.Normal(data[None, :, :2], SPREAD)
        .log_prob(results.points[:50, None].double())
        .sum(2)
        .logsumexp(1)
    )
    torch.testing.assert_close(
        results.log_density[:50], direct - math.log(len(data)), atol=2e-3, rtol=1e-3
    )


def test_the_error_is_that_of_other_seeds() -> None:
    data = clumps(1000, 0)
    results = [
        hole_mass(
            model,
            guide,
            data,
            held_out=clumps(300, 10 + s),
            num_samples=400,
            seed=s,
            num_permutations=1,
        )
        for s in range(25)
    ]
    spread = torch.tensor([each.hole_mass.value for each in results]).std()
    claimed = sum(each.hole_mass.standard_error for each in results) / len(results)
    assert 0.65 < claimed / spread < 1.55  # the 99.9% interval of a ratio from 25 values


# -- no holes
# --------------------------------------------------------------------------------------------------


def exact_pair(count: int, seed: int) -> tuple[BetaVAE, Tensor]:
    """Return a linear VAE at its optimum, whose aggregate is the prior, and data of it."""
    weight = torch.zeros(4, 3, dtype=torch.double)
    weight[:3] = torch.diag(torch.tensor([2.0, 1.0, 0.4], dtype=torch.double))
    truth = LinearGaussian(weight, 0.7)
    return truth.amortized_vae(), truth.sample(count, seed=seed)


def test_an_aggregate_that_is_the_prior_has_no_holes_but_the_share() -> None:
    vae, x = exact_pair(8000, 0)
    results = hole_mass(vae.model, vae.guide, x[:6000], held_out=x[6000:])
    assert results.hole_mass.value == pytest.approx(0.01, abs=4 * results.hole_mass.standard_error)
    assert results.hole_mass.standard_error < 0.005
    assert results.p_value > 0.01 and (results.dimensions["p_value"] > 0.01).all()
    assert results.to_dict()["p_value"] == results.p_value and "hole mass of the prior" in str(
        results
    )


def test_p_values_are_uniform_where_there_is_nothing_to_find() -> None:
    p_values, of_one = [], []
    for seed in range(30):
        vae, x = exact_pair(240, seed)
        results = hole_mass(
            vae.model,
            vae.guide,
            x[:120],
            held_out=x[120:],
            num_samples=120,
            num_permutations=99,
            seed=seed,
        )
        p_values.append(results.p_value)
        of_one.append(float(results.dimensions["p_value"].min()))
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert sum(value < 0.05 for value in of_one) <= 5  # of 30, corrected for the number of latents


def test_posteriors_too_narrow_to_reach_beyond_their_datum_are_no_holes() -> None:
    """Calibration by other data.

    Codes like the prior's, each by itself; over the same data all would be hole.
    """
    codes = torch.randn(3000, 2, generator=generator(0), dtype=torch.double)
    data, kept = said(codes[:2000], 1e-3), said(codes[2000:], 1e-3)
    assert hole_mass(model, guide, data, held_out=kept, num_samples=2000).hole_mass.value < 0.03


# -- log q(z) of any points
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlated", [False, True])
def test_the_aggregate_is_the_mixture_of_all_posteriors(correlated: bool) -> None:
    torch.manual_seed(0)
    vae, x = exact_pair(150, 1)
    if correlated:
        encoder = FullRankPosterior(MLP(4, FullRankPosterior.num_outputs(3), hidden=())).double()
        vae = BetaVAE(vae.prior, vae.decoder, encoder)
    points = torch.randn(40, 3, dtype=torch.double)
    with torch.no_grad():
        direct = vae.encoder(x).log_prob(points.unsqueeze(1)).logsumexp(1) - math.log(len(x))
    torch.testing.assert_close(
        log_aggregate(vae.model, vae.guide, x, points=points), direct, atol=1e-3, rtol=1e-4
    )
    results = hole_mass(
        vae.model, vae.guide, x, held_out=exact_pair(130, 2)[1], num_samples=100, num_permutations=9
    )
    again = log_aggregate(vae.model, vae.guide, x, points=results.points)
    torch.testing.assert_close(results.log_density, again)
    assert results.dimensions["hole_mass"].notna().all()


def test_a_guide_without_single_densities_has_tests_alone() -> None:
    torch.manual_seed(0)

    def flow_guide(x: Tensor) -> None:
        loc, scale = x.chunk(2, 1)
        with pyro.plate("data", len(x)):
            base = dist.Normal(loc, scale).to_event(1)
            turn = dist.transforms.LowerCholeskyAffine(
                loc.new_zeros(2), torch.tensor([[1.0, 0.0], [0.5, 1.0]]).to(loc)
            )
            pyro.sample("z", dist.TransformedDistribution(base, [turn]))

    results = hole_mass(model, flow_guide, clumps(200, 0), held_out=clumps(150, 1), num_samples=200)
    assert (
        results.dimensions["hole_mass"].isna().all() and results.dimensions["p_value"].notna().all()
    )
    assert results.hole_mass.value > 0.1


# -- the two tests
# --------------------------------------------------------------------------------------------------


def test_the_energy_distance_is_scipys() -> None:
    x, y = (
        torch.randn(70, 1, generator=generator(0)),
        0.4 + torch.randn(50, 1, generator=generator(1)),
    )
    results = energy_test(x, y, num_permutations=99, generator=generator(2))
    scale = float(torch.cat([x, y]).double().std())
    exact = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2 / scale
    assert results.distance == pytest.approx(exact, rel=1e-5) and results.num_rows == 120


def test_the_energy_test_sees_what_single_dimensions_do_not() -> None:
    normal = torch.randn(800, 2, generator=generator(3), dtype=torch.double)
    turned = normal[400:] @ torch.tensor(
        [[1.0, 0.9], [0.0, math.sqrt(1 - 0.81)]], dtype=torch.double
    )
    single = dimension_tests(normal[:400], turned)
    assert float(single.p_values.min()) > 0.05
    assert (
        energy_test(normal[:400], turned, num_permutations=199, generator=generator(1)).p_value
        == 1 / 200
    )


def test_holm_corrects_in_order() -> None:
    results = holm(torch.tensor([0.04, 0.01, 0.9, 0.02], dtype=torch.double))
    torch.testing.assert_close(results, torch.tensor([0.08, 0.04, 0.9, 0.06], dtype=torch.double))


# -- draws to be shown
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> HoleMass:
    return hole_mass(
        model, guide, around_gap(1000, 0, 2), held_out=around_gap(300, 5, 2), num_samples=500
    )


def test_draws_inside_and_outside_are_apart(planted: HoleMass) -> None:
    inside, outside = planted.inside(20), planted.outside(1000)
    assert inside.shape == (20, 2) and len(outside) == int((~planted.in_hole).sum())
    data = around_gap(1000, 0, 2)
    assert bool((log_aggregate(model, guide, data, points=inside) < planted.threshold).all())
    assert bool((log_aggregate(model, guide, data, points=outside) >= planted.threshold).all())
    assert planted.hole_mass.value == pytest.approx(float(planted.in_hole.double().mean()))


def test_the_seed_is_all_its_randomness(planted: HoleMass) -> None:
    before = torch.get_rng_state()
    options = {"held_out": around_gap(300, 5, 2), "num_samples": 500}
    again = hole_mass(model, guide, around_gap(1000, 0, 2), **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.points, planted.points) and again.hole_mass == planted.hole_mass
    assert again.energy == planted.energy
    other = hole_mass(model, guide, around_gap(1000, 0, 2), **options, seed=1)
    assert not torch.equal(other.points, planted.points)


def test_the_figures_say_the_mass(planted: HoleMass) -> None:
    with mpl.rc_context({"figure.max_open_warning": 0}):
        figure = log_densities(planted)
        assert f"{100 * planted.hole_mass.value:.1f}%" in figure.axes[0].get_title(loc="left")
        figure.canvas.draw()
        pictures = hole_samples(planted, torch.rand(3, 12), torch.rand(5, 12), (3, 2, 2))
        assert "in a hole" in pictures.axes[0].get_yticklabels()[1].get_text()
        pictures.canvas.draw()
    with pytest.raises(InputError, match="one width"):
        hole_samples(planted, torch.rand(3, 12), torch.rand(5, 4), (2, 2))
    assert np.isfinite(planted.log_density.numpy()).all()


# -- what cannot be measured
# ------------------------------------------------------------------------------------------


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).to_event(1), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.3))


def two_latents(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))


DATA = clumps(120, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: hole_mass(discrete, discrete_guide, DATA, held_out=clumps(110, 1)),
            "latent 'z' is discrete",
        ),
        (
            lambda: hole_mass(two_latents, two_latents, DATA, held_out=clumps(110, 1)),
            "one latent site, got 2",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=clumps(99, 1)),
            "at least 100 data for a share of 0.01.* got 99",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=DATA[:, :2]),
            r"shape \(H, 4\) as the data are, got \(120, 2\)",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=DATA.clone()),
            "other data than those .* got the same",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=(DATA, DATA)),
            "'held_out' must be made as the 1 arguments",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=DATA, share=1.0),
            "'share' must lie between 0 and 1, got 1.0",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=DATA, num_samples=0),
            "'num_samples' must be a positive",
        ),
        (
            lambda: hole_mass(model, guide, DATA, held_out=DATA, num_permutations=0),
            "'num_permutations' must be a pos",
        ),
        (
            lambda: log_aggregate(model, guide, DATA, points=torch.zeros(3, 3)),
            r"'points' must have shape \(M, 2\)",
        ),
        (
            lambda: log_aggregate(model, guide, DATA, points=torch.full((3, 2), math.nan)),
            "'points' must be finite",
        ),
        (lambda: energy_test(DATA, DATA[:, :1], generator=generator(0)), "rows .* of one width"),
        (
            lambda: energy_test(DATA, DATA[:1], generator=generator(0)),
            "at least 2 rows of each, got 120 and 1",
        ),
    ],
)
def test_bad_input_is_refused_in_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_a_vae_whose_held_out_data_have_another_width() -> None:
    network = Decoder(MLP(2, 5, hidden=()), NormalLikelihood(1.0))
    vae = BetaVAE(
        NormalPrior(2),
        network,
        FullRankPosterior(MLP(5, FullRankPosterior.num_outputs(2), hidden=())),
    )
    with pytest.raises(InputError, match=r"shape \(H, 5\) as the data are, got \(200, 4\)"):
        hole_mass(vae.model, vae.guide, torch.randn(200, 5), held_out=torch.randn(200, 4))
