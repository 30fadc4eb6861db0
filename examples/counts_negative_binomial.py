"""Counts, the way the field of single cells models them: library size, negative binomial, dispersion of each gene.

    python examples/counts_negative_binomial.py

The counts are simulated from a known factor model, so that the evidence, the dispersions and the
choice of likelihood can be seen to be right. For cells of your own, which are no more than read in
another way:

    python examples/counts_negative_binomial.py --path cells.h5ad
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit, inference_gaps
from pyro_bvae.likelihoods import NegativeBinomialLikelihood, PoissonLikelihood, SoftmaxRate
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import LinearWarmup


def make_vae(likelihood: nn.Module, num_genes: int) -> BetaVAE:
    """Return a model of counts.

    The encoder sees their logarithms, the mean is library size x softmax(decoder).
    """
    torch.manual_seed(0)
    return BetaVAE(
        prior=NormalPrior(3),
        decoder=Decoder(MLP(3, num_genes, hidden=(64,)), likelihood),
        encoder=NormalPosterior(MLP(num_genes, 6, hidden=(64,)), inputs=torch.log1p),
    )


def main(epochs: int, num_samples: int, path: str | None) -> None:
    """Fit two likelihoods, compare them, and look for what is lost."""
    truth = datasets.negative_binomial_truth(num_features=50)
    splits = (
        datasets.negative_binomial_factors(truth=truth)
        if path is None
        else datasets.h5ad(path, min_counts=10)
    )
    test, results, num_genes = splits.test[:300].dense(), {}, splits.train.num_features
    for likelihood in (
        PoissonLikelihood(SoftmaxRate()),
        NegativeBinomialLikelihood(num_genes, rate=SoftmaxRate()),
    ):
        vae = make_vae(likelihood, num_genes)
        fit(
            vae,
            splits.train,
            beta=LinearWarmup(1.0, epochs / 5),
            epochs=epochs,
            learning_rate=1e-2,
            progress=False,
        )
        name = type(likelihood).__name__
        results[name] = evidence(
            vae.model, vae.guide, test.x, test.context, num_samples=num_samples
        )
        print(f"{name:<28} evidence given the library sizes: {results[name]}")
    poisson, negative_binomial = (estimate.per_datum for estimate in results.values())
    gain = negative_binomial - poisson
    print(f"gain a cell, paired: {gain.mean():.2f} ± {gain.std() / len(gain) ** 0.5:.2f} nats")
    if path is None:
        frequent = splits.train.x.mean(0) >= 1
        errors = (likelihood.dispersion.dispersion.detach() / truth.dispersion - 1).abs()[frequent]
        print(
            f"median error of the dispersions: {errors.median():.0%} over {int(frequent.sum())} "
            f"genes"
        )
    gaps = inference_gaps(
        vae.model, vae.guide, test.x[:50], test[:50].context, num_samples=num_samples
    )
    print(f"verdict: {gaps.verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--path", help="an .h5ad file of your own")
    options = parser.parse_args()
    main(options.epochs, options.num_samples, options.path)
