"""Comparison: which of several models explains the same data better, and can that be seen?"""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
