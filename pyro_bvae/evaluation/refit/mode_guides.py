"""Guides that draw from the modes of a posterior, so that a mixture sees all of it."""

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
# Modes of a datum that are drawn from, at most.
_MOST_MODES = 4


class _StudentT(dist.TorchDistribution):
    """Student-t vectors around means ``(B, d)``, by factors ``(B, d, d)`` of any form."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, inverse: Tensor, log_det: Tensor) -> None:
        self.loc, self.factor, self.inverse, self.log_det = loc, factor, inverse, log_det
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        degrees = torch.full(shape[:-1], _DEGREES, dtype=self.loc.dtype, device=self.loc.device)
        stretch = (_DEGREES / torch.distributions.Chi2(degrees).sample()).sqrt().unsqueeze(-1)
        return self.loc + stretch * matrix_vector(self.factor, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        size = self.loc.shape[-1]
        squares = matrix_vector(self.inverse, value - self.loc).square().sum(-1)
        constant = math.lgamma((_DEGREES + size) / 2) - math.lgamma(_DEGREES / 2)
        constant -= size / 2 * math.log(_DEGREES * math.pi)
        return constant - self.log_det - (_DEGREES + size) / 2 * torch.log1p(squares / _DEGREES)


class _StudentTPosterior(nn.Module):
    """A Student-t for each datum, as a family without free parameters."""

    def __init__(self, loc: Tensor, factor: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        parts = (loc, factor, torch.linalg.inv(factor), torch.linalg.slogdet(factor)[1])
        self.parts = [part.to(dtype) for part in parts]

    def forward(self) -> dist.Distribution:
        """Return the distribution of the vectors."""
        return _StudentT(*self.parts)


def mode_guides(
    program: Program, args: tuple[Any, ...], modes: Modes
) -> tuple[JointLocalGuide, ...]:
    """Return guides of which the first draws each datum's latents from its first mode, and so on.

    A datum with fewer modes than another of the block is drawn from its first again.
    """
    guides = []
    dtype = next(iter(program.draw(1, args, program.guide).values.values())).dtype
    places = modes.distinct.cumsum(0)
    for rank in range(1, min(int(modes.counts.max()), _MOST_MODES) + 1):
        chosen = (
            ((places == rank) & modes.distinct).to(torch.uint8).argmax(0)
        )  # the first where there is none
        rows = torch.arange(len(chosen), device=chosen.device)
        loc, factor = modes.locs[chosen, rows], modes.factors[chosen, rows]
        factor = torch.diag_embed(factor) if factor.dim() == 2 else factor
        family = functools.partial(_StudentTPosterior, dtype=dtype)
        guides.append(JointLocalGuide(program, args, family, (loc, factor)))
    return tuple(guides)
