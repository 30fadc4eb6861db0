"""A prior of one's own: any module that returns a distribution over the latents, here a ring.

    python examples/swap_prior.py

The prior is a Pyro distribution with a density; nothing is registered anywhere, and everything that
measures takes it.
"""

from __future__ import annotations

import argparse

import pyro.distributions as dist
import torch
from torch import nn

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior


class RingPrior(nn.Module):
    """Eight normals on a circle whose radius is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_radius = nn.Parameter(torch.tensor(0.5))

    def forward(self) -> dist.Distribution:
        angles = torch.arange(8) * torch.pi / 4
        centres = self.log_radius.exp() * torch.stack([angles.cos(), angles.sin()], -1)
        parts = dist.Normal(centres, 0.5).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(8)), parts)


def main(epochs: int) -> None:
    """Train under each prior and print the evidence of held-out digits."""
    splits = datasets.digits()
    for prior in (NormalPrior(2), MixturePrior(2, num_components=10), RingPrior()):
        torch.manual_seed(0)
        vae = BetaVAE(
            prior=prior,
            decoder=Decoder(MLP(2, 64, hidden=(128,)), NormalLikelihood(LearnedScale())),
            encoder=NormalPosterior(MLP(64, 4, hidden=(128,))),
        )
        fit(vae, splits.train, beta=1.0, epochs=epochs, progress=False)
        print(
            f"{type(prior).__name__:<14} evidence "
            f"{evidence(vae.model, vae.guide, splits.test.x, num_samples=500)}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    main(parser.parse_args().epochs)
