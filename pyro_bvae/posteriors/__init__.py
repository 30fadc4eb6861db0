r"""Approximate posteriors: modules from data to a distribution over the latents, :math:`q(z \mid x)`."""

from pyro_bvae.posteriors.amortized import NormalPosterior
from pyro_bvae.posteriors.local import LocalFullRankPosterior, LocalNormalPosterior, local_posterior
from pyro_bvae.posteriors.local_flow import LocalFlowPosterior

__all__ = [
    "LocalFlowPosterior",
    "LocalFullRankPosterior",
    "LocalNormalPosterior",
    "NormalPosterior",
    "local_posterior",
]
