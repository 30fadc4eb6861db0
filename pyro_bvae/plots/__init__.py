"""Results in, matplotlib figures out; nothing here computes an estimate or knows a model.

Every function returns a :class:`matplotlib.figure.Figure` made without pyplot, so nothing has to be
closed, no backend is chosen and no global style is changed. Arrays may be NumPy's or torch's.
"""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
