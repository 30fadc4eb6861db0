"""Starts at the data's mean.

The best bias of a model without latents, for every network and likelihood.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP, ConvolutionalDecoder
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.runs.catalogue import LIKELIHOODS, NETWORKS
from pyro_bvae.training import check_before, start_at_mean
from pyro_bvae.training.initialization import last_bias

SIDE, LATENTS = 28, 2
PIXELS = SIDE**2


def means() -> Tensor:
    """Means of pixels, with a dark border as that of handwritten digits."""
    mean = 0.1 + 0.3 * torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mean[:4] = mean[-4:] = 0.02
    return mean.flatten()


def images(kind: str, count: int = 60) -> Tensor:
    draws = torch.rand(count, PIXELS, generator=torch.Generator().manual_seed(1))
    grey = draws * 2 * means()
    if kind in ("bernoulli", "autoregressive-bernoulli"):
        return (draws < means()).float()
    if kind == "discretized-logistic":
        return (255 * grey).round() / 255
    if kind == "categorical":
        return (2 * grey).round()
    return (10 * grey).round() if kind in ("poisson",) or "binomial" in kind else grey


def with_network(network: Any, likelihood: nn.Module | None = None) -> BetaVAE:
    torch.manual_seed(0)
    decoder = Decoder(network, likelihood or BernoulliLikelihood())
    return BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(PIXELS, 2 * LATENTS, hidden=()))
    )


@torch.no_grad()
def without_latents(vae: BetaVAE, x: Tensor) -> Tensor:
    """The mean log density at outputs that are the last bias alone."""
    last = last_bias(vae)
    assert last is not None
    return vae.decoder.likelihood(last.bias[last.places].expand(len(x), -1)).log_prob(x).mean()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_network_and_likelihood_can_start_at_the_mean(network: str, likelihood: str) -> None:
    x = images(likelihood)
    config = TrainConfig(network=network, likelihood=likelihood, hidden=(8,), latent_dim=LATENTS)
    vae = build_vae(config, Shape.of(Dataset(x, image_shape=(1, SIDE, SIDE))))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    worse = without_latents(vae, x)
    start_at_mean(vae, x)
    best = without_latents(vae, x)
    assert best > worse
    last = last_bias(vae)
    result, step = (
        last.bias.clone(),
        torch.randn(len(last.bias), generator=torch.Generator().manual_seed(3)),
    )
    for sign in (-0.1, 0.1):  # no other bias is better
        with torch.no_grad():
            last.bias.copy_(result + sign * step)
        assert without_latents(vae, x) < best
    with torch.no_grad():
        last.bias.copy_(result)
    changed = [
        name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert len(changed) == 1
    if likelihood != "autoregressive-bernoulli":  # whose mean is computed pixel by pixel
        assert not [remark for remark in check_before(vae, x) if "--start-at-mean" in remark.advice]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bias_of_a_convolution_is_the_mean_of_its_channel(channels: int) -> None:
    torch.manual_seed(0)
    level = torch.tensor([0.1, 0.3, 0.7])[:channels].repeat_interleave(PIXELS)
    x = (
        torch.rand(40, channels * PIXELS, generator=torch.Generator().manual_seed(2)) < level
    ).float()
    decoder = Decoder(ConvolutionalDecoder(LATENTS, (channels, SIDE, SIDE)), BernoulliLikelihood())
    vae = BetaVAE(
        NormalPrior(LATENTS),
        decoder,
        NormalPosterior(MLP(channels * PIXELS, 2 * LATENTS, hidden=())),
    )
    start_at_mean(vae, x)
    bias = decoder.network.convolutions[-1].bias
    torch.testing.assert_close(
        bias, torch.logit(x.unflatten(1, (channels, -1)).mean((0, 2))), atol=5e-3, rtol=0
    )
    off = (vae.decode(torch.randn(50, LATENTS)).mean(0) - x.mean(0)).square().mean().sqrt()
    assert off < 0.15  # 0.3 and more at the first start


def upside_down() -> nn.Module:
    """A network that names its last layer first."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, PIXELS), nn.Linear(LATENTS, 8)

        def forward(self, z: Tensor) -> Tensor:
            return self.last(self.first(z).relu()).flip(-1)

    return Network()


ADVISED = {
    "a network of torch": lambda: nn.Sequential(
        nn.Linear(LATENTS, 8), nn.ReLU(), nn.Linear(8, PIXELS)
    ),
    "batch norm": lambda: nn.Sequential(nn.Linear(LATENTS, PIXELS), nn.BatchNorm1d(PIXELS)),
    "another order": upside_down,
    "sub-pixel convolution": lambda: nn.Sequential(
        nn.Linear(LATENTS, 4 * 14 * 14),
        nn.Unflatten(1, (4, 14, 14)),
        nn.Conv2d(4, 4, 1),
        nn.PixelShuffle(2),
        nn.Flatten(),
    ),
}
REFUSED = {
    "no bias": lambda: MLP(LATENTS, PIXELS, hidden=(8,), bias=False),
    "an activation at the end": lambda: nn.Sequential(nn.Linear(LATENTS, PIXELS), nn.Tanh()),
    "a function": lambda: lambda z: z.sum(-1, keepdim=True).expand(*z.shape[:-1], PIXELS) * 0 + 3,
}


@pytest.mark.parametrize("case", ADVISED)
def test_a_last_bias_is_found_by_what_it_does(case: str) -> None:
    vae, x = with_network(ADVISED[case]()), images("bernoulli")
    advised = [remark for remark in check_before(vae, x) if "--start-at-mean" in remark.advice]
    start_at_mean(vae, x)
    assert advised
    assert not [remark for remark in check_before(vae, x) if "--start-at-mean" in remark.advice]


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_cannot_be_is_refused_in_words_and_not_advised(case: str) -> None:
    vae, x = with_network(REFUSED[case]()), images("bernoulli")
    before = [parameter.clone() for parameter in vae.parameters()]
    remarks = [remark for remark in check_before(vae, x) if "untrained decoder" in remark.seen]
    assert len(remarks) == 1
    assert "start-at-mean" not in str(remarks)
    with pytest.raises(InputError, match="whose last layer has a bias"):
        start_at_mean(vae, x)
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))


def test_many_data_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images("normal")
    x[::5, 7] = torch.nan
    whole, parts = (
        with_network(MLP(LATENTS, PIXELS, hidden=(4,)), NormalLikelihood(0.5)) for _ in range(2)
    )
    start_at_mean(whole, x)
    monkeypatch.setattr("pyro_bvae.training.initialization._AT_ONCE", 7 * PIXELS)
    start_at_mean(parts, x)
    last = whole.decoder.network.layers[-1].bias
    torch.testing.assert_close(parts.decoder.network.layers[-1].bias, last, atol=1e-4, rtol=0)
    torch.testing.assert_close(last, x.nanmean(0), atol=1e-3, rtol=0)
