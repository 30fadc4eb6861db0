"""The flow guide: an inverse autoregressive flow on the diagonal normal."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import AutoregressiveNormal
from pyro_bvae.posteriors.base import AmortizedPosterior, positive
from pyro_bvae.posteriors.local import check_start, check_whole, local_posterior, moved, start_anew

# The logit of a gate at rest and how far it may move, and the factor of the outputs of a step
# by at the start.
_REST, _REACH, _START = 1.0, 4.0, 0.1


class GatedStep(nn.Module):
    r"""One gated step of an inverse autoregressive flow (Kingma et al. 2016, section 3.1).

    .. math:: u'_d = \frac{\gamma_d}{\gamma^0} \, u_d + (1 - \gamma_d) \, m_d, \qquad
        \gamma_d = \operatorname{sigmoid}(1 + 4 \tanh(s_d / 4)),

    with :math:`(m_d, s_d)` of a masked network from :math:`u_{<d}` and a summary of the data. A
    gate at rest, :math:`\gamma^0 = \operatorname{sigmoid}(1)`, passes u as it is, and its gain lies
    between 0.06 and 1.37, so that both directions are stable.

    Args:
        latent_dim: Number of latents.
        summary_dim: Size of the summary.
        hidden: Widths of the network's hidden layers, each at least the number of latents.
        backwards: Whether the latents depend on those after them instead.
    """

    def __init__(
        self, latent_dim: int, summary_dim: int, hidden: Sequence[int], *, backwards: bool = False
    ) -> None:
        super().__init__()
        self.order = tuple(reversed(range(latent_dim))) if backwards else tuple(range(latent_dim))
        order: Any = torch.tensor(self.order)
        with (
            warnings.catch_warnings()
        ):  # one latent has none before it, and takes a gate and a shift all the same
            warnings.filterwarnings("ignore", message=".*input_dim = 1")
            self.network = ConditionalAutoRegressiveNN(
                latent_dim, summary_dim, list(hidden), permutation=order, nonlinearity=nn.SiLU()
            )
        last = self.network.layers[-1]
        with torch.no_grad():
            last.weight.mul_(_START)  # type: ignore[operator, union-attr]
            last.bias.mul_(_START)  # type: ignore[operator, union-attr]

    def forward(self, u: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """Return log gains and shifts, ``(*, L)`` each, at ``u`` and a summary ``(*, H)``."""
        target, raw = self.network(u, summary)
        logit = _REST + _REACH * torch.tanh(raw / _REACH)
        log_gate = logsigmoid(logit)
        return log_gate - logsigmoid(torch.full_like(logit, _REST)), torch.sigmoid(-logit) * target


@public
class FlowPosterior(AmortizedPosterior):
    r"""The flow guide: a diagonal normal whose noise goes through gated autoregressive steps.

    It is an :class:`~pyro_bvae.distributions.AutoregressiveNormal` of :class:`GatedStep`, :math:`z
    = \mu + \sigma \, f(\epsilon; h)` with a network for :math:`(\mu, s, h)` and :math:`\sigma =
    \operatorname{softplus}(s)` plus a floor of 1e-5; h is a summary of x for the steps (Kingma et
    al. 2016). The steps go through the latents forwards and backwards in turn, and start near the
    identity, so that the guide starts near the diagonal normal.

    A draw and its density together take one pass, in training and in evidence; the density at a
    given value, as plain ``SVI`` asks for it, takes one for each step and latent. The mean is a
    fixed quasi-Monte Carlo one. With one latent a step is affine, and the guide is the normal.

    Args:
        network: Maps ``(*, D)`` to ``(*, 2 L + H)``. Covariates, if any, are appended to its input.
        summary_dim: H, the size of h.
        num_steps: Number of steps.
        hidden: Widths of the hidden layers of each step, at least L each; by default one, of 64 or
            twice L.
        latent_dim: L, where the network has no ``out_features`` that say it.
        num_covariates: How many of the network's inputs are covariates.
        inputs: Applied to the data before covariates are appended, such as ``torch.log1p`` for
            counts.

    Shape:
        ``(*, N, D)`` to a distribution with batch shape ``(*, N)`` and event shape ``(L,)``.
    """

    latent_dim: int

    def __init__(
        self,
        network: nn.Module,
        *,
        summary_dim: int = 16,
        num_steps: int = 2,
        hidden: Sequence[int] | None = None,
        latent_dim: int | None = None,
        num_covariates: int = 0,
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_count("summary_dim", summary_dim)
        check_count("num_steps", num_steps)
        outputs = f"a mean and a scale for each latent and a summary of {summary_dim} numbers"
        count = functools.partial(self.num_outputs, summary_dim=summary_dim)
        super().__init__(network, count, outputs, num_covariates=num_covariates, inputs=inputs)
        if self.latent_dim is None:
            if latent_dim is None:
                raise InputError(
                    "'latent_dim' must be given where the network has no 'out_features' that say it"
                )
            check_count("latent_dim", latent_dim)
            self.latent_dim = latent_dim
        elif latent_dim not in (None, self.latent_dim):
            raise InputError(
                f"'latent_dim' must be {self.latent_dim}, as the network's outputs say, got"
                f" {latent_dim}"
            )
        widths = (max(64, 2 * self.latent_dim),) if hidden is None else tuple(hidden)
        if not widths or min(widths) < self.latent_dim:
            raise InputError(
                f"'hidden' must be widths of at least the number of latents, {self.latent_dim}, got"
                f" {widths}"
            )
        self.summary_dim = summary_dim
        self.steps = nn.ModuleList(
            GatedStep(self.latent_dim, summary_dim, widths, backwards=step % 2 == 1)
            for step in range(num_steps)
        )

    @staticmethod
    def num_outputs(latent_dim: int, summary_dim: int = 16) -> int:
        """Return how many outputs the network must have."""
        return 2 * latent_dim + summary_dim

    def forward(self, x: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q(z | x)`."""
        outputs, latent_dim = self.parameters_of(x, context)
        loc, raw_scale, summary = outputs.split((latent_dim, latent_dim, self.summary_dim), dim=-1)
        steps: Any = self.steps
        return AutoregressiveNormal(loc, positive(raw_scale), summary, steps)


class LocalAutoregressivePosterior(nn.Module):
    r"""The flow guide with a mean, scale and summary for each datum; its steps are frozen.

    That is the family of a :class:`FlowPosterior` for a datum: its network's outputs for the
    datum are free, and the shared steps are not. The parameters are the shift of the mean in units
    of the starting scale, the log of the factor on that scale, and the shift of the summary in
    units of its own size, at least 1.

    Args:
        loc: Starting means, shape ``(N, L)`` or with more leading dimensions.
        scale: Starting scales, positive, of the same shape.
        summary: Starting summaries, ``(N, H)``.
        steps: The steps, modules such as :class:`GatedStep`, which are copied.
        event_dim: How many of the last dimensions of ``loc`` belong to one draw, at least 1.

    Shape:
        Any input to a distribution with batch shape ``(N,)`` and event shape ``(L,)``.
    """

    start_loc: Tensor
    start_scale: Tensor
    start_summary: Tensor

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        summary: Tensor,
        steps: Sequence[Any],
        *,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        check_start(loc, scale, event_dim)
        if summary.shape[:-1] != loc.shape[:-1]:
            raise InputError(
                f"'summary' must be {(*loc.shape[:-1], 'H')}, got {tuple(summary.shape)}"
            )
        self.register_buffer("start_loc", loc.detach().clone())
        self.register_buffer("start_scale", scale.detach().clone())
        self.register_buffer("start_summary", summary.detach().clone())
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_factor = nn.Parameter(torch.zeros_like(loc))
        self.summary_shift = nn.Parameter(torch.zeros_like(summary))
        self.steps = nn.ModuleList(copy.deepcopy(step) for step in steps)
        for module in self.steps.modules():  # parameters become buffers: they are no datum's own
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        self.event_dim = event_dim
        self.latent_dim = loc.shape[-1]

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        check_whole(self, x, self.start_loc.shape[-1 - self.event_dim])
        flow = AutoregressiveNormal(*self._member(), self.steps)  # type: ignore[arg-type]
        return flow.to_event(self.event_dim - 1)

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the member moved by ``z -> shift + factor * z``, in its own units."""
        loc, scale, summary = self._member()
        start_anew(self, *moved(loc, scale, shift, factor), summary)

    def _member(self) -> tuple[Tensor, Tensor, Tensor]:
        size = (1 + self.start_summary.square().mean(-1, keepdim=True)).sqrt()
        loc = self.start_loc + self.start_scale * self.shift
        return (
            loc,
            self.start_scale * self.log_factor.exp(),
            self.start_summary + size * self.summary_shift,
        )


@local_posterior.register
def _(base: AutoregressiveNormal, event_dim: int) -> nn.Module:
    shape = base.batch_shape + base.event_shape
    summary = base.summary.expand(*base.batch_shape, -1)
    loc, scale = base.loc.expand(shape), base.scale.expand(shape)
    return LocalAutoregressivePosterior(loc, scale, summary, base.steps, event_dim=event_dim)
