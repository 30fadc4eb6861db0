"""Priors: modules without input that return a distribution over the latents, :math:`p(z)`."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
