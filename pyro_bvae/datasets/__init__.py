"""Files or seeds -> ``Splits(train, validation, test)`` of ``Dataset(x, context, labels)``."""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
