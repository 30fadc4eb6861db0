"""Is the guide the posterior: ranks of simulated truths, their exact test, and the user's data."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
