"""The laws that every part obeys. A new part is one more line in one of the lists."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import ContinuousBernoulliPixels, DiscretizedLogistic
from pyro_bvae.likelihoods import (
    AutoregressiveBernoulliLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DecoderDispersion,
    DecoderScale,
    DiscretizedLogisticLikelihood,
    FixedScale,
    LaplaceLikelihood,
    LearnedDispersion,
    LearnedScale,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    SoftmaxRate,
    StandardizedScale,
    StudentTLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, ResidualMLP
from pyro_bvae.posteriors import (
    FlowPosterior,
    FullRankPosterior,
    LocalNormalPosterior,
    LowRankPosterior,
    MixturePosterior,
    NormalPosterior,
    local_posterior,
)
from pyro_bvae.priors import (
    FlowPrior,
    LaplacePrior,
    LearnedNormalPrior,
    MixturePrior,
    NormalPrior,
    StudentTPrior,
    VampPrior,
)

D, L = 6, 3
PRIORS: dict[str, Callable[[], nn.Module]] = {
    "normal": lambda: NormalPrior(L),
    "learned normal": lambda: LearnedNormalPrior(L),
    "laplace": lambda: LaplacePrior(L),
    "student-t": lambda: StudentTPrior(L),
    "mixture": lambda: MixturePrior(L, 4),
    "vamp": lambda: VampPrior(NormalPosterior(MLP(D, 2 * L, (5,))), torch.randn(4, D)),
    "flow": lambda: FlowPrior(L, num_layers=2, hidden=(8,)),
}
LIKELIHOODS: dict[str, Callable[[], nn.Module]] = {
    "bernoulli": BernoulliLikelihood,
    "autoregressive bernoulli": lambda: AutoregressiveBernoulliLikelihood(D, (8, 7)),
    "autoregressive bernoulli, a window": lambda: AutoregressiveBernoulliLikelihood(
        D, (8,), window=2
    ),
    "normal, fixed scale": lambda: NormalLikelihood(0.5),
    "normal, fixed scale of each feature": lambda: NormalLikelihood(
        FixedScale(torch.linspace(0.1, 1, D))
    ),
    "normal, shared scale": lambda: NormalLikelihood(LearnedScale()),
    "normal, scale of each feature": lambda: NormalLikelihood(LearnedScale(D)),
    "normal, scale from the decoder": lambda: NormalLikelihood(DecoderScale()),
    "normal, in other units": lambda: NormalLikelihood(
        StandardizedScale(LearnedScale(D), torch.arange(D), 1 + torch.arange(D))
    ),
    "laplace": lambda: LaplaceLikelihood(LearnedScale(D)),
    "student-t": lambda: StudentTLikelihood(DecoderScale()),
    "continuous bernoulli": ContinuousBernoulliLikelihood,
    "discretized logistic": DiscretizedLogisticLikelihood,
    "categorical": lambda: CategoricalLikelihood(3),
    "poisson": PoissonLikelihood,
    "poisson, softmax": lambda: PoissonLikelihood(SoftmaxRate()),
    "negative binomial": lambda: NegativeBinomialLikelihood(D),
    "negative binomial, shared dispersion": NegativeBinomialLikelihood,
    "negative binomial, dispersion from the decoder": lambda: NegativeBinomialLikelihood(
        dispersion=DecoderDispersion(), rate=SoftmaxRate()
    ),
    "zero-inflated negative binomial": lambda: ZeroInflatedNegativeBinomialLikelihood(D),
    "zero-inflated negative binomial, dispersion from the decoder": lambda: (
        ZeroInflatedNegativeBinomialLikelihood(dispersion=DecoderDispersion())
    ),
}
CONTINUOUS = ("normal", "laplace", "student-t")
POSTERIORS: dict[str, Callable[[], nn.Module]] = {
    name: lambda family=family: family(MLP(D, family.num_outputs(L), (5,)))  # type: ignore[misc]
    for name, family in {
        "normal": NormalPosterior,
        "full-rank": FullRankPosterior,
        "low-rank": LowRankPosterior,
        "flow": FlowPosterior,
        "mixture": MixturePosterior,
    }.items()
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "affine": lambda: MLP(D, 4, ()),
    "mlp": lambda: MLP(D, 4, (5, 7)),
    "residual": lambda: ResidualMLP(D, 4, 8, 2),
    **{f"encoder {s}": lambda s=s: ConvolutionalEncoder((1, s, s), 4, 16) for s in (28, 32, 64)},  # type: ignore[misc]
    **{
        f"decoder {s}": lambda s=s: ConvolutionalDecoder(4, (1, s, s), hidden=16)
        for s in (28, 32, 64)
    },  # type: ignore[misc]
    **{
        f"encoder {h} x {w}": lambda h=h, w=w: ConvolutionalEncoder((1, h, w), 4, 16)
        for h, w in ((4, 4), (8, 8), (32, 28), (20, 100))
    },  # type: ignore[misc]
    **{
        f"decoder {h} x {w}": lambda h=h, w=w: ConvolutionalDecoder(4, (1, h, w), hidden=16)
        for h, w in ((4, 4), (8, 8), (32, 28), (20, 100))
    },  # type: ignore[misc]
    "encoder, colour, covariates": lambda: ConvolutionalEncoder(
        (3, 32, 32), 4, 16, extra_features=2
    ),
    "decoder, colour, two parameters": lambda: ConvolutionalDecoder(4, (3, 32, 32), 2, hidden=16),
}
LEADING = [(), (2,), (5, 2)]


def members(table: dict[str, Callable[[], nn.Module]]) -> Any:
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


def parameters_for(likelihood: nn.Module, leading: tuple[int, ...]) -> Tensor:
    return torch.randn(*leading, likelihood.parameters_per_feature * D)


def check_density(distribution: Any, num_samples: int = 20_000) -> None:
    """A density integrates to one.

    The mean of another density over it, under its own draws, is one.
    """
    draws = distribution.sample((num_samples,))
    center, spread = draws.mean(0), 0.8 * draws.std(0) + 1e-6
    other = torch.distributions.Normal(center, spread).log_prob(draws).sum(-1)
    weights = (other - distribution.log_prob(draws)).double().exp()
    assert ((weights.mean(0) - 1).abs() < 5 * weights.std(0) / math.sqrt(num_samples)).all()


@members(PRIORS)
def test_priors_have_their_shape_draw_their_density_and_follow_a_dtype(
    make: Callable[[], nn.Module],
) -> None:
    prior = make().double()
    assert prior().batch_shape == () and prior().event_shape == (L,)
    assert prior().sample().dtype == torch.double
    check_density(prior())


@members(LIKELIHOODS)
@pytest.mark.parametrize("leading", LEADING)
def test_likelihoods_take_any_leading_dimensions(
    make: Callable[[], nn.Module], leading: tuple[int, ...]
) -> None:
    likelihood = make()
    distribution = likelihood(parameters_for(likelihood, leading))
    assert distribution.batch_shape == leading and distribution.event_shape == (D,)
    assert likelihood.support.check(distribution.sample()).all()
    assert distribution.mean.shape == (*leading, D)


@members({name: make for name, make in LIKELIHOODS.items() if name.startswith(CONTINUOUS)})
def test_continuous_likelihoods_draw_their_density(make: Callable[[], nn.Module]) -> None:
    likelihood = make()
    check_density(likelihood(parameters_for(likelihood, (2,))))


def test_bernoulli_sums_to_one_and_has_the_mean_of_its_draws() -> None:
    distribution = BernoulliLikelihood()(torch.randn(D))
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * D)
    assert distribution.log_prob(corners).exp().sum() == pytest.approx(1.0, abs=1e-5)
    draws = distribution.sample((20_000,))
    errors = (distribution.mean * (1 - distribution.mean) / 20_000).sqrt()
    assert ((draws.mean(0) - distribution.mean).abs() < 4.5 * errors).all()


def test_bernoulli_on_greys_is_the_cross_entropy() -> None:
    logits, x = torch.randn(4, D), torch.rand(4, D)
    expected = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    assert torch.allclose(BernoulliLikelihood()(logits).log_prob(x), expected)


@members(LIKELIHOODS)
def test_likelihoods_see_the_context(make: Callable[[], nn.Module]) -> None:
    likelihood = make()
    parameters = parameters_for(likelihood, (2,))
    x = likelihood(parameters).sample()
    with_context = likelihood(parameters, Context(covariates=torch.ones(2, 1))).log_prob(x)
    assert torch.equal(with_context, likelihood(parameters).log_prob(x))


@members(LIKELIHOODS)
def test_likelihoods_give_every_parameter_a_finite_gradient_in_float64(
    make: Callable[[], nn.Module],
) -> None:
    likelihood = make().double()
    parameters = parameters_for(likelihood, (50,)).double().requires_grad_()
    distribution = likelihood(parameters)
    log_prob = distribution.log_prob(distribution.sample())
    assert log_prob.dtype == torch.double and distribution.sample().dtype == torch.double
    log_prob.square().sum().backward()
    for parameter in (parameters, *likelihood.parameters()):
        assert torch.isfinite(parameter.grad).all() and (parameter.grad.abs().sum(0) > 0).all()


@members(LIKELIHOODS)
def test_likelihoods_expand_as_plates_do(make: Callable[[], nn.Module]) -> None:
    likelihood = make()
    distribution = likelihood(parameters_for(likelihood, (2,)))
    x = distribution.sample()
    wide = distribution.expand([4, 2])
    assert wide.sample().shape == (4, 2, D)
    assert torch.allclose(wide.log_prob(x), distribution.log_prob(x).expand(4, 2), atol=1e-5)


@members(LIKELIHOODS)
def test_extreme_parameters_stay_finite(make: Callable[[], nn.Module]) -> None:
    likelihood = make()
    for size in (1e-12, 1e4):
        for sign in (-1, 1):
            parameters = torch.full(
                (2, likelihood.parameters_per_feature * D), sign * size, requires_grad=True
            )
            for x in (torch.zeros(2, D), torch.ones(2, D)):
                log_prob = likelihood(parameters).log_prob(x)
                (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
                assert torch.isfinite(log_prob).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [LearnedScale(), LearnedScale(D), DecoderScale()])
def test_a_constant_pixel_keeps_a_finite_density(scale: nn.Module) -> None:
    likelihood = NormalLikelihood(scale)
    network = nn.Linear(1, likelihood.parameters_per_feature * D)
    optimizer = torch.optim.Adam([*network.parameters(), *likelihood.parameters()], lr=0.1)
    x = torch.full((8, D), 0.3)
    for _ in range(300):
        loss = -likelihood(network(torch.ones(8, 1))).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scales = likelihood(network(torch.ones(8, 1))).base_dist.scale
    assert torch.isfinite(loss) and scales.min() >= 0.01
    assert scales.max() < 0.05  # it did fall towards the floor


def test_normal_likelihood_is_the_squared_error_with_its_variance() -> None:
    parameters, x = torch.randn(3, D), torch.randn(3, D)
    squares = (x - parameters).square().sum(-1)
    expected = -squares - D / 2 * math.log(math.pi)
    assert torch.allclose(
        NormalLikelihood(math.sqrt(0.5))(parameters).log_prob(x), expected, atol=1e-5
    )


@members(POSTERIORS)
@pytest.mark.parametrize("leading", [(2,), (5, 2)])
def test_posteriors_have_their_shape_and_finite_gradients(
    make: Callable[[], nn.Module], leading: tuple[int, ...]
) -> None:
    posterior = make().double()
    distribution = posterior(torch.randn(*leading, D, dtype=torch.double))
    assert (
        distribution.batch_shape == leading
        and distribution.event_shape == (L,)
        and distribution.has_rsample
    )
    draw = distribution.rsample()
    (draw.square().sum() + distribution.log_prob(draw).sum()).backward()
    assert all(
        torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in posterior.parameters()
    )
    check_density(posterior(torch.randn(2, D, dtype=torch.double)))


@members(POSTERIORS)
def test_posteriors_have_a_local_version_that_starts_at_their_answer(
    make: Callable[[], nn.Module],
) -> None:
    distribution = make()(torch.randn(4, D))
    base = (
        distribution.base_dist
        if isinstance(distribution, torch.distributions.Independent)
        else distribution
    )
    local = local_posterior(base, 1)()
    z = distribution.sample()
    assert torch.allclose(local.log_prob(z), distribution.log_prob(z), atol=1e-5)


DISCRETE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "discretized logistic": (DiscretizedLogisticLikelihood, torch.arange(256) / 255),
    "categorical": (lambda: CategoricalLikelihood(3), torch.arange(3.0)),
}


@pytest.mark.parametrize(("make", "values"), DISCRETE.values(), ids=DISCRETE.keys())
def test_discrete_values_sum_to_one_and_are_drawn_as_often_as_they_should(
    make: Callable[[], nn.Module], values: Tensor
) -> None:
    torch.manual_seed(0)
    likelihood = make().double()
    distribution = likelihood(parameters_for(likelihood, ()).double())
    probabilities = distribution.base_dist.log_prob(values.double().unsqueeze(1)).exp()
    assert torch.allclose(probabilities.sum(0), torch.ones(D).double())
    draws = distribution.sample((20_000,))
    frequency = (
        (draws.unsqueeze(0) - values.unsqueeze(1).unsqueeze(1)).abs().lt(1e-6).double().mean(1)
    )
    errors = (probabilities * (1 - probabilities) / 20_000).sqrt()
    assert (
        torch.allclose(frequency.sum(0), torch.ones(D).double())
        and ((frequency - probabilities).abs() < 5 * errors + 1e-4).all()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_and_variance_of_a_discretized_logistic_are_those_of_its_levels(
    dtype: torch.dtype,
) -> None:
    loc = torch.tensor([0.0, 0.38, 1.3, -3.0, 0.5, 0.5, 100 / 255], dtype=dtype)
    scale = torch.tensor([1.0, 0.1, 0.05, 2.0, 50.0, 2e-3, 5e-4], dtype=dtype)
    distribution = DiscretizedLogistic(loc, scale)
    levels = torch.arange(256, dtype=dtype).unsqueeze(1) / 255
    shares = distribution.log_prob(levels).exp()
    mean = (shares * levels).sum(0)
    variance = (shares * (levels - mean).square()).sum(0)
    assert torch.allclose(distribution.mean, mean, atol=1e-6)
    assert torch.allclose(distribution.variance, variance, rtol=1e-4, atol=1e-7)
    assert distribution.mean.dtype == dtype
    wide = distribution.expand([3, 7])
    assert wide.mean.shape == (3, 7) and torch.equal(wide.mean[1], distribution.mean)
    many = DiscretizedLogistic(loc.repeat(1000), scale.repeat(1000))  # more pixels than one block
    assert torch.allclose(many.mean, mean.repeat(1000), atol=1e-6)


def test_the_variance_of_a_continuous_bernoulli_is_that_of_its_density() -> None:
    logits = torch.tensor([-30.0, -1.0, -0.5, 0.0, 0.1, 0.999, 1.0, 12.0], dtype=torch.double)
    distribution = ContinuousBernoulliPixels(logits)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.double).unsqueeze(1)
    squares = (grid - distribution.mean).square()
    expected = torch.trapezoid(distribution.log_prob(grid).exp() * squares, grid, dim=0)
    assert torch.allclose(distribution.variance, expected, rtol=1e-5)
    assert torch.allclose(
        ContinuousBernoulliPixels(logits.float()).variance.double(), expected, rtol=1e-4
    )


def test_a_count_beyond_its_bounds_is_led_back() -> None:
    """A mean beyond e^30, or a dispersion beyond e^-15, is held at the bound, and has the slope
    that it has there."""
    outputs = torch.full((3,), 31.0, requires_grad=True)
    (slope,) = torch.autograd.grad(PoissonLikelihood()(outputs).log_prob(torch.ones(3)), outputs)
    assert (slope < -1e12).all()
    likelihood = NegativeBinomialLikelihood()
    with torch.no_grad():
        likelihood.dispersion.log_dispersion.fill_(-16.0)
    assert torch.allclose(likelihood.dispersion.dispersion, torch.tensor(-15.0).exp())
    likelihood(torch.zeros(3)).log_prob(torch.ones(3)).backward()
    assert torch.allclose(likelihood.dispersion.log_dispersion.grad, torch.tensor(3.0), rtol=1e-4)


def test_the_discretized_logistic_is_the_difference_of_two_distribution_functions() -> None:
    parameters = torch.randn(5, 2 * D, dtype=torch.double)
    distribution = DiscretizedLogisticLikelihood()(parameters)
    base = distribution.base_dist
    for level in (0, 1, 100, 254, 255):
        x = torch.full((5, D), level / 255, dtype=torch.double)
        upper = (
            torch.sigmoid((x + 1 / 510 - base.loc) / base.scale)
            if level < 255
            else torch.ones_like(x)
        )
        lower = (
            torch.sigmoid((x - 1 / 510 - base.loc) / base.scale)
            if level > 0
            else torch.zeros_like(x)
        )
        assert torch.allclose(base.log_prob(x).exp(), upper - lower)


def test_the_continuous_bernoulli_is_torchs_away_from_its_series_and_normalised_near_it() -> None:
    logits = torch.tensor([-30.0, -3, -0.05, 0.0, 0.0999, 0.1001, 2, 40], dtype=torch.double)
    distribution = ContinuousBernoulliLikelihood()(logits).base_dist
    grid = torch.linspace(0, 1, 20_001, dtype=torch.double).unsqueeze(1)
    assert torch.allclose(
        torch.trapezoid(distribution.log_prob(grid).exp(), grid, dim=0),
        torch.ones(8).double(),
        rtol=2e-6,
    )
    means = torch.trapezoid(distribution.log_prob(grid).exp() * grid, grid, dim=0)
    assert torch.allclose(distribution.mean, means, atol=1e-6)
    far = (logits.abs() > 1) & (
        logits.abs() < 15
    )  # beyond these torch's probabilities are rounded to 0 or 1
    theirs = torch.distributions.ContinuousBernoulli(logits=logits[far])
    x = torch.rand(9, int(far.sum()), dtype=torch.double)
    assert torch.allclose(
        ContinuousBernoulliLikelihood()(logits[far]).base_dist.log_prob(x), theirs.log_prob(x)
    )
    draws = distribution.sample((20_000,))
    assert ((draws.mean(0) - means).abs() < 5 * draws.std(0) / math.sqrt(20_000)).all()


def test_extreme_scales_of_the_guide_stay_finite() -> None:
    network = MLP(1, 2, ())
    posterior = NormalPosterior(network)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[0.0], [1.0]]))
        network.layers[0].bias.zero_()
    for raw in (-1e4, 1e4):
        distribution = posterior(torch.tensor([[raw]]))
        kl = torch.distributions.kl_divergence(distribution, NormalPrior(1)().expand([1]))
        assert (
            torch.isfinite(kl).all()
            and torch.isfinite(distribution.log_prob(distribution.sample())).all()
        )


@members(NETWORKS)
@pytest.mark.parametrize("leading", LEADING)
def test_networks_take_any_leading_dimensions(
    make: Callable[[], nn.Module], leading: tuple[int, ...]
) -> None:
    network = make()
    inputs = torch.rand(*leading, network.in_features)
    outputs = network(inputs)
    assert outputs.shape == (*leading, network.out_features)
    rows = network(inputs.reshape(-1, network.in_features)).reshape(outputs.shape)
    assert torch.allclose(outputs, rows, atol=1e-5)


@members(NETWORKS)
def test_every_parameter_and_every_input_of_a_network_counts(make: Callable[[], nn.Module]) -> None:
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():  # some start at zero, which hides those before them
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = torch.rand(16, network.in_features, requires_grad=True)
    network(inputs).square().sum().backward()
    assert all(
        torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in network.parameters()
    )
    assert (inputs.grad.abs().sum(0) > 0).all()


@members(LIKELIHOODS | POSTERIORS | PRIORS | NETWORKS)
def test_parts_save_and_load(make: Callable[[], nn.Module], tmp_path: Any) -> None:
    part, other = make(), make()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(1.0)
    torch.save(part.state_dict(), tmp_path / "part.pt")
    other.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
    assert all(
        torch.equal(a, b) for a, b in zip(part.parameters(), other.parameters(), strict=True)
    )


def test_local_posterior_moves_with_its_parameters() -> None:
    local = LocalNormalPosterior(torch.zeros(2, L), torch.full((2, L), 0.5))
    with torch.no_grad():
        local.shift.fill_(2.0)
        local.log_factor.fill_(math.log(3.0))
    assert torch.allclose(local().mean, torch.ones(2, L)) and torch.allclose(
        local().stddev, torch.full((2, L), 1.5)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalPrior(0), "'latent_dim' must be a positive integer, got 0"),
        (lambda: NormalPosterior(MLP(4, 5)), "an even number of outputs, got 5"),
        (lambda: MLP(4, 0), "'out_features' must be a positive integer, got 0"),
        (lambda: MLP(4, 4, (3, -1)), "'hidden' must be a positive integer, got -1"),
        (
            lambda: ConvolutionalEncoder((1, 30, 30), 4),
            r"width divisible by 4, .* got \(1, 30, 30\)",
        ),
        (
            lambda: ConvolutionalDecoder(4, (1, 32, 27)),
            r"width divisible by 4, .* got \(1, 32, 27\)",
        ),
        (
            lambda: ConvolutionalDecoder(4, (0, 32, 32)),
            "'channels' must be a positive integer, got 0",
        ),
        (lambda: NormalLikelihood(0.0), "'scale' must be positive and finite, got 0.0"),
        (lambda: NormalLikelihood(math.nan), "'scale' must be positive and finite, got nan"),
        (
            lambda: StudentTLikelihood(df=1.0),
            "'df' must be above 1, so that there is a mean, and finite, got 1.0",
        ),
        (lambda: CategoricalLikelihood(1), "'num_categories' must be an integer from 2, got 1"),
        (
            lambda: LearnedDispersion(-3),
            "'num_features' must be a positive integer or None, got -3",
        ),
        (lambda: LearnedScale(floor=0.0), "0 < floor < initial, got 0.0 and 0.5"),
        (lambda: DecoderScale(floor=-1.0), "'floor' must be positive, got -1.0"),
        (lambda: LocalNormalPosterior(torch.zeros(2), torch.zeros(2)), "'scale' must be positive"),
    ],
)
def test_bad_values_are_refused_in_words(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
