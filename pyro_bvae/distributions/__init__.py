"""Distributions that Pyro lacks, and some of Pyro's scored faster. They know torch and Pyro and nothing else."""

from pyro_bvae.distributions.autoregressive import AutoregressiveNormal, AutoregressiveStep
from pyro_bvae.distributions.autoregressive_pixels import AutoregressivePixels
from pyro_bvae.distributions.correlated import FullRankNormal, LowRankNormal, matrix_vector
from pyro_bvae.distributions.counts import (
    NegativeBinomialCounts,
    PoissonCounts,
    ZeroInflatedNegativeBinomialCounts,
)
from pyro_bvae.distributions.mixture import NormalMixture
from pyro_bvae.distributions.normal import DiagonalNormal
from pyro_bvae.distributions.pixels import (
    PIXEL_LEVELS,
    ContinuousBernoulliPixels,
    DiscretizedLogistic,
    GreyBernoulli,
    NumberedCategories,
    Pixels,
    grey_levels,
)

__all__ = [
    "PIXEL_LEVELS",
    "AutoregressiveNormal",
    "AutoregressivePixels",
    "AutoregressiveStep",
    "ContinuousBernoulliPixels",
    "DiagonalNormal",
    "DiscretizedLogistic",
    "FullRankNormal",
    "GreyBernoulli",
    "LowRankNormal",
    "NegativeBinomialCounts",
    "NormalMixture",
    "NumberedCategories",
    "Pixels",
    "PoissonCounts",
    "ZeroInflatedNegativeBinomialCounts",
    "grey_levels",
    "matrix_vector",
]
