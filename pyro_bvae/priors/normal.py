"""Normal priors: the standard one, and one of learned means and scales."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import DiagonalNormal
from pyro_bvae.priors.scales import positive, raw_of


@public
class NormalPrior(nn.Module):
    r"""The standard normal prior, :math:`p(z) = \mathcal{N}(0, I)`.

    Args:
        latent_dim: Number L of latents.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: if the number is no positive integer.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        self.latent_dim = latent_dim
        # Buffers, so that the prior follows the model to a device and a dtype; they are no state to
        # save.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return DiagonalNormal.of(self.loc, self.scale)


@public
class LearnedNormalPrior(nn.Module):
    r"""A learned normal prior, :math:`p(z) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2)`.

    It starts as the standard normal. A decoder with an affine first layer can undo means and
    scales, so the model is no richer than with the standard normal; the learned one is easier to
    reach, or to read.

    Args:
        latent_dim: Number L of latents.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: if the number is no positive integer.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        self.latent_dim = latent_dim
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.full((latent_dim,), raw_of(1.0)))

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return DiagonalNormal.of(self.loc, positive(self.raw_scale))
