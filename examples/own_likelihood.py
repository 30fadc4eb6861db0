"""A likelihood of one's own: a module from the decoder's output, and the context, to a distribution over the data.

    python examples/own_likelihood.py

Counts out of a known number of trials, as of votes or of methylated reads: beta-binomial, which
Pyro has.
"""

from __future__ import annotations

import argparse

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_bvae import BetaVAE, Context, Decoder, elbo, evidence, fit
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

TRIALS = 20


class BetaBinomialLikelihood(nn.Module):
    """How many of twenty trials succeed, with shares that spread more than a binomial's."""

    parameters_per_feature = 1
    support = torch.distributions.constraints.integer_interval(0, TRIALS)

    def __init__(self) -> None:
        super().__init__()
        self.raw_concentration = nn.Parameter(torch.tensor(3.0))

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        shares, total = parameters.sigmoid(), softplus(self.raw_concentration)
        return dist.BetaBinomial(
            shares * total + 1e-3, (1 - shares) * total + 1e-3, TRIALS
        ).to_event(1)


def simulate(num_data: int, num_features: int = 12) -> Tensor:
    """Draw counts whose shares follow two latents."""
    generator = torch.Generator().manual_seed(0)
    z, weight = (
        torch.randn(*shape, generator=generator) for shape in ((num_data, 2), (2, num_features))
    )
    return torch.binomial(
        torch.full((num_data, num_features), float(TRIALS)), (z @ weight).sigmoid(), generator
    )


def main(epochs: int) -> None:
    """Train, and print what is left of the evidence in the bound."""
    x = simulate(2000)
    torch.manual_seed(0)
    vae = BetaVAE(
        prior=NormalPrior(2),
        decoder=Decoder(MLP(2, 12, hidden=(64,)), BetaBinomialLikelihood()),
        encoder=NormalPosterior(MLP(12, 4, hidden=(64,)), inputs=lambda counts: counts / TRIALS),
    )
    fit(vae, x[:1600], beta=1.0, epochs=epochs, progress=False)
    print(f"ELBO      {elbo(vae.model, vae.guide, x[1600:])}")
    print(f"evidence  {evidence(vae.model, vae.guide, x[1600:], num_samples=500)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    main(parser.parse_args().epochs)
