"""Expression behind counts: corrected for batches, and compared between groups of cells."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
