r"""Amortized normal posteriors: one network from x to a normal :math:`q(z \mid x)`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import DiagonalNormal, FullRankNormal, LowRankNormal
from pyro_bvae.posteriors.base import AmortizedPosterior, positive

# The largest factor of low rank in all, in units of the diagonal: at more, float32 does not see
# the diagonal.
_FACTOR_BOUND = 100.0


@public
class NormalPosterior(AmortizedPosterior):
    r"""The diagonal normal guide, :math:`\mathcal{N}(\mu(x), \operatorname{diag} \sigma(x)^2)`.

    The network gives :math:`(\mu, s)` and :math:`\sigma = \operatorname{softplus}(s)` plus a floor
    of 1e-5, which grows linearly where an exponential would overflow (Kingma and Welling 2014, with
    another link for the scale).

    Args:
        network: Maps ``(*, D)`` to ``(*, 2 L)``. Covariates, if any, are appended to its input.
        num_covariates: How many of the network's inputs are covariates.
        inputs: Applied to the data before covariates are appended, such as ``torch.log1p`` for
            counts.

    Shape:
        ``(*, N, D)`` to a distribution with batch shape ``(*, N)`` and event shape ``(L,)``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_covariates: int = 0,
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        outputs = "a mean and a scale for each latent, an even number of outputs"
        super().__init__(
            network, self.num_outputs, outputs, num_covariates=num_covariates, inputs=inputs
        )

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """Return how many outputs the network must have."""
        return 2 * latent_dim

    def forward(self, x: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q(z | x)`."""
        outputs, latent_dim = self.parameters_of(x, context)
        loc, raw_scale = outputs.split(latent_dim, dim=-1)
        return DiagonalNormal.of(loc, positive(raw_scale))


@public
class FullRankPosterior(AmortizedPosterior):
    r"""The normal guide with a covariance matrix for each datum, by its Cholesky factor.

    .. math:: q(z \mid x) = \mathcal{N}(\mu, C C^\top), \qquad C_{dd} = \sigma_d, \quad
        C_{de} = \sigma_d \, \lambda_{de} / \sqrt{d - 1} \;\; (e < d),

    with a network for :math:`(\mu, s, \lambda)` and :math:`\sigma = \operatorname{softplus}(s)`
    plus a floor of 1e-5 (Kingma and Welling 2019, section 2.5.1). Rows of C are in units of their
    diagonal and divided by the root of their length, so that correlations start moderate for any
    number of latents, and do not change with a latent's scale.

    Args:
        network: Maps ``(*, D)`` to ``(*, 2 L + L (L - 1) / 2)``. Covariates, if any, are appended
            to its input.
        num_covariates: How many of the network's inputs are covariates.
        inputs: Applied to the data before covariates are appended, such as ``torch.log1p`` for
            counts.

    Shape:
        ``(*, N, D)`` to a distribution with batch shape ``(*, N)`` and event shape ``(L,)``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_covariates: int = 0,
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        outputs = "the mean and the Cholesky factor of L latents, L + L (L + 1) / 2 outputs"
        super().__init__(
            network, self.num_outputs, outputs, num_covariates=num_covariates, inputs=inputs
        )

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """Return how many outputs the network must have."""
        return latent_dim + latent_dim * (latent_dim + 1) // 2

    def forward(self, x: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q(z | x)`."""
        outputs, latent_dim = self.parameters_of(x, context)
        loc, raw_scale, below = outputs.tensor_split((latent_dim, 2 * latent_dim), dim=-1)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1, device=outputs.device)
        unit = torch.eye(latent_dim, dtype=outputs.dtype, device=outputs.device)
        unit = unit.expand(*outputs.shape[:-1], -1, -1).clone()
        unit[..., rows, columns] = below * rows.to(outputs.dtype).rsqrt()
        return FullRankNormal(loc, scale_tril=positive(raw_scale).unsqueeze(-1) * unit)


@public
class LowRankPosterior(AmortizedPosterior):
    r"""The normal guide with correlations of low rank, for latents too many for a full matrix.

    .. math:: q(z \mid x) = \mathcal{N}(\mu, S (I + V V^\top) S), \qquad S = \operatorname{diag}
        \sigma, \quad
        V = B / \sqrt{R + \|B\|^2 / 100^2},

    with a network for :math:`(\mu, s, B)`, B of R columns, and :math:`\sigma =
    \operatorname{softplus}(s)` plus a floor of 1e-5 (Rezende et al. 2014, Ong et al. 2018). The
    factor is in units of the diagonal, and its norm stays below 100, where float32 still sees the
    diagonal beside it.

    Args:
        network: Maps ``(*, D)`` to ``(*, (2 + R) L)``. Covariates, if any, are appended to its
            input.
        rank: R, the number of columns.
        num_covariates: How many of the network's inputs are covariates.
        inputs: Applied to the data before covariates are appended, such as ``torch.log1p`` for
            counts.

    Shape:
        ``(*, N, D)`` to a distribution with batch shape ``(*, N)`` and event shape ``(L,)``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rank: int = 2,
        num_covariates: int = 0,
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_count("rank", rank)
        outputs = (
            f"a mean, a scale and {rank} factors for each latent, {2 + rank} times as many outputs"
        )
        count = functools.partial(self.num_outputs, rank=rank)
        super().__init__(network, count, outputs, num_covariates=num_covariates, inputs=inputs)
        self.rank = rank

    @staticmethod
    def num_outputs(latent_dim: int, rank: int = 2) -> int:
        """Return how many outputs the network must have."""
        return (2 + rank) * latent_dim

    def forward(self, x: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q(z | x)`."""
        outputs, latent_dim = self.parameters_of(x, context)
        loc, raw_scale, factor = outputs.tensor_split((latent_dim, 2 * latent_dim), dim=-1)
        squares = factor.square().sum(-1, keepdim=True) / _FACTOR_BOUND**2
        factor = (factor * (self.rank + squares).rsqrt()).unflatten(-1, (latent_dim, self.rank))
        return LowRankNormal(loc, positive(raw_scale), factor)
