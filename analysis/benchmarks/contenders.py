"""Who trains: the package and its peers, each as its users would write it, on the same model, data and batches.

Each takes a :class:`Task`, trains without end, and says when an epoch is over.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from benchmarks.common import FEATURES, HIDDEN, LATENTS, Setting, images, make_vae, seconds
from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.likelihoods import BernoulliLikelihood, NegativeBinomialLikelihood
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder
from pyro_bvae.posteriors import FlowPosterior, NormalPosterior
from pyro_bvae.priors import NormalPrior

BATCH = 128
GENES = 1000
LEARNING_RATE = 1e-3
# More than there are turns: a contender is stopped by its parent.
MANY = 1000


class Task(NamedTuple):
    """What a contender trains, on the device; ``turn()`` is to be called after each epoch."""

    make: Callable[[], BetaVAE]
    x: Tensor
    turn: Callable[[], None]

    def batches(self) -> Iterator[Tensor]:
        """Return the shuffled batches of one epoch, as one writes it for data in memory."""
        for rows in torch.randperm(len(self.x)).to(self.x.device).split(BATCH):
            yield self.x[rows]


# -- models
# --------------------------------------------------------------------------------------------------


def convolutional() -> BetaVAE:
    """Return a model with convolutions on both sides."""
    decoder = Decoder(ConvolutionalDecoder(LATENTS, (1, 28, 28)), BernoulliLikelihood())
    return BetaVAE(
        NormalPrior(LATENTS),
        decoder,
        NormalPosterior(ConvolutionalEncoder((1, 28, 28), 2 * LATENTS)),
    )


def flow_guide() -> BetaVAE:
    """Return the MLP with an autoregressive flow for a posterior."""
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(HIDDEN,)), BernoulliLikelihood())
    encoder = FlowPosterior(MLP(FEATURES, FlowPosterior.num_outputs(LATENTS), hidden=(HIDDEN,)))
    return BetaVAE(NormalPrior(LATENTS), decoder, encoder)


def negative_binomial() -> BetaVAE:
    """Return a model of counts."""
    decoder = Decoder(MLP(10, GENES, hidden=(HIDDEN,)), NegativeBinomialLikelihood(GENES))
    encoder = NormalPosterior(MLP(GENES, 20, hidden=(HIDDEN,)), inputs=torch.log1p)
    return BetaVAE(NormalPrior(10), decoder, encoder)


def pixels(setting: Setting, count: int) -> Tensor:
    """Return binary images."""
    return (images(setting, count, train=True) > 0.5).float()


def counts(setting: Setting, count: int) -> Tensor:
    """Return counts, most of them zero."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(count, GENES, generator=generator).pow(4) * 3
    return torch.poisson(means, generator=generator).to(setting.device)


# -- contenders
# --------------------------------------------------------------------------------------------------


def ours(task: Task, *, compiled: bool) -> None:
    """Train by the package's ``fit``.

    Data order, schedules, clipping, watching and progress bar included.
    """
    vae = task.make().to(task.x.device)
    warnings.filterwarnings(
        "error", message="the step is not compiled"
    )  # then there is nothing to time
    fit(
        vae,
        task.x,
        epochs=MANY,
        batch_size=BATCH,
        compile=compiled,
        callbacks=[lambda row: task.turn()],
    )


class HandWritten(nn.Module):
    """The loss of a VAE, in the lines that every tutorial has."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * LATENTS)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENTS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, FEATURES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the ELBO, a mean over data."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        distortion = nn.functional.binary_cross_entropy_with_logits(
            self.decoder(z), x, reduction="sum"
        )
        rate = -0.5 * (1 + log_variance - loc.square() - log_variance.exp()).sum()
        return (distortion + rate) / len(x)


def hand_written(task: Task, *, precision: str = "highest", mode: str | None = None) -> None:
    """Train by a loop in PyTorch with fused Adam; with a mode, under ``torch.compile``."""
    torch.set_float32_matmul_precision(precision)
    module = HandWritten().to(task.x.device)
    loss_of: Callable[[Tensor], Tensor] = (
        module if mode is None else torch.compile(module, mode=mode)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)
    while True:
        total = torch.zeros((), device=task.x.device)
        for x in task.batches():
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        task.turn()


def stock_pyro(task: Task) -> None:
    """Train a program as Pyro's tutorial writes it, at Pyro's defaults."""
    network = HandWritten().to(task.x.device)

    def model(x: Tensor) -> None:
        pyro.module("decoder", network.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=network.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", network.encoder)
        with pyro.plate("data", len(x)):
            loc, log_variance = network.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    steps_of(SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO()), task)


def stock_pyro_on_ours(task: Task) -> None:
    """Train the package's program by stock Pyro."""
    vae = task.make().to(task.x.device)
    steps_of(SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO()), task)


def steps_of(svi: Any, task: Task) -> None:
    """Take steps of a stock inference."""
    while True:
        total = 0.0
        for x in task.batches():
            total += svi.step(x)
        assert math.isfinite(total)
        task.turn()


def pythae_trainer(task: Task) -> None:
    """Train pythae's VAE, with the same networks, by pythae's trainer."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    network = HandWritten()

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = network.encoder

        def forward(self, x: Tensor) -> Any:
            loc, log_variance = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class TheirDecoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = network.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    class Turn(TrainingCallback):  # type: ignore[misc]
        def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
            task.turn()

    theirs = VAE(
        VAEConfig(input_dim=(FEATURES,), latent_dim=LATENTS, reconstruction_loss="bce"),
        Encoder(),
        TheirDecoder(),
    )
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=BATCH,
        num_epochs=MANY,
        no_cuda=task.x.device.type == "cpu",
    )
    data = BaseDataset(task.x.cpu(), torch.zeros(len(task.x)))
    BaseTrainer(theirs, data, training_config=config, callbacks=[Turn()]).train()


def numpyro_epochs(task: Task) -> None:
    """Train by NumPyro, with one jitted function for a whole epoch."""
    if hasattr(os, "sched_setaffinity"):  # JAX takes a thread for each processor that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: torch.get_num_threads()])
    import jax
    import numpyro
    import numpyro.distributions as npd
    from jax import numpy as jnp
    from jax.example_libraries import stax

    def network(out: int) -> Any:
        return stax.serial(stax.Dense(HIDDEN), stax.elementwise(jax.nn.silu), stax.Dense(out))

    encoder, decoder = network(2 * LATENTS), network(FEATURES)

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (BATCH, LATENTS))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", npd.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
            numpyro.sample("x", npd.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", encoder, (BATCH, FEATURES))
        with numpyro.plate("data", len(x)):
            loc, log_variance = jnp.split(encode(x), 2, axis=-1)
            numpyro.sample("z", npd.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))

    svi = numpyro.infer.SVI(
        model, guide, numpyro.optim.Adam(LEARNING_RATE), numpyro.infer.Trace_ELBO()
    )

    @jax.jit
    def epoch(state: Any, key: Any, data: Any) -> Any:
        order = jax.random.permutation(key, len(data)).reshape(-1, BATCH)
        return jax.lax.scan(lambda state, rows: svi.update(state, data[rows]), state, order)

    data = jnp.asarray(task.x.numpy())
    state = svi.init(jax.random.PRNGKey(0), data[:BATCH])
    for key in map(jax.random.PRNGKey, itertools.count(1)):
        state, losses = epoch(state, key, data)
        assert bool(jnp.isfinite(losses).all())
        task.turn()


# -- floors
# --------------------------------------------------------------------------------------------------


def products(task: Task) -> None:
    """Multiply the matrices of a step, forward and backward, into the same memory, in the faster precision."""
    device, steps = task.x.device, len(task.x) // BATCH
    layers = []
    for size_in, size_out in (
        (FEATURES, HIDDEN),
        (HIDDEN, 2 * LATENTS),
        (LATENTS, HIDDEN),
        (HIDDEN, FEATURES),
    ):
        given = {
            "x": (BATCH, size_in),
            "weight": (size_out, size_in),
            "gradient": (BATCH, size_out),
        }
        layers.append({name: torch.randn(shape, device=device) for name, shape in given.items()})
        layers[-1] |= {f"{name} out": torch.empty_like(layers[-1][name]) for name in given}

    def step() -> None:
        for layer in layers:
            torch.mm(layer["x"], layer["weight"].T, out=layer["gradient out"])
            torch.mm(layer["gradient"].T, layer["x"], out=layer["weight out"])
            if layer is not layers[0]:
                torch.mm(layer["gradient"], layer["weight"], out=layer["x out"])

    taken = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        taken[precision] = min(
            seconds(lambda: [step() for _ in range(20)], device.type) for _ in range(4)
        )
    torch.set_float32_matmul_precision(min(taken, key=lambda precision: taken[precision]))
    while True:
        for _ in range(steps):
            step()
        task.turn()


def fused_adam(task: Task) -> None:
    """Update the weights, without computing a gradient."""
    parameters = list(HandWritten().to(task.x.device).parameters())
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    while True:
        for _ in range(len(task.x) // BATCH):
            optimizer.step()
        task.turn()


# -- all of them
# --------------------------------------------------------------------------------------------------

COMPILED, PLAIN = "pyro_bvae, compiled", "pyro_bvae, plain"
HAND, STOCK, STOCK_ON_OURS = "hand-written PyTorch", "stock Pyro SVI", "stock Pyro SVI, our program"
PYTHAE, NUMPYRO = "pythae 0.1.2", "NumPyro, jitted epoch"
FLOOR, ADAM = "matrix products alone", "fused Adam alone"

Train = Callable[[Task], None]


OURS: dict[str, Train] = {
    COMPILED: lambda task: ours(task, compiled=True),
    PLAIN: lambda task: ours(task, compiled=False),
}
PEERS: dict[str, Train] = {
    HAND: hand_written,
    f'{HAND}, "medium"': lambda task: hand_written(task, precision="medium"),
    f"{HAND}, torch.compile": lambda task: hand_written(task, mode="default"),
    f'{HAND}, torch.compile, "medium"': lambda task: hand_written(
        task, precision="medium", mode="default"
    ),
    STOCK: stock_pyro,
    STOCK_ON_OURS: stock_pyro_on_ours,
    PYTHAE: pythae_trainer,
    NUMPYRO: numpyro_epochs,
    FLOOR: products,
    ADAM: fused_adam,
}
ON_CUDA: dict[str, Train] = {
    f"{HAND}, graph-captured": lambda task: hand_written(
        task, precision="high", mode="reduce-overhead"
    )
}
ELSEWHERE = {PYTHAE: "pythae", NUMPYRO: "numpyro"}
MODELS: dict[str, tuple[Callable[[], BetaVAE], Callable[[Setting, int], Tensor]]] = {
    "MLP": (make_vae, pixels),
    "convolutional": (convolutional, pixels),
    "negative binomial": (negative_binomial, counts),
    "flow guide": (flow_guide, pixels),
}


def contenders_for(model: str, device: str) -> dict[str, Train]:
    """Return who trains a model here, by name."""
    if model != "MLP":
        return OURS | {STOCK_ON_OURS: stock_pyro_on_ours}
    everyone = OURS | PEERS | (ON_CUDA if device == "cuda" else {})
    if device == "cuda":
        del everyone[NUMPYRO]  # its extra is the CPU's
    for name, package in ELSEWHERE.items():
        if name in everyone and importlib.util.find_spec(package) is None:
            print(
                f"{package} cannot be imported here, so its row is left out: pip install "
                f"pyro-bvae[bench]"
            )
            del everyone[name]
    return everyone


def train(name: str, setting: Setting, turn: Callable[[], None]) -> None:
    """Train the contender ``model/name`` on as many batches an epoch as the setting has steps."""
    model, contender = name.split("/", 1)
    make, data = MODELS[model]
    x = data(setting, BATCH * setting.steps)
    torch.manual_seed(0)
    task = Task(make, x, turn)
    if contender.startswith("without "):
        from benchmarks.ablation import without  # which times the contenders of this file

        without(contender.removeprefix("without "))(task)
        return
    contenders_for(model, setting.device)[contender](task)
