"""The same VAE as the users of each package write it: what trains it, and its own estimate of the evidence.

Each function below is a whole program, whose lines are counted. It returns the trained networks as
those of torch, and a function from test images to the mean evidence by the package's own means.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from benchmarks.common import FEATURES, HIDDEN, LATENTS
from benchmarks.contenders import BATCH, LEARNING_RATE, HandWritten
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, evidence, fit
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior


class Trained(NamedTuple):
    """A trained model of any package.

    Attributes:
        model: Its Pyro model, to be measured by this package.
        guide: Its guide.
        own: Takes test images and a number of samples; the package's own estimate of the evidence.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    own: Callable[[Tensor, int], float]


class Networks(NamedTuple):
    """Networks of a VAE whose encoder returns mean and log variance, as a Pyro program."""

    encoder: nn.Module
    decoder: nn.Module

    def model(self, x: Tensor) -> None:
        """Draw latents and pixels."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw latents from the encoder."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))


def this_package(x: Tensor, epochs: int) -> Trained:
    """Train by `fit`, and measure by `evidence`."""
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(MLP(LATENTS, FEATURES, hidden=(HIDDEN,)), BernoulliLikelihood()),
        NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=(HIDDEN,))),
    )
    fit(vae, x, epochs=epochs, batch_size=BATCH, progress=False)

    def own(x: Tensor, num_samples: int) -> float:
        return evidence(vae.model, vae.guide, x, num_samples=num_samples, progress=False).value

    return Trained(vae.model, vae.guide, own)


def plain_pyro(x: Tensor, epochs: int) -> Trained:
    """Train by `SVI`, and average the weights of vectorised traces."""
    network = HandWritten()

    def model(x: Tensor) -> None:
        pyro.module("decoder", network.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=network.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", network.encoder)
        loc, log_variance = network.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            svi.step(x[rows])

    @torch.no_grad()
    def own(x: Tensor, num_samples: int) -> float:
        particles = pyro.plate("particles", num_samples, dim=-2)
        total = 0.0
        for some in x.split(5):
            guided = poutine.trace(particles(guide)).get_trace(some)
            traced = poutine.trace(poutine.replay(particles(model), guided)).get_trace(some)
            guided.compute_log_prob()
            traced.compute_log_prob()
            log_weights = (
                traced.nodes["z"]["log_prob"]
                + traced.nodes["x"]["log_prob"]
                - guided.nodes["z"]["log_prob"]
            )
            total += float((log_weights.logsumexp(0) - math.log(num_samples)).sum())
        return total / len(x)

    return Trained(model, guide, own)


def pythae(x: Tensor, epochs: int) -> Trained:
    """Train by its trainer, and measure by `get_nll`."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    network = HandWritten()

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = network.encoder

        def forward(self, x: Tensor) -> Any:
            loc, log_variance = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class PixelDecoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = network.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    config = VAEConfig(input_dim=(FEATURES,), latent_dim=LATENTS, reconstruction_loss="bce")
    vae = VAE(config, Encoder(), PixelDecoder())
    with tempfile.TemporaryDirectory() as folder:
        options = BaseTrainerConfig(
            output_dir=folder, learning_rate=LEARNING_RATE, per_device_train_batch_size=BATCH,
            num_epochs=epochs, no_cuda=True,
        )  # fmt: skip
        BaseTrainer(vae, BaseDataset(x, torch.zeros(len(x))), training_config=options).train()

    @torch.no_grad()
    def own(x: Tensor, num_samples: int) -> float:
        return float(vae.get_nll(x, n_samples=num_samples, batch_size=100))

    trained = Networks(vae.encoder.layers, vae.decoder.layers)
    return Trained(trained.model, trained.guide, own)


def numpyro(x: Tensor, epochs: int) -> Trained:
    """Train by `SVI` in a jitted scan, and measure by `RenyiELBO` with alpha 0."""
    import jax
    import numpyro
    import numpyro.distributions as npd
    from jax import numpy as jnp
    from jax.example_libraries import stax

    def network(out: int) -> Any:
        return stax.serial(stax.Dense(HIDDEN), stax.elementwise(jax.nn.silu), stax.Dense(out))

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", network(FEATURES), (BATCH, LATENTS))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", npd.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
            numpyro.sample("x", npd.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", network(2 * LATENTS), (BATCH, FEATURES))
        loc, log_variance = jnp.split(encode(x), 2, axis=-1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", npd.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))

    adam = numpyro.optim.Adam(LEARNING_RATE)
    svi = numpyro.infer.SVI(model, guide, adam, numpyro.infer.Trace_ELBO())
    data = jnp.asarray(x.numpy())

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(data))[: len(data) // BATCH * BATCH]
        return jax.lax.scan(
            lambda state, rows: svi.update(state, data[rows]), state, order.reshape(-1, BATCH)
        )

    state = svi.init(jax.random.PRNGKey(0), data[:BATCH])
    for number in range(epochs):
        state, _ = epoch(state, jax.random.PRNGKey(number + 1))
    parameters = svi.get_params(state)

    def own(x: Tensor, num_samples: int) -> float:
        bound = numpyro.infer.RenyiELBO(alpha=0.0, num_particles=num_samples)
        loss = jax.jit(lambda key, row: bound.loss(key, parameters, model, guide, row))
        rows = jnp.asarray(x.numpy())[:, None]
        keys = jax.random.split(jax.random.PRNGKey(0), len(x))
        losses = [float(loss(key, row)) for key, row in zip(keys, rows, strict=True)]
        return -sum(losses) / len(x)

    layers = HandWritten()
    for name in ("encoder", "decoder"):
        ours, theirs = getattr(layers, name), parameters[f"{name}$params"]
        for place in (0, 2):
            weight, bias = (torch.tensor(part.__array__()) for part in theirs[place])
            ours[place].load_state_dict({"weight": weight.T, "bias": bias})
    trained = Networks(layers.encoder, layers.decoder)
    return Trained(trained.model, trained.guide, own)


PROGRAMS: dict[str, Callable[[Tensor, int], Trained]] = {
    "this package": this_package,
    "plain Pyro": plain_pyro,
    "pythae": pythae,
    "NumPyro": numpyro,
}
#: The package that a program needs, and how it is installed.
NEEDS = {"pythae": ("pythae", "pip install pythae"), "NumPyro": ("numpyro", "pip install numpyro")}
