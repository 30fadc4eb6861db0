"""Distributions and likelihoods of counts, held to SciPy and to exact integer arithmetic."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import (
    NegativeBinomialCounts,
    PoissonCounts,
    ZeroInflatedNegativeBinomialCounts,
)
from pyro_bvae.likelihoods import (
    DecoderDispersion,
    ExpRate,
    LearnedDispersion,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    SoftmaxRate,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

COUNTS = torch.tensor([0.0, 1, 2, 7, 40, 900], dtype=torch.double)
MEANS = torch.tensor([1e-6, 0.3, 1.0, 7.0, 50, 1000], dtype=torch.double)
DISPERSIONS = torch.tensor([1e-4, 0.1, 1.0, 15.9, 16.1, 1e4], dtype=torch.double)


def grid() -> tuple[Tensor, Tensor, Tensor]:
    x, mean, theta = torch.meshgrid(COUNTS, MEANS, DISPERSIONS, indexing="ij")
    return x, mean, theta


def scipy_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    return torch.from_numpy(
        scipy.stats.nbinom.logpmf(x.numpy(), theta.numpy(), (theta / (theta + mean)).numpy())
    )


def exact_poisson(x: int, mean: float) -> float:
    """The log probability, with the log factorial summed term by term in exact order."""
    return x * math.log(mean) - mean - math.fsum(math.log(k) for k in range(1, x + 1))


def exact_negative_binomial(x: int, mean: float, theta: float) -> float:
    """The log probability as a sum of terms none of which is large: no log gamma function."""
    rise = math.fsum(math.log1p((k + theta - mean - theta) / (theta + mean)) for k in range(x))
    return (
        rise
        + x * math.log(mean)
        - math.fsum(math.log(k) for k in range(1, x + 1))
        - theta * math.log1p(mean / theta)
    )


def test_poisson_is_scipys() -> None:
    x, mean, _ = grid()
    expected = torch.from_numpy(scipy.stats.poisson.logpmf(x.numpy(), mean.numpy()))
    assert torch.allclose(PoissonCounts(mean.log()).log_prob(x), expected, rtol=1e-10, atol=1e-10)


def test_negative_binomial_is_scipys() -> None:
    x, mean, theta = (
        part[:, 1:5, 1:5] for part in grid()
    )  # beyond these SciPy's success probability rounds to 0 or 1
    scored = NegativeBinomialCounts(mean.log(), theta).log_prob(x)
    assert torch.allclose(scored, scipy_negative_binomial(x, mean, theta), rtol=1e-10, atol=1e-10)


def test_negative_binomial_is_exact_everywhere() -> None:
    given = [part.flatten() for part in grid()]
    scored = NegativeBinomialCounts(given[1].log(), given[2]).log_prob(given[0]).tolist()
    for value, x, mean, theta in zip(scored, *(part.tolist() for part in given), strict=True):
        assert value == pytest.approx(
            exact_negative_binomial(int(x), mean, theta), rel=1e-10, abs=1e-11
        )


def test_zero_inflation_is_a_mixture_with_zero() -> None:
    x, mean, theta = (part[:, 1:5, 1:5] for part in grid())
    gate = torch.tensor([0.2], dtype=torch.double)
    scored = ZeroInflatedNegativeBinomialCounts(mean.log(), theta, gate.logit()).log_prob(x)
    kept = (1 - gate) * scipy_negative_binomial(x, mean, theta).exp()
    assert torch.allclose(scored.exp(), kept + gate * (x == 0), rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize(
    ("x", "mean", "theta"),
    [
        (0, 1e-30, 1.0),
        (3, 2.5, 1e7),
        (100_000, 100_050.0, 3.0),
        (100_000, 99_000.0, 1e6),
        (50_000, 50_100.0, 1e-3),
    ],
)
def test_float32_keeps_its_digits_where_log_gamma_functions_cancel(
    x: int, mean: float, theta: float
) -> None:
    """A log gamma function of 1e5 is 1e6, and so are all the terms.

    A float32 has 0.06 nats there.
    """
    log_mean = torch.tensor(math.log(mean))
    given = float(log_mean.exp().double())  # the mean that a float32 stands for
    exact = exact_negative_binomial(x, given, theta)
    scored = NegativeBinomialCounts(log_mean, torch.tensor(theta)).log_prob(torch.tensor(float(x)))
    assert float(scored) == pytest.approx(exact, rel=2e-6, abs=2e-3)
    poisson = PoissonCounts(log_mean).log_prob(torch.tensor(float(x)))
    assert float(poisson) == pytest.approx(exact_poisson(x, given), rel=2e-6, abs=2e-3)


def test_moderate_counts_are_scored_by_the_textbook_to_four_digits_of_a_nat() -> None:
    x, mean, theta = (part[:5, :5, :4].float() for part in grid())
    assert float(x.max()) < 200 and float(theta.max()) < 200
    given = mean.log().exp()
    scored = NegativeBinomialCounts(mean.log(), theta).log_prob(x)
    exact = scipy_negative_binomial(x.double(), given.double(), theta.double())
    assert ((scored - exact).abs() < 1e-4 + 1e-5 * exact.abs()).all()


def test_the_gradient_can_be_differentiated_and_mapped() -> None:
    log_mean, theta = torch.randn(4, dtype=torch.double), torch.rand(4, dtype=torch.double) + 0.5
    for x in (torch.tensor([0.0, 1, 5, 30]).double(), torch.tensor([0.0, 1, 5, 3000]).double()):

        def score(log_mean: Tensor, theta: Tensor, x: Tensor = x) -> Tensor:
            return NegativeBinomialCounts(log_mean, theta).log_prob(x)

        inputs = (log_mean.clone().requires_grad_(), theta.clone().requires_grad_())
        assert torch.autograd.gradcheck(score, inputs) and torch.autograd.gradgradcheck(
            score, inputs
        )
        mapped = torch.func.vmap(score, (0, None))(torch.stack([log_mean, log_mean + 1]), theta)
        assert torch.allclose(mapped[1], score(log_mean + 1, theta))
        under_func = torch.func.grad(lambda log_mean: score(log_mean, theta).sum())(log_mean)
        (gradient,) = torch.autograd.grad(score(*inputs).sum(), inputs[0])
        assert torch.allclose(under_func, gradient)


def test_a_large_dispersion_is_a_poisson() -> None:
    x, mean, _ = grid()
    poisson = PoissonCounts(mean.log()).log_prob(x)
    assert torch.allclose(
        NegativeBinomialCounts(mean.log(), torch.full_like(mean, 1e14)).log_prob(x), poisson
    )


@pytest.mark.parametrize("kind", ["poisson", "negative binomial", "zero-inflated"])
def test_gradients_are_those_of_the_textbook_formula(kind: str) -> None:
    x, mean, theta = grid()
    gate = torch.tensor(-0.7, dtype=torch.double)
    inputs = [mean.log().requires_grad_(), theta.clone().requires_grad_(), gate.requires_grad_()]

    def ours() -> Tensor:
        log_mean, dispersion, logits = inputs
        if kind == "poisson":
            return PoissonCounts(log_mean).log_prob(x)
        if kind == "negative binomial":
            return NegativeBinomialCounts(log_mean, dispersion).log_prob(x)
        return ZeroInflatedNegativeBinomialCounts(log_mean, dispersion, logits).log_prob(x)

    def textbook() -> Tensor:
        log_mean, dispersion, logits = inputs
        if kind == "poisson":
            return torch.distributions.Poisson(log_mean.exp()).log_prob(x)
        mu = log_mean.exp()
        terms = torch.lgamma(x + dispersion) - torch.lgamma(dispersion) - torch.lgamma(x + 1)
        log_prob = (
            terms
            + dispersion * (dispersion / (dispersion + mu)).log()
            + x * (mu / (dispersion + mu)).log()
        )
        if kind == "negative binomial":
            return log_prob
        gated = nn.functional.logsigmoid(-logits) + log_prob
        return torch.where(x == 0, torch.logaddexp(nn.functional.logsigmoid(logits), gated), gated)

    used = inputs[: {"poisson": 1, "negative binomial": 2, "zero-inflated": 3}[kind]]
    for mine, theirs in zip(
        torch.autograd.grad(ours().sum(), used),
        torch.autograd.grad(textbook().sum(), used),
        strict=True,
    ):
        assert torch.isfinite(mine).all()
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_right_where_the_mean_is_the_count() -> None:
    for count in (1.0, 2.0):
        log_mean = torch.tensor(math.log(count), dtype=torch.double, requires_grad=True)
        x = log_mean.detach().exp()  # the same digits
        for make in (
            PoissonCounts,
            lambda log_mean: NegativeBinomialCounts(log_mean, torch.tensor(3.0).double()),
        ):
            (gradient,) = torch.autograd.grad(make(log_mean).log_prob(x), log_mean)
            assert gradient.abs() < 1e-12


@pytest.mark.parametrize(
    "make",
    [
        lambda: PoissonCounts(torch.tensor([-1.0, 0.5, 3.0])),
        lambda: NegativeBinomialCounts(
            torch.tensor([-1.0, 0.5, 3.0]), torch.tensor([0.5, 2.0, 30.0])
        ),
        lambda: ZeroInflatedNegativeBinomialCounts(
            torch.tensor([-1.0, 0.5, 3.0]),
            torch.tensor([0.5, 2.0, 30.0]),
            torch.tensor([-1.0, 0.0, 1.0]),
        ),
    ],
)
def test_counts_sum_to_one_and_draws_have_the_moments(
    make: Callable[[], torch.distributions.Distribution],
) -> None:
    torch.manual_seed(0)
    distribution = make()
    every = torch.arange(400.0).unsqueeze(1)
    assert torch.allclose(distribution.log_prob(every).exp().sum(0), torch.ones(3), atol=1e-4)
    draws = distribution.sample((40_000,))
    errors = draws.std(0) / math.sqrt(40_000)
    assert ((draws.mean(0) - distribution.mean).abs() < 4.5 * errors).all()
    fourth = (draws - draws.mean(0)).pow(4).mean(0)
    error = ((fourth - draws.var(0).square()) / 40_000).sqrt()
    assert ((draws.var(0) - distribution.variance).abs() < 4.5 * error).all()
    observed = torch.stack([(draws == k).float().mean(0) for k in range(4)])
    expected = distribution.log_prob(every[:4]).exp()
    # One draw more or less is allowed beyond the errors, for what is seen once in 40,000 draws or
    # never.
    assert (
        (observed - expected).abs() < 4.5 * (expected * (1 - expected) / 40_000).sqrt() + 1 / 40_000
    ).all()


def test_expanding_does_not_copy_the_dispersions() -> None:
    distribution = NegativeBinomialCounts(torch.zeros(4, 3), torch.ones(3)).expand([5, 4, 3])
    assert distribution.batch_shape == (5, 4, 3) and distribution.dispersion.shape == (3,)
    assert distribution.log_prob(torch.ones(4, 3)).shape == (5, 4, 3)
    assert distribution.sample((2,)).shape == (2, 5, 4, 3)
    with pytest.raises(ValueError, match="within the support"):
        PoissonCounts(torch.zeros(3), validate_args=True).log_prob(torch.tensor([0.5, 1, 2]))


# -- likelihoods
# --------------------------------------------------------------------------------------------------


def test_rates_share_or_scale_by_the_size_factor() -> None:
    outputs, context = (
        torch.randn(5, 4, 3),
        Context(size_factor=torch.tensor([[1.0], [10.0], [100.0], [1e3]])),
    )
    sizes = context.size_factor
    assert torch.allclose(
        SoftmaxRate()(outputs, context).exp().sum(-1), sizes.squeeze(1).expand(5, 4)
    )
    assert torch.allclose(ExpRate()(outputs, context).exp(), sizes * outputs.exp())
    assert torch.allclose(ExpRate()(outputs), outputs)


def test_dispersions_of_each_batch_are_found_by_the_covariates() -> None:
    dispersion = LearnedDispersion(3, num_batches=2)
    with torch.no_grad():
        dispersion.log_dispersion.copy_(torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    likelihood = NegativeBinomialLikelihood(dispersion=dispersion)
    context = Context(
        covariates=torch.tensor([[1.0, 0, 7], [0, 1, 7]])
    )  # a covariate of another kind comes after
    result = likelihood(torch.zeros(4, 2, 3), context).base_dist.dispersion
    assert torch.allclose(result.log(), torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    with pytest.raises(InputError, match="wants as many covariates, got none"):
        likelihood(torch.zeros(2, 3))


def test_the_zero_inflated_decoder_gives_rate_dispersion_and_gate_in_this_order() -> None:
    likelihood = ZeroInflatedNegativeBinomialLikelihood(dispersion=DecoderDispersion())
    rate, log_dispersion, gate = torch.randn(3, 2, 4)
    base = likelihood(torch.cat([rate, log_dispersion, gate], -1)).base_dist
    assert torch.equal(base.log_mean, rate) and torch.equal(base.gate_logits, gate)
    assert torch.allclose(base.dispersion.log(), log_dispersion)


def test_planted_dispersions_are_recovered() -> None:
    torch.manual_seed(0)
    theta = torch.tensor([0.5, 1.0, 3.0, 10.0])
    x = NegativeBinomialCounts(torch.full((4,), math.log(8.0)), theta).sample((4000,))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outputs = nn.Parameter(torch.zeros(4))

        def forward(self, z: Tensor) -> Tensor:
            return self.outputs.expand(*z.shape[:-1], 4)

    likelihood = NegativeBinomialLikelihood(4)
    vae = BetaVAE(NormalPrior(1), Decoder(Constant(), likelihood), NormalPosterior(MLP(4, 2, ())))
    fit(vae, x, beta=1.0, epochs=120, batch_size=500, learning_rate=0.05, progress=False)
    # The error of a maximum likelihood estimate of log theta from 4,000 counts is at most a
    # twentieth here.
    assert torch.allclose(likelihood.dispersion.dispersion.log(), theta.log(), atol=0.2)
    assert torch.allclose(vae.decoder.network.outputs, torch.full((4,), math.log(8.0)), atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedDispersion(0), "'num_features' must be a positive integer or None, got 0"),
        (
            lambda: LearnedDispersion(3, 0),
            "'num_batches' must be a positive integer or None, got 0",
        ),
        (
            lambda: LearnedDispersion(initial=-1.0),
            "'initial' must be positive and finite, got -1.0",
        ),
    ],
)
def test_bad_values_are_refused_in_words(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_poisson_likelihood_has_no_parameters_of_its_own() -> None:
    assert not list(PoissonLikelihood().parameters())
    assert np.isclose(float(PoissonLikelihood()(torch.zeros(2)).log_prob(torch.ones(2))), -2.0)
