from pyro_bvae.posteriors.amortized import FullRankPosterior as FullRankPosterior
from pyro_bvae.posteriors.amortized import LowRankPosterior as LowRankPosterior
from pyro_bvae.posteriors.amortized import NormalPosterior as NormalPosterior
from pyro_bvae.posteriors.base import AmortizedPosterior as AmortizedPosterior
from pyro_bvae.posteriors.flow import FlowPosterior as FlowPosterior
from pyro_bvae.posteriors.flow import GatedStep as GatedStep
from pyro_bvae.posteriors.flow import LocalAutoregressivePosterior as LocalAutoregressivePosterior
from pyro_bvae.posteriors.local import LocalFullRankPosterior as LocalFullRankPosterior
from pyro_bvae.posteriors.local import LocalLowRankPosterior as LocalLowRankPosterior
from pyro_bvae.posteriors.local import LocalNormalPosterior as LocalNormalPosterior
from pyro_bvae.posteriors.local import local_posterior as local_posterior
from pyro_bvae.posteriors.local_flow import LocalFlowPosterior as LocalFlowPosterior
from pyro_bvae.posteriors.local_transformed import (
    LocalTransformedPosterior as LocalTransformedPosterior,
)
from pyro_bvae.posteriors.mixture import LocalMixturePosterior as LocalMixturePosterior
from pyro_bvae.posteriors.mixture import MixturePosterior as MixturePosterior
from pyro_bvae.posteriors.refinement import RefinedGuide as RefinedGuide
from pyro_bvae.posteriors.refinement import RefinedPosterior as RefinedPosterior
from pyro_bvae.posteriors.refinement import refined as refined
