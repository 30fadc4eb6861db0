"""Latents of the data: the encoder's answers, their worth to the decoder, and idle ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.module_modes import modules_of
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import Site, mean_of, product_base

# Ways to split the features in two halves.
_SPLITS = 4
# A gradient that is smaller than that of a mere shift by this factor is none.
_NO_GRADIENT = 1e-6


class Latents:
    """The one latent site of a program, with its values as rows ``(N, L)`` of latents.

    Args:
        program: The program.
        args: The arguments of all data to look at.

    Raises:
        InputError: if the program has more than one latent site.
    """

    def __init__(self, program: Program, args: tuple[Any, ...]) -> None:
        if len(program.latents) != 1:
            names = ", ".join(f"'{name}'" for name in program.latents)
            raise InputError(
                f"a diagnosis is of one latent site, got {len(program.latents)}: {names}"
            )
        self.program, self.args, (self.name,) = program, args, program.latents
        with torch.no_grad():
            value = program.draw(1, args).values[self.name]
            guide_trace, model_trace = program.trace(args)
        self.dim = program.plate.dim - program.guide_sites[self.name]["fn"].event_dim
        self.shape = value.movedim(self.dim, 0).shape
        self.drawn = self.rows(value)
        self.guide_site: Site = guide_trace.nodes[self.name]
        self.prior_site: Site = model_trace.nodes[self.name]
        self.means = self.rows(mean_of(self.guide_site["fn"])).detach()

    def rows(self, value: Tensor) -> Tensor:
        """Return the values of one particle as rows, ``(N, L)``."""
        moved = value.movedim(self.dim, 0)
        return moved.reshape(len(moved), -1)

    def values(self, rows: Tensor) -> LatentValues:
        """Return rows ``(N, L)`` as the values of one particle."""
        return {self.name: rows.reshape(self.shape).movedim(0, self.dim)}

    def single(self, rows: Tensor) -> LatentValues:
        """Return rows ``(N, L)`` as values of a program without a plate of particles."""
        return {self.name: self.values(rows)[self.name][0]}

    def log_likelihood(self, rows: Tensor, args: tuple[Any, ...] | None = None) -> Tensor:
        """Return ``log p(x | z)`` of each datum, ``(N,)``, or of other data in their place."""
        return self.program.log_joint(self.values(rows), self.args if args is None else args)[1][
            0
        ].double()

    def prior_draws(self) -> Tensor:
        """Return a draw of the prior for each datum, ``(N, L)``."""
        return self.rows(self.prior_site["fn"].sample())

    def rates(self) -> Tensor | None:
        """Return the mean KL of each latent, ``(L,)``; None without a closed form for each."""
        guide, prior = (product_base(site["fn"]) for site in (self.guide_site, self.prior_site))
        if guide is None or prior is None:
            return None
        try:
            return self.rows(kl_divergence(guide, prior)).double().mean(0)
        except NotImplementedError:
            return None

    def reactions(self) -> Tensor:
        """Return the mean change of ``log p(x | z)`` as a latent is drawn anew, ``(L,)``."""
        before, fresh = self.log_likelihood(self.drawn), self.prior_draws()
        moved = (_replaced(self.drawn, place, fresh) for place in range(self.drawn.shape[1]))
        return torch.stack([(before - self.log_likelihood(rows)).abs().mean() for rows in moved])

    def worths(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the worth of each latent to ``log p(x | z)`` beside another datum's, and errors.

        Args:
            rows: A draw of the latents for each datum, ``(N, L)``.

        Returns:
            Each ``(L + 1,)``: the last is of all latents together.
        """
        before, other = self.log_likelihood(rows), rows[torch.randperm(len(rows))]
        lost = [
            before - self.log_likelihood(_replaced(rows, place, other))
            for place in range(rows.shape[1])
        ]
        together = torch.stack([*lost, before - self.log_likelihood(other)])
        return together.mean(1), together.std(1) / together.shape[1] ** 0.5


def _replaced(rows: Tensor, place: int, source: Tensor) -> Tensor:
    """Return rows with one column from another source."""
    moved = rows.clone()
    moved[:, place] = source[:, place]
    return moved


def interaction(latents: Latents) -> Tensor:
    r"""Return the decoder's gain from seeing the features together, ``(N,)``, in nats.

    For two halves a and b of the features and another datum's a' and b', all under the same z,

    .. math:: \tfrac12 [\log p(a, b|z) + \log p(a', b'|z) - \log p(a', b|z) - \log p(a, b'|z)]

    is zero for every density that is a product over features, whatever the family, and positive in
    the mean where the decoder knows of a dependence that the data have.
    """
    x, *rest = latents.args
    total = torch.zeros(len(x), dtype=torch.double, device=x.device)
    for _ in range(_SPLITS):
        other = x[torch.randperm(len(x))]
        half = torch.rand(x.shape[1:], device=x.device).argsort(-1) < x.shape[-1] // 2
        versions = (x, other, torch.where(half, other, x), torch.where(half, x, other))
        parts = [latents.log_likelihood(latents.drawn, (version, *rest)) for version in versions]
        total += 0.5 * (parts[0] + parts[1] - parts[2] - parts[3])
    return total / _SPLITS


class Flow(NamedTuple):
    """Whether gradients can make the encoder's answer follow the data.

    Attributes:
        ratio: Squared gradient of the part that follows the data beside that of the part common to
            them.
        blocked: Whether there is none.
    """

    ratio: float
    blocked: bool


def encoder_flow(latents: Latents, place: int, target: Tensor) -> Flow:
    """Look whether a step of the encoder's parameters can make a latent follow a target, ``(N,)``.

    With hidden units that are dead, or saturated, for all data there is no such gradient, whatever
    the decoder wants, while one of the biases, which move all data alike, is left.
    """
    parameters = list(
        dict.fromkeys(
            p for module in modules_of(latents.program.guide) for p in module.parameters()
        )
    )
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            trace, _ = latents.program.trace(latents.args)
            answer = latents.rows(mean_of(trace.nodes[latents.name]["fn"]))[:, place]
            if not answer.requires_grad:
                return Flow(float("nan"), False)
            centred = (target - target.mean()).to(answer)
            follow, alike = (
                torch.autograd.grad(
                    answer @ weights, parameters, retain_graph=True, allow_unused=True
                )
                for weights in (
                    centred / centred.norm().clamp(min=1e-30),
                    torch.ones_like(answer) / len(answer) ** 0.5,
                )
            )
    finally:
        for parameter, was_trained in zip(parameters, trained, strict=True):
            parameter.requires_grad_(was_trained)
    if all(part is None for part in alike):  # the answer hangs on no parameter at all
        return Flow(float("nan"), False)
    squares = [
        sum(float(part.double().square().sum()) for part in parts if part is not None)
        for parts in (follow, alike)
    ]
    ratio = squares[0] / squares[1] if squares[1] else 0.0
    return Flow(ratio, ratio < _NO_GRADIENT)
