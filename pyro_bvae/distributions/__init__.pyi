from pyro_bvae.distributions.autoregressive import AutoregressiveNormal as AutoregressiveNormal
from pyro_bvae.distributions.autoregressive import AutoregressiveStep as AutoregressiveStep
from pyro_bvae.distributions.autoregressive_pixels import (
    AutoregressivePixels as AutoregressivePixels,
)
from pyro_bvae.distributions.correlated import FullRankNormal as FullRankNormal
from pyro_bvae.distributions.correlated import LowRankNormal as LowRankNormal
from pyro_bvae.distributions.correlated import matrix_vector as matrix_vector
from pyro_bvae.distributions.counts import NegativeBinomialCounts as NegativeBinomialCounts
from pyro_bvae.distributions.counts import PoissonCounts as PoissonCounts
from pyro_bvae.distributions.counts import (
    ZeroInflatedNegativeBinomialCounts as ZeroInflatedNegativeBinomialCounts,
)
from pyro_bvae.distributions.mixture import NormalMixture as NormalMixture
from pyro_bvae.distributions.normal import DiagonalNormal as DiagonalNormal
from pyro_bvae.distributions.pixels import PIXEL_LEVELS as PIXEL_LEVELS
from pyro_bvae.distributions.pixels import ContinuousBernoulliPixels as ContinuousBernoulliPixels
from pyro_bvae.distributions.pixels import DiscretizedLogistic as DiscretizedLogistic
from pyro_bvae.distributions.pixels import GreyBernoulli as GreyBernoulli
from pyro_bvae.distributions.pixels import NumberedCategories as NumberedCategories
from pyro_bvae.distributions.pixels import Pixels as Pixels
from pyro_bvae.distributions.pixels import grey_levels as grey_levels
