"""Why latents collapse, and what to do about each cause."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
