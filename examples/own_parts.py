"""A prior, a likelihood and an encoder of one's own.

Any callable that returns a distribution is a part.
"""

import argparse

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_bvae
from pyro_bvae import BetaVAE, Decoder, datasets
from pyro_bvae.networks import MLP


class LaplaceLikelihood(nn.Module):
    """The absolute error, as the density that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, parameters: Tensor) -> dist.Distribution:
        return dist.Laplace(parameters, self.log_scale.exp()).to_event(1)


class AffineEncoder(nn.Module):
    def __init__(self, features: int, latents: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, 2 * latents)

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, log_scale = self.layer(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


def main(epochs: int) -> None:
    torch.manual_seed(0)
    splits = datasets.digits()
    vae = BetaVAE(
        prior=lambda: dist.StudentT(5.0, torch.zeros(6), 1.0).to_event(1),
        decoder=Decoder(MLP(6, 64, hidden=(128,)), LaplaceLikelihood()),
        encoder=AffineEncoder(64, 6),
    )
    pyro_bvae.fit(vae, splits.train, validation=splits.validation, epochs=epochs, progress=False)
    print("evidence", pyro_bvae.evidence(vae.model, vae.guide, splits.test.x, num_samples=1000))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    main(parser.parse_args().epochs)
