r"""Approximate posteriors: modules from data to a distribution over the latents, :math:`q(z \mid x)`."""

from __future__ import annotations

import functools

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_bvae.context import Context, with_covariates
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
        return dist.Normal(loc, softplus(raw_scale) + _SCALE_FLOOR).to_event(1)


class LocalNormalPosterior(nn.Module):
    r"""A diagonal normal with free parameters for each datum: the guide without amortization.

    :math:`q_n(z) = \mathcal{N}(\mu_n, \operatorname{diag} \sigma_n^2)` for datum n, whatever its ``x``. It is what the
    local refits of the inference gaps optimise, and a guide for stochastic variational inference on the whole data at
    once (Hoffman et al. 2013). The parameters are the shift of the mean in units of the starting scale and the log of
    the factor on that scale, so that one step size suits latents of any scale.

    Args:
        loc: Starting means, shape ``(N, L)`` or with more leading dimensions.
        scale: Starting scales, positive, of the same shape.
        event_dim: How many of the last dimensions belong to one draw; 0 for scalar sites.

    Shape:
        Any input to a distribution with batch shape ``(N,)`` and event shape ``(L,)``.
    """

    start_loc: Tensor
    start_scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, *, event_dim: int = 1) -> None:
        super().__init__()
        if loc.shape != scale.shape or not bool((scale > 0).all()):
            raise InputError(
                f"'scale' must be positive and of the shape of 'loc', {tuple(loc.shape)}; got {tuple(scale.shape)}"
            )
        self.register_buffer("start_loc", loc.detach().clone())
        self.register_buffer("start_scale", scale.detach().clone())
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_factor = nn.Parameter(torch.zeros_like(loc))
        self.event_dim = event_dim
        self.latent_dim = loc.shape[-1] if event_dim else None

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        if x is not None and self.event_dim and x.shape[-2] != self.start_loc.shape[-2]:
            raise InputError(
                f"a LocalNormalPosterior of {self.start_loc.shape[-2]} data takes all of them in their order, got"
                f" {x.shape[-2]}: train it with pyro.infer.SVI on the whole data, not in batches"
            )
        loc = self.start_loc + self.start_scale * self.shift
        return dist.Normal(loc, self.start_scale * self.log_factor.exp()).to_event(self.event_dim)


@functools.singledispatch
def local_posterior(base: torch.distributions.Distribution, event_dim: int) -> nn.Module:
    """Return the family of a distribution with free parameters for each datum, started at its parameters.

    A new guide family registers its local version here, by the type of the distribution without its event dimensions.

    Args:
        base: The distribution, with all dimensions that :meth:`to_event` declared made batch dimensions again.
        event_dim: How many dimensions that were.

    Raises:
        InputError: for a family that has no local version.
    """
    raise InputError(f"no local version of the guide family {type(base).__name__} is known; pass 'local_guide'")


@local_posterior.register
def _(base: torch.distributions.Normal, event_dim: int) -> nn.Module:
    return LocalNormalPosterior(base.loc, base.scale, event_dim=event_dim)
