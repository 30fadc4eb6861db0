"""The mixture guide: several diagonal normals, amortized and for each datum."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import NormalMixture
from pyro_bvae.posteriors.base import AmortizedPosterior, positive
from pyro_bvae.posteriors.local import check_start, check_whole, local_posterior, moved, start_anew

# How far apart the components start: the root mean square of their offsets in each latent.
_APART = 0.5


@public
class MixturePosterior(AmortizedPosterior):
    r"""The guide of several modes, a mixture of C diagonal normals.

    .. math:: q(z \mid x) = \sum_c \pi_c \, \mathcal{N}(z; \mu_c + a_c, \operatorname{diag}
        \sigma_c^2),

    with a network for the logits of :math:`\pi`, :math:`\mu` and s, and :math:`\sigma =
    \operatorname{softplus}(s)` plus a floor of 1e-5. The :math:`a_c` are fixed offsets of half a
    unit, so that no two components start alike. Draws have implicit gradients, also in the logits
    (Figurnov et al. 2018).

    Args:
        network: Maps ``(*, D)`` to ``(*, C (1 + 2 L))``. Covariates, if any, are appended to its
            input.
        num_components: C, at least 2.
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
        num_components: int = 4,
        num_covariates: int = 0,
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_count("num_components", num_components)
        if num_components == 1:
            raise InputError(
                "'num_components' must be an integer from 2, got 1: a NormalPosterior is one"
                " component"
            )
        outputs = f"{num_components} logits, and as many means and scales for each latent"
        count = functools.partial(self.num_outputs, num_components=num_components)
        super().__init__(network, count, outputs, num_covariates=num_covariates, inputs=inputs)
        self.num_components = num_components

    @staticmethod
    def num_outputs(latent_dim: int, num_components: int = 4) -> int:
        """Return how many outputs the network must have."""
        return num_components * (1 + 2 * latent_dim)

    def forward(self, x: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q(z | x)`."""
        outputs, latent_dim = self.parameters_of(x, context)
        logits, rest = outputs.tensor_split((self.num_components,), dim=-1)
        locs, raw_scales = rest.unflatten(-1, (2, self.num_components, latent_dim)).unbind(-3)
        # Offsets are cosines of zero sum over the components, by latent, (C, L).
        count = self.num_components
        component = torch.arange(count).unsqueeze(-1) + 0.5
        frequency = 1 + torch.arange(latent_dim) % (count - 1)
        offsets = _APART * math.sqrt(2) * torch.cos(math.pi * component * frequency / count)
        return NormalMixture(logits, locs + offsets.to(locs), positive(raw_scales))


class LocalMixturePosterior(nn.Module):
    r"""A mixture of diagonal normals with logits, means and scales of its own for each datum.

    The parameters are the shifts of the logits, the shifts of the means in units of the starting
    scales, and the logs of the factors on those scales.

    Args:
        logits: Starting logits, shape ``(N, C)`` or with more leading dimensions.
        locs: Starting means, ``(N, C, L)``.
        scales: Starting scales, positive, of the same shape.
        event_dim: How many dimensions one draw has, at least 1; a mixture is over the last.

    Shape:
        Any input to a distribution with batch shape ``(N,)`` and event shape ``(L,)``.
    """

    start_logits: Tensor
    start_locs: Tensor
    start_scales: Tensor

    def __init__(self, logits: Tensor, locs: Tensor, scales: Tensor, *, event_dim: int = 1) -> None:
        super().__init__()
        check_start(locs, scales, event_dim + 1)
        if logits.shape != locs.shape[:-1]:
            raise InputError(
                f"'logits' must be one for each row of 'locs', {tuple(locs.shape[:-1])}; got"
                f" {tuple(logits.shape)}"
            )
        self.register_buffer("start_logits", logits.detach().clone())
        self.register_buffer("start_locs", locs.detach().clone())
        self.register_buffer("start_scales", scales.detach().clone())
        self.logit_shift = nn.Parameter(torch.zeros_like(logits))
        self.shift = nn.Parameter(torch.zeros_like(locs))
        self.log_factor = nn.Parameter(torch.zeros_like(locs))
        self.event_dim = event_dim
        self.latent_dim = locs.shape[-1]

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        check_whole(self, x, self.start_locs.shape[-2 - self.event_dim])
        return NormalMixture(*self._member(), validate_args=False).to_event(self.event_dim - 1)

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the member moved by ``z -> shift + factor * z``, in its own units."""
        logits, locs, scales = self._member()
        rows = (
            part.unsqueeze(-2) if isinstance(part, Tensor) else part for part in (shift, factor)
        )
        start_anew(self, logits, *moved(locs, scales, *rows))

    def _member(self) -> tuple[Tensor, Tensor, Tensor]:
        locs = self.start_locs + self.start_scales * self.shift
        return self.start_logits + self.logit_shift, locs, self.start_scales * self.log_factor.exp()


@local_posterior.register
def _(base: NormalMixture, event_dim: int) -> nn.Module:
    shape = base.batch_shape
    locs, scales = (part.expand(*shape, *part.shape[-2:]) for part in (base.locs, base.scales))
    return LocalMixturePosterior(base.logits.expand(*shape, -1), locs, scales, event_dim=event_dim)


@local_posterior.register
def _(base: dist.MixtureOfDiagNormals, event_dim: int) -> nn.Module:
    return LocalMixturePosterior(
        base.component_logits, base.locs, base.coord_scale, event_dim=event_dim
    )
