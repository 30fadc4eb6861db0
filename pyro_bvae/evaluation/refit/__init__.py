"""Local refits: the best member of a guide's family for each datum, certified."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
