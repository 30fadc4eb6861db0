"""Disentanglement: whether latents stand for factors, with intervals and beside nulls.

Each metric takes codes ``(N, D)`` and factors ``(N, F)``; :func:`disentanglement` takes a model and its data.
"""

from pyro_bvae.evaluation.disentanglement.battery import (
    FAST_METRICS,
    METRICS,
    Disentanglement,
    disentanglement,
    score_codes,
)
from pyro_bvae.evaluation.disentanglement.groups import beta_vae_score, factor_vae_score
from pyro_bvae.evaluation.disentanglement.importances import DCI, dci
from pyro_bvae.evaluation.disentanglement.mutual_information import (
    modularity,
    mutual_information,
    mutual_information_gap,
)
from pyro_bvae.evaluation.disentanglement.ranking import Ranking, rank_correlation, unsupervised_disentanglement_ranking
from pyro_bvae.evaluation.disentanglement.score import Score
from pyro_bvae.evaluation.disentanglement.separated import explicitness, sap

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
