"""Priors with heavier tails than the normal, which single out the axes."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public


@public
class LaplacePrior(nn.Module):
    r"""Independent Laplace latents of unit variance.

    .. math:: p(z) = \prod_d \tfrac{1}{2b} e^{-|z_d| / b}, \qquad b = 1 / \sqrt 2,

    so that latents spread as under the standard normal. The KL of a normal guide is a closed form.
    Reference: Park et al. 2019, on priors whose density is no function of the radius: Mathieu et
    al. 2019.

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
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.full((latent_dim,), math.sqrt(0.5)), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return dist.Laplace(self.loc, self.scale).to_event(1)


@public
class StudentTPrior(nn.Module):
    r"""Independent Student-t latents of unit variance.

    .. math:: p(z) = \prod_d t_\nu(z_d / s) / s, \qquad s = \sqrt{(\nu - 2) / \nu},

    which for many degrees of freedom is the standard normal. The KL of a normal guide is measured
    by Monte Carlo.
    Reference: Mathieu, Rainforth, Siddharth and Teh 2019.

    Args:
        latent_dim: Number L of latents.
        df: Degrees of freedom :math:`\nu`, above 2, where the variance is finite; fewer are
            heavier.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: if the number is no positive integer, or ``df`` is not above 2.
    """

    df: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        if not (df > 2 and math.isfinite(df)):
            raise InputError(f"'df' must be above 2, where the variance is finite, got {df}")
        self.latent_dim = latent_dim
        self.register_buffer("df", torch.full((latent_dim,), float(df)), persistent=False)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer(
            "scale", torch.full((latent_dim,), math.sqrt((df - 2) / df)), persistent=False
        )

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return dist.StudentT(self.df, self.loc, self.scale).to_event(1)
