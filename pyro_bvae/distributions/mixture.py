"""The mixture of diagonal normals, with reparametrised draws under any plates."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class NormalMixture(dist.TorchDistribution):
    r"""A mixture of diagonal normals.

    .. math:: q(z) = \sum_c \pi_c \, \mathcal{N}(z; \mu_c, \operatorname{diag} \sigma_c^2)

    Draws have implicit gradients in all parameters, logits included (Figurnov et al. 2018). With
    the responsibilities :math:`w_c \propto \pi_c \prod_{e<d} q_c(z_e)` of the components for the
    dimensions before d, a draw moves with the parameters such that the conditional distribution
    function stays the same,

    .. math:: F_d = \sum_c w_c \, \Phi\Big(\frac{z_d - \mu_{cd}}{\sigma_{cd}}\Big), \qquad
        \partial z_d = - \, \partial F_d \Big/ \frac{\partial F_d}{\partial z_d},

    one dimension after the other. Pyro's ``MixtureOfDiagNormals`` moves draws along lines between
    normals of scale 1
    instead: where its components are narrower, its gradients in the logits are rare and enormous.
    Here they have tens of times smaller a spread, draws may have any sample shape, and one
    dimension is a number of dimensions.

    Args:
        logits: Of the components, shape ``(*, C)``.
        locs: Their means, ``(*, C, D)``.
        scales: Their scales, positive, ``(*, C, D)``.
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "locs": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, logits: Tensor, locs: Tensor, scales: Tensor, validate_args: bool | None = None
    ) -> None:
        self.logits, self.locs, self.scales = logits.log_softmax(-1), locs, scales
        batch_shape = torch.broadcast_shapes(logits.shape[:-1], locs.shape[:-2], scales.shape[:-2])
        super().__init__(batch_shape, locs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalMixture:
        """Return it with another batch shape; the parameters are not copied."""
        new = type(self).__new__(type(self))
        new.logits, new.locs, new.scales = self.logits, self.locs, self.scales
        super(NormalMixture, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with a gradient."""
        shape = self._extended_shape(torch.Size(sample_shape))
        parameters = (self.logits, self.locs, self.scales)
        with torch.no_grad():
            logits = self.logits.expand(*self.batch_shape, -1)
            components: Any = torch.distributions.Categorical
            which = components(logits=logits).sample(torch.Size(sample_shape))
            index = which[..., None, None].expand(*shape[:-1], 1, shape[-1])
            loc, scale = (
                part.expand(*shape[:-1], *part.shape[-2:]).gather(-2, index).squeeze(-2)
                for part in parameters[1:]
            )
            value = loc + scale * torch.randn(shape, dtype=loc.dtype, device=loc.device)
        attached = torch.is_grad_enabled() and any(part.requires_grad for part in parameters)
        return self._moving(value) if attached else value

    def _moving(self, value: Tensor) -> Tensor:
        """Return a draw with its gradient in the parameters."""
        log_shares, moving = self.logits, []
        for x, loc, scale in zip(
            value.unbind(-1), self.locs.unbind(-1), self.scales.unbind(-1), strict=True
        ):
            shares, distance = log_shares.exp(), (x.unsqueeze(-1) - loc) / scale
            with torch.no_grad():
                density = (shares * (-0.5 * distance.square()).exp() / scale).sum(-1) / math.sqrt(
                    2 * math.pi
                )
                # From the nearer end: close to 1, differences between distribution functions are
                # lost.
                side = torch.where(
                    (shares * torch.special.ndtr(distance)).sum(-1, keepdim=True) > 0.5, -1.0, 1.0
                )
            function = (shares * side * torch.special.ndtr(side * distance)).sum(-1)
            moving.append(
                x - (function - function.detach()) / density.clamp(min=torch.finfo(x.dtype).tiny)
            )
            apart = (moving[-1].unsqueeze(-1) - loc) / scale
            log_shares = (log_shares - 0.5 * apart.square() - scale.log()).log_softmax(-1)
        return torch.stack(moving, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of ``(*, D)``, shape ``(*)``."""
        if self._validate_args:
            self._validate_sample(value)
        distance = ((value.unsqueeze(-2) - self.locs) / self.scales).square().sum(-1)
        log_volume = self.scales.log().sum(-1) + value.shape[-1] * 0.5 * math.log(2 * math.pi)
        log_prob = (self.logits - 0.5 * distance - log_volume).logsumexp(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @property
    def mean(self) -> Tensor:
        """The mean, ``(*, D)``."""
        return self._average(self.locs).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of each dimension, ``(*, D)``."""
        spread = (
            self.scales.square() + (self.locs - self._average(self.locs).unsqueeze(-2)).square()
        )
        return self._average(spread).expand(self.batch_shape + self.event_shape)

    def _average(self, each: Tensor) -> Tensor:
        return (self.logits.exp().unsqueeze(-1) * each).sum(-2)
