"""Inversion with a VAE as the prior: operators, noise, the Pyro model, methods, calibration."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
