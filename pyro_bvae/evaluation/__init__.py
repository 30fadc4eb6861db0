"""Measuring: the bound, the evidence, the gaps between them, and the latents."""

from pyro_bvae.evaluation import averages
from pyro_bvae.evaluation.annealing import Sandwich, annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.audit import Audit, Finding, audit
from pyro_bvae.evaluation.bounds import Bound, KLPerDimension, bound, kl_per_dimension
from pyro_bvae.evaluation.collapse import Diagnosis, diagnose
from pyro_bvae.evaluation.collapse_causes import Cause, LatentDiagnosis
from pyro_bvae.evaluation.collapse_words import CollapseFinding
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.export import to_arviz, write_arviz
from pyro_bvae.evaluation.gaps import InferenceGaps, inference_gaps
from pyro_bvae.evaluation.importance import elbo, evidence
from pyro_bvae.evaluation.information import KLDecomposition, decompose_kl
from pyro_bvae.evaluation.information_latents import LatentReading, read_latents
from pyro_bvae.evaluation.predictive_checks import CountChecks, Statistic, count_checks
from pyro_bvae.evaluation.proposals import DefensiveProposal, GuideProposal, HeavyTailedProposal, RefitProposal
from pyro_bvae.evaluation.rate_distortion import CurvePoint, RateDistortion, Slope, rate_distortion
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.schedule import AnnealingSettings
from pyro_bvae.evaluation.summary import Evaluation, evaluate
from pyro_bvae.evaluation.verification import Check, verify

__all__ = [
    "AnnealingSettings",
    "Audit",
    "Bound",
    "Cause",
    "Check",
    "CollapseFinding",
    "CountChecks",
    "CurvePoint",
    "DefensiveProposal",
    "Diagnosis",
    "Estimate",
    "Evaluation",
    "Finding",
    "GuideProposal",
    "HeavyTailedProposal",
    "InferenceGaps",
    "KLDecomposition",
    "KLPerDimension",
    "LatentDiagnosis",
    "LatentReading",
    "RateDistortion",
    "RefitProposal",
    "RefitSettings",
    "Sandwich",
    "Slope",
    "Statistic",
    "annealed_evidence",
    "audit",
    "averages",
    "bidirectional_evidence",
    "bound",
    "count_checks",
    "decompose_kl",
    "diagnose",
    "elbo",
    "evaluate",
    "evidence",
    "inference_gaps",
    "kl_per_dimension",
    "rate_distortion",
    "read_latents",
    "to_arviz",
    "verify",
    "write_arviz",
]
