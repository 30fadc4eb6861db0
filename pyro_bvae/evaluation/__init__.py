"""Measuring: the bound, the evidence, the gaps between them, and the latents."""

from pyro_bvae.evaluation.bounds import Bound, KLPerDimension, bound, kl_per_dimension
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps import InferenceGaps, inference_gaps
from pyro_bvae.evaluation.importance import elbo, evidence
from pyro_bvae.evaluation.refit import RefitSettings

__all__ = [
    "Bound",
    "Estimate",
    "InferenceGaps",
    "KLPerDimension",
    "RefitSettings",
    "bound",
    "elbo",
    "evidence",
    "inference_gaps",
    "kl_per_dimension",
]
