"""The masked autoregressive likelihood against sums over all images."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, elbo, evidence, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import AutoregressivePixels
from pyro_bvae.likelihoods import AutoregressiveBernoulliLikelihood, BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

D = 4
IMAGES = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * D)
NETWORKS: list[dict[str, Any]] = [
    {"hidden": ()},
    {"hidden": (16,)},
    {"hidden": (16, 3, 9)},
    {"hidden": (), "window": 1},
    {"hidden": (16,), "window": 2},
    {"hidden": (16, 16), "window": 3},
]


def strong(num_features: int = D, **options: Any) -> AutoregressiveBernoulliLikelihood:
    """A likelihood whose pixels see each other well."""
    torch.manual_seed(0)
    likelihood = AutoregressiveBernoulliLikelihood(num_features, **options).double()
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.copy_(torch.randn_like(parameter) * 1.5)
    return likelihood


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_the_probabilities_of_all_images_sum_to_one(options: dict[str, Any]) -> None:
    distribution = strong(**options)(torch.randn(3, 1, D).double())
    log_prob = distribution.log_prob(IMAGES.double())
    assert log_prob.shape == (3, 16)
    assert torch.allclose(log_prob.exp().sum(-1), torch.ones(3).double())


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_pixel_sees_all_within_its_window_and_nothing_else(options: dict[str, Any]) -> None:
    size = 9
    network = strong(size, **options).preceding
    jacobian = torch.autograd.functional.jacobian(network, torch.randn(size).double())
    back = torch.arange(size).unsqueeze(-1) - torch.arange(
        size
    )  # how far before the output the input lies
    assert torch.equal(jacobian != 0, (back > 0) & (back <= options.get("window", size)))


@pytest.mark.parametrize("window", [None, 3])
def test_hidden_units_see_all_of_the_window_too(window: int | None) -> None:
    size = 9
    network = strong(size, hidden=(32, 32), window=window).preceding
    nn.init.zeros_(network.skip.weight)
    jacobian = torch.autograd.functional.jacobian(network, torch.randn(size).double())
    back = torch.arange(size).unsqueeze(-1) - torch.arange(size)
    assert torch.equal(jacobian != 0, (back > 0) & (back <= (window or size)))


def test_it_is_the_chain_rule_pixel_by_pixel() -> None:
    likelihood, logits = strong(hidden=(16,)), torch.randn(D).double()
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    total = torch.zeros(()).double()
    for dim in range(D):
        before = torch.where(
            torch.arange(D) < dim, x, torch.full_like(x, 0.5)
        )  # whatever comes after does not count
        logit = logits[dim] + likelihood.preceding(before)[dim]
        total += torch.distributions.Bernoulli(logits=logit).log_prob(x[dim])
    assert torch.allclose(likelihood(logits).log_prob(x), total)


def test_draws_follow_the_density() -> None:
    likelihood, logits = strong(hidden=(16,)), torch.randn(2, D).double()
    distribution = likelihood(logits)
    torch.manual_seed(1)
    draws = distribution.sample(torch.Size([20_000]))
    assert draws.shape == (20_000, 2, D)
    codes = (draws * torch.tensor([8, 4, 2, 1]).double()).sum(-1).long()
    for row in range(2):
        counted = torch.bincount(codes[:, row], minlength=16) / 20_000
        exact = likelihood(logits[row]).log_prob(IMAGES.double()).exp()
        assert ((counted - exact).abs() < 4.5 * (exact * (1 - exact) / 20_000).sqrt() + 1e-9).all()
    torch.manual_seed(1)
    assert torch.equal(draws, distribution.sample(torch.Size([20_000])))


def test_without_a_masked_network_it_is_the_bernoulli_likelihood() -> None:
    likelihood = AutoregressiveBernoulliLikelihood(D, (8,))
    for parameter in likelihood.parameters():
        nn.init.zeros_(parameter)
    logits = (5 * torch.randn(3, 16, D)).requires_grad_()
    ours, theirs = likelihood(logits), BernoulliLikelihood()(logits)
    with torch.no_grad():
        assert torch.equal(ours.log_prob(IMAGES), theirs.log_prob(IMAGES))
    assert torch.equal(ours.log_prob(IMAGES), theirs.log_prob(IMAGES))
    assert torch.allclose(ours.mean, theirs.mean)


def test_the_mean_is_the_one_that_is_documented_and_near_the_exact_one_where_pixels_see_little() -> (
    None
):
    likelihood, logits = strong(hidden=()), torch.randn(D).double()
    mean = likelihood(logits).mean
    assert torch.allclose(mean, torch.sigmoid(logits + likelihood.preceding(mean)))
    with torch.no_grad():
        likelihood.preceding.skip.weight.mul_(0.1)
    distribution = likelihood(logits)
    exact = (distribution.log_prob(IMAGES.double()).exp().unsqueeze(-1) * IMAGES).sum(0)
    error, without = (
        (means - exact).abs().max() for means in (distribution.mean, torch.sigmoid(logits))
    )
    assert torch.allclose(distribution.mean[0], exact[0]) and error < 0.1 * without


def test_the_network_is_evaluated_once_for_all_particles() -> None:
    seen = []

    def preceding(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return torch.zeros_like(x)

    wide = AutoregressivePixels(torch.randn(16, D), preceding).expand([5, 16])
    assert wide.log_prob(IMAGES).shape == (5, 16) and seen == [(16, D)]


def autoregressive_vae(num_features: int = 6) -> BetaVAE:
    torch.manual_seed(0)
    return BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, num_features, (8,)), AutoregressiveBernoulliLikelihood(num_features, (8,))),
        NormalPosterior(MLP(num_features, 4, (8,))),
    )


def test_evidence_and_bound_of_a_vae_take_one_pass_for_all_particles() -> None:
    vae, x = autoregressive_vae(), (torch.rand(12, 6) < 0.5).float()
    passes: list[torch.Size] = []
    vae.decoder.likelihood.preceding.register_forward_hook(
        lambda _, inputs, __: passes.append(inputs[0].shape)
    )
    bound = elbo(vae.model, vae.guide, x, num_samples=400)
    estimate = evidence(vae.model, vae.guide, x, num_samples=400)
    assert len(passes) < 40 and all(
        len(shape) == 2 for shape in passes
    )  # blocks of data, without particles
    nodes, weights = torch.tensor(quadrature())
    z = torch.cartesian_prod(nodes, nodes).float()
    with torch.no_grad():
        log_prob = vae.decoder(z.unsqueeze(1)).log_prob(x).double()
    exact = torch.logsumexp(
        log_prob + torch.cartesian_prod(weights, weights).log().sum(-1, keepdim=True), 0
    )
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error + 1e-5
    assert bound.value < float(exact.mean()) + 4 * bound.monte_carlo_error
    # That the pixels see each other counts: without it the evidence is another one.
    with torch.no_grad():
        vae.decoder.likelihood.preceding.skip.weight.mul_(30)
    assert abs(evidence(vae.model, vae.guide, x, num_samples=400).value - estimate.value) > 0.1


def quadrature() -> list[list[float]]:
    """Nodes and weights of the standard normal."""
    grid = torch.linspace(-7, 7, 141, dtype=torch.double)
    weights = torch.exp(-grid.square() / 2) * 0.1 / math.sqrt(2 * math.pi)
    return [grid.tolist(), (weights / weights.sum()).tolist()]


def test_training_learns_what_pixels_owe_to_each_other() -> None:
    """Each pixel repeats the one before it.

    A fair coin and nine copies, whatever the latents say.
    """
    x = torch.tensor([0.0, 1.0]).repeat(100).unsqueeze(-1).expand(200, 10).contiguous()
    vae = autoregressive_vae(10)
    fit(vae, x, epochs=60, batch_size=50, learning_rate=0.05, progress=False)
    result = evidence(vae.model, vae.guide, x[:2], num_samples=200).value
    assert math.log(0.5) - 0.1 < result < math.log(0.5) + 0.01
    assert vae.generate(5, noise=True).shape == (5, 10)


@pytest.mark.parametrize("greys", [torch.full((2, 6), 0.5), torch.full((2, 6), -1.0)])
def test_greys_are_refused(greys: Tensor) -> None:
    with pytest.raises(InputError, match="must lie in the likelihood's support"):
        autoregressive_vae().check_data(greys)
    with pytest.raises(ValueError, match="support"):
        AutoregressivePixels(torch.zeros(6), torch.zeros_like, validate_args=True).log_prob(greys)


def test_bad_arguments_are_refused_in_words() -> None:
    for arguments, message in (
        ((1,), "'num_features' must be an integer from 2, got 1"),
        ((4, (0,)), "'hidden' must be a positive integer, got 0"),
        ((4, (8,), 0), "'window' must be a positive integer, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            AutoregressiveBernoulliLikelihood(*arguments)
    with pytest.raises(
        InputError, match="'num_features' must be the number of logits, got 4 and 5"
    ):
        AutoregressiveBernoulliLikelihood(4)(torch.zeros(2, 5))
    vae, x = autoregressive_vae(), torch.ones(2, 6)
    vae.missing = True
    with pytest.raises(InputError, match="independent given z"):
        vae.model(x)
