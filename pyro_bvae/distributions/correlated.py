r"""Normals with correlated dimensions: of full rank, and of low rank plus a diagonal.

Neither copies the matrix of a datum for its particles, in draws or in densities.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl


def matrix_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply ``(N, I, J)`` by ``(*, N, J)``, one product a datum, ``(*, N, I)``."""
    return torch.einsum("...ij,...j->...i", matrix, vector)


class FullRankNormal(dist.MultivariateNormal):
    r"""Pyro's normal of a Cholesky factor C: all draws of a datum in one product."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with a gradient."""
        return self._push(self._draw_noise(sample_shape))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Return draws with a gradient, ``(*, D)``, and their log density by the noise, ``(*)``.

        That density stays finite however badly conditioned C is, where a triangular solve in
        float32 overflows.
        """
        noise = self._draw_noise(sample_shape)
        log_noise = -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
        return self._push(noise), log_noise - self.log_volume

    def _draw_noise(self, sample_shape: Any) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _push(self, noise: Tensor) -> Tensor:
        return self.loc + matrix_vector(self._unbroadcasted_scale_tril, noise)

    @property
    def log_volume(self) -> Tensor:
        """Half of the log determinant of the covariance, for each matrix."""
        return self._unbroadcasted_scale_tril.diagonal(0, -2, -1).log().sum(-1)


class LowRankNormal(dist.TorchDistribution):
    r"""A normal with covariance :math:`S (I + V V^\top) S`, S diagonal and V of few columns.

    It is Pyro's ``LowRankMultivariateNormal`` with its factor in units of the diagonal, which is
    stable: with :math:`y = S^{-1}(z - \mu)` and :math:`c = (I + V^\top V)^{-1} V^\top
    y`, the distance is a sum of squares,

    .. math:: \|y - V c\|^2 + \|c\|^2, \qquad \tfrac12 \log |\Sigma| = \sum_d \log s_d + \tfrac12
        \log |I + V^\top V|,

    where the usual formula subtracts two large numbers. Nothing of size D × D is made.

    Args:
        loc: Means, shape ``(*, D)``.
        scale: The diagonal of S, positive, of the same shape.
        factor: V, shape ``(*, D, R)``.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "factor": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, factor: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], scale.shape[:-1], factor.shape[:-2])
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankNormal:
        """Return it with another batch shape; the parameters are not copied."""
        new = type(self).__new__(type(self))
        new.loc, new.scale, new.factor = self.loc, self.scale, self.factor
        super(LowRankNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with a gradient."""
        shape = self._extended_shape(torch.Size(sample_shape))
        own, shared = (
            torch.randn((*shape[:-1], size), dtype=self.loc.dtype, device=self.loc.device)
            for size in self.factor.shape[-2:]
        )
        return self.loc + self.scale * (own + matrix_vector(self.factor, shared))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of ``(*, D)``, shape ``(*)``."""
        if self._validate_args:
            self._validate_sample(value)
        y, tril = (value - self.loc) / self.scale, self._capacitance_tril
        shared = matrix_vector(torch.cholesky_solve(self.factor.mT, tril), y)
        distance = (y - matrix_vector(self.factor, shared)).square().sum(-1) + shared.square().sum(
            -1
        )
        log_prob = -0.5 * (distance + y.shape[-1] * math.log(2 * math.pi)) - self._log_volume(tril)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @property
    def _capacitance_tril(self) -> Tensor:
        identity = torch.eye(
            self.factor.shape[-1], dtype=self.factor.dtype, device=self.factor.device
        )
        return torch.linalg.cholesky(identity + self.factor.mT @ self.factor)

    def _log_volume(self, tril: Tensor) -> Tensor:
        return self.scale.log().sum(-1) + tril.diagonal(0, -2, -1).log().sum(-1)

    @property
    def log_volume(self) -> Tensor:
        """Half of the log determinant of the covariance, for each matrix."""
        return self._log_volume(self._capacitance_tril)

    @property
    def mean(self) -> Tensor:
        """The mean, ``(*, D)``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, ``(*, D)``."""
        each = self.scale.square() * (1 + self.factor.square().sum(-1))
        return each.expand(self.batch_shape + self.event_shape)

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance, ``(*, D, D)``, for small D: low rank saves it."""
        identity = torch.eye(self.event_shape[0], dtype=self.loc.dtype, device=self.loc.device)
        tril = self.scale.unsqueeze(-1) * torch.linalg.cholesky(
            identity + self.factor @ self.factor.mT
        )
        return tril.expand(*self.batch_shape, *tril.shape[-2:])


@register_kl(FullRankNormal, torch.distributions.Independent)
@register_kl(LowRankNormal, torch.distributions.Independent)
def _kl_to_a_product(p: Any, q: Any) -> Tensor:
    """Return the KL to a product of normals, which needs the marginal variances alone."""
    base = q.base_dist
    if not isinstance(base, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    squares = (p.variance + (p.mean - base.loc).square()) / base.variance
    kl = 0.5 * (squares - 1).sum(-1) + base.scale.log().sum(-1) - p.log_volume
    return kl.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
