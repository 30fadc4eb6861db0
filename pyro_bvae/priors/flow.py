"""Normalizing flows of Pyro's transforms as a prior."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import DiagonalNormal

# The most that one coupling does to the log of a scale: extreme latents keep a finite density
# through many layers.
_LOG_SCALE_BOUND = 2.0
# Weights of a coupling's last layer, of those that torch gives: the flow starts near the standard
# normal.
_START = 0.01


class UncachedTransformedDistribution(dist.TransformedDistribution):
    """A transformed distribution whose density of a value does not depend on its earlier draws.

    Pyro's transforms keep their last input and output, and give back the input of an output that
    they know: the gradient in that output is lost, and a graph is kept alive. Each use of the
    transforms is that of new copies here, which share the parameters.
    """

    @property
    def transforms(self) -> list[Any]:
        """The transforms, first to last, without anything in their caches."""
        return [copy.copy(transform) for transform in self._transforms]

    @transforms.setter
    def transforms(self, transforms: list[Any]) -> None:
        self._transforms = transforms


@public
class FlowPrior(nn.Module):
    r"""A normalizing flow: noise through an elementwise spline, then through affine couplings.

    .. math:: z = (T_n \circ \dots \circ T_1 \circ S)(\epsilon), \qquad
        \log p(z) = \log \mathcal{N}(\epsilon; 0, I) - \log \left| \det \frac{\partial z}{\partial
        \epsilon} \right|,

    with S a monotonic rational spline for each latent (Dolatabadi et al. 2020) and T couplings
    (Dinh et al. 2017) that scale and shift one half of the latents by functions of the other, the
    halves in turn. Draws and densities both take one pass. It starts near the standard normal; with
    one latent there is nothing to couple, and the spline remains. KL and rate are measured by Monte
    Carlo. As a prior of a VAE: Huang et al. 2017.

    Args:
        latent_dim: Number L of latents.
        num_layers: Number n of couplings.
        hidden: Widths of each coupling's network.
        num_bins: Pieces of the spline, which is the identity beyond ``bound``.
        bound: Where the spline ends, in standard deviations.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: if a number is no positive integer, or ``bound`` is not positive.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        num_layers: int = 4,
        hidden: tuple[int, ...] = (64,),
        num_bins: int = 8,
        bound: float = 4.0,
    ) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        check_count("num_layers", num_layers)
        check_count("num_bins", num_bins)
        for width in hidden:
            check_count("hidden", width)
        if not (bound > 0 and math.isfinite(bound)):
            raise InputError(f"'bound' must be positive and finite, got {bound}")
        self.latent_dim = latent_dim
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)
        self.spline = _identity_spline(latent_dim, num_bins, bound)
        layers = num_layers if latent_dim > 1 else 0
        self.couplings = nn.ModuleList()
        given, limit = latent_dim // 2, _LOG_SCALE_BOUND
        for _ in range(layers):
            network: Any = DenseNN(given, list(hidden), [latent_dim - given] * 2)
            with torch.no_grad():
                network.layers[-1].weight.mul_(_START)
                network.layers[-1].bias.mul_(_START)
            self.couplings.append(
                pyro_transforms.AffineCoupling(
                    given, network, log_scale_min_clip=-limit, log_scale_max_clip=limit
                )
            )

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        transforms: list[Any] = [self.spline]
        reverse = torch.arange(self.latent_dim, device=self.loc.device).flip(0)
        for coupling in self.couplings:
            transforms += [coupling, pyro_transforms.Permute(reverse)]
        return UncachedTransformedDistribution(DiagonalNormal.of(self.loc, self.scale), transforms)


def _identity_spline(latent_dim: int, num_bins: int, bound: float) -> nn.Module:
    """Return a spline that is the identity: equal pieces with a slope of one."""
    spline = pyro_transforms.Spline(latent_dim, count_bins=num_bins, bound=bound)
    with torch.no_grad():
        for parameter in (
            spline.unnormalized_widths,
            spline.unnormalized_heights,
            spline.unnormalized_lambdas,
        ):
            parameter.zero_()
        spline.unnormalized_derivatives.fill_(math.log(math.expm1(1 - 1e-3)))  # Pyro adds 1e-3
    return spline
