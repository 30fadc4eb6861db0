"""Networks: tensors of features in, tensors of parameters out."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
