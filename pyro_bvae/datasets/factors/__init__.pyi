from pyro_bvae.datasets.factors.factor_arrays import dsprites as dsprites
from pyro_bvae.datasets.factors.factor_arrays import factor_classes as factor_classes
from pyro_bvae.datasets.factors.factor_arrays import from_factors as from_factors
from pyro_bvae.datasets.factors.space import FactorSpace as FactorSpace
