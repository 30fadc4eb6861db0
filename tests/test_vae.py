"""The program: stock Pyro works on it, and gives the values that it should."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder
from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior


def small_vae(num_covariates: int = 0) -> BetaVAE:
    decoder = Decoder(
        MLP(2 + num_covariates, 5, (8,)), BernoulliLikelihood(), num_covariates=num_covariates
    )
    encoder = NormalPosterior(MLP(5 + num_covariates, 4, (8,)), num_covariates=num_covariates)
    return BetaVAE(NormalPrior(2), decoder, encoder)


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian(
        torch.tensor([[1.0, 0.8], [0.5, 1.0], [1.0, 1.0]]), 0.7, torch.tensor([0.1, -0.2, 0.3])
    )


BETAS = [0, 0.0, 0.5, 1.0, 4.0, torch.tensor(0.0), torch.tensor(4.0, dtype=torch.double)]


# -- objectives: mistake 1 (β on one side) and β = 0
# ----------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_mean_field_loss_is_distortion_plus_beta_rate(
    linear: LinearGaussian, beta: float | Tensor
) -> None:
    x = linear.sample(50)
    loc, scale = linear.best_diagonal(x, 2.0)
    vae = linear.vae(loc, scale)
    elbo = TraceMeanField_ELBO(num_particles=4000, vectorize_particles=True)
    loss = elbo.loss(vae.model, vae.guide, x, None, beta)
    expected = linear.distortion(x, loc, scale) + float(beta) * linear.rate(loc, scale)
    # The rate is exact; a draw of the reconstruction error has a standard deviation of at most
    # about 3 nats a datum.
    assert loss == pytest.approx(float(expected.sum()), abs=4 * 3 * math.sqrt(50 / 4000))


@pytest.mark.parametrize("beta", BETAS)
def test_trace_loss_is_distortion_plus_beta_rate(
    linear: LinearGaussian, beta: float | Tensor
) -> None:
    x = linear.sample(50)
    loc, scale = linear.best_diagonal(x, 2.0)
    vae = linear.vae(loc, scale)
    loss = Trace_ELBO(num_particles=4000, vectorize_particles=True).loss(
        vae.model, vae.guide, x, beta=beta
    )
    expected = linear.distortion(x, loc, scale) + float(beta) * linear.rate(loc, scale)
    assert loss == pytest.approx(
        float(expected.sum()), abs=4 * (3 + float(beta)) * math.sqrt(50 / 4000)
    )


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_at_beta_zero_no_gradient_comes_from_the_prior(elbo: type) -> None:
    vae, x = small_vae(), torch.rand(6, 5)
    gradients = []
    for beta in (0.0, torch.tensor(0.0)):
        pyro.set_rng_seed(1)
        loss = elbo().differentiable_loss(vae.model, vae.guide, x, None, beta)
        gradients.append(torch.autograd.grad(loss, list(vae.encoder.parameters())))
    pyro.set_rng_seed(1)
    z = vae.encoder(x).rsample()
    reconstruction = torch.autograd.grad(
        -vae.decoder(z).log_prob(x).sum(), list(vae.encoder.parameters())
    )
    for number, tensor, expected in zip(*gradients, reconstruction, strict=True):
        assert torch.allclose(number, expected, atol=1e-6) and torch.allclose(
            tensor, expected, atol=1e-6
        )


def test_beta_broadcasts_over_the_data_plate(linear: LinearGaussian) -> None:
    x = linear.sample(4)
    vae = linear.vae(*linear.best_diagonal(x))
    beta = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.double)
    guide_trace = poutine.trace(vae.guide).get_trace(x, None, beta)
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(
        x, None, beta
    )
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
        site = trace.nodes["z"]
        assert torch.allclose(site["log_prob"], beta * site["fn"].log_prob(site["value"]))
    assert torch.allclose(
        model_trace.nodes["x"]["log_prob"], vae.decoder(model_trace.nodes["z"]["value"]).log_prob(x)
    )


@pytest.mark.parametrize(
    "beta", [-1.0, math.nan, math.inf, torch.tensor(-1.0), torch.tensor([1.0, math.nan]), "4"]
)
def test_impossible_betas_are_refused(beta: object) -> None:
    vae = small_vae()
    for function in (vae.model, vae.guide):
        with pytest.raises(InputError, match="'beta' must be non-negative and finite, got"):
            function(torch.rand(2, 5), None, beta)


def test_beta_is_no_state() -> None:
    vae, x = small_vae(), torch.rand(3, 5)
    vae.guide(x, None, 7.0)
    trace = poutine.trace(vae.model).get_trace(x)
    assert trace.nodes["z"]["scale"] == 1.0


# -- stock Pyro
# -----------------------------------------------------------------------------------------------


def test_svi_finds_the_best_diagonal_guide(linear: LinearGaussian) -> None:
    x = linear.sample(20)
    vae = linear.vae(torch.zeros(20, 2), torch.ones(20, 2))
    for parameter in vae.decoder.parameters():
        parameter.requires_grad_(False)
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.985}
    )
    svi = SVI(
        vae.model, vae.guide, optimizer, Trace_ELBO(num_particles=32, vectorize_particles=True)
    )
    for _ in range(400):
        svi.step(x, beta=4.0)
        optimizer.step()
    loc, scale = linear.best_diagonal(x, 4.0)
    guide = vae.encoder()
    # Errors in units of the guide's scale: averaged over 32 particles and a vanishing step they are
    # about 0.01.
    assert ((guide.mean - loc) / scale).abs().max() < 0.05
    assert (guide.stddev / scale).log().abs().max() < 0.05


def test_predictive_returns_the_data_unless_the_model_is_unconditioned(
    linear: LinearGaussian,
) -> None:
    x = linear.sample(3)
    vae = linear.vae(*linear.best_diagonal(x))
    observed = Predictive(vae.model, guide=vae.guide, num_samples=2)(x)["x"]
    assert torch.equal(observed, x.expand(2, 3, 3))
    drawn = Predictive(poutine.uncondition(vae.model), num_samples=20_000, parallel=True)(x)[
        "x"
    ].flatten(0, 1)
    covariance = linear.weight @ linear.weight.T + linear.noise_scale**2 * torch.eye(3)
    errors = (covariance.diagonal() / len(drawn)).sqrt()
    assert ((drawn.mean(0) - linear.bias).abs() / errors).max() < 4
    assert torch.allclose(drawn.T.cov(), covariance, atol=0.1)


def test_posterior_predictive_has_the_guide_mean(linear: LinearGaussian) -> None:
    x = linear.sample(2)
    loc, scale = linear.best_diagonal(x)
    vae = linear.vae(loc, scale)
    predictive = Predictive(
        poutine.uncondition(vae.model), guide=vae.guide, num_samples=20_000, parallel=True
    )
    drawn = predictive(x)["x"]
    variance = scale**2 @ (linear.weight**2).T + linear.noise_scale**2
    expected = loc @ linear.weight.T + linear.bias
    assert ((drawn.mean(0) - expected).abs() / (variance / 20_000).sqrt()).max() < 4


def test_condition_and_replay_give_the_joint_density(linear: LinearGaussian) -> None:
    x = linear.sample(5)
    vae, z = linear.vae(*linear.best_diagonal(x)), torch.randn(5, 2, dtype=torch.double)
    means = z @ linear.weight.T + linear.bias
    expected = (
        dist.Normal(0, 1).log_prob(z).sum()
        + dist.Normal(means, linear.noise_scale).log_prob(x).sum()
    )
    conditioned = poutine.trace(poutine.condition(vae.model, data={"z": z})).get_trace(x)
    assert conditioned.log_prob_sum().item() == pytest.approx(float(expected))
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    guide_trace.nodes["z"]["value"] = z
    replayed = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(x)
    assert torch.equal(replayed.nodes["z"]["value"], z)
    assert replayed.log_prob_sum().item() == pytest.approx(float(expected))


@pytest.mark.slow
def test_nuts_draws_from_the_posterior_with_the_decoder_frozen(linear: LinearGaussian) -> None:
    x = linear.sample(2)
    vae = linear.vae(*linear.best_diagonal(x))
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    mcmc = MCMC(NUTS(vae.model), num_samples=600, warmup_steps=200, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    deviation = linear.precision().inverse().diagonal().sqrt()
    # At least about 200 effective draws: four standard errors of the mean.
    assert ((z.mean(0) - linear.posterior_mean(x)).abs() / deviation).max() < 4 / math.sqrt(200)
    for datum in range(2):
        assert torch.allclose(z[:, datum].T.cov(), linear.precision().inverse(), atol=0.16)


def test_importance_gives_the_joint_evidence() -> None:
    linear = LinearGaussian(torch.tensor([[1.0, 0.2], [0.1, 1.0]]), 0.7)
    x = linear.sample(2)
    loc, scale = linear.best_diagonal(x)
    vae = linear.vae(loc, 1.2 * scale)  # wider than the posterior, so that the weights are bounded
    log_weights = torch.tensor(Importance(vae.model, vae.guide, num_samples=500).run(x).log_weights)
    weights = (log_weights - linear.evidence(x).sum()).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(500) < 0.2


def test_render_model_names_sites_and_plate() -> None:
    relations = pyro.infer.inspect.get_model_relations(small_vae().model, (torch.rand(3, 5),))
    assert relations["sample_sample"] == {"z": [], "x": ["z"]}
    assert relations["plate_sample"] == {"data": ["z", "x"]}
    assert relations["observed"] == ["x"]


# -- the parameter store's trap
# -------------------------------------------------------------------------------


def step(vae: BetaVAE, x: Tensor) -> float:
    return SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda _: small_vae()])
def test_a_second_vae_under_the_same_name_is_refused_in_words(clone: object) -> None:
    first, x = small_vae(), torch.rand(4, 5)
    step(first, x)
    second = clone(first)  # type: ignore[operator]
    with pytest.raises(
        InputError, match=r"already holds another module's parameters under the name 'beta_vae'"
    ):
        step(second, x)
    pyro.clear_param_store()
    before = [parameter.clone() for parameter in second.parameters()]
    step(second, x)
    assert any(not torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))


def test_two_names_train_side_by_side() -> None:
    x = torch.rand(4, 5)
    for name in ("one", "two"):
        vae = small_vae()
        vae.name = name
        before = [parameter.clone() for parameter in vae.parameters()]
        step(vae, x)
        assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


# -- parts
# --------------------------------------------------------------------------------------------------


class ThreeLines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(self.layer(x), 0.5).to_event(1)


def test_any_callable_that_returns_a_distribution_is_a_part() -> None:
    vae = BetaVAE(
        prior=lambda: dist.Laplace(torch.zeros(2), 1.0).to_event(1),
        decoder=lambda z: dist.Normal(
            z.sum(-1, keepdim=True).expand(*z.shape[:-1], 5), 1.0
        ).to_event(1),
        encoder=ThreeLines(),
    )
    x = torch.rand(4, 5)
    before = vae.encoder.layer.weight.clone()
    assert math.isfinite(step(vae, x))
    assert not torch.equal(before, vae.encoder.layer.weight)
    assert vae.generate(3).shape == (3, 5) and vae.reconstruct(x).shape == (4, 5)


@pytest.mark.parametrize(
    ("prior", "decoder", "encoder", "message"),
    [
        (3, 2, 2, "must agree on the number of latents, got prior 3, decoder 2, encoder 2"),
        (2, 3, 2, "must agree on the number of latents, got prior 2, decoder 3, encoder 2"),
        (2, 2, 3, "must agree on the number of latents, got prior 2, decoder 2, encoder 3"),
    ],
)
def test_latent_sizes_that_disagree_are_refused(
    prior: int, decoder: int, encoder: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BetaVAE(
            NormalPrior(prior),
            Decoder(MLP(decoder, 5), BernoulliLikelihood()),
            NormalPosterior(MLP(5, 2 * encoder)),
        )


def test_feature_counts_that_disagree_are_refused() -> None:
    decoder = Decoder(MLP(2, 6), BernoulliLikelihood())
    with pytest.raises(
        InputError, match="must agree on the number of features, got decoder 6, encoder 5"
    ):
        BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(5, 4)))


def test_wrong_feature_count_of_the_data_is_refused() -> None:
    vae = small_vae()
    for function in (vae.model, vae.guide, vae.check_data):
        with pytest.raises(InputError, match="'x' must have 5 features, got 4"):
            function(torch.rand(3, 4))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"'x' must lie in the likelihood's support, .*, got 1.5 at index \(1, 2\)"),
        (math.nan, r"'x' must be finite, got nan at index \(1, 2\)"),
        (-math.inf, r"'x' must be finite, got -inf at index \(1, 2\)"),
    ],
)
def test_data_outside_the_likelihood_are_refused_with_their_index(
    value: float, message: str
) -> None:
    x = torch.rand(3, 5)
    x[1, 2] = value
    with pytest.raises(InputError, match=message):
        small_vae().check_data(x)


def test_plain_svi_on_pixels_outside_the_unit_interval_raises() -> None:
    with pytest.raises(ValueError, match="within the support"):
        step(small_vae(), torch.full((2, 5), 2.0))


def test_a_model_with_covariates_says_which_it_misses() -> None:
    vae, x = small_vae(num_covariates=3), torch.rand(4, 5)
    narrow = Context(covariates=torch.zeros(4, 2))
    for given, got in ((None, "none"), (narrow, "2"), (Context(torch.ones(4, 1)), "none")):
        calls = (
            lambda given=given: vae.generate(4, given),
            lambda given=given: vae.encode(x, given),
            lambda given=given: vae.model(x, given),
            lambda given=given: vae.guide(x, given),
            lambda given=given: vae.decode(torch.zeros(4, 2), given),
        )
        for call in calls:
            with pytest.raises(InputError, match=f"covariates' must have 3 columns, got {got}:"):
                call()
    with pytest.raises(InputError, match="covariates' must have 0 columns, got 2"):
        small_vae().generate(4, narrow)


def test_covariates_reach_encoder_and_decoder() -> None:
    vae, x = small_vae(num_covariates=3), torch.rand(4, 5)
    one, other = (Context(covariates=torch.eye(3)[torch.full((4,), k)]) for k in (0, 1))
    assert not torch.allclose(vae.encode(x, one), vae.encode(x, other))
    z = torch.randn(7, 4, 2)
    assert vae.decode(z, one).shape == (7, 4, 5)
    assert not torch.allclose(vae.decode(z, one), vae.decode(z, other))
    assert math.isfinite(Trace_ELBO().loss(vae.model, vae.guide, x, one, 2.0))


# -- for people
# -----------------------------------------------------------------------------------------------


def test_encode_reconstruct_and_generate_are_the_means(linear: LinearGaussian) -> None:
    x = linear.sample(6)
    loc, scale = linear.best_diagonal(x)
    vae = linear.vae(loc, scale)
    assert torch.allclose(vae.encode(x), loc)
    assert torch.allclose(vae.reconstruct(x), loc @ linear.weight.T + linear.bias)
    drawn = vae.generate(20_000, noise=True)
    assert torch.allclose(
        drawn.T.cov(),
        linear.weight @ linear.weight.T + linear.noise_scale**2 * torch.eye(3),
        atol=0.1,
    )


def test_generate_leaves_the_callers_generator_alone_and_follows_its_seed() -> None:
    vae = small_vae()
    state = torch.get_rng_state()
    first, again, other = vae.generate(3, seed=1), vae.generate(3, seed=1), vae.generate(3, seed=2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_people_methods_run_in_eval_mode_and_restore_the_modes() -> None:
    network = nn.Sequential(MLP(5, 4, (8,)), nn.Dropout(0.5))
    vae = BetaVAE(NormalPrior(2), Decoder(MLP(2, 5), NormalLikelihood()), NormalPosterior(network))
    network[0].eval()
    x = torch.rand(4, 5)
    assert torch.equal(vae.encode(x), vae.encode(x))
    assert network[1].training and not network[0].training and vae.training


def test_a_context_is_taken_and_moved_part_by_part() -> None:
    x, context = torch.zeros(3, 2), Context(covariates=torch.arange(6).reshape(3, 2))
    taken = context.take(torch.tensor([2, 0])).to(torch.double)
    assert taken.size_factor is None and taken.covariates is not None
    assert taken.covariates.dtype is torch.double
    assert taken.covariates.tolist() == [[4, 5], [0, 1]]
    assert len(arguments(x, None)) == 1
    assert arguments(x, context)[1] is context
