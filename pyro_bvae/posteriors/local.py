r"""Local posteriors: free parameters for each datum, :math:`q_n(z)`."""

from __future__ import annotations

import functools
import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import FullRankNormal, LowRankNormal, matrix_vector


class LocalNormalPosterior(nn.Module):
    r"""A diagonal normal with free parameters for each datum: the guide without amortization.

    :math:`q_n(z) = \mathcal{N}(\mu_n, \operatorname{diag} \sigma_n^2)` for datum n, whatever its
    ``x``. Local refits of the inference gaps optimise it, and it is a guide for stochastic
    variational inference on the whole data at once (Hoffman et al. 2013). The parameters are the
    shift of the mean in units of the starting scale and the log of the factor on that scale, so
    that one step size suits latents of any scale.

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
                f"'scale' must be positive and of the shape of 'loc', {tuple(loc.shape)}; got"
                f" {tuple(scale.shape)}"
            )
        self.register_buffer("start_loc", loc.detach().clone())
        self.register_buffer("start_scale", scale.detach().clone())
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_factor = nn.Parameter(torch.zeros_like(loc))
        self.event_dim = event_dim
        self.latent_dim = loc.shape[-1] if event_dim else None

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        if self.event_dim:
            check_whole(self, x, self.start_loc.shape[-1 - self.event_dim])
        return dist.Normal(*self._member()).to_event(self.event_dim)

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the member moved by ``z -> shift + factor * z``, in its own units."""
        start_anew(self, *moved(*self._member(), shift, factor))

    def _member(self) -> tuple[Tensor, Tensor]:
        return (
            self.start_loc + self.start_scale * self.shift,
            self.start_scale * self.log_factor.exp(),
        )


class LocalFullRankPosterior(nn.Module):
    r"""A normal with a mean and a covariance matrix of its own for each datum.

    .. math:: q_n(z) = \mathcal{N}(\mu_n, C_n C_n^\top), \qquad
        \mu_n = \mu_n^0 + C_n^0 \delta_n, \quad C_n = C_n^0 \, (\Lambda_n + \operatorname{diag}
        e^{\lambda_n}),

    with :math:`\Lambda_n` strictly lower triangular (Titsias and Lázaro-Gredilla 2014). All
    parameters start at zero and count in units of the start :math:`(\mu^0, C^0)`, each row of
    :math:`\Lambda` divided by the square root of its number of entries, so that one step size suits
    latents of any scale and number.

    Args:
        loc: Starting means, shape ``(N, L)`` or with more leading dimensions.
        scale_tril: Starting factors of the covariances, lower triangular with a positive diagonal,
            ``(N, L, L)``.
        event_dim: How many of the last dimensions of ``loc`` belong to one draw, at least 1; only
            the last is correlated.

    Shape:
        Any input to a distribution with batch shape ``(N,)`` and event shape ``(L,)``.
    """

    start_loc: Tensor
    start_tril: Tensor

    def __init__(self, loc: Tensor, scale_tril: Tensor, *, event_dim: int = 1) -> None:
        super().__init__()
        _check_loc(loc, event_dim)
        if scale_tril.shape != (*loc.shape, loc.shape[-1]):
            raise InputError(
                "'scale_tril' must be a square matrix for each row of 'loc',"
                f" {(*loc.shape, loc.shape[-1])}; got {tuple(scale_tril.shape)}"
            )
        if not torch.equal(scale_tril, scale_tril.tril()) or not bool(
            (scale_tril.diagonal(0, -2, -1) > 0).all()
        ):
            raise InputError(
                "'scale_tril' must be lower triangular with a positive diagonal, which this one is"
                " not"
            )
        self.register_buffer("start_loc", loc.detach().clone())
        self.register_buffer("start_tril", scale_tril.detach().clone())
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.lower = nn.Parameter(
            torch.zeros_like(scale_tril)
        )  # entries above its diagonal count for nothing
        self.log_factor = nn.Parameter(torch.zeros_like(loc))
        self.event_dim = event_dim
        self.latent_dim = loc.shape[-1]

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        check_whole(self, x, self.start_loc.shape[-1 - self.event_dim])
        loc, scale_tril = self._member()
        return FullRankNormal(loc, scale_tril=scale_tril, validate_args=False).to_event(
            self.event_dim - 1
        )

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the member moved by ``z -> shift + factor * z``, in its own units."""
        loc, scale_tril = self._member()
        rows = factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor
        start_anew(self, shift + factor * loc, rows * scale_tril)

    def _member(self) -> tuple[Tensor, Tensor]:
        loc = self.start_loc + matrix_vector(self.start_tril, self.shift)
        num_inputs = (
            torch.arange(self.latent_dim, dtype=loc.dtype, device=loc.device)
            .clamp(min=1)
            .unsqueeze(-1)
        )
        lower = self.lower.tril(-1) * num_inputs.rsqrt()
        return loc, self.start_tril @ (lower + torch.diag_embed(self.log_factor.exp()))


class LocalLowRankPosterior(nn.Module):
    r"""A normal of low rank plus diagonal with parameters of its own for each datum.

    .. math:: q_n(z) = \mathcal{N}(\mu_n, S_n (I + V_n V_n^\top) S_n), \qquad
        \mu_n = \mu_n^0 + S_n^0 (\delta_n + V_n^0 \eta_n), \quad S_n = S_n^0 e^{\lambda_n},
        \quad V_n = V_n^0 + \Delta_n / \sqrt{R}.

    All parameters start at zero. The mean moves along the start's own draws, of which
    :math:`\delta` and :math:`\eta` are the noise, so that one step size suits latents of any scale
    and correlation.

    Args:
        loc: Starting means, shape ``(N, L)`` or with more leading dimensions.
        scale: Starting diagonals, positive, of the same shape.
        factor: Starting factors in units of the diagonals, ``(N, L, R)``.
        event_dim: How many of the last dimensions of ``loc`` belong to one draw, at least 1; only
            the last is correlated.

    Shape:
        Any input to a distribution with batch shape ``(N,)`` and event shape ``(L,)``.
    """

    start_loc: Tensor
    start_scale: Tensor
    start_factor: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor, *, event_dim: int = 1) -> None:
        super().__init__()
        check_start(loc, scale, event_dim)
        if factor.shape[:-1] != loc.shape:
            raise InputError(
                f"'factor' must have a row for each entry of 'loc', {(*loc.shape, 'R')}; got"
                f" {tuple(factor.shape)}"
            )
        self.register_buffer("start_loc", loc.detach().clone())
        self.register_buffer("start_scale", scale.detach().clone())
        self.register_buffer("start_factor", factor.detach().clone())
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.shared_shift = nn.Parameter(factor.new_zeros(*loc.shape[:-1], factor.shape[-1]))
        self.log_factor = nn.Parameter(torch.zeros_like(loc))
        self.turn = nn.Parameter(torch.zeros_like(factor))
        self.event_dim = event_dim
        self.latent_dim = loc.shape[-1]

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        check_whole(self, x, self.start_loc.shape[-1 - self.event_dim])
        return LowRankNormal(*self._member(), validate_args=False).to_event(self.event_dim - 1)

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the member moved by ``z -> shift + factor * z``, in its own units."""
        loc, scale, turned = self._member()
        start_anew(self, *moved(loc, scale, shift, factor), turned)

    def _member(self) -> tuple[Tensor, Tensor, Tensor]:
        shift = self.shift + matrix_vector(self.start_factor, self.shared_shift)
        factor = self.start_factor + self.turn / math.sqrt(self.turn.shape[-1])
        return (
            self.start_loc + self.start_scale * shift,
            self.start_scale * self.log_factor.exp(),
            factor,
        )


def moved(
    loc: Tensor, scale: Tensor, shift: Tensor | float, factor: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return means and scales after ``z -> shift + factor * z``."""
    return shift + factor * loc, factor * scale


def start_anew(local: nn.Module, *start: Tensor) -> None:
    """Set a local posterior's start, its buffers in order, and its parameters to zero."""
    with torch.no_grad():
        for name, value in zip(
            [name for name, _ in local.named_buffers(recurse=False)], start, strict=True
        ):
            getattr(local, name).copy_(value)
        for parameter in local.parameters():
            parameter.zero_()


def _check_loc(loc: Tensor, event_dim: int) -> None:
    if not 1 <= event_dim < loc.dim():
        raise InputError(
            f"'loc' must have a dimension for the data and {event_dim} for a draw, at least 1; got"
            f" shape {tuple(loc.shape)}"
        )


def check_start(loc: Tensor, scale: Tensor, event_dim: int) -> None:
    """Refuse means and scales from which no local posterior can start.

    Raises:
        InputError: if ``loc`` has no dimension for the data, or ``scale`` is not positive and of
            its shape.
    """
    _check_loc(loc, event_dim)
    if loc.shape != scale.shape or not bool((scale > 0).all()):
        raise InputError(
            f"'scale' must be positive and of the shape of 'loc', {tuple(loc.shape)}; got"
            f" {tuple(scale.shape)}"
        )


def check_whole(local: nn.Module, x: Tensor | None, num_data: int) -> None:
    """Refuse an ``x`` of another number of data than a local posterior has parameters for.

    Raises:
        InputError: if ``x``, shape ``(*, N, D)``, is not of ``num_data`` data.
    """
    if x is not None and x.shape[-2] != num_data:
        raise InputError(
            f"a {type(local).__name__} of {num_data} data takes all of them in their order, got"
            f" {x.shape[-2]}: train it with pyro.infer.SVI on the whole data, not in batches"
        )


@functools.singledispatch
def local_posterior(base: torch.distributions.Distribution, event_dim: int) -> nn.Module:
    """Return a distribution's family with free parameters for each datum, started there.

    A new guide family registers its local version here, by the type of the distribution without its
    :class:`~torch.distributions.Independent` wrappers.

    Args:
        base: The distribution, with all dimensions that :meth:`to_event` declared made batch
            dimensions again.
        event_dim: How many dimensions one draw had before that, those of the distribution itself
            included.

    Raises:
        InputError: for a family that has no local version.
    """
    raise InputError(
        f"no local version of the guide family {type(base).__name__} is known; pass 'local_guide'"
    )


@local_posterior.register
def _(base: torch.distributions.Normal, event_dim: int) -> nn.Module:
    return LocalNormalPosterior(base.loc, base.scale, event_dim=event_dim)


@local_posterior.register
def _(base: torch.distributions.MultivariateNormal, event_dim: int) -> nn.Module:
    return LocalFullRankPosterior(base.loc, base.scale_tril, event_dim=event_dim)


@local_posterior.register
def _(base: LowRankNormal, event_dim: int) -> nn.Module:
    shape = base.batch_shape + base.event_shape
    factor = base.factor.expand(*shape, -1)
    return LocalLowRankPosterior(
        base.loc.expand(shape), base.scale.expand(shape), factor, event_dim=event_dim
    )


@local_posterior.register
def _(base: torch.distributions.LowRankMultivariateNormal, event_dim: int) -> nn.Module:
    scale = base.cov_diag.sqrt()
    return LocalLowRankPosterior(
        base.loc, scale, base.cov_factor / scale.unsqueeze(-1), event_dim=event_dim
    )
