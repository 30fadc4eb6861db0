"""The causes of collapsed latents, and a remedy for each."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
