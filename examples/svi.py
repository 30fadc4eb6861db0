"""Ten lines of Pyro: a β-VAE trained by stock SVI, then its evidence and its gaps."""

import argparse

import pyro
import torch

import pyro_bvae
from pyro_bvae import BetaVAE, Decoder, datasets
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior


def main(epochs: int, beta: float, num_samples: int, num_data: int) -> None:
    pyro.set_rng_seed(0)
    splits = datasets.digits()
    vae = BetaVAE(
        prior=NormalPrior(latent_dim=8),
        decoder=Decoder(MLP(8, 64, hidden=(128, 128)), NormalLikelihood(LearnedScale())),
        encoder=NormalPosterior(MLP(64, 16, hidden=(128, 128))),
    )
    svi = pyro.infer.SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()
    )
    for epoch in range(epochs):
        # β rises over the first fifth, so that no latent is given up before the decoder can use it.
        now = beta * min(1.0, 5 * (epoch + 1) / epochs)
        loss = sum(svi.step(x, beta=now) for x, _ in splits.train.batches(64, seed=0, epoch=epoch))
        if epoch % 10 == 0 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: objective {loss / len(splits.train):.2f} nats")
    x = splits.test.x[:num_data]
    print("evidence ", pyro_bvae.evidence(vae.model, vae.guide, x, num_samples=num_samples))
    print(
        pyro_bvae.inference_gaps(
            vae.model, vae.guide, x, training_beta=beta, num_samples=num_samples
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--num-data", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    main(arguments.epochs, arguments.beta, arguments.num_samples, arguments.num_data)
