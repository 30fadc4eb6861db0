"""The sleep phase: its loss and its minimum in closed form, the model as it was, bad input."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import NegativeBinomialLikelihood, SoftmaxRate
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Loss, OneCycle, SleepPhase, sleep_phase

WEIGHT = torch.tensor([[1.0, 0.8], [0.2, 1.0], [0.6, 0.3], [0.5, 0.6]], dtype=torch.double)
LINEAR = LinearGaussian(WEIGHT, 0.6, torch.tensor([0.1, -0.2, 0.3, 0.0]))
# Variances of the best diagonal guide: the posterior's own of each latent, where those of the ELBO
# are the inverse diagonal of its precision.
COVERING = torch.linalg.inv(LINEAR.precision()).diagonal()
NARROW = 1 / LINEAR.precision().diagonal()
N = 4000


class Affine(nn.Module):
    """A normal guide with an affine mean and scales of its own."""

    def __init__(self, variance: Tensor) -> None:
        super().__init__()
        self.mean = copy.deepcopy(LINEAR.amortized_vae().encoder.network)
        self.log_scale = nn.Parameter(variance.log() / 2)

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1)


def linear_vae(variance: Tensor) -> BetaVAE:
    vae = LINEAR.amortized_vae()
    return BetaVAE(vae.prior, vae.decoder, Affine(variance))


def cells_vae(missing: bool = False) -> BetaVAE:
    torch.manual_seed(0)
    return BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, 5, (8,)), NegativeBinomialLikelihood(5, rate=SoftmaxRate())),
        NormalPosterior(MLP(5, 4, (8,)), inputs=torch.log1p),
        missing=missing,
    )


@pytest.mark.parametrize("variance", [COVERING, 2 * COVERING], ids=["best", "too wide"])
@pytest.mark.parametrize("beta", [1.0, 0.0, 4.0])
def test_the_loss_is_the_cross_entropy_of_the_posterior(variance: Tensor, beta: float) -> None:
    torch.manual_seed(1)
    vae, x = linear_vae(variance), LINEAR.sample(N)
    terms = Loss(vae, SleepPhase())(x, None, beta)
    entropy = (0.5 * (2 * math.pi * variance).log() + 0.5 * COVERING / variance).sum()
    # The squares of two correlated normals have a variance of 8 at most.
    error = math.sqrt(8 * N) / 2 * float((COVERING / variance).max())
    assert float(terms.loss.detach()) == pytest.approx(N * float(entropy), abs=4 * error)
    terms.loss.backward()
    assert all(each.grad is None for each in vae.decoder.parameters())
    gradient = vae.encoder.log_scale.grad / N
    # Of log q by log scale: 1 - variance of the posterior / variance, each datum's deviating by √2.
    expected = 1 - COVERING / variance
    assert float((gradient - expected).abs().max()) < 4 * math.sqrt(2 / N)


def test_a_narrow_guide_comes_to_cover_the_posterior_and_the_model_stays() -> None:
    vae, x = linear_vae(NARROW), LINEAR.sample(300, seed=3)
    before = {name: value.clone() for name, value in vae.decoder.state_dict().items()}
    assert float((COVERING / NARROW).min()) > 1.5  # so that the two can be told apart
    history = fit(
        vae, x, epochs=20, batch_size=50, objective=SleepPhase(), learning_rate=OneCycle(3e-2),
        progress=False,
    )  # fmt: skip
    variance = (2 * vae.encoder.log_scale.detach()).exp()
    torch.testing.assert_close(variance, COVERING, rtol=0.1, atol=0)
    after = vae.decoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert history["objective"][-1] < history["objective"][0]


def test_stock_svi_takes_a_step() -> None:
    pyro.clear_param_store()
    vae, x = linear_vae(NARROW), LINEAR.sample(50)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), SleepPhase())
    before = vae.encoder.log_scale.detach().clone()
    assert math.isfinite(svi.step(x))
    assert not torch.equal(before, vae.encoder.log_scale)


def test_drawn_data_have_the_context_and_the_missing_entries_of_the_batch() -> None:
    vae, seen = cells_vae(missing=True), []
    vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(args))
    x = torch.full((200, 5), 3.0)
    x[:50, 1] = math.nan
    sizes = torch.cat([torch.full((100, 1), 10.0), torch.full((100, 1), 1000.0)])
    SleepPhase().terms(vae.model, vae.guide, x, Context(sizes))
    drawn, context = seen[0]
    assert torch.equal(context.size_factor, sizes)
    assert bool((drawn[:50, 1] == 0).all())
    assert bool((drawn[50:, 1] > 0).any())
    assert float(drawn[:100].mean()) < 10 < float(drawn[100:].mean())


def test_programs_whose_data_are_no_argument_are_refused() -> None:
    vae = cells_vae()

    def model(context: Context) -> None:
        vae.model(torch.ones(3, 5), context)

    def guide(context: Context) -> None:
        vae.guide(torch.ones(3, 5), context)

    with pytest.raises(
        InputError, match="needs a program whose first argument is its one observed"
    ):
        SleepPhase().terms(model, guide, Context(torch.ones(3, 1)))


def test_the_guide_alone_sleeps_as_in_the_modes_of_its_parts() -> None:
    vae, x = cells_vae(), torch.poisson(torch.full((90, 5), 4.0))
    data = Dataset(x, Context(x.sum(1, keepdim=True)))
    before = copy.deepcopy(vae.state_dict())
    vae.decoder.network.layers.insert(1, nn.Dropout(0.5))
    history = sleep_phase(vae, data, epochs=2, batch_size=32, learning_rate=1e-2, progress=False)
    assert len(history.rows) == 2
    changed = {name for name, value in vae.encoder.state_dict(prefix="encoder.").items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {name for name in before if name.startswith("encoder.")}
    weights = [each for name, each in before.items() if name.startswith("decoder.")]
    own = vae.decoder.state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(weights, own, strict=True))
    assert all(each.requires_grad and each.grad is None for each in vae.decoder.parameters())
    assert vae.decoder.training
