"""One model for all β: which trade of detail against compression to make is chosen after training.

    python examples/beta_conditioned.py

In training β is drawn for every datum and told to encoder and decoder; ``at_beta`` is then the
model at any one β.
"""

from __future__ import annotations

import argparse

import torch

from pyro_bvae import BetaVAE, Decoder, datasets, fit, rate_distortion
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks.modulated import ModulatedMLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import ConditionedBeta, at_beta, with_beta

LATENTS, LOW, HIGH = 10, 0.1, 8.0


def main(epochs: int) -> None:
    """Train one model on digits and print its rate-distortion curve."""
    torch.manual_seed(0)
    splits = datasets.digits()
    size = splits.train.num_features
    # One input more than the data or the latents have: log β, their only covariate here.
    decoder = ModulatedMLP(LATENTS + 1, size, (128,), low=LOW, high=HIGH, modulate_input=True)
    encoder = ModulatedMLP(size + 1, 2 * LATENTS, (128,), low=LOW, high=HIGH, modulate_output=True)
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(decoder, BernoulliLikelihood(), num_covariates=1),
        NormalPosterior(encoder, num_covariates=1),
    )
    fit(
        vae,
        with_beta(splits.train),
        objective=ConditionedBeta(LOW, HIGH),
        epochs=epochs,
        progress=False,
    )
    print(
        rate_distortion(
            [(beta, at_beta(vae, beta)) for beta in (0.1, 0.5, 1.0, 2.0, 8.0)], splits.test
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    main(parser.parse_args().epochs)
