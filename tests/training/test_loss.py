"""The loss as a module, and the noise that can be given to it from outside."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import BernoulliLikelihood, LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import GivenNoise, Loss, reparametrize

N, FEATURES, LATENTS = 4, 5, 3


def small_vae() -> BetaVAE:
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(4,)), NormalLikelihood(LearnedScale(FEATURES)))
    return BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=(4,)))
    )


def test_the_loss_owns_the_parameters_of_the_model() -> None:
    vae = small_vae()
    assert {id(parameter) for parameter in Loss(vae).parameters()} == {
        id(parameter) for parameter in vae.parameters()
    }


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_given_noise_gives_the_loss_of_the_generator_that_drew_it(beta: float) -> None:
    loss, x = Loss(small_vae()), torch.randn(N, FEATURES)
    torch.manual_seed(7)
    drawn = loss(x, None, beta)
    torch.manual_seed(7)
    noise = torch.randn(N, LATENTS)
    given = loss(x, None, beta, {"z": noise})
    for result, expected in zip(given, drawn, strict=True):
        torch.testing.assert_close(result, expected)
    other = loss(x, None, beta, {"z": noise + 1})
    assert float(other.loss.detach()) != pytest.approx(float(given.loss.detach()), rel=1e-4)


def test_given_noise_leaves_the_generator_alone_and_lets_gradients_through() -> None:
    vae, x = small_vae(), torch.randn(N, FEATURES)
    before = torch.get_rng_state()
    terms = Loss(vae)(x, None, 1.0, {"z": torch.zeros(N, LATENTS)})
    assert torch.equal(torch.get_rng_state(), before)
    terms.loss.backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in vae.encoder.parameters())


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"'noise' of site 'z' must have shape \(4, 3\), got \(3,\)"
    ):
        Loss(small_vae())(torch.randn(N, FEATURES), None, 1.0, {"z": torch.zeros(LATENTS)})


def test_noise_for_a_site_that_does_not_draw_is_refused() -> None:
    loss = Loss(small_vae())
    for name in ("latent", "x"):
        with pytest.raises(
            InputError, match=f"'noise' must be for sites that draw, got it for {name}"
        ):
            loss(torch.randn(N, FEATURES), None, 1.0, {name: torch.zeros(N, LATENTS)})


def lower_triangle() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(N, LATENTS, LATENTS, generator=generator, dtype=torch.double)
    return torch.linalg.cholesky(matrix @ matrix.mT + torch.eye(LATENTS, dtype=torch.double))


LOC = torch.arange(N * LATENTS, dtype=torch.double).reshape(N, LATENTS)
FAMILIES = {
    "normal": dist.Normal(LOC, 0.5 + LOC),
    "independent": dist.Normal(LOC, 0.5 + LOC).to_event(1),
    "twice independent": dist.Normal(LOC, 0.5 + LOC).to_event(2),
    "multivariate normal": dist.MultivariateNormal(LOC, scale_tril=lower_triangle()),
    "broadcast multivariate normal": dist.MultivariateNormal(LOC, scale_tril=lower_triangle()[0]),
    "log-normal": dist.LogNormal(0.1 * LOC, 0.5 + LOC / 20).to_event(1),
    "transformed": dist.TransformedDistribution(
        dist.Normal(LOC, 1.0 + LOC).to_event(1),
        [transforms.AffineTransform(1.0, 0.1), transforms.TanhTransform()],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draw_from_given_noise_is_the_draw_of_the_generator(family: str) -> None:
    distribution = FAMILIES[family]
    torch.manual_seed(7)
    expected = distribution.rsample()
    torch.manual_seed(7)
    noise = torch.randn(N, LATENTS, dtype=torch.double)
    torch.testing.assert_close(reparametrize(distribution, noise), expected)


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Gamma(torch.ones(3), 1.0),
        dist.Bernoulli(torch.full((3,), 0.5)).to_event(1),
        dist.Delta(torch.zeros(3)),
    ],
    ids=["Gamma", "Bernoulli", "Delta"],
)
def test_other_families_are_refused_in_words(
    distribution: dist.Distribution, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    with pytest.raises(InputError, match=f"{name} draws are not built from given normal noise"):
        reparametrize(distribution, torch.zeros(3))


def test_the_handler_leaves_observed_sites_and_other_names_alone() -> None:
    def program() -> tuple[Tensor, Tensor, Tensor]:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        c = pyro.sample(
            "c", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=torch.full((2,), 9.0)
        )
        return a, b, c

    torch.manual_seed(3)
    expected_b = torch.randn(2)
    torch.manual_seed(3)
    with GivenNoise({"a": torch.tensor([1.0, -1.0]), "c": torch.ones(2)}):
        a, b, c = program()
    assert a.tolist() == [2.0, -2.0]
    assert torch.equal(b, expected_b)
    assert c.tolist() == [9.0, 9.0]


def test_bernoulli_likelihood_has_the_cross_entropy_as_distortion() -> None:
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=()), BernoulliLikelihood())
    vae = BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=()))
    )
    x, noise = torch.rand(N, FEATURES), torch.zeros(N, LATENTS)
    logits = decoder.network(vae.encode(x))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    torch.testing.assert_close(Loss(vae)(x, None, 1.0, {"z": noise}).distortion, expected.detach())
