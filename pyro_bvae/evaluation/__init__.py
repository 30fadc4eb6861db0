"""Measuring: the bound, the evidence, the gaps between them, and the latents."""

from pyro_bvae.evaluation import averages
from pyro_bvae.evaluation.annealing import Sandwich, annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.audit import Audit, Finding, audit
from pyro_bvae.evaluation.bounds import Bound, KLPerDimension, bound, kl_per_dimension
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.export import to_arviz, write_arviz
from pyro_bvae.evaluation.gaps import InferenceGaps, inference_gaps
from pyro_bvae.evaluation.importance import elbo, evidence
from pyro_bvae.evaluation.predictive_checks import CountChecks, Statistic, count_checks
from pyro_bvae.evaluation.proposals import DefensiveProposal, GuideProposal, HeavyTailedProposal, RefitProposal
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.schedule import AnnealingSettings
from pyro_bvae.evaluation.summary import Evaluation, evaluate
from pyro_bvae.evaluation.verification import Check, verify

__all__ = [
    "AnnealingSettings",
    "Audit",
    "Bound",
    "Check",
    "CountChecks",
    "DefensiveProposal",
    "Estimate",
    "Evaluation",
    "Finding",
    "GuideProposal",
    "HeavyTailedProposal",
    "InferenceGaps",
    "KLPerDimension",
    "RefitProposal",
    "RefitSettings",
    "Sandwich",
    "Statistic",
    "annealed_evidence",
    "audit",
    "averages",
    "bidirectional_evidence",
    "bound",
    "count_checks",
    "elbo",
    "evaluate",
    "evidence",
    "inference_gaps",
    "kl_per_dimension",
    "to_arviz",
    "verify",
    "write_arviz",
]
