"""Priors: modules without input that return a distribution over the latents, p(z)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.distributions import DiagonalNormal
from pyro_bvae.errors import InputError


class NormalPrior(nn.Module):
    r"""The standard normal prior, :math:`p(z) = \mathcal{N}(0, I)`.

    Args:
        latent_dim: Number L of latents.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise InputError(f"'latent_dim' must be a positive integer, got {latent_dim!r}")
        self.latent_dim = latent_dim
        # Buffers, so that the prior follows the model to a device and a dtype; they are no state to save.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return DiagonalNormal.of(self.loc, self.scale)
