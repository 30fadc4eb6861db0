"""β-variational autoencoders as Pyro programs, with estimates that can be trusted."""

from pyro_bvae import (
    datasets,
    evaluation,
    latents,
    likelihoods,
    networks,
    oracle,
    plots,
    posteriors,
    priors,
    training,
)
from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import (
    audit,
    decompose_kl,
    diagnose,
    elbo,
    evidence,
    inference_gaps,
    invert,
    rate_distortion,
)
from pyro_bvae.runs import load
from pyro_bvae.training import fit, sweep
from pyro_bvae.vae import BetaVAE, Decoder

__version__ = "0.1.0"

__all__ = [
    "BetaVAE",
    "Context",
    "Decoder",
    "InputError",
    "audit",
    "datasets",
    "decompose_kl",
    "diagnose",
    "elbo",
    "evaluation",
    "evidence",
    "fit",
    "inference_gaps",
    "invert",
    "latents",
    "likelihoods",
    "load",
    "networks",
    "oracle",
    "plots",
    "posteriors",
    "priors",
    "rate_distortion",
    "sweep",
    "training",
]
