"""The KL taken apart: quadrature, planted groups, all pairs, closed forms.

And the reading of a representation.
"""

import math
import time
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, decompose_kl
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import read_latents
from pyro_bvae.evaluation.information import KLDecomposition
from pyro_bvae.evaluation.information import aggregate as information_aggregate
from pyro_bvae.evaluation.information.aggregate import Normals, log_marginals, log_mixture
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.plots import kl_parts, latent_reading
from pyro_bvae.posteriors import (
    FlowPosterior,
    FullRankPosterior,
    LowRankPosterior,
    MixturePosterior,
    NormalPosterior,
)
from pyro_bvae.priors import MixturePrior, NormalPrior

TERMS = ("rate", "mutual_information", "marginal_kl", "total_correlation", "dimension_wise_kl")
Pair = tuple[Callable, Callable, Tensor]


def pair(
    loc: Tensor, scale: Tensor, family: Callable = dist.Normal, prior: Callable | None = None
) -> Pair:
    """Return a model and a guide with given posteriors, ``family(loc, scale)`` for each latent, and
    their data."""
    width = loc.shape[1]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            law = prior() if prior else dist.Normal(x.new_zeros(width), 1.0).to_event(1)
            z = pyro.sample("z", law)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :width])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(x[:, :width], x[:, width:]).to_event(1))

    return model, guide, torch.cat([loc, scale], 1)


def posteriors(num_data: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return means that are correlated over the latents, and scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(width, dtype=torch.double) + 0.8 * torch.ones(
        width, width, dtype=torch.double
    ).tril(-1)
    loc = torch.randn(num_data, width, dtype=torch.double, generator=generator) @ mixing.T
    return loc, 0.3 + 0.4 * torch.rand(num_data, width, dtype=torch.double, generator=generator)


def by_quadrature(
    loc: Tensor,
    scale: Tensor,
    weights: Tensor,
    family: Callable = dist.Normal,
    prior: Callable = dist.Normal,
) -> dict[str, float]:
    """Return every term by a sum over a fine grid of two latents.

    Posteriors (G, 2) of given weights.
    """
    axis = torch.linspace(-14, 14, 1201, dtype=torch.double)
    cell = float(axis[1] - axis[0])
    each = family(loc[:, :, None], scale[:, :, None]).log_prob(axis).exp()  # (G, 2, nodes)
    whole = torch.einsum("g,gi,gj->ij", weights, each[:, 0], each[:, 1])
    singles = torch.einsum("g,gdi->di", weights, each)
    law = prior(torch.zeros(1, dtype=torch.double), 1.0).log_prob(axis)

    def mean_log(p: Tensor, log_ratio: Tensor) -> float:
        return float((p * log_ratio)[p > 0].sum()) * cell ** p.dim()

    entropies = -torch.stack([torch.special.xlogy(one, one).sum(-1) * cell for one in each]).sum(1)
    marginal = mean_log(whole, whole.log() - law[:, None] - law)
    rate = float(weights @ (-entropies)) - sum(mean_log(single, law) for single in singles)
    information = mean_log(whole, -whole.log()) - float(weights @ entropies)
    independent = singles[0][:, None] * singles[1]
    return {
        "rate": rate,
        "mutual_information": information,
        "marginal_kl": marginal,
        "total_correlation": mean_log(whole, whole.log() - independent.log()),
        "dimension_wise_kl": sum(mean_log(single, single.log() - law) for single in singles),
    }


def check_terms(results: KLDecomposition, exact: dict[str, float], most: float = 0.02) -> None:
    for name, value in exact.items():
        term = getattr(results, name)
        assert abs(term.value - value) < most, (name, term, value)
        assert abs(term.value - value) < 4.5 * term.monte_carlo_error + 1e-4, (name, term, value)


def check_identity(results: KLDecomposition) -> None:
    """The parts add up, datum by datum, to rounding."""
    rate, information, marginal = (getattr(results, name).per_datum for name in TERMS[:3])
    torch.testing.assert_close(information + marginal, rate, atol=1e-12, rtol=1e-12)
    if results.total_correlation is not None:
        both = results.total_correlation.per_datum + results.dimension_wise_kl.per_datum
        torch.testing.assert_close(both, marginal, atol=1e-12, rtol=1e-12)


# -- the terms, held to truth
# -----------------------------------------------------------------------------------------


def test_every_term_is_that_of_quadrature() -> None:
    loc, scale = posteriors(12, 2)
    results = decompose_kl(*pair(loc, scale), num_samples=3000)
    check_terms(results, by_quadrature(loc, scale, torch.full((12,), 1 / 12).double()))
    check_identity(results)
    assert results.rate.monte_carlo_error < 1e-9
    assert results.mutual_information.monte_carlo_error < 0.01


def test_it_is_exact_over_fifty_thousand_data() -> None:
    """Posteriors in five groups of unequal size: the aggregate of all is a mixture of five."""
    generator = torch.Generator().manual_seed(0)
    loc, scale = posteriors(5, 2, seed=2)
    group = torch.multinomial(
        torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), 50_000, True, generator=generator
    )
    weights = group.bincount(minlength=5).double() / len(group)
    results = decompose_kl(*pair(loc[group], scale[group]), num_samples=1)
    exact = by_quadrature(loc, scale, weights)
    for name, value in exact.items():
        assert getattr(results, name).value == pytest.approx(value, abs=0.02), name
    assert results.limit == pytest.approx(math.log(50_000)) and results.warning is None
    check_identity(results)


def by_pairs(
    loc: Tensor, scale: Tensor, draws: Tensor, wrong: int = 0
) -> tuple[float, float, float]:
    """Return I, TC and dimension-wise KL at draws (N, L), all pairs at once, or as public code does in batches.

    With ``wrong``, the size of a batch: stratified weights whose own posterior is in column 0, not
    on the diagonal.
    """
    law = dist.Normal(loc, scale)
    count = len(loc)
    totals = []
    for part in torch.arange(count).split(wrong or count):
        logs = dist.Normal(loc[part], scale[part]).log_prob(draws[part].unsqueeze(1))
        size = len(part)
        weights = torch.full((size, size), 1 / count, dtype=torch.double)
        if wrong:
            weights = torch.full(
                (size, size), (count - 1) / (count * (size - 1)), dtype=torch.double
            )
            weights[:, 0] = 1 / count
        joint = (logs.sum(2) + weights.log()).logsumexp(1)
        marginals = (logs + weights.log().unsqueeze(2)).logsumexp(1).sum(1)
        own, prior = (
            law.log_prob(draws)[part].sum(1),
            dist.Normal(0.0, 1.0).log_prob(draws[part]).sum(1),
        )
        totals.append(torch.stack([own - joint, joint - marginals, marginals - prior], 1))
    return tuple(torch.cat(totals).mean(0).tolist())


def test_wrong_stratified_weights_would_be_found_out() -> None:
    loc, scale = posteriors(400, 4)
    scale = 0.3 * scale
    noise = torch.randn(100, 400, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    exact = np.mean([by_pairs(loc, scale, loc + scale * each) for each in noise], 0)
    wrong = np.mean([by_pairs(loc, scale, loc + scale * each, wrong=50) for each in noise[:10]], 0)
    results = decompose_kl(*pair(loc, scale), num_samples=60)
    parts = [
        getattr(results, name).value
        for name in ("mutual_information", "total_correlation", "dimension_wise_kl")
    ]
    np.testing.assert_allclose(parts, exact, atol=0.02)
    assert (np.abs(wrong - exact)[:2] > 0.3).all(), (wrong, exact)


def test_a_linear_gaussian_model_has_the_information_of_its_channel() -> None:
    """With its exact posterior the aggregate of many data is nearly the prior, and all of the KL is
    information."""
    linear = LinearGaussian(torch.tensor([[0.9], [0.5]]).double(), 0.8, torch.zeros(2))
    x = linear.sample(3000)
    precision = 1 + float(linear.weight.square().sum()) / 0.8**2
    loc = (x - linear.bias) @ linear.weight / 0.8**2 / precision
    results = decompose_kl(*pair(loc, torch.full_like(loc, precision**-0.5)))
    assert results.mutual_information.value == pytest.approx(0.5 * math.log(precision), abs=0.03)
    assert abs(results.marginal_kl.value) < 0.01
    assert results.total_correlation.value == 0


# -- other families
# --------------------------------------------------------------------------------------------------


def test_laplace_posteriors_and_prior_by_quadrature() -> None:
    loc, scale = posteriors(10, 2, seed=1)
    prior = lambda: dist.Laplace(torch.zeros(2).double(), 1.0).to_event(1)  # noqa: E731
    results = decompose_kl(*pair(loc, scale, dist.Laplace, prior), num_samples=4000)
    exact = by_quadrature(loc, scale, torch.full((10,), 0.1).double(), dist.Laplace, dist.Laplace)
    check_terms(results, exact, most=0.03)
    check_identity(results)


def test_a_prior_without_a_closed_form_is_taken_by_draws() -> None:
    loc, scale = posteriors(10, 2, seed=1)
    results = decompose_kl(*pair(loc, scale, prior=student), num_samples=2000)
    same = lambda zero, one: dist.StudentT(4.0, zero, one)  # noqa: E731
    check_terms(
        results, by_quadrature(loc, scale, torch.full((10,), 0.1).double(), prior=same), most=0.04
    )
    assert results.rate.monte_carlo_error > 0
    check_identity(results)


def test_of_one_posterior_for_all_data_the_total_correlation_is_its_own() -> None:
    """A correlated normal for all data: no information, and the rest in closed form."""
    tril = torch.tensor([[0.8, 0.0], [0.5, 0.4]]).double()
    mean, covariance = torch.tensor([0.5, -1.0]).double(), tril @ tril.T

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean.expand(len(x), -1), scale_tril=tril))

    model, _, x = pair(*posteriors(40, 2))
    results = decompose_kl(model, guide, x, num_samples=200)
    variances = covariance.diagonal()
    correlation = 0.5 * float(variances.log().sum() - covariance.logdet())
    singles = 0.5 * float((variances + mean**2 - 1 - variances.log()).sum())
    exact = {
        "mutual_information": 0.0,
        "total_correlation": correlation,
        "dimension_wise_kl": singles,
    }
    check_terms(
        results, {**exact, "rate": correlation + singles, "marginal_kl": correlation + singles}
    )
    assert correlation > 0.3


NETWORKS = {
    "full rank": (FullRankPosterior, FullRankPosterior.num_outputs(2), True),
    "low rank": (LowRankPosterior, LowRankPosterior.num_outputs(2), True),
    "mixture": (lambda net: MixturePosterior(net, num_components=2), 10, False),
    "flow": (lambda net: FlowPosterior(net, summary_dim=4, hidden=(8,)), 8, False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_guides_of_the_package_by_all_pairs(name: str) -> None:
    make, outputs, split = NETWORKS[name]
    torch.manual_seed(0)
    encoder = make(MLP(3, outputs, hidden=(8,)))
    vae = BetaVAE(
        NormalPrior(2), Decoder(MLP(2, 3, hidden=()), NormalLikelihood(0.5)), encoder
    ).double()
    x = 2 * torch.randn(30, 3, dtype=torch.double)
    results = decompose_kl(vae.model, vae.guide, x, num_samples=200)
    with torch.no_grad():
        draws = vae.encoder(x).sample((500,))
        every = pairs(vae, x, draws)
    own = every.diagonal(0, 1, 2)
    exact = own - (every.logsumexp(2) - math.log(len(x)))
    assert results.mutual_information.value == pytest.approx(float(exact.mean()), abs=0.05)
    assert (results.total_correlation is not None) == split
    assert split or "single dimension of the guide" in results.reason
    check_identity(results)


def pairs(vae: BetaVAE, x: Tensor, draws: Tensor) -> Tensor:
    """Return log densities (K, N of the draws, N of the posteriors), one posterior at a time."""
    return torch.stack([vae.encoder(row.expand(len(x), -1)).log_prob(draws) for row in x], 2)


def test_without_a_product_prior_there_is_a_reason() -> None:
    prior = MixturePrior(2, 3).double()
    results = decompose_kl(*pair(*posteriors(20, 2), prior=prior))
    assert results.total_correlation is None and results.dimension_wise_kl is None
    assert "the prior" in results.reason and "no product" in results.reason
    assert f"not available: {results.reason}" in str(results)
    check_identity(results)


# -- the aggregated posterior
# -----------------------------------------------------------------------------------------


def all_pairs(points: Tensor, normals: Normals) -> Tensor:
    """Return log densities ``(M, N, L)`` as they are written."""
    return dist.Normal(normals.loc, normals.scale).log_prob(points.unsqueeze(1))


@pytest.mark.parametrize("shift", [0.0, 300.0])
@pytest.mark.parametrize("small", [1.0, 1e-1, 1e-3, 1e-5])
def test_scales_may_be_small(small: float, shift: float) -> None:
    loc, scale = posteriors(3000, 3)
    normals = Normals(shift + loc, small * scale)
    points = normals.loc[:700] + normals.scale[:700] * torch.randn(700, 3, dtype=torch.double)
    exact = all_pairs(points, normals).sum(2).logsumexp(1) - math.log(3000)
    assert (log_mixture(points, normals) - exact).abs().max() < 1e-3


def test_wide_and_narrow_posteriors_do_not_overflow() -> None:
    """A draw of the wide one that hits the narrow ones, whose density is e^138 times as large, and
    one far off."""
    scales = torch.tensor([1.0, 1e-5, 1e-5, 1e-4, 1e-3], dtype=torch.double)
    scales = torch.tensor([1.0, 1e-5, 1e-5, 1e-4, 1e-3], dtype=torch.double)
    normals = Normals(torch.zeros(5, 12).double(), scales.unsqueeze(1).expand(-1, 12))
    points = torch.cat(
        [torch.full((1, 12), 1e-6), torch.full((1, 12), 0.3), torch.full((1, 12), 1e3)]
    ).double()
    exact = all_pairs(points, normals).sum(2).logsumexp(1) - math.log(5)
    torch.testing.assert_close(log_mixture(points, normals), exact, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("narrowest", [0.5, 0.05, 1e-4])
def test_single_dimensions_are_interpolated_or_computed(narrowest: float) -> None:
    """By nodes at scales of 0.5 and 0.05, at the points themselves at 1e-4."""
    loc, scale = posteriors(2000, 2)
    scale[::50] = narrowest
    points = loc + scale * torch.randn(2000, 2, dtype=torch.double)
    exact = all_pairs(points, Normals(loc, scale)).logsumexp(1) - math.log(2000)
    assert (log_marginals(points, Normals(loc, scale)) - exact).abs().max() < 2e-4


def test_the_size_of_tiles_is_nothing_to_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    loc, scale = posteriors(90, 2)
    normal = decompose_kl(*pair(loc, scale)), decompose_kl(*pair(loc, scale, dist.Laplace))
    monkeypatch.setattr(information_aggregate, "_ON_CPU", (7, 11))
    monkeypatch.setattr(information_aggregate, "_NUMBERS", 1000)
    again = decompose_kl(*pair(loc, scale)), decompose_kl(*pair(loc, scale, dist.Laplace))
    for one, other in zip(normal, again, strict=True):
        for name in TERMS:
            assert getattr(one, name).value == pytest.approx(getattr(other, name).value, abs=1e-5)


def test_the_aggregate_takes_a_few_times_a_matrix_product() -> None:
    """A loose bound for a busy machine, which exponentials that underflow one by one would
    break."""
    loc, scale = posteriors(20_000, 10)
    points = loc[:2000] + 1.0
    factors, weights, out = (
        torch.randn(2000, 21),
        torch.randn(21, 20_000),
        torch.empty(2000, 20_000),
    )

    def seconds(run: Callable) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    product = min(seconds(lambda: torch.mm(factors, weights, out=out)) for _ in range(3))
    assert (
        min(seconds(lambda: log_mixture(points, Normals(loc, scale))) for _ in range(3))
        < 8 * product
    )


# -- programs
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_latents_may_lie_in_plates_of_their_own(family: Callable, data_dim: int) -> None:
    loc, scale = posteriors(15, 2)

    def turned(rows: Tensor) -> Tensor:
        return rows if data_dim == -2 else rows.T

    def model(x: Tensor) -> None:
        with pyro.plate("latents", 2, dim=-3 - data_dim), pyro.plate("data", len(x), dim=data_dim):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=turned(x[:, :2]))

    def guide(x: Tensor) -> None:
        with pyro.plate("latents", 2, dim=-3 - data_dim), pyro.plate("data", len(x), dim=data_dim):
            pyro.sample("z", family(turned(x[:, :2]), turned(x[:, 2:])))

    x = torch.cat([loc, scale], 1)
    results = decompose_kl(model, guide, x, num_samples=2000, data_plate="data")
    check_terms(
        results, by_quadrature(loc, scale, torch.full((15,), 1 / 15).double(), family), most=0.03
    )


def test_posteriors_may_belong_to_the_whole_plate() -> None:
    """A guide with free parameters for each datum cannot be sliced.

    Its numbers are those of an amortized one.
    """
    loc, scale = posteriors(15, 2)
    linear = LinearGaussian(torch.eye(2).double(), 1.0, torch.zeros(2))
    vae = linear.vae(loc, scale)
    results = decompose_kl(vae.model, vae.guide, linear.sample(15), num_samples=2000)
    check_terms(results, by_quadrature(loc, scale, torch.full((15,), 1 / 15).double()))


def test_a_program_that_mixes_particles_is_run_one_at_a_time() -> None:
    loc, scale = posteriors(8, 2)
    model, guide, x = pair(loc, scale, dist.Laplace)

    def mixing(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z + z.mean(0, keepdim=True), 1.0).to_event(1), obs=x[:, :2]
            )

    with pytest.warns(UserWarning, match="one particle at a time"):
        slow = decompose_kl(mixing, guide, x, num_samples=400)
    fast = decompose_kl(model, guide, x, num_samples=400)
    for name in TERMS:
        one, other = getattr(slow, name), getattr(fast, name)
        assert abs(one.value - other.value) < 5 * math.hypot(
            one.monte_carlo_error, other.monte_carlo_error
        )


def test_beta_is_left_out_and_float32_is_enough() -> None:
    loc, scale = posteriors(40, 2)
    model, guide, x = pair(loc, scale)
    scaled = [poutine.scale(function, scale=4.0) for function in (model, guide)]
    plain, beta = decompose_kl(model, guide, x), decompose_kl(*scaled, x)
    half = decompose_kl(model, guide, x.float(), num_samples=2000)
    many = decompose_kl(model, guide, x, num_samples=2000)
    for name in TERMS:
        assert getattr(beta, name).value == getattr(plain, name).value
        assert getattr(half, name).value == pytest.approx(getattr(many, name).value, abs=0.02)


def test_a_seed_is_a_set_of_numbers_and_the_callers_generator_is_left_alone() -> None:
    arguments = pair(*posteriors(20, 2))
    state = torch.get_rng_state()
    one, same, other = (decompose_kl(*arguments, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.to_dict() == same.to_dict()
    assert one.mutual_information.value != other.mutual_information.value


# -- errors and warnings
# ----------------------------------------------------------------------------------------------


def student() -> dist.Distribution:
    """Return a prior that has a closed form with no guide."""
    return dist.StudentT(4.0, torch.zeros(2).double(), 1.0).to_event(1)


@pytest.mark.parametrize(
    ("prior", "family"), [(None, dist.Normal), (None, dist.Laplace), (student, dist.Normal)]
)
def test_monte_carlo_errors_are_what_other_seeds_show(
    prior: Callable | None, family: Callable
) -> None:
    arguments = pair(*posteriors(60, 2), family, prior)
    results = [decompose_kl(*arguments, num_samples=4, seed=seed) for seed in range(30)]
    for name in TERMS[0 if prior else 1 :]:
        terms = [getattr(each, name) for each in results]
        spread = np.std([term.value for term in terms], ddof=1)
        told = np.mean([term.monte_carlo_error for term in terms])
        assert 0.65 < spread / told < 1.5, (name, spread, told)


def test_the_closed_form_makes_the_parts_more_precise() -> None:
    loc, scale = posteriors(60, 2)
    nearly = lambda: dist.StudentT(1e6, torch.zeros(2).double(), 1.0).to_event(1)  # noqa: E731
    wide = pair(loc, scale, prior=nearly)  # a normal, in all but its closed form
    known, drawn = (
        decompose_kl(*pair(loc, scale), num_samples=50),
        decompose_kl(*wide, num_samples=50),
    )
    for name in ("mutual_information", "marginal_kl"):
        assert (
            getattr(known, name).monte_carlo_error <= 1.01 * getattr(drawn, name).monte_carlo_error
        )
    assert known.marginal_kl.monte_carlo_error < 0.8 * drawn.rate.monte_carlo_error


def test_one_draw_has_no_monte_carlo_error() -> None:
    results = decompose_kl(*pair(*posteriors(30, 2)), num_samples=1)
    assert math.isnan(results.mutual_information.monte_carlo_error)
    assert math.isfinite(results.mutual_information.value)


def test_near_log_n_it_warns() -> None:
    loc = 100.0 * torch.arange(50).double().unsqueeze(1)
    apart = decompose_kl(*pair(loc, torch.ones(50, 1).double()))
    assert apart.mutual_information.value == pytest.approx(math.log(50), abs=1e-6)
    assert (
        apart.warning is not None
        and "log 50 = 3.91" in apart.warning
        and f"warning: {apart.warning}" in str(apart)
    )
    together = decompose_kl(*pair(0 * loc, torch.ones(50, 1).double()))
    assert together.warning is None and "warning" not in str(together)
    assert together.to_dict()["warning"] is None
    assert all(abs(getattr(together, name).value) < 1e-6 for name in TERMS)
    assert "log N = 3.912" in str(together)


# -- bad input
# --------------------------------------------------------------------------------------------------


def test_programs_that_cannot_be_decomposed_are_refused_in_words() -> None:
    model, guide, x = pair(*posteriors(10, 2))

    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x[:, 0], 1.0))
            pyro.sample("b", dist.Normal(x[:, 1], 1.0))

    def auxiliary(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample(
                "u", dist.Normal(x[:, :2], x[:, 2:]).to_event(1), infer={"is_auxiliary": True}
            )
            pyro.sample("z", dist.Delta(u, event_dim=1))

    def point(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x[:, :2], event_dim=1))

    def own_prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :2])

    with pytest.raises(InputError, match="one latent site, got 2: 'a', 'b'"):
        decompose_kl(two, two, x)
    with pytest.raises(
        InputError, match=r"the guide must draw 'z' itself, .* got the sites 'u', 'z'"
    ):
        decompose_kl(model, auxiliary, x)
    with pytest.raises(InputError, match=r"guide site 'z' is a point \(Delta\)"):
        decompose_kl(model, point, x)
    with pytest.raises(InputError, match="the prior of 'z' is another one for each datum"):
        decompose_kl(own_prior, guide, x)
    with pytest.raises(InputError, match="'num_samples' must be a positive integer, got 0"):
        decompose_kl(model, guide, x, num_samples=0)


class OneWay(dist.Normal):
    """Normals that score their own last draw alone, as flows without an inverse do."""

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        self.drawn = super().sample(sample_shape)
        return self.drawn

    def log_prob(self, value: Tensor) -> Tensor:
        offsets = (value - self.loc) / self.scale
        if bool((offsets.abs() > 60).any()):
            raise NotImplementedError("no inverse")
        return super().log_prob(value)


def test_a_guide_that_cannot_score_other_draws_is_refused() -> None:
    loc = 100.0 * torch.arange(6).double().unsqueeze(1).expand(-1, 2)
    model, _, x = pair(loc, torch.ones(6, 2).double())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", OneWay(x[:, :2], x[:, 2:]).to_event(1))

    with pytest.raises(
        InputError,
        match=r"guide site 'z' \(Independent\) cannot be evaluated at another datum's draws",
    ):
        decompose_kl(model, guide, x)


# -- the reading of a representation
# ----------------------------------------------------------------------------------


def representation() -> tuple[Pair, Tensor, Tensor]:
    """Latents that carry a class, a factor, the square of another, and nothing.

    With classes and factors.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    factors = torch.randn(900, 2, dtype=torch.double, generator=generator)
    noise = torch.randn(900, 2, dtype=torch.double, generator=generator)
    loc = torch.stack(
        [
            (labels == 2) + 0.01 * noise[:, 0],
            -0.8 * factors[:, 0] + 0.6 * noise[:, 1],
            0.0 * labels,
            2 * factors[:, 1] ** 2,
        ],
        1,
    )
    scale = torch.tensor([0.5, 0.5, 1.0, 0.1], dtype=torch.double).expand(900, -1)
    return pair(loc, scale), labels, factors


def test_a_reading_tells_what_each_latent_carries() -> None:
    arguments, labels, factors = representation()
    names = {"label_names": ("cat", "dog", "cow"), "factor_names": ("size", "angle")}
    reading = read_latents(*arguments, labels=labels, factors=factors, **names)
    assert list(reading.correlation.index) == ["z3", "z1", "z0"]  # by their KL
    assert reading.latents["active"].tolist() == [True, True, False, True]
    assert reading.latents.loc["z2", "kl"] == 0
    x = arguments[2]
    kl = 0.5 * (x[:, :4] ** 2 + x[:, 4:] ** 2 - 1 - 2 * x[:, 4:].log()).mean(0)
    np.testing.assert_allclose(reading.latents["kl"], kl)
    correlation, information = reading.correlation, reading.mutual_information
    assert list(correlation.columns) == ["cat", "dog", "cow", "size", "angle"]
    assert list(information.columns) == ["label", "size", "angle"]
    assert correlation.loc["z0", "cow"] > 0.99 and correlation.loc["z0", "cat"] == pytest.approx(
        -0.5, abs=0.01
    )
    assert correlation.loc["z1", "size"] == pytest.approx(-0.8, abs=0.03)
    exact = np.corrcoef(x[:, 1], factors[:, 0])[0, 1]
    assert correlation.loc["z1", "size"] == pytest.approx(exact, abs=1e-12)
    assert information.loc["z1", "size"] == pytest.approx(-0.5 * math.log(1 - 0.8**2), abs=0.1)
    split = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(
        1 / 3
    )  # z0 tells the third class from the others
    assert information.loc["z0", "label"] == pytest.approx(split, abs=0.05)
    assert abs(correlation.loc["z3", "angle"]) < 0.15 and information.loc["z3", "angle"] > 1
    assert information.loc["z3", "size"] < 0.1
    assert (
        reading.table.loc["z2", "correlation"].isna().all()
        and list(reading.table.index)[-1] == "z2"
    )
    assert "3 of 4 latents are active" in str(reading)


def test_whole_numbers_are_choices_and_constants_say_nothing() -> None:
    arguments, labels, _ = representation()
    shape = torch.stack([labels == 2, torch.full((900,), 0.5)], 1)
    reading = read_latents(*arguments, factors=shape)
    assert list(reading.correlation.columns) == ["factor 0", "factor 1"]
    split = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert reading.mutual_information.loc["z0", "factor 0"] == pytest.approx(split, abs=0.05)
    assert reading.correlation["factor 1"].isna().all()
    assert (reading.mutual_information["factor 1"] < 0.02).all()
    again = read_latents(*arguments, factors=shape.numpy())
    assert again.table.equals(reading.table)
    same = read_latents(*arguments, labels=labels, factors=labels).mutual_information
    assert same["label"].equals(same["factor 0"])
    alone = read_latents(*arguments)
    assert alone.correlation.shape == (3, 0) and "kl" in str(alone)


def test_a_guide_without_single_dimensions_is_read_by_its_means() -> None:
    torch.manual_seed(0)
    flow = FlowPosterior(MLP(3, 8, hidden=(8,)), summary_dim=4, hidden=(8,))
    vae = BetaVAE(NormalPrior(2), Decoder(MLP(2, 3, hidden=()), NormalLikelihood(0.5)), flow)
    x = 3 * torch.randn(50, 3)
    reading = read_latents(vae.model, vae.guide, x, factors=x[:, 0])
    assert (
        reading.latents["kl"].isna().all()
        and "no product" in reading.reason
        and reading.reason in str(reading)
    )
    variances = reading.latents["mean_variance"][list(reading.correlation.index)]
    assert variances.is_monotonic_decreasing and len(variances)


@pytest.mark.parametrize(("num_data", "num_samples"), [(2, 4), (2, 16), (5, 2), (20, 4)])
def test_the_intervals_of_few_data_cover(num_data: int, num_samples: int) -> None:
    """Of two data and four draws they covered in 3% to 63% of repetitions."""
    loc, scale = posteriors(num_data, 2, seed=3)
    loc = 0.5 * loc
    arguments = pair(loc, scale)
    exact = by_quadrature(loc, scale, torch.full((num_data,), 1 / num_data, dtype=torch.double))
    covered = dict.fromkeys(TERMS[1:], 0)
    for seed in range(40):
        results = decompose_kl(*arguments, num_samples=num_samples, seed=seed)
        for name in covered:
            low, high = getattr(results, name).interval
            covered[name] += low <= exact[name] <= high
    assert all(count >= 34 for count in covered.values()), (
        covered
    )  # of 40: 95% less four standard errors is 32.5


def test_bad_labels_and_factors_are_refused_in_words() -> None:
    arguments, labels, factors = representation()
    with pytest.raises(
        InputError, match="'labels' must have one entry for each of the 900 data, got 899"
    ):
        read_latents(*arguments, labels=labels[:-1])
    with pytest.raises(
        InputError, match="'factors' must have one entry for each of the 900 data, got 450"
    ):
        read_latents(*arguments, factors=factors[::2])
    with pytest.raises(InputError, match="'labels' must be whole numbers from 0"):
        read_latents(*arguments, labels=labels + 0.5)
    with pytest.raises(InputError, match="'factors' must be finite numbers"):
        read_latents(*arguments, factors=factors / 0)
    with pytest.raises(
        InputError, match="'factor_names' must be 2 names, one for each factor, got 1"
    ):
        read_latents(*arguments, factors=factors, factor_names=("size",))
    with pytest.raises(InputError, match="'label_names' must name label 2 too, got 2 names"):
        read_latents(*arguments, labels=labels, label_names=("cat", "dog"))
    with pytest.raises(
        InputError, match="'labels' must be classes that some data share, got 900 labels"
    ):
        read_latents(*arguments, labels=torch.arange(900))
    for bad in (["cat"] * 900, torch.full((900,), math.nan)):
        with pytest.raises(InputError, match="'labels' must be finite numbers"):
            read_latents(*arguments, labels=bad)
    one_class = read_latents(*arguments, labels=torch.zeros(900)).mutual_information
    assert (one_class["label"].abs() < 1e-12).all()
    ten = (*arguments[:2], arguments[2][:10])
    numbers = read_latents(
        *ten, factors=torch.arange(10)
    ).mutual_information  # a choice that no two data share
    assert np.isfinite(numbers.to_numpy()).all()
    few = (*arguments[:2], arguments[2][:3])
    with pytest.raises(InputError, match="mutual information takes more than 3 data, got 3"):
        read_latents(*few, labels=labels[:3])


# -- figures
# --------------------------------------------------------------------------------------------------


def texts(figure: mpl.figure.Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_the_heat_map_shows_the_numbers_of_the_reading() -> None:
    arguments, labels, factors = representation()
    reading = read_latents(
        *arguments, labels=labels, factors=factors, factor_names=("size", "angle")
    )
    figure = latent_reading(reading)
    words = texts(figure)
    sizes, correlation, information = figure.axes
    assert any(
        word.startswith("3 of 4 latents are active; the closest tie is z0 with label 2")
        for word in words
    )
    assert [bar.get_width() for bar in sizes.patches] == reading.latents.loc[
        ["z3", "z1", "z0"], "kl"
    ].tolist()
    for axes, table in (
        (correlation, reading.correlation),
        (information, reading.mutual_information),
    ):
        shades = table.to_numpy() if axes is correlation else 1 - np.exp(-2 * table.to_numpy())
        np.testing.assert_allclose(axes.images[0].get_array(), shades, atol=1e-12)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list(table.columns)
    assert f"{reading.correlation.loc['z1', 'size']:.2f}".replace("-", "−") in words
    assert correlation.images[0].get_clim() == (-1, 1) and information.images[0].get_clim() == (
        0,
        1,
    )


def test_figures_of_little() -> None:
    model, guide, x = pair(torch.zeros(20, 2).double(), torch.ones(20, 2).double())
    assert {"0 of 2 latents are active", "none is active"} <= set(
        texts(latent_reading(read_latents(model, guide, x)))
    )
    assert "Mean KL of 0.00 nats" in texts(kl_parts(decompose_kl(model, guide, x)))


def test_the_bars_are_the_parts() -> None:
    loc, scale = posteriors(30, 2)
    results = decompose_kl(*pair(loc, scale))
    figure = kl_parts(results)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    parts = [
        getattr(results, name).value
        for name in ("mutual_information", "total_correlation", "dimension_wise_kl")
    ]
    assert widths == pytest.approx(parts + parts)
    assert any("= 3.40, dotted" in word for word in texts(figure))
    without = decompose_kl(*pair(loc, scale, prior=MixturePrior(2, 3).double()))
    assert "+  KL(q(z) || p(z))" in texts(kl_parts(without))


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_data_that_cannot_be_cut_into_blocks_are_decomposed_all_the_same(
    family: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guide that looks at all data at once cannot be run on some of them.

    Its points are cut instead.
    """
    loc, scale = posteriors(90, 2)
    model, guide, x = pair(loc - loc.mean(0), scale, family)
    expected = decompose_kl(model, guide, x, num_samples=30)

    def mixing(x: Tensor) -> None:
        guide(torch.cat([x[:, :2] - x[:, :2].mean(0), x[:, 2:]], 1))

    monkeypatch.setattr(information_aggregate, "_NUMBERS", 100)  # less than one point takes
    results = decompose_kl(
        lambda _: model(x), mixing, torch.cat([loc, scale], 1), num_samples=30
    )  # with other draws
    for name in TERMS:
        one, other = getattr(results, name), getattr(expected, name)
        error = math.hypot(one.monte_carlo_error, other.monte_carlo_error)
        assert abs(one.value - other.value) < 4 * error + 1e-6 and error < 0.02, name


def test_a_reading_encodes_each_datum_once_and_decodes_few() -> None:
    """The KL asks a model for its prior alone.

    Only the look over the program decodes, a few data.
    """
    torch.manual_seed(0)
    decoder, encoder = MLP(2, 3, hidden=()), MLP(3, 4, hidden=())
    vae = BetaVAE(NormalPrior(2), Decoder(decoder, NormalLikelihood(0.5)), NormalPosterior(encoder))
    rows = {decoder: 0, encoder: 0}

    def count(network: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        rows[network] += inputs[0].shape[:-1].numel()

    for network in rows:
        network.register_forward_hook(count)
    counts = []
    for size in (5000, 6000):
        rows.update(dict.fromkeys(rows, 0))
        read_latents(vae.model, vae.guide, torch.randn(size, 3))
        counts.append((rows[decoder], rows[encoder]))
    assert counts[1][0] == counts[0][0] < 1000
    assert counts[1][1] - counts[0][1] == 1000
