"""Disentanglement: whether latents stand for factors, with intervals and beside nulls.

Each metric takes codes ``(N, D)`` and factors ``(N, F)``; :func:`disentanglement` takes a model and
its data.
"""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
