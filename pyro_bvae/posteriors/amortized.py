r"""Amortized posteriors: one network for all data, from x to :math:`q(z \mid x)`."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_bvae.context import Context, with_covariates
from pyro_bvae.distributions import DiagonalNormal
from pyro_bvae.errors import InputError

# Keeps a scale off zero in float32, where the density of a collapsed posterior would overflow.
_SCALE_FLOOR = 1e-5


class NormalPosterior(nn.Module):
    r"""The diagonal normal guide, :math:`q(z \mid x) = \mathcal{N}(\mu(x), \operatorname{diag} \sigma(x)^2)`.

    The network gives :math:`(\mu, s)` and :math:`\sigma = \operatorname{softplus}(s)` plus a floor of 1e-5, which
    grows linearly where an exponential would overflow (Kingma and Welling 2014, with another link for the scale).

    Args:
        network: Maps ``(*, D)`` to ``(*, 2 L)``. Covariates, if any, are appended to its input.
        num_covariates: How many of the network's inputs are covariates.

    Shape:
        ``(*, N, D)`` to a distribution with batch shape ``(*, N)`` and event shape ``(L,)``.
    """

    def __init__(self, network: nn.Module, *, num_covariates: int = 0) -> None:
        super().__init__()
        out_features = getattr(network, "out_features", None)
        if isinstance(out_features, int) and out_features % 2:
            raise InputError(
                f"'network' must give a mean and a scale for each latent, an even number of outputs, got {out_features}"
            )
        self.network = network
        self.latent_dim = out_features // 2 if isinstance(out_features, int) else None
        in_features = getattr(network, "in_features", None)
        self.num_features = in_features - num_covariates if isinstance(in_features, int) else None

    def forward(self, x: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q(z | x)`."""
        loc, raw_scale = self.network(with_covariates(x, context)).chunk(2, dim=-1)
        return DiagonalNormal.of(loc, softplus(raw_scale) + _SCALE_FLOOR)
