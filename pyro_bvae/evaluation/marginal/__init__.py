"""The evidence log p(x) and its bound: estimators, their weights and their errors."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
