"""Draws of the one latent of a program, with their densities under guide and prior."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.information.aggregate import (
    Aggregate,
    Normals,
    aggregate_of,
    is_diagonal,
    log_mixture,
    normal_marginals,
)
from pyro_bvae.evaluation.marginal.bounds import latent_distributions
from pyro_bvae.evaluation.marginal.importance import data_bar, stream_blocks
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import is_delta, product_base


class LatentDraws(NamedTuple):
    """K draws for each of N data, float64 but for the draws themselves; None where there is none.

    Attributes:
        values: The draws, ``(K, N, *)``.
        log_guide: ``log q(z | x)``, ``(K, N)``.
        log_prior: ``log p(z)``, ``(K, N)``.
        rate: The closed form of the KL between guide and prior, ``(N,)``.
        normals: The guide's dimensions, where each is normal by itself.
        diagonal: Whether the guide is the product of them.
    """

    values: Tensor
    log_guide: Tensor
    log_prior: Tensor
    rate: Tensor | None
    normals: Normals | None
    diagonal: bool


def check_one_latent(program: Program) -> None:
    """Raise unless the guide draws one latent of the model, by itself and with a density.

    Raises:
        InputError: saying which sites there are.
    """
    names = ", ".join(f"'{name}'" for name in program.latents)
    if len(program.latents) != 1:
        raise InputError(
            f"the KL is decomposed for one latent site, got {len(program.latents)}: {names}"
        )
    if tuple(program.guide_sites) != program.latents:
        raise InputError(
            f"the guide must draw {names} itself, with a density at any value, got the sites"
            f" {', '.join(repr(name) for name in program.guide_sites)}"
        )
    site = program.guide_sites[program.latents[0]]
    if is_delta(site["fn"]):
        raise InputError(
            f"guide site {names} is a point (Delta), which has no density at another datum's draws"
        )


def check_densities(program: Program) -> None:
    """Raise unless the guide scores another datum's draws and the prior is one for all data.

    Raises:
        InputError: with the family that cannot.
    """
    (name,) = program.latents
    values, _ = _propose(program, program.probe, 1)
    dim = program.dim_of(name, program.plate.dim)
    others = values.roll(1, dim)
    sites = latent_distributions(program, program.probe)
    assert sites is not None
    family = type(sites[0]["fn"]).__name__
    try:
        scored = program.log_guide({name: others}, program.probe, program.guide)
    except (NotImplementedError, LookupError) as error:
        raise InputError(
            f"the density of guide site '{name}' ({family}) cannot be evaluated at another datum's"
            " draws:"
            f" {str(error)[:200] or type(error).__name__}; a guide that can score any value is"
            " needed"
        ) from error
    if bool(torch.isnan(scored).any()):
        raise InputError(
            f"the density of guide site '{name}' ({family}) is NaN at another datum's draws"
        )
    own, foreign = (_by_datum(program, sites[1]["fn"].log_prob(each)) for each in (values, others))
    if not torch.allclose(own, foreign.roll(-1, 1), rtol=1e-4, atol=1e-3):
        raise InputError(
            f"the prior of '{name}' is another one for each datum, so that there is no one p(z) to"
            " compare the"
            " aggregated posterior with; a prior that is the same for all data is accepted"
        )


def draw_latents(program: Program, num_samples: int, progress: bool) -> LatentDraws:
    """Draw from the guide for all data, block by block."""
    with data_bar(program, progress, "draws") as bar:
        blocks = [
            _draw_block(program, block, num_samples)
            for block in stream_blocks(program, num_samples, bar)
        ]
    values, log_guide, log_prior = (
        torch.cat(parts, 1) for parts in list(zip(*blocks, strict=True))[:3]
    )
    rates = [block.rate for block in blocks if block.rate is not None]
    normals = [block.normals for block in blocks if block.normals is not None]
    return LatentDraws(
        values,
        log_guide,
        log_prior,
        torch.cat(rates) if len(rates) == len(blocks) else None,
        Normals(*(torch.cat(parts) for parts in zip(*normals, strict=True)))
        if len(normals) == len(blocks)
        else None,
        all(block.diagonal for block in blocks),
    )


def why_not_product(program: Program) -> str | None:
    """Return why the second part of the KL does not split into dimensions, or None if it does."""
    sites = latent_distributions(program, program.probe)
    assert sites is not None
    guide, prior = (site["fn"] for site in sites)
    dim = program.dim_of(program.latents[0], program.plate.dim)
    if product_base(prior) is None:
        return f"the prior ({type(prior).__name__}) is no product of independent dimensions"
    if product_base(guide) is None and normal_marginals(guide, dim) is None:
        return (
            f"the density of a single dimension of the guide ({type(guide).__name__}) cannot be"
            " evaluated"
        )
    return None


def _draw_block(program: Program, block: tuple[Any, ...], num_samples: int) -> LatentDraws:
    values, log_guide = _propose(program, block, num_samples)
    sites = latent_distributions(program, block)
    assert sites is not None
    guide, prior = (site["fn"] for site in sites)
    dim = program.dim_of(program.latents[0], program.plate.dim)
    normals, diagonal = normal_marginals(guide, dim), is_diagonal(guide)
    rows = values.movedim(dim, 1)
    if normals is not None and diagonal:
        # As the aggregate scores them: of scales far below their mean float32 leaves few digits.
        flat = rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)
        log_guide = torch.distributions.Normal(*normals).log_prob(flat.double()).sum(2)
    log_prior = _by_datum(program, prior.log_prob(values)).double()
    kl: Tensor | None = None
    with suppress(NotImplementedError):  # there is no closed form
        kl = _by_datum(program, kl_divergence(guide, prior).unsqueeze(0))[0].double()
    return LatentDraws(rows, log_guide.double(), log_prior, kl, normals, diagonal)


def aggregate_at(program: Program, draws: LatentDraws, rows: Tensor, progress: bool) -> Aggregate:
    """Return the log densities of the aggregated posterior at rows ``(M, *)``."""
    if draws.normals is not None and draws.diagonal:
        return Aggregate(log_mixture(rows.reshape(len(rows), -1), draws.normals, progress), None)
    return aggregate_of(program, rows, progress)


def _propose(program: Program, block: tuple[Any, ...], num_samples: int) -> tuple[Tensor, Tensor]:
    """Return draws in the shape of the latent, particles first, and log density ``(K, N)``."""
    (name,) = program.latents
    if program.vectorized:
        values, log_guide = program.propose(num_samples, block, program.guide)
        return values[name], log_guide
    singles = [program.propose(None, block, program.guide) for _ in range(num_samples)]
    return torch.stack([values[name] for values, _ in singles]), torch.cat(
        [density for _, density in singles]
    )


def _by_datum(program: Program, terms: Tensor) -> Tensor:
    """Sum over all dimensions but the first, of particles, and that of the data: ``(K, N)``."""
    moved = terms.movedim(program.plate.dim, 1)
    return moved.flatten(2).sum(2) if moved.dim() > 2 else moved
