"""Information of the latents on the data: rates, mutual information, holes."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
