"""Priors: modules without input that return a distribution over the latents, :math:`p(z)`."""

from pyro_bvae.priors.flow import FlowPrior
from pyro_bvae.priors.heavy_tailed import LaplacePrior, StudentTPrior
from pyro_bvae.priors.mixture import MixturePrior
from pyro_bvae.priors.normal import LearnedNormalPrior, NormalPrior
from pyro_bvae.priors.vamp import VampPrior
from pyro_bvae.priors.zuko_flow import ZukoPrior

__all__ = [
    "FlowPrior",
    "LaplacePrior",
    "LearnedNormalPrior",
    "MixturePrior",
    "NormalPrior",
    "StudentTPrior",
    "VampPrior",
    "ZukoPrior",
]
