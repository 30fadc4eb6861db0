"""Measuring: the bound, the evidence, the gaps between them, and the latents."""

from pyro_bvae.evaluation.bounds import Bound, KLPerDimension, bound, kl_per_dimension
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.export import to_arviz, write_arviz
from pyro_bvae.evaluation.gaps import InferenceGaps, inference_gaps
from pyro_bvae.evaluation.importance import elbo, evidence
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.summary import Evaluation, evaluate

__all__ = [
    "Bound",
    "Estimate",
    "Evaluation",
    "InferenceGaps",
    "KLPerDimension",
    "RefitSettings",
    "bound",
    "elbo",
    "evaluate",
    "evidence",
    "inference_gaps",
    "kl_per_dimension",
    "to_arviz",
    "write_arviz",
]
