"""The training objective is Pyro's ``Trace_ELBO``: its losses, its gradients, its place in SVI."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Loss, TraceTerms

N, FEATURES, LATENTS = 6, 5, 2


class CoinPosterior(nn.Module):
    """A guide whose draws have no reparametrisation, so that its gradient needs the score
    function."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(FEATURES, LATENTS, hidden=(4,))

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=self.network(x)).to_event(1)


def coin_prior() -> dist.Distribution:
    return dist.Bernoulli(probs=torch.full((LATENTS,), 0.3, dtype=torch.double)).to_event(1)


def small_vae(coins: bool = False) -> BetaVAE:
    torch.manual_seed(3)
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(4,)), BernoulliLikelihood())
    if coins:
        return BetaVAE(coin_prior, decoder, CoinPosterior()).double()
    return BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=(4,)))
    ).double()


def pixels(count: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, FEATURES, generator=generator, dtype=torch.double).round()


def gradients(vae: nn.Module) -> dict[str, Tensor]:
    results = {name: parameter.grad.clone() for name, parameter in vae.named_parameters()}
    vae.zero_grad()
    return results


def of_pyro(
    vae: BetaVAE, beta: float | Tensor, **options: object
) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(11)
    loss = Trace_ELBO(**options).loss_and_grads(vae.model, vae.guide, pixels(), None, beta)
    return loss, gradients(vae)


BETAS = [
    0.0,
    0.5,
    4.0,
    torch.tensor(0.0, dtype=torch.double),
    torch.tensor(4.0, dtype=torch.double),
    torch.linspace(0, 4, N, dtype=torch.double),
]
PARTICLES = [
    {},
    {"num_particles": 3},
    {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
]


@pytest.mark.parametrize("coins", [False, True], ids=["normal", "coins"])
@pytest.mark.parametrize("options", PARTICLES, ids=["one", "three", "vectorized"])
@pytest.mark.parametrize("beta", BETAS, ids=str)
def test_loss_and_gradients_are_those_of_trace_elbo(
    beta: float | Tensor, options: dict[str, object], coins: bool
) -> None:
    vae = small_vae(coins)
    expected, expected_gradients = of_pyro(vae, beta, **options)

    torch.manual_seed(11)
    terms = Loss(vae, TraceTerms(**options))(pixels(), None, beta)
    terms.loss.backward()
    assert float(terms.loss.detach()) == pytest.approx(expected, abs=1e-8)
    results = gradients(vae)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(results[name], gradient, atol=1e-8, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in results.values()) > 1e-3

    torch.manual_seed(11)
    loss = TraceTerms(**options).loss_and_grads(vae.model, vae.guide, pixels(), None, beta)
    assert loss == pytest.approx(expected, abs=1e-8)
    for name, gradient in gradients(vae).items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-8, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_terms_are_distortion_and_rate_of_the_draws(beta: float) -> None:
    vae, x = small_vae(), pixels()
    noise = torch.randn(N, LATENTS, dtype=torch.double)
    posterior = vae.encoder(x)
    z = posterior.base_dist.loc + posterior.base_dist.scale * noise
    distortion = -vae.decoder(z).log_prob(x).sum()
    rate = (posterior.log_prob(z) - vae.prior().log_prob(z)).sum()

    terms = Loss(vae)(x, None, beta, {"z": noise})
    torch.testing.assert_close(terms.distortion, distortion.detach())
    torch.testing.assert_close(terms.rate, rate.detach())
    torch.testing.assert_close(terms.loss, distortion + beta * rate)
    assert not terms.distortion.requires_grad
    assert not terms.rate.requires_grad


def test_terms_of_particles_are_their_means() -> None:
    vae, x = small_vae(), pixels()
    one = TraceTerms()
    torch.manual_seed(2)
    singles = [one.terms(vae.model, vae.guide, x, None, 2.0) for _ in range(3)]
    torch.manual_seed(2)
    together = TraceTerms(num_particles=3).terms(vae.model, vae.guide, x, None, 2.0)
    for name in ("loss", "distortion", "rate"):
        expected = torch.stack([getattr(single, name) for single in singles]).mean()
        torch.testing.assert_close(getattr(together, name), expected)


def test_terms_of_a_subsample_stand_for_the_whole_data() -> None:
    """Loss, distortion and rate are scaled alike, so that the loss stays distortion + β rate."""
    x = pixels(20)

    def model() -> None:
        with pyro.plate("data", 20, subsample_size=5) as index:
            with pyro.poutine.scale(scale=2.0):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros(FEATURES, dtype=torch.double), 1.0).to_event(1)
                )
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

    def guide() -> None:
        with pyro.plate("data", 20, subsample_size=5) as index, pyro.poutine.scale(scale=2.0):
            pyro.sample("z", dist.Normal(0.5 * x[index], 0.7).to_event(1))

    terms = TraceTerms().terms(model, guide)
    torch.testing.assert_close(terms.loss, terms.distortion + 2 * terms.rate)


@pytest.mark.parametrize("coins", [False, True], ids=["normal", "coins"])
def test_stock_svi_trains_with_it_as_with_trace_elbo(coins: bool) -> None:
    losses, weights = [], []
    for objective in (Trace_ELBO(), TraceTerms()):
        pyro.clear_param_store()
        vae = small_vae(coins)
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
        torch.manual_seed(4)
        losses.append([svi.step(pixels(), beta=2.0) for _ in range(10)])
        weights.append(vae.state_dict())
        assert all(not torch.equal(before[name], value) for name, value in weights[-1].items())
    assert losses[1] == pytest.approx(losses[0], abs=1e-8)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-8, rtol=0)


def test_svi_evaluates_the_loss_with_it() -> None:
    vae = small_vae()
    values = []
    for objective in (Trace_ELBO(), TraceTerms()):
        torch.manual_seed(1)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
        values.append(svi.evaluate_loss(pixels(), beta=4.0))
    assert values[0] == pytest.approx(values[1], abs=1e-8)
