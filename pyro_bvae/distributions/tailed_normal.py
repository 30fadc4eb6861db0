"""A normal with defensive tails, whose importance samples reach further than a normal's."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

# Factors on the normal's scale: a posterior of any scale between half and six of the normal's lies
# near one of them.
_STRETCHES = (0.7, 1.4, 2.0, 2.8, 4.0, 5.6)
# The tails' part that is stretched as a whole; the rest has a Student-t of two degrees of freedom
# in each dimension.
_WHOLE = 2 / 3


class TailedNormal(dist.TorchDistribution):
    r"""A normal mixed with wider versions of itself, for defensive sampling (Hesterberg 1995).

    .. math::
        q(z) = (1 - \alpha) \, \mathcal{N}(\mu, \Sigma)
            + \frac{2 \alpha}{3 J} \sum_j \mathcal{N}(\mu, c_j^2 \Sigma)
            + \frac{\alpha}{3} \prod_d \frac{1}{\sigma_d} \, t_2\Big(\frac{z_d -
            \mu_d}{\sigma_d}\Big)

    One factor :math:`c_j` stretches all dimensions of a draw together: a posterior of any scale is
    met by a share of the draws that falls slowly with the number of dimensions. The Student-t meets
    single far dimensions; a normal that is no product has the stretched part alone.

    Args:
        normal: A normal: a ``Normal``, one with :meth:`to_event`, or a multivariate one with a
            mean.
        share: :math:`\alpha`, part of the draws that the tails make, between 0 and 1.

    Shape:
        Batch and event shape of ``normal``.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, normal: Any, share: float) -> None:
        self.normal, self.share = normal, share
        base = normal.base_dist if isinstance(normal, torch.distributions.Independent) else normal
        self._base = base if isinstance(base, torch.distributions.Normal) else None
        whole = share if self._base is None else _WHOLE * share
        self._stretches = (1.0, *_STRETCHES)
        self._shares = (1 - share, *[whole / len(_STRETCHES)] * len(_STRETCHES))
        super().__init__(normal.batch_shape, normal.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the normal."""
        return self.normal.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> TailedNormal:
        """Return it with another batch shape."""
        return TailedNormal(self.normal.expand(torch.Size(batch_shape)), self.share)

    @property
    def mean(self) -> Tensor:
        """The mean of the normal."""
        return self.normal.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            loc = self.normal.mean
            batch = shape[: len(shape) - self.event_dim]
            # The last entry stands for the Student-t, whose noise replaces the normal's.
            shares = loc.new_tensor([*self._shares, 1 - sum(self._shares)]).clamp(min=0)
            part = torch.multinomial(shares, max(1, batch.numel()), replacement=True)[
                : batch.numel()
            ].view(batch)
            stretch = loc.new_tensor([*self._stretches, 1.0])[part].view(
                *batch, *[1] * self.event_dim
            )
            if self._base is None:
                draws = self.normal.sample(torch.Size(sample_shape))
                return loc + stretch * (draws - loc)
            noise = torch.randn(shape, dtype=loc.dtype, device=loc.device).mul_(stretch)
            chosen = part == len(self._stretches)
            # The quantile function of two degrees of freedom, away from the ends, where it is
            # infinite.
            uniform = torch.rand_like(noise[chosen]).clamp_(1e-7, 1 - 1e-7)
            noise[chosen] = (2 * uniform - 1) / (2 * uniform * (1 - uniform)).sqrt()
            return noise.mul_(self._base.scale).add_(self._base.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of draws, without their event dimensions."""
        size = max(1, self.event_shape.numel())
        dims = list(range(-self.event_dim, 0))
        if self._base is None:
            at_mean = self.normal.log_prob(self.normal.mean)
            squares = 2 * (at_mean - self.normal.log_prob(value))
            log_volume = -at_mean - size * 0.5 * math.log(2 * math.pi)
        else:
            terms = ((value - self._base.loc) / self._base.scale).square()
            squares = terms.sum(dims) if dims else terms
            log_scale = self._base.scale.log()
            log_volume = log_scale.sum(dims) if dims else log_scale
        stretch = value.new_tensor(self._stretches).view(-1, *[1] * squares.dim())
        log_shares = value.new_tensor(self._shares).log().view(stretch.shape)
        normals = (
            log_shares
            - size * (stretch.log() + 0.5 * math.log(2 * math.pi))
            - squares / (2 * stretch.square())
        )
        log_prob = normals.logsumexp(0)
        if self._base is not None and self.share > 0:
            student = torch.log1p(terms / 2)
            student = student.sum(dims) if dims else student
            constant = math.log((1 - _WHOLE) * self.share) - size * math.log(2 * math.sqrt(2))
            log_prob = torch.logaddexp(log_prob, constant - 1.5 * student)
        return log_prob - log_volume
