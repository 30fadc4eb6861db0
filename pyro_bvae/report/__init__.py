"""A run directory in, one self-contained HTML page out."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
