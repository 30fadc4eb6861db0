"""What could one trained decoder do at other β, and how near does its own guide come?

One decoder of digits, trained at β = 1: its whole rate-distortion curve out of one annealing run,
beside the points of models that were trained at each β, whose decoder and guide differ too.

    python analysis/decoder_rate_distortion.py
    python analysis/decoder_rate_distortion.py --data-root FOLDER_THAT_HOLDS_MNIST

The second command does the same for binarised MNIST, with sizes for half an hour of a busy core:
five models of 200 hidden units and 10 latents, 3 epochs each; the curve on 20 test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from pyro_bvae import BetaVAE, Decoder, datasets, plots, rate_distortion, sweep
from pyro_bvae.evaluation import rate_distortion_curve
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "decoder_rate_distortion"
BETAS = (0.25, 0.5, 1.0, 2.0, 4.0)
POINTS = (0.2, 0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
NUM_TEMPERATURES = {"digits": 150, "mnist": 600}


def main(name: str, splits: Any, hidden: int, latent_dim: int, epochs: int, num_data: int) -> None:
    """Train a model at each β, draw the curve of the one at β = 1, and write the table."""
    size = splits.train.x.shape[1]

    def make_vae(seed: int) -> BetaVAE:
        torch.manual_seed(seed)
        decoder = Decoder(MLP(latent_dim, size, hidden=(hidden,)), BernoulliLikelihood())
        encoder = NormalPosterior(MLP(size, 2 * latent_dim, hidden=(hidden,)))
        return BetaVAE(NormalPrior(latent_dim), decoder, encoder)

    models = sweep(
        make_vae, splits.train, betas=BETAS, epochs=epochs, batch_size=128, learning_rate=1e-3,
        progress=False,
    )  # fmt: skip
    x = splits.test.x[:num_data]
    vae = next(run.vae for run in models if run.beta == 1.0)
    curve = rate_distortion_curve(
        vae.model,
        vae.guide,
        x,
        betas=POINTS,
        progress=False,
        settings=AnnealingSettings(num_temperatures=NUM_TEMPERATURES[name], num_chains=16),
    )
    trained = rate_distortion([(run.beta, run.vae) for run in models], x)
    points = {
        f"β = {point.beta:g}": (point.distortion.value, point.rate.value)
        for point in trained.points
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = curve.table()
    for point in trained.points:
        table.loc[point.beta, "trained_rate"] = point.rate.value
        table.loc[point.beta, "trained_distortion"] = point.distortion.value
    table.round(4).to_csv(RESULTS / f"{name}.csv")
    plots.decoder_curve(curve, points).savefig(RESULTS / f"{name}.png", dpi=150)
    print(curve)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    root = parser.parse_args().data_root
    if root is None:
        main("digits", datasets.digits(), 64, 8, 60, 50)
    else:
        images = datasets.mnist(root, validation=0, download=False).binarized("static", seed=0)
        main("mnist", images, 200, 10, 3, 20)
