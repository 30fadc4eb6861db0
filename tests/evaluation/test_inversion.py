"""Inversion against closed forms.

Every operator, every way to the posterior, and what is refused.
"""

import warnings
from typing import Any

import arviz
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_bvae
from pyro_bvae import BetaVAE, Context, Decoder, InputError
from pyro_bvae.distributions import PoissonCounts
from pyro_bvae.evaluation import invert
from pyro_bvae.evaluation.inversion import (
    AggregateHoles,
    AggregateStart,
    BatchedHMCMethod,
    Blur,
    CountThinning,
    Downsample,
    DrawnSignal,
    EncoderStart,
    Inversion,
    InversionSettings,
    LinearOperator,
    Mask,
    MeanSignal,
    NormalNoise,
    NUTSMethod,
    PriorStart,
    RandomProjection,
    VariationalMethod,
)
from pyro_bvae.evaluation.inversion.noise import NOISE_SITE
from pyro_bvae.likelihoods import (
    LearnedDispersion,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.plots import inversions
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior

SHAPE, SIZE, LATENTS, NOISE = (1, 4, 4), 16, 2, 0.3
HMC = BatchedHMCMethod(num_chains=16, num_draws=120, num_warmup=80, leapfrog_steps=6)
OPERATORS = {
    "mask": Mask(torch.arange(SIZE) % 2 == 0),
    "blur": Blur(SHAPE, 0.7),
    "downsample": Downsample(SHAPE, 2),
    "projection": RandomProjection(SIZE, 5),
    "matrix": LinearOperator(torch.linspace(0, 9, 3 * SIZE).square().sin().reshape(3, SIZE)),
}


def truth() -> LinearGaussian:
    torch.manual_seed(1)
    return LinearGaussian(torch.randn(SIZE, LATENTS), 0.5, torch.linspace(-1, 1, SIZE))


def posterior(
    model: LinearGaussian, operator: LinearOperator, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and covariance of z and of x given y, from the joint normal of (z, x, y)."""
    weight, matrix = model.weight, operator.matrix
    of_x = weight @ weight.T + model.noise_scale**2 * torch.eye(SIZE)
    of_y = matrix @ of_x @ matrix.T + NOISE**2 * torch.eye(len(matrix))
    off = y - matrix @ model.bias
    gain_z, gain_x = (part @ matrix.T @ torch.linalg.inv(of_y) for part in (weight.T, of_x))
    covariance_z = torch.eye(LATENTS) - gain_z @ matrix @ weight
    return gain_z @ off, covariance_z, model.bias + gain_x @ off, of_x - gain_x @ matrix @ of_x


def observe(model: LinearGaussian, operator: LinearOperator) -> Tensor:
    torch.manual_seed(5)
    y = operator(model.sample(1, seed=3))[0]
    return y + NOISE * torch.randn(len(y), dtype=torch.double)


def check(results: Inversion, exact: tuple[Tensor, Tensor, Tensor, Tensor], size: float) -> None:
    """Hold means and covariances to five standard errors of as many independent draws."""
    mean_z, covariance_z, mean_x, covariance_x = (part.double() for part in exact)
    covariance = torch.cov(results.x.flatten(0, 1).T)
    for mean, spread, mine, theirs in (
        (mean_z, covariance_z, results.latent_mean, results.latent_covariance),
        (mean_x, covariance_x, results.mean, covariance),
    ):
        variance = spread.diagonal()
        assert ((mine - mean).abs() < 5 * (variance / size).sqrt()).all()
        error = ((spread.square() + variance.unsqueeze(0) * variance.unsqueeze(1)) / size).sqrt()
        assert ((theirs - spread).abs() < 5 * error).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_draws_have_the_mean_and_covariance_of_the_closed_form(name: str) -> None:
    model, operator = truth(), OPERATORS[name]
    y = observe(model, operator)
    results = invert(model.amortized_vae(), y, operator, NormalNoise(NOISE), method=HMC)
    assert results.z.shape == (16, 120, LATENTS) and results.x.shape == (16, 120, SIZE)
    check(results, posterior(model, operator, y), min(results.effective_draws, 16 * 120))


def test_nuts_finds_the_closed_form_and_stands_by_its_seed() -> None:
    model, operator = truth(), OPERATORS["mask"]
    y, vae = observe(model, operator), model.amortized_vae()
    method = NUTSMethod(num_chains=2, num_draws=200, num_warmup=80)
    before = torch.random.get_rng_state()
    results = pyro_bvae.invert(vae, y, operator, NormalNoise(NOISE), method=method)
    assert torch.equal(torch.random.get_rng_state(), before)
    check(results, posterior(model, operator, y), results.effective_draws)
    short = NUTSMethod(num_chains=1, num_draws=4, num_warmup=3)
    first, again = (invert(vae, y, operator, NormalNoise(NOISE), method=short).x for _ in range(2))
    assert torch.equal(first, again)


def test_the_fit_finds_the_closed_form_and_knows_that_it_does() -> None:
    model, operator = truth(), OPERATORS["blur"]
    y = observe(model, operator)
    method = VariationalMethod(num_draws=1500, num_steps=300)
    results = invert(model.amortized_vae(), y, operator, NormalNoise(NOISE), method=method)
    assert results.pareto_k is not None and results.pareto_k < 0.7
    mean, covariance, *_ = posterior(model, operator, y)
    assert torch.allclose(results.latent_mean, mean, atol=0.05)
    assert torch.allclose(results.latent_covariance, covariance.double(), atol=0.05)


def test_a_fit_that_is_not_the_posterior_is_refused() -> None:
    """A fit that was stopped at once is far narrower than the posterior."""
    method = VariationalMethod(num_draws=2000, num_steps=1)
    model = truth()
    results = invert(
        model.amortized_vae(), torch.zeros(8), OPERATORS["mask"], NormalNoise(30.0), method=method
    )
    with pytest.raises(InputError, match=r"the fit is not the posterior: Pareto k \d"):
        _ = results.mean


def test_an_inferred_noise_scale_has_the_posterior_of_quadrature() -> None:
    model, operator = truth(), OPERATORS["blur"]
    y = observe(model, operator)
    results = invert(model.amortized_vae(), y, operator, NormalNoise(width=1.0), method=HMC)
    assert results.noise_scale is not None
    scales = torch.linspace(1e-3, 4, 4000, dtype=torch.double)
    matrix = operator.matrix
    of_y = (
        matrix @ (model.weight @ model.weight.T + model.noise_scale**2 * torch.eye(SIZE)) @ matrix.T
    )
    cover = of_y + scales.square().reshape(-1, 1, 1) * torch.eye(len(matrix))
    density = (
        torch.distributions.MultivariateNormal(matrix @ model.bias, cover).log_prob(y)
        - scales.square() / 2
    )
    weights = density.softmax(0)
    mean = float((weights * scales).sum())
    deviation = float((weights * (scales - mean).square()).sum().sqrt())
    assert (
        abs(float(results.noise_scale.mean()) - mean) < 5 * deviation / results.effective_draws**0.5
    )


def count_vae(likelihood: nn.Module) -> BetaVAE:
    torch.manual_seed(2)
    width = 4 * likelihood.parameters_per_feature
    return BetaVAE(
        NormalPrior(1), Decoder(MLP(1, width, hidden=()), likelihood), NormalPosterior(MLP(4, 2))
    )


@pytest.mark.parametrize(
    "likelihood",
    [
        PoissonLikelihood(),
        NegativeBinomialLikelihood(dispersion=LearnedDispersion(initial=2.0)),
        ZeroInflatedNegativeBinomialLikelihood(dispersion=LearnedDispersion(initial=2.0)),
    ],
    ids=["poisson", "negative binomial", "zero-inflated"],
)
def test_thinned_counts_are_those_of_the_sum_over_what_was_lost(likelihood: nn.Module) -> None:
    """p(y|z), and p(x|z,y) by draws, against x summed over all that it may have been."""
    vae, noise, operator = (
        count_vae(likelihood),
        CountThinning(0.3),
        Mask(torch.tensor([True, False, True, True])),
    )
    with torch.no_grad():
        context = Context(size_factor=torch.full((1, 1), 12.0))
        factors = vae.decoder(torch.tensor([[0.4]]), context)
        y = torch.tensor([[0.0, 1.0, 2.0]])
        counts = torch.arange(300.0).reshape(-1, 1, 1).expand(-1, 1, 4)
        prior = factors.base_dist.log_prob(counts)[:, 0, [0, 2, 3]]
        kept = dist.Binomial(counts[:, 0, :3].clamp(min=2), 0.3).log_prob(y)
        few = torch.tensor([[1.0, -torch.inf, -torch.inf], [0.7, 0.3, -torch.inf]])
        kept[:2] = torch.where(torch.isfinite(few), few.clamp(min=0).log(), -torch.inf)
        joint = prior + kept
        assert torch.allclose(
            noise.marginal(factors, operator).log_prob(y), joint.logsumexp(0).sum(), atol=2e-4
        )
        torch.manual_seed(0)
        draws = noise.restore(factors.expand((4000,)), operator, y.expand(4000, 3))[:, [0, 2, 3]]
        weights = joint.softmax(0)
        mean = (weights * counts[:, 0, :3]).sum(0)
        deviation = ((weights * counts[:, 0, :3].square()).sum(0) - mean.square()).sqrt()
        assert ((draws.mean(0) - mean).abs() < 5 * deviation / 4000**0.5).all()
        assert ((draws == 0).double().mean(0) - weights[0]).abs().max() < 5 * 0.5 / 4000**0.5
        assert (draws >= y).all()


def test_thinning_inverts_with_a_context() -> None:
    vae, context = count_vae(PoissonLikelihood()), Context(size_factor=torch.full((1, 1), 40.0))
    operator = Mask(torch.ones(4, dtype=torch.bool))
    results = invert(
        vae,
        torch.tensor([3.0, 0.0, 5.0, 2.0]),
        operator,
        CountThinning(0.5),
        context=context,
        method=HMC,
    )
    assert "a draw" in str(results) and results.problem is None
    assert (results.x >= torch.tensor([3.0, 0.0, 5.0, 2.0])).all()
    assert isinstance(vae.decoder(torch.zeros(1, 1), context).base_dist, PoissonCounts)


def test_a_callable_operator_and_a_callable_noise_see_the_mean() -> None:
    """An exponential of x seen under Laplace noise: against quadrature."""
    vae = BetaVAE(
        NormalPrior(1), lambda z: dist.Normal(z + 1, 0.5).to_event(1), NormalPosterior(MLP(1, 2))
    )
    results = invert(
        vae,
        torch.tensor([1.5]),
        lambda x: x.exp(),
        lambda s: dist.Laplace(s, 0.5).to_event(1),
        method=HMC,
    )
    z = torch.linspace(-8, 8, 20_001, dtype=torch.double)
    weights = (-z.square() / 2 - ((z + 1).exp() - 1.5).abs() / 0.5).softmax(0)
    mean, square = (weights * (z + 1)).sum(), (weights * (z + 1).square()).sum()
    error = 5 * ((square - mean**2) / results.effective_draws).sqrt()
    assert "mean" in results.signal and torch.equal(results.x, results.z + 1)
    assert abs(results.mean.double() - mean) < error


def test_another_prior_takes_the_place_of_the_models_own() -> None:
    model, operator = truth(), OPERATORS["projection"]
    y, vae = observe(model, operator), model.amortized_vae()
    narrow = dist.Normal(
        torch.full((LATENTS,), 3.0).double(), torch.full((LATENTS,), 0.01).double()
    ).to_event(1)
    results = invert(vae, y, operator, NormalNoise(NOISE), prior=lambda: narrow, method=HMC)
    assert torch.allclose(results.latent_mean, torch.full((LATENTS,), 3.0).double(), atol=0.02)


def test_chains_that_did_not_mix_are_not_summarised() -> None:
    """x = z squared: two modes, and a chain at each."""
    vae = BetaVAE(
        NormalPrior(1),
        lambda z: dist.Normal(z.square(), 0.01).to_event(1),
        NormalPosterior(MLP(1, 2)),
    )
    starts = [lambda *_: torch.ones(1, 1), lambda *_: -torch.ones(1, 1)]
    method = BatchedHMCMethod(num_chains=2, num_draws=100, num_warmup=50)
    results = invert(
        vae,
        torch.ones(1),
        LinearOperator(torch.eye(1)),
        NormalNoise(0.01),
        method=method,
        settings=InversionSettings(starts),
    )
    assert results.r_hat > 1.5 and "no summary: the chains did not mix: r-hat" in str(results)
    for summary in ("mean", "standard_deviation", "latent_mean", "latent_covariance"):
        with pytest.raises(InputError, match=r"did not mix: r-hat \d"):
            getattr(results, summary)
    with pytest.raises(InputError, match="did not mix"):
        results.interval()
    assert results.x.shape == (2, 100, 1)
    figure = inversions([results], torch.ones(1, 1), torch.ones(1, 1), (1, 1, 1))
    assert figure.axes


def test_draws_in_holes_are_flagged() -> None:
    model, operator = truth(), OPERATORS["mask"]
    vae, data = model.amortized_vae(), model.sample(50)
    y = observe(model, operator)

    def counted(holes: Any) -> Inversion:
        method, settings = BatchedHMCMethod(16, 20, 30), InversionSettings(data=data, holes=holes)
        return invert(vae, y, operator, NormalNoise(NOISE), method=method, settings=settings)

    inside = counted(AggregateHoles(vae, data, -1e9))
    outside = counted(AggregateHoles(vae, data, 1e9))
    assert (inside.hole_share, outside.hole_share) == (0.0, 1.0)
    assert "beware: 100.0% of the draws lie in holes" in str(outside) and "beware" not in str(
        inside
    )
    left = counted(lambda z: z[:, 0] < inside.z[0, 0, 0])
    assert left.in_holes is not None and torch.equal(
        left.in_holes, left.z[..., 0] < inside.z[0, 0, 0]
    )


def test_starts_are_where_they_say() -> None:
    model = truth()
    vae, data = model.amortized_vae(), model.sample(20)
    problem = pyro_bvae.evaluation.inversion.InverseProblem(
        vae.prior, vae.decoder, Mask(torch.ones(SIZE).bool()), NormalNoise(1)
    )
    rows = data[:1].expand(400, -1)
    for start, mean in (
        (PriorStart(), torch.zeros(LATENTS)),
        (EncoderStart(), model.posterior_mean(data[:1])[0]),
    ):
        z = start(vae, problem, rows, None, 0)
        assert torch.allclose(z.mean(0), mean.double(), atol=0.25)
    assert AggregateStart(data)(vae, problem, rows, None, 0).shape == (400, LATENTS)


def test_operators_do_what_their_matrices_say() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    assert Downsample(SHAPE, 2)(image.flatten()).tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.allclose(Blur((2, 4, 4), 1.0)(torch.ones(32)), torch.ones(32))
    assert Mask(image > 13)(image.flatten()).tolist() == [14.0, 15.0]
    assert [OPERATORS[name].disjoint for name in ("mask", "blur", "downsample", "projection")] == [
        1,
        0,
        1,
        0,
    ]
    for operator in OPERATORS.values():
        y = operator(torch.randn(3, SIZE))
        assert torch.allclose(operator(operator.back(y)), y, atol=1e-4)


def test_arviz_reads_the_draws_and_agrees_on_r_hat() -> None:
    model, operator = truth(), OPERATORS["mask"]
    y = observe(model, operator)
    results = invert(
        model.amortized_vae(),
        y,
        operator,
        NormalNoise(),
        method=BatchedHMCMethod(4, 60, 60),
        settings=InversionSettings(holes=lambda z: z[:, 0] < 0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = results.to_arviz()
        worst = max(float(arviz.rhat(data)[name].max()) for name in ("z", NOISE_SITE))
    assert dict(data["posterior"].sizes) == {
        "chain": 4,
        "draw": 60,
        "latent": LATENTS,
        "feature": SIZE,
    }
    assert data["sample_stats"]["in_hole"].shape == (4, 60) and data["observed_data"][
        "y"
    ].shape == (8,)
    assert abs(worst - results.r_hat) < 1e-6


def quick(**changes: object) -> Inversion:
    model, operator = truth(), OPERATORS["mask"]
    options = {
        "y": torch.zeros(8),
        "operator": operator,
        "noise": NormalNoise(1.0),
        "vae": model.amortized_vae(),
    }
    return invert(**{**options, "method": BatchedHMCMethod(2, 4, 4), **changes})  # type: ignore[arg-type]


class Coin(nn.Module):
    def forward(self) -> dist.Distribution:
        return dist.Bernoulli(torch.full((LATENTS,), 0.5).double()).to_event(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": torch.zeros(7)}, "'y' must hold the 8 numbers of 'operator', got 7"),
        ({"y": torch.zeros(SIZE)}, r"got 16; of a whole x that is operator\(x\)"),
        (
            {"y": torch.zeros(1, 1, 8)},
            r"'y' must be the observation of one datum, .* or of several, \(N, M\), got \(1, 1, 8\)",
        ),
        ({"y": torch.full((8,), torch.nan)}, "'y' must be finite, got nan"),
        ({"operator": Mask(torch.ones(9).bool())}, "the operator takes 9 features, got 16"),
        ({"operator": lambda x: x @ torch.ones(3, 3)}, "'operator' cannot be applied to x"),
        ({"prior": Coin()}, "the latents must be continuous"),
        ({"noise": CountThinning(0.5)}, "CountThinning needs a likelihood of counts, got Normal"),
        (
            {"noise": lambda s: dist.Normal(s, 1.0)},
            r"event shape \(8,\), got \(\); is .to_event\(1\) missing",
        ),
        (
            {"noise": lambda s: dist.Exponential(s.exp() + 1).to_event(1), "y": -torch.ones(8)},
            "support of the noise",
        ),
        (
            {"operator": torch.nn.Softmax(-1), "y": torch.zeros(SIZE), "signal": DrawnSignal()},
            "take MeanSignal",
        ),
        ({"settings": InversionSettings([])}, "'starts' must hold at least one start"),
        (
            {"settings": InversionSettings([lambda *_: torch.zeros(1, 5)])},
            r"finite latents of shape \(1, 2\), got \(1, 5\)",
        ),
        ({"vae": 3}, "'vae' must be a model with a prior and a decoder, got int"),
    ],
)
def test_bad_input_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        quick(**changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NormalNoise(0.0), "'scale' of the noise must be positive and finite, got 0.0"),
        (lambda: NormalNoise(-1.0), "'scale' of the noise must be positive and finite, got -1.0"),
        (lambda: NormalNoise(width=0.0), "'width' of the noise must be positive"),
        (lambda: CountThinning(0.0), "'probability' must be above 0 and at most 1, got 0"),
        (lambda: CountThinning(0.5)(torch.tensor([0.3])), "takes whole counts"),
        (lambda: Mask(torch.zeros(4).bool()), "an image that is masked altogether"),
        (lambda: Mask(torch.zeros(4)), "'observed' must be a bool tensor"),
        (lambda: Blur(SHAPE, 0.0), "'width' must be positive"),
        (lambda: Blur((4, 4), 1.0), r"'image_shape' must be \(channels, height, width\)"),
        (lambda: Downsample(SHAPE, 3), "'factor' must divide height and width"),
        (lambda: RandomProjection(4, 0), "'num_measurements' must be a positive integer"),
        (lambda: LinearOperator(torch.zeros(3)), r"'matrix' must be a tensor \(M, D\)"),
        (lambda: NUTSMethod(num_chains=0), "'num_chains' must be a positive integer"),
        (lambda: NUTSMethod(num_draws=3), "'num_draws' must be at least 4, got 3"),
        (
            lambda: BatchedHMCMethod(target_acceptance=1.0),
            "'target_acceptance' must lie between 0 and 1",
        ),
        (lambda: VariationalMethod(num_chains=2), "a fit has no chains"),
        (lambda: VariationalMethod(learning_rate=0), "'learning_rate' must be positive"),
    ],
)
def test_parts_refuse_what_they_cannot_be(make: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()  # type: ignore[operator]


def test_a_mixture_prior_and_the_mean_as_signal_run() -> None:
    results = quick(
        prior=MixturePrior(LATENTS, 3).double(),
        signal=MeanSignal(),
        method=BatchedHMCMethod(4, 5, 5),
    )
    assert results.x.shape == (4, 5, SIZE) and torch.isfinite(results.x).all()


def test_a_normal_likelihood_with_another_operator_falls_back_to_the_mean() -> None:
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, 4, hidden=()), NormalLikelihood(0.5)),
        NormalPosterior(MLP(4, 4, hidden=())),
    )
    results = invert(
        vae,
        torch.ones(2),
        lambda x: x[..., :2].abs(),
        NormalNoise(1.0),
        method=BatchedHMCMethod(2, 3, 3),
    )
    assert torch.allclose(results.x, vae.decode(results.z))
