"""Disentanglement: whether latents stand for factors, with intervals and beside nulls.

Each metric takes codes ``(N, D)`` and factors ``(N, F)``; :func:`disentanglement` takes a model and
its data.
"""

from pyro_bvae.evaluation.disentanglement.all_metrics import (
    FAST_METRICS,
    METRICS,
    Disentanglement,
    disentanglement,
    score_codes,
)
from pyro_bvae.evaluation.disentanglement.beta_factor_vae import beta_vae_score, factor_vae_score
from pyro_bvae.evaluation.disentanglement.completeness import DCI, dci
from pyro_bvae.evaluation.disentanglement.mig_modularity import (
    modularity,
    mutual_information,
    mutual_information_gap,
)
from pyro_bvae.evaluation.disentanglement.sap_explicitness import explicitness, sap
from pyro_bvae.evaluation.disentanglement.score import Score
from pyro_bvae.evaluation.disentanglement.udr import (
    Ranking,
    rank_correlation,
    unsupervised_disentanglement_ranking,
)

__all__ = [
    "DCI",
    "FAST_METRICS",
    "METRICS",
    "Disentanglement",
    "Ranking",
    "Score",
    "beta_vae_score",
    "dci",
    "disentanglement",
    "explicitness",
    "factor_vae_score",
    "modularity",
    "mutual_information",
    "mutual_information_gap",
    "rank_correlation",
    "sap",
    "score_codes",
    "unsupervised_disentanglement_ranking",
]
