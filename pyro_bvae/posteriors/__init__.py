r"""Approximate posteriors: modules from data to a distribution over the latents, :math:`q(z \mid x)`."""

from pyro_bvae.posteriors.amortized import FullRankPosterior, LowRankPosterior, NormalPosterior
from pyro_bvae.posteriors.base import AmortizedPosterior
from pyro_bvae.posteriors.flow import FlowPosterior, GatedStep, LocalAutoregressivePosterior
from pyro_bvae.posteriors.local import (
    LocalFullRankPosterior,
    LocalLowRankPosterior,
    LocalNormalPosterior,
    local_posterior,
)
from pyro_bvae.posteriors.local_flow import LocalFlowPosterior
from pyro_bvae.posteriors.local_transformed import LocalTransformedPosterior
from pyro_bvae.posteriors.mixture import LocalMixturePosterior, MixturePosterior

__all__ = [
    "AmortizedPosterior",
    "FlowPosterior",
    "FullRankPosterior",
    "GatedStep",
    "LocalAutoregressivePosterior",
    "LocalFlowPosterior",
    "LocalFullRankPosterior",
    "LocalLowRankPosterior",
    "LocalMixturePosterior",
    "LocalNormalPosterior",
    "LocalTransformedPosterior",
    "LowRankPosterior",
    "MixturePosterior",
    "NormalPosterior",
    "local_posterior",
]
