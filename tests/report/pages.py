"""Runs that are never trained, for pages in a browser: the decoders are random, and exact."""

from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import torch

from pyro_bvae import BetaVAE, Context, Decoder, likelihoods
from pyro_bvae.datasets import Dataset
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ResidualMLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import History

LATENTS = 3
ATTACK = "<img src=x onerror=alert(1)>'\"&"


def vae_of(decoder, likelihood, features, covariates=0, seed=0):
    """Return a model with a decoder, and an encoder of one hidden layer."""
    torch.manual_seed(seed)
    encoder = NormalPosterior(
        MLP(features + covariates, 2 * LATENTS, hidden=(8,)), num_covariates=covariates
    )
    decodes = Decoder(decoder, likelihood, num_covariates=covariates)
    model = BetaVAE(NormalPrior(LATENTS), decodes, encoder)
    with torch.no_grad():  # codes that spread, and means that are not all alike
        for weight in model.parameters():
            weight.mul_(3 if features in (16, 192) else 1.7)
    return model.eval()


def images(classes=3, num_data=40):
    """Return grey images of 4 x 4 pixels, with labels of long names."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"a class with a rather long name {i}" for i in range(classes - 1))
    return Dataset(
        torch.rand(num_data, 16, generator=generator),
        labels=torch.arange(num_data) % classes,
        label_names=(ATTACK, *names),
        image_shape=(1, 4, 4),
    )


def counts(num_data=40, genes=60):
    """Return counts with size factors and a batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(3 * torch.rand(num_data, genes, generator=generator), generator=generator)
    batch = torch.eye(2)[torch.arange(num_data) % 2]
    names = tuple(f"Gene{i}" for i in range(genes - 1))
    return Dataset(
        x, context=Context(x.sum(1, keepdim=True) + 1, batch), feature_names=(ATTACK, *names)
    )


def table(num_data=40):
    """Return measurements in units of their own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, 5, generator=generator) * torch.tensor([1.0, 10, 1e3, 0.1, 5]) + 20
    return Dataset(x, feature_names=("height", "width", "mass", "share", "age"))


def run_of(vae, data):
    """Return a run whose data are these, with a history of two epochs."""
    settings = {"dataset": "digits", "prior": "normal", "hidden": (8,), "epochs": 2, "seed": 0}
    columns = ("epoch", "beta", "distortion", "rate", "objective")
    rows = [dict.fromkeys(columns, 3.0) | {"epoch": epoch} for epoch in (1.0, 2.0)]
    return SimpleNamespace(
        vae=vae, splits=SimpleNamespace(test=data, train=data), history=History(rows),
        config=make_dataclass("Config", list(settings))(**settings), part=lambda name: data,
        record=None,
    )  # fmt: skip


def standardized():
    """Return the likelihood of a table in its own units."""
    scaling = likelihoods.StandardizedScale(
        likelihoods.LearnedScale(), torch.full((5,), 20.0), torch.tensor([1.0, 10, 1e3, 0.1, 5])
    )
    return likelihoods.NormalLikelihood(scaling)


def members():
    """Return a model and its data by name: each kind of network, mean and data."""
    grey, genes, rows = images(), counts(), table()
    nb = likelihoods.NegativeBinomialLikelihood(60, rate=likelihoods.SoftmaxRate())
    coloured = Dataset(
        torch.rand(20, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)), image_shape=(3, 8, 8)
    )
    zero = likelihoods.ZeroInflatedNegativeBinomialLikelihood(60)
    made = {
        "mlp": (MLP(3, 16, hidden=(8, 8)), likelihoods.BernoulliLikelihood(), grey),
        "residual": (ResidualMLP(3, 16, hidden=8), likelihoods.BernoulliLikelihood(), grey),
        "grey": (MLP(3, 16, hidden=(8,)), likelihoods.ContinuousBernoulliLikelihood(), grey),
        "tanh": (
            MLP(3, 16, hidden=(8,), activation=torch.nn.Tanh),
            likelihoods.NormalLikelihood(0.3),
            grey,
        ),
        "convolutional": (
            ConvolutionalDecoder(3, (3, 8, 8), hidden=8),
            likelihoods.BernoulliLikelihood(),
            coloured,
        ),
        "counts": (MLP(5, 60, hidden=(8,)), nb, genes),
        "zero-inflated": (MLP(5, 120, hidden=(8,)), zero, genes),
        "table": (MLP(3, 5, hidden=(8,)), standardized(), rows),
    }
    covariates = {"counts": 2, "zero-inflated": 2}
    return {
        name: (vae_of(net, part, data.num_features, covariates.get(name, 0)), data)
        for name, (net, part, data) in made.items()
    }


def numbers(text):
    """Return float32 numbers from base 64."""
    from base64 import b64decode

    return torch.from_numpy(np.frombuffer(b64decode(text), "<f4").copy())
