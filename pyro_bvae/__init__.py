"""β-variational autoencoders as Pyro programs, with estimates that can be trusted."""

from pyro_bvae.core.lazy import door

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = door(__name__, __file__)
