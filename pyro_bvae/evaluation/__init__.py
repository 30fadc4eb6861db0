"""Measuring: the bound, the evidence, the gaps between them, and the latents."""

from typing import Any

from pyro_bvae.evaluation import disentanglement
from pyro_bvae.evaluation._evaluate import Evaluation, evaluate
from pyro_bvae.evaluation.arviz import to_arviz, write_arviz
from pyro_bvae.evaluation.collapse.causes import Cause, LatentDiagnosis
from pyro_bvae.evaluation.collapse.diagnosis import Diagnosis, diagnose
from pyro_bvae.evaluation.collapse.messages import CollapseFinding
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps.measure import inference_gaps
from pyro_bvae.evaluation.gaps.result import InferenceGaps
from pyro_bvae.evaluation.geometry.geodesics import Geodesic, geodesic
from pyro_bvae.evaluation.geometry.jacobian import (
    DecoderGeometry,
    RotationTest,
    decoder_geometry,
    decoder_jacobian,
    fisher_rao,
)
from pyro_bvae.evaluation.information.curve import (
    CurvePoint,
    RateDistortion,
    Slope,
    rate_distortion,
)
from pyro_bvae.evaluation.information.decomposition import KLDecomposition, decompose_kl
from pyro_bvae.evaluation.information.energy import EnergyTest, energy_test
from pyro_bvae.evaluation.information.factors import LatentReading, read_latents
from pyro_bvae.evaluation.information.holes import Coverage, Mass, coverage, log_aggregate
from pyro_bvae.evaluation.inversion import (
    AggregateHoles,
    AggregateStart,
    BatchedHMCMethod,
    Blur,
    Calibration,
    CountThinning,
    Downsample,
    DrawnSignal,
    Draws,
    EncoderStart,
    InverseProblem,
    Inversion,
    LinearOperator,
    Mask,
    MeanSignal,
    NormalNoise,
    NUTSMethod,
    PriorStart,
    RandomProjection,
    Signal,
    Start,
    VariationalMethod,
    calibrate,
    invert,
)
from pyro_bvae.evaluation.marginal import averages, bounds
from pyro_bvae.evaluation.marginal.annealing import (
    Sandwich,
    annealed_evidence,
    bidirectional_evidence,
)
from pyro_bvae.evaluation.marginal.bounds import (
    ElboParts,
    KLPerDimension,
    elbo_parts,
    kl_per_dimension,
)
from pyro_bvae.evaluation.marginal.importance import elbo, evidence
from pyro_bvae.evaluation.marginal.proposals import (
    DefensiveProposal,
    GuideProposal,
    HeavyTailedProposal,
    RefitProposal,
    RobustProposal,
)
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings
from pyro_bvae.evaluation.merge import join_estimates, join_evaluations
from pyro_bvae.evaluation.program_audit.auditor import Audit, Finding, audit
from pyro_bvae.evaluation.refit.optimisation import RefitSettings
from pyro_bvae.evaluation.samples.features import LabelClassifier, PrincipalFeatures
from pyro_bvae.evaluation.samples.predictive_checks import CountChecks, Statistic, count_checks
from pyro_bvae.evaluation.samples.quality import (
    LabelQuality,
    SampleQuality,
    SampleScore,
    sample_quality,
)
from pyro_bvae.evaluation.samples.two_sample import two_sample_test
from pyro_bvae.evaluation.verification import Check, verify

__all__ = [
    "AggregateHoles",
    "AggregateStart",
    "AnnealingSettings",
    "Audit",
    "BatchedHMCMethod",
    "Blur",
    "Calibration",
    "Cause",
    "Check",
    "CollapseFinding",
    "CountChecks",
    "CountThinning",
    "Coverage",
    "CurvePoint",
    "DecoderGeometry",
    "DefensiveProposal",
    "Diagnosis",
    "Downsample",
    "DrawnSignal",
    "Draws",
    "ElboParts",
    "EncoderStart",
    "EnergyTest",
    "Estimate",
    "Evaluation",
    "Finding",
    "Geodesic",
    "GuideProposal",
    "HeavyTailedProposal",
    "InferenceGaps",
    "InverseProblem",
    "Inversion",
    "KLDecomposition",
    "KLPerDimension",
    "LabelClassifier",
    "LabelQuality",
    "LatentDiagnosis",
    "LatentReading",
    "LinearOperator",
    "Mask",
    "Mass",
    "MeanSignal",
    "NUTSMethod",
    "NormalNoise",
    "PrincipalFeatures",
    "PriorStart",
    "RandomProjection",
    "RateDistortion",
    "RefitProposal",
    "RefitSettings",
    "RobustProposal",
    "RotationTest",
    "SampleQuality",
    "SampleScore",
    "Sandwich",
    "Signal",
    "Slope",
    "Start",
    "Statistic",
    "VariationalMethod",
    "annealed_evidence",
    "audit",
    "averages",
    "bidirectional_evidence",
    "calibrate",
    "count_checks",
    "coverage",
    "decoder_geometry",
    "decoder_jacobian",
    "decompose_kl",
    "diagnose",
    "disentanglement",
    "elbo",
    "elbo_parts",
    "energy_test",
    "evaluate",
    "evidence",
    "fisher_rao",
    "geodesic",
    "inference_gaps",
    "invert",
    "join_estimates",
    "join_evaluations",
    "kl_per_dimension",
    "log_aggregate",
    "rate_distortion",
    "read_latents",
    "sample_quality",
    "to_arviz",
    "two_sample_test",
    "verify",
    "write_arviz",
]


def __getattr__(name: str) -> Any:
    if name not in ("bound", "Bound"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(bounds, name)
