"""Zuko's normalizing flows as a prior; Zuko is an extra of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public


class ZukoDistribution(ZukoToPyro):  # type: ignore[misc]
    """A flow of Zuko as a Pyro distribution, without the cache of ``pyro.contrib.zuko``."""

    support = constraints.real_vector

    def __call__(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with a gradient where the flow can."""
        return self.rsample(sample_shape) if self.has_rsample else self.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of ``(*, L)``, shape ``(*)``."""
        log_prob: Tensor = self.dist.log_prob(value)
        return log_prob

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with a gradient, where the flow can."""
        draws: Tensor = self.dist.rsample(torch.Size(sample_shape))
        return draws

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without a gradient."""
        with torch.no_grad():
            draws: Tensor = self.dist.sample(torch.Size(sample_shape))
        return draws

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZukoDistribution:
        """Return the flow with another batch shape."""
        return ZukoDistribution(self.dist.expand(torch.Size(batch_shape)))


@public
class ZukoPrior(nn.Module):
    r"""A normalizing flow of the package Zuko, such as ``zuko.flows.NSF(features=10)``.

    Any of its flows without context will do. KL and rate are measured by Monte Carlo. For a flow
    made here see :meth:`neural_spline`; :class:`FlowPrior` needs no further package.

    Args:
        flow: A module whose ``flow()`` returns a distribution with event shape ``(L,)``.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: if the flow returns no such distribution.
    """

    def __init__(self, flow: Callable[[], Any]) -> None:
        super().__init__()
        self.flow = flow
        try:
            distribution = flow()
            batch, event = distribution.batch_shape, distribution.event_shape
            if len(event) == 1:
                distribution.log_prob(distribution.sample())
        except (TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"'flow' must be a Zuko flow without context, got {type(flow).__name__}: {reason}"
            ) from error
        if len(batch) or len(event) != 1:
            raise InputError(
                "'flow' must return a distribution with batch shape () and event shape (L,), as a"
                f" flow of Zuko does, got {type(distribution).__name__}"
            )
        self.latent_dim = int(event[0])

    @classmethod
    def neural_spline(
        cls, latent_dim: int, *, num_layers: int = 3, hidden: tuple[int, ...] = (64, 64)
    ) -> ZukoPrior:
        """Return a neural spline flow (Durkan et al. 2019), whose density is one pass.

        Args:
            latent_dim: Number L of latents.
            num_layers: Number of autoregressive transforms.
            hidden: Widths of each transform's network.

        Raises:
            InputError: if Zuko is not installed, or a number is no positive integer.
        """
        check_count("latent_dim", latent_dim)
        check_count("num_layers", num_layers)
        try:
            import zuko
        except ImportError as error:
            raise InputError(
                "this prior needs the package zuko, which is not installed: pip install"
                " 'pyro-bvae[zuko]', or take a FlowPrior"
            ) from error
        return cls(
            zuko.flows.NSF(features=latent_dim, transforms=num_layers, hidden_features=hidden)
        )

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        return ZukoDistribution(self.flow())
