from pyro_bvae.priors.flow import FlowPrior as FlowPrior
from pyro_bvae.priors.heavy_tailed import LaplacePrior as LaplacePrior
from pyro_bvae.priors.heavy_tailed import StudentTPrior as StudentTPrior
from pyro_bvae.priors.mixture import MixturePrior as MixturePrior
from pyro_bvae.priors.normal import LearnedNormalPrior as LearnedNormalPrior
from pyro_bvae.priors.normal import NormalPrior as NormalPrior
from pyro_bvae.priors.vamp import VampPrior as VampPrior
from pyro_bvae.priors.zuko_flow import ZukoPrior as ZukoPrior
