"""Starts of chains: any callable ``start(vae, problem, y, context, seed)`` to z, ``(N, L)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.protocols import HasPosterior, num_features_of
from pyro_bvae.core.seeds import CHOICE_STREAM, SAMPLE_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.inversion.model import InverseProblem
from pyro_bvae.evaluation.inversion.operators import LinearOperator


class Start(Protocol):
    """Where a chain starts."""

    def __call__(
        self, vae: Any, problem: InverseProblem, y: Tensor, context: Context | None, seed: int
    ) -> Tensor:
        """Return latents, ``(N, L)``."""
        ...


@dataclass(frozen=True)
class PriorStart:
    """A draw from the problem's prior."""

    def __call__(
        self, vae: Any, problem: InverseProblem, y: Tensor, context: Context | None, seed: int
    ) -> Tensor:
        """Return draws, ``(N, L)``."""
        with torch.no_grad(), seeded(seed, SAMPLE_STREAM), evaluating(problem.prior):
            drawn: Tensor = problem.prior().sample(torch.Size([len(y)]))
        return drawn


@dataclass(frozen=True, eq=False)
class AggregateStart:
    """A draw from the aggregated posterior: the encoder's answer to a datum picked at random.

    Attributes:
        data: Data that the model was trained on, ``(n, D)``.
        context: Their context.
    """

    data: Tensor
    context: Context | None = None

    def __call__(
        self, vae: Any, problem: InverseProblem, y: Tensor, context: Context | None, seed: int
    ) -> Tensor:
        """Return draws, ``(N, L)``."""
        with seeded(seed, CHOICE_STREAM):
            rows = torch.randint(len(self.data), (len(y),))
            picked = None
            if self.context is not None:
                picked = self.context.take(rows)
            return _encoded(vae, self.data[rows], picked)


@dataclass(frozen=True)
class EncoderStart:
    """A draw of the encoder's answer to y, or to the smallest x behind it."""

    def __call__(
        self, vae: Any, problem: InverseProblem, y: Tensor, context: Context | None, seed: int
    ) -> Tensor:
        """Return draws, ``(N, L)``; raises for a callable operator whose y is no whole x."""
        if isinstance(problem.operator, LinearOperator):
            x = problem.operator.back(y)
        elif y.shape[-1] == num_features_of(vae):
            x = y
        else:
            raise InputError(
                "EncoderStart() needs a linear operator, or a y with all features; take"
                " PriorStart()"
            )
        with seeded(seed, SAMPLE_STREAM):
            return _encoded(vae, x, context)


def _encoded(vae: Any, x: Tensor, context: Context | None) -> Tensor:
    drawn: Tensor = vae.posterior(x, context).sample()
    return drawn


@dataclass(frozen=True, eq=False)
class InversionSettings:
    """Where the chains of an inversion start, and the holes in which its draws are counted.

    Attributes:
        starts: Starts of the chains, in turn; None for the prior, the encoder's answer where there
            is one, and the aggregated posterior of ``data``.
        data: Data that the model was trained on, ``(N, D)``, for starts at their aggregated
            posterior.
        holes: From latents ``(K, L)`` to whether each lies in a hole of the aggregated posterior,
            bool, ``(K,)``, such as :class:`AggregateHoles`.
    """

    starts: Sequence[Start] | None = None
    data: Tensor | None = None
    holes: Callable[[Tensor], Tensor] | None = None


def default_starts(
    vae: Any, problem: InverseProblem, y: Tensor, data: Tensor | None
) -> tuple[Start, ...]:
    """Return the starts that there are: prior, encoder, aggregated posterior."""
    starts: list[Start] = [PriorStart()]
    whole = isinstance(problem.operator, LinearOperator) or y.shape[-1] == num_features_of(vae)
    if whole and isinstance(vae, HasPosterior):
        starts.append(EncoderStart())
    if data is not None:
        starts.append(AggregateStart(data))
    return tuple(starts)


@exclusive
def start_chains(
    vae: Any,
    problem: InverseProblem,
    y: Tensor,
    context: Context | None,
    starts: Sequence[Start],
    num_chains: int,
    seed: int,
) -> Tensor:
    """Return the start of each chain, ``(C, N, L)``: the starts in turn, a seed for each.

    Raises:
        InputError: for no start, or one of another shape or of values that are not finite.
    """
    if not starts:
        raise InputError("'starts' must hold at least one start, got none; PriorStart() is one")
    check_count("num_chains", num_chains)
    results = []
    for chain in range(num_chains):
        start = starts[chain % len(starts)]
        z = start(vae, problem, y, context, stream_seed(seed, chain))
        shape = (len(y), *problem.prior().event_shape)
        if tuple(z.shape) != shape or not bool(torch.isfinite(z).all()):
            name = type(start).__name__
            raise InputError(
                f"a start must give finite latents of shape {shape}, got {tuple(z.shape)} from"
                f" {name}"
            )
        results.append(z.detach())
    return torch.stack(results)
