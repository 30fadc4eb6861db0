"""A guide that draws from all modes of a posterior, so that a mixture sees all of it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.distributions import matrix_vector
from pyro_bvae.evaluation.refit.joint_guides import JointLocalGuide
from pyro_bvae.evaluation.refit.modes import Modes
from pyro_bvae.program.program import Program

# Degrees of freedom of the draws around a mode: heavier tails than a posterior's under a normal
# prior.
_DEGREES = 5.0
# Modes of a datum that are drawn from, at most, and the part of the draws that they share evenly.
_MOST_MODES, _EVEN = 4, 0.5


class _StudentMixture(dist.TorchDistribution):
    """Mixtures of M Student-t vectors, of any factors.

    Args:
        shares: ``(M, B)``, which add up to 1.
        locs: ``(M, B, d)``.
        factors: ``(M, B, d, d)``.
        inverses: Those of the factors.
        log_dets: Of the factors, ``(M, B)``.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(
        self, shares: Tensor, locs: Tensor, factors: Tensor, inverses: Tensor, log_dets: Tensor
    ) -> None:
        self.shares, self.locs, self.factors = shares, locs, factors
        self.inverses, self.log_dets = inverses, log_dets
        super().__init__(locs.shape[1:-1], locs.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.locs.dtype, device=self.locs.device)
        degrees = torch.full(shape[:-1], _DEGREES, dtype=self.locs.dtype, device=self.locs.device)
        noise *= (_DEGREES / torch.distributions.Chi2(degrees).sample()).sqrt().unsqueeze(-1)
        draws = self.locs[0] + matrix_vector(self.factors[0], noise)
        level = torch.rand_like(degrees)
        for mode, end in enumerate(self.shares.cumsum(0)[:-1], 1):
            other = self.locs[mode] + matrix_vector(self.factors[mode], noise)
            draws = torch.where((level >= end).unsqueeze(-1), other, draws)
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        size = self.locs.shape[-1]
        constant = math.lgamma((_DEGREES + size) / 2) - math.lgamma(_DEGREES / 2)
        constant -= size / 2 * math.log(_DEGREES * math.pi)
        heights = self.shares.log() - self.log_dets + constant
        terms = []
        for loc, inverse, height in zip(self.locs, self.inverses, heights, strict=True):
            squares = matrix_vector(inverse, value - loc).square().sum(-1)
            terms.append(height - (_DEGREES + size) / 2 * torch.log1p(squares / _DEGREES))
        return torch.stack(terms).logsumexp(0)


class _ModePosterior(nn.Module):
    """A mixture for each datum, as a family without free parameters."""

    def __init__(self, locs: Tensor, factors: Tensor, shares: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        parts = (shares, locs, factors, torch.linalg.inv(factors), torch.linalg.slogdet(factors)[1])
        self.parts = [part.to(dtype) for part in parts]

    def forward(self) -> dist.Distribution:
        """Return the distribution of the vectors."""
        return _StudentMixture(*self.parts)


def mode_guide(program: Program, args: tuple[Any, ...], modes: Modes) -> JointLocalGuide:
    """Return the guide that draws each datum's latents from its modes, heavy-tailed.

    Half of the draws come from the modes by their masses, half from each as often.
    """
    dtype = next(iter(program.draw(1, args, program.guide).values.values())).dtype
    most = min(int(modes.counts.max()), _MOST_MODES)
    order = modes.distinct.to(torch.uint8).argsort(dim=0, descending=True, stable=True)[:most]
    rows = torch.arange(order.shape[1], device=order.device)
    drawn = modes.distinct[order, rows]
    masses = modes.values[order, rows].masked_fill(~drawn, -math.inf).softmax(0)
    shares = (1 - _EVEN) * masses.nan_to_num() + _EVEN * drawn / drawn.sum(0)
    shares = shares / shares.sum(0)  # no search has a mass where all were lost
    factors = modes.factors[order, rows]
    factors = torch.diag_embed(factors) if factors.dim() == 3 else factors
    family = functools.partial(_ModePosterior, shares=shares, dtype=dtype)
    return JointLocalGuide(program, args, family, (modes.locs[order, rows], factors))
