"""The mixture of normals as a prior."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import nn

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import NormalMixture
from pyro_bvae.priors.scales import positive, raw_of


@public
class MixturePrior(nn.Module):
    r"""A mixture of normals with learned weights, means and scales.

    .. math:: p(z) = \sum_k \pi_k \, \mathcal{N}(z; \mu_k, \operatorname{diag} \sigma_k^2)

    The components start apart: means drawn from torch's generator, weights equal, and a variance of
    about one in all. KL and rate are measured by Monte Carlo. Reference: Dilokthanakul et al. 2016.

    Args:
        latent_dim: Number L of latents.
        num_components: Number K of components.
        spread: Standard deviation of the starting means, above 0 and below 1; that within a
            component is :math:`\sqrt{1 - \text{spread}^2}`.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: if a number is no positive integer, or the spread lies outside.
    """

    def __init__(self, latent_dim: int, num_components: int = 10, *, spread: float = 0.8) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        check_count("num_components", num_components)
        if not 0 < spread < 1:
            raise InputError(f"'spread' must lie between 0 and 1, got {spread}")
        self.latent_dim, self.num_components = latent_dim, num_components
        within = raw_of(math.sqrt(1 - spread**2))
        self.loc = nn.Parameter(spread * torch.randn(num_components, latent_dim))
        self.raw_scale = nn.Parameter(torch.full((num_components, latent_dim), within))
        self.logits = nn.Parameter(torch.zeros(num_components))

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return NormalMixture(self.logits, self.loc, positive(self.raw_scale))
