r"""The flow with free parameters for each datum, which bends, skews and changes tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import silu, softplus

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.distributions import matrix_vector
from pyro_bvae.posteriors.local import LocalFullRankPosterior, check_whole

# Bounds on the logs of the factors by which one layer changes a scale, and the first map the
# tails.
_LOG_SCALE_BOUND, _LOG_TAIL_BOUND = 2.0, 1.0


class LocalFlowPosterior(nn.Module):
    r"""A normalizing flow with weights of its own for each datum, started at a normal.

    Normal noise, through an elementwise sinh-arcsinh map for skew and tails (Jones and Pewsey
    2009), through affine couplings (Dinh et al. 2017), through the affine map of a
    :class:`LocalFullRankPosterior`:

    .. math:: u_d = \sinh(e^{\tau_d} (\operatorname{arsinh} \epsilon_d + \gamma_d)), \qquad
        v_a = u_a, \quad v_b = u_b \, e^{s(u_a)} + t(u_a), \qquad z = \mu_n + C_n v,

    where the layers transform the two halves of the latents in turn, s and t are a network of one
    hidden layer, and :math:`|\tau| < 1`, :math:`|s| < 2`. At the start :math:`\gamma = \tau = s = t
    = 0`, exactly. Weights are divided by the square root of their number of inputs, the last ones
    by that number, so that one step size suits any width (Yang and Hu 2021). With one latent there
    is nothing to couple, and the sinh-arcsinh normal remains.

    Args:
        loc: Starting means, shape ``(N, L)``.
        scale_tril: Starting factors of the covariances, lower triangular with a positive diagonal,
            ``(N, L, L)``.
        num_layers: Coupling layers, at least 2, one for each half.
        hidden: Hidden units of each coupling's network.
        seed: Seed of the weights, the same for every datum, so that its place among the data does
            not matter.

    Shape:
        Any input to a distribution with batch shape ``(N,)`` and event shape ``(L,)``.
    """

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        *,
        num_layers: int = 2,
        hidden: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_layers", num_layers, 2), ("hidden", hidden, 1)):
            if value < least:
                raise InputError(f"'{name}' must be an integer from {least}, got {value}")
        self.affine = LocalFullRankPosterior(loc, scale_tril)
        self.latent_dim = loc.shape[-1]
        self.skew = nn.Parameter(torch.zeros_like(loc))
        self.log_tail = nn.Parameter(torch.zeros_like(loc))
        first = self.latent_dim // 2
        sizes = [(first, self.latent_dim - first), (self.latent_dim - first, first)]
        with seeded(seed, WEIGHTS_STREAM):
            self.networks = nn.ModuleList(
                _LocalNetwork(loc, sizes[layer % 2], hidden)
                for layer in range(num_layers if first else 0)
            )

    def forward(self, x: Tensor | None = None, context: Context | None = None) -> dist.Distribution:
        """Return :math:`q_n(z)` for all N data, whatever they are; ``x`` may only say how many."""
        check_whole(self, x, self.affine.start_loc.shape[-2])
        normal = self.affine()
        maps: list[_Coupling | _SinhArcsinh] = [
            _SinhArcsinh(self.skew, self.log_tail),
            *(
                _Coupling(network(), flipped=layer % 2 == 1)
                for layer, network in enumerate(self.networks)
            ),
        ]
        return _Flow(normal.loc, normal.scale_tril, maps, normal.batch_shape)

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the member moved by ``z -> shift + factor * z``, in its own units."""
        self.affine.restart(shift, factor)


class _Weights(NamedTuple):
    """The weights of one hidden layer and its outputs for each datum, as constants."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        hidden = silu(
            matrix_vector(self.inner, inputs) / math.sqrt(self.inner.shape[-1]) + self.inner_bias
        )
        return matrix_vector(self.outer, hidden) / self.outer.shape[-1] + self.outer_bias


class _LocalNetwork(nn.Module):
    """A network a datum, ``(N, I)`` to shifts and log scales ``(N, 2 O)``, zero at first."""

    def __init__(self, loc: Tensor, sizes: tuple[int, int], hidden: int) -> None:
        super().__init__()
        batch = loc.shape[:-1]
        inner = torch.randn(hidden, sizes[0] + 1, dtype=torch.float64).to(loc)
        self.inner = nn.Parameter(inner[:, 1:].expand(*batch, -1, -1).clone())
        self.inner_bias = nn.Parameter(inner[:, 0].expand(*batch, -1).clone())
        self.outer = nn.Parameter(loc.new_zeros(*batch, 2 * sizes[1], hidden))
        self.outer_bias = nn.Parameter(loc.new_zeros(*batch, 2 * sizes[1]))

    def forward(self) -> _Weights:
        return _Weights(self.inner, self.inner_bias, self.outer, self.outer_bias)


class _Coupling(NamedTuple):
    """Scale and shift half of the latents by functions of the others, either way."""

    network: _Weights
    flipped: bool

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        given, moved = self._split(u)
        shift, log_scale = self._parameters(given)
        return self._join(given, moved * log_scale.exp() + shift), log_scale.sum(-1)

    def pull(self, v: Tensor) -> tuple[Tensor, Tensor]:
        given, moved = self._split(v)
        shift, log_scale = self._parameters(given)
        return self._join(given, (moved - shift) * (-log_scale).exp()), -log_scale.sum(-1)

    def _parameters(self, given: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(given).chunk(2, dim=-1)
        return shift, _LOG_SCALE_BOUND * torch.tanh(raw / _LOG_SCALE_BOUND)

    def _split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        first = both.shape[-1] // 2
        left, right = both[..., :first], both[..., first:]
        return (right, left) if self.flipped else (left, right)

    def _join(self, given: Tensor, moved: Tensor) -> Tensor:
        return torch.cat((moved, given) if self.flipped else (given, moved), dim=-1)


class _SinhArcsinh(NamedTuple):
    """Skew each latent and change its tails; both ways return the log determinant."""

    skew: Tensor
    log_tail: Tensor

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_tail, before = self._bounded(), torch.asinh(u)
        after = log_tail.exp() * (before + self.skew)
        return torch.sinh(after), (log_tail + _log_cosh(after) - _log_cosh(before)).sum(-1)

    def pull(self, v: Tensor) -> tuple[Tensor, Tensor]:
        log_tail, after = self._bounded(), torch.asinh(v)
        before = (-log_tail).exp() * after - self.skew
        return torch.sinh(before), (_log_cosh(before) - _log_cosh(after) - log_tail).sum(-1)

    def _bounded(self) -> Tensor:
        return _LOG_TAIL_BOUND * torch.tanh(self.log_tail / _LOG_TAIL_BOUND)


def _log_cosh(x: Tensor) -> Tensor:
    return x.abs() + softplus(-2 * x.abs()) - math.log(2.0)


class _Flow(dist.TorchDistribution):
    """Normal noise through maps and an affine map, with a density at any value."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        maps: Sequence[_Coupling | _SinhArcsinh],
        batch_shape: torch.Size,
    ) -> None:
        self.loc, self.scale_tril, self.maps = loc, scale_tril, maps
        super().__init__(batch_shape, loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Flow:
        batch_shape = torch.Size(batch_shape)
        own = batch_shape[
            len(batch_shape) - self.loc.dim() + 1 :
        ]  # the data; particles to their left cost no memory
        loc, scale_tril = self.loc.expand(*own, -1), self.scale_tril.expand(*own, -1, -1)
        return _Flow(loc, scale_tril, self.maps, batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.push(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))[0]

    def log_prob(self, value: Tensor) -> Tensor:
        noise, log_det = self.pull(value)
        return log_det - (noise.square() + math.log(2 * math.pi)).sum(-1) / 2

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value of a noise, ``(*, N, L)``, and the log determinant, ``(*, N)``."""
        log_det = self.scale_tril.diagonal(0, -2, -1).log().sum(-1)
        for one in self.maps:
            noise, term = one.push(noise)
            log_det = log_det + term
        return self.loc + matrix_vector(self.scale_tril, noise), log_det

    def pull(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise of a value, ``(*, N, L)``, and the log determinant, ``(*, N)``."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        centred = value.expand(shape) - self.loc
        columns = centred.reshape(-1, *self.loc.shape).movedim(
            0, -1
        )  # all particles of a datum in one solve
        noise = torch.linalg.solve_triangular(self.scale_tril, columns, upper=False).movedim(-1, 0)
        noise = noise.reshape(shape)
        log_det = -self.scale_tril.diagonal(0, -2, -1).log().sum(-1)
        for one in reversed(self.maps):
            noise, term = one.pull(noise)
            log_det = log_det + term
        return noise, log_det
