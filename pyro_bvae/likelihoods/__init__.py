r"""Likelihoods: modules from the decoder's output to a distribution, :math:`p(x \mid z)`.

A likelihood says how many parameters it wants for each feature (``parameters_per_feature``), which
values it can explain (``support``), and owns its parameters beyond the decoder's output, such as a
scale. A new one is one class with these two attributes and a ``forward``.
"""

from pyro_bvae.core.lazy import door

__getattr__, __dir__, __all__ = door(__name__, __file__)
