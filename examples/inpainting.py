"""What was hidden? The lower half of a digit from its upper half, with a VAE as the prior.

    python examples/inpainting.py

The posterior is asked with the model's own prior, and with one that was fitted to where data are
encoded; the share of draws in holes says how far either leads the decoder to where it was never
trained.
"""

from __future__ import annotations

import argparse

import torch

from pyro_bvae import BetaVAE, Decoder, datasets, fit, invert
from pyro_bvae.evaluation import hole_mass
from pyro_bvae.evaluation.inversion import (
    AggregateHoles,
    InversionSettings,
    Mask,
    NormalNoise,
    NUTSMethod,
)
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior
from pyro_bvae.training import fit_ex_post_prior


def main(epochs: int, num_draws: int) -> None:
    """Train, invert one digit under both priors, and print what was found."""
    splits = datasets.digits()
    torch.manual_seed(0)
    vae = BetaVAE(
        prior=NormalPrior(4),
        decoder=Decoder(MLP(4, 64, hidden=(128,)), NormalLikelihood(LearnedScale())),
        encoder=NormalPosterior(MLP(64, 8, hidden=(128,))),
    )
    fit(vae, splits.train, beta=1.0, epochs=epochs, progress=False)
    repaired = fit_ex_post_prior(
        vae, splits.train, MixturePrior(4, 20), epochs=epochs, progress=False
    )

    train, truth = splits.train.x, splits.test.x[0]
    result = hole_mass(vae.model, vae.guide, train, held_out=splits.test.x, num_permutations=99)
    holes = AggregateHoles(vae, train, result.threshold)
    operator = Mask(torch.arange(64) < 32)
    y = operator(truth) + 0.1 * torch.randn(32)
    method = NUTSMethod(num_chains=2, num_draws=num_draws, num_warmup=num_draws)
    settings = InversionSettings(data=train, holes=holes)
    for name, prior in (("standard normal", vae.prior), ("fitted mixture", repaired.prior)):
        inversion = invert(
            vae, y, operator, NormalNoise(0.1), prior=prior, method=method, settings=settings
        )
        print(f"{name}\n{inversion}")
        if inversion.problem is None:
            low, high = inversion.interval(0.9)
            held = ((low <= truth) & (truth <= high))[32:].double().mean()
            print(f"90% intervals hold {held:.0%} of the hidden pixels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--num-draws", type=int, default=300)
    given = parser.parse_args()
    main(given.epochs, given.num_draws)
