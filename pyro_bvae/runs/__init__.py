"""Run directories: a configuration, metrics and checkpoints on disk, and what is measured and shown of them."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
