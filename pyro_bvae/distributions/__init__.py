"""Distributions that Pyro lacks, and some of Pyro's scored faster. They know torch and Pyro and nothing else."""

from pyro_bvae.distributions.normal import DiagonalNormal
from pyro_bvae.distributions.pixels import GreyBernoulli, Pixels

__all__ = ["DiagonalNormal", "GreyBernoulli", "Pixels"]
