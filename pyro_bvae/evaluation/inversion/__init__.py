"""Inversion with a VAE as the prior: operators, noise, the Pyro model, ways to its posterior, and their calibration."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
