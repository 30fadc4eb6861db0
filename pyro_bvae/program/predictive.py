"""Draws of a program's sites for each datum, from the guide and from the prior."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.seeds import PREDICTIVE_STREAM, seeded
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Function, Program
from pyro_bvae.program.sites import Site, Sites, samples, unwrapped

# Data that are drawn for together, and rows (draws times data) that one pass decodes.
_MOST_DATA, _ROWS = 512, 8192


class Variable(NamedTuple):
    """The values of a site, ``(K, N, *)``: draws, data, and the dimensions it has besides."""

    values: Tensor
    dims: tuple[
        str, ...
    ] = ()  # names of the dimensions besides: other plates, ``<site>_dim_0`` and so on


# By group, as ArviZ calls them, and site.
Groups = dict[str, dict[str, Variable]]


def draw_groups(program: Program, num_draws: int, num_predictive: int, seed: int) -> Groups:
    """Draw latents and data for all data, and score the guide's.

    Args:
        program: The program.
        num_draws: Draws of the latents for each datum, from guide and prior.
        num_predictive: For how many of them the observed sites are drawn as well.
        seed: Seed of prior and predictive draws; those of the guide are the program's own.

    Returns:
        ``posterior``, ``sample_stats`` and ``log_likelihood`` of the guide's draws,
        ``observed_data`` with a single draw, and where the model can draw its observed sites
        ``prior``, ``prior_predictive`` and ``posterior_predictive``.
    """
    drawable = _can_draw(program)
    blocks = (
        _draw_block(
            program, block, (seed, PREDICTIVE_STREAM, index), num_draws, num_predictive, drawable
        )
        for index, block in enumerate(program.blocks(_MOST_DATA))
    )
    return _join(blocks, 1)


def _draw_block(
    program: Program,
    block: tuple[Any, ...],
    stream: tuple[int, ...],
    num_draws: int,
    num_predictive: int,
    drawable: bool,
) -> Groups:
    """Return the groups of a block of data, drawn a few particles at a time."""
    step = max(1, min(num_draws, _ROWS // program.count(block)))
    chunks = []
    for start in range(0, num_draws, step):
        draws = min(step, num_draws - start)
        predicted = max(0, min(draws, num_predictive - start))
        groups, latents = _posterior(program, block, draws)
        if drawable:
            with seeded(*stream, start):
                groups |= _prior(program, block, draws, predicted)
                groups |= _predictive(
                    program, block, {name: value[:predicted] for name, value in latents.items()}
                )
        chunks.append(groups)
    with seeded(*stream, num_draws):
        _, trace = program.trace(block)
    observed = {
        name: _arranged(program, site, together=False)
        for name, site in _observed(program, samples(trace))
    }
    return {**_join(chunks, 0), "observed_data": observed}


def _posterior(
    program: Program, block: tuple[Any, ...], num_draws: int
) -> tuple[Groups, LatentValues]:
    values, densities, _ = program.draw(num_draws, block)
    latents = {name: values[name] for name in program.latents}
    runs = list(_runs(program, program.model, block, num_draws, latents))
    likelihood = {}
    for name, _ in _observed(program, runs[0]):
        terms = (
            program.per_datum(s, s["fn"].log_prob(s["value"], *s["args"], **s["kwargs"]))
            for s in (run[name] for run in runs)
        )
        likelihood[name] = Variable(torch.cat(list(terms)).cpu())
    parts = {
        "log_weight": densities.log_weights,
        "log_prior": densities.latent,
        "log_observed": densities.observed,
        "log_guide": densities.guide,
    }
    groups = {
        "posterior": _gather(program, runs, program.latents),
        "sample_stats": {name: Variable(part.cpu()) for name, part in parts.items()},
        "log_likelihood": likelihood,
    }
    return groups, latents


def _prior(program: Program, block: tuple[Any, ...], num_draws: int, num_predictive: int) -> Groups:
    runs = list(_runs(program, poutine.uncondition(program.model), block, num_draws, {}))
    drawn = _gather(program, runs, [name for name, _ in _observed(program, runs[0])])
    kept = {name: Variable(values[:num_predictive], dims) for name, (values, dims) in drawn.items()}
    groups = {"prior": _gather(program, runs, program.latents)}
    return {**groups, "prior_predictive": kept} if num_predictive else groups


def _predictive(program: Program, block: tuple[Any, ...], latents: LatentValues) -> Groups:
    num_draws = next(len(value) for value in latents.values())
    if not num_draws:
        return {}
    runs = list(_runs(program, poutine.uncondition(program.model), block, num_draws, latents))
    return {
        "posterior_predictive": _gather(
            program, runs, [name for name, _ in _observed(program, runs[0])]
        )
    }


def _runs(
    program: Program,
    model: Function,
    args: tuple[Any, ...],
    num_particles: int,
    given: LatentValues,
) -> Iterator[Sites]:
    """Run a model with given latents ``(K, *)``, one by one where it mixes particles."""
    if program.vectorized:
        together = pyro.plate("particles", num_particles, dim=program.particle_dim)(model)
        yield samples(poutine.trace(poutine.condition(together, data=given)).get_trace(*args))
        return
    for k in range(num_particles):
        single = {name: value[k] for name, value in given.items()}
        yield samples(poutine.trace(poutine.condition(model, data=single)).get_trace(*args))


def _can_draw(program: Program) -> bool:
    """Whether the model can draw the sites that it observes; a warning says so if it cannot."""
    try:
        with seeded(0, PREDICTIVE_STREAM):
            poutine.trace(poutine.uncondition(program.model)).get_trace(*program.probe)
    except NotImplementedError as error:
        warnings.warn(
            f"the model cannot draw its observed sites ({type(error).__name__}: {error}), so the"
            " export has no prior, prior_predictive and posterior_predictive",
            stacklevel=4,
        )
        return False
    return True


# -- from sites to variables
# --------------------------------------------------------------------------------------


def _observed(program: Program, sites: Sites) -> list[tuple[str, Site]]:
    """Return the sites of the data: neither latents nor factors."""
    return [
        (name, site)
        for name, site in sites.items()
        if name not in program.latents and not isinstance(unwrapped(site["fn"]), dist.Unit)
    ]


def _gather(program: Program, runs: list[Sites], names: Iterable[str]) -> dict[str, Variable]:
    """Put the values of some sites together, of one run or of one a particle."""
    gathered = {}
    for name in names:
        parts = [_arranged(program, run[name], together=program.vectorized) for run in runs]
        gathered[name] = Variable(torch.cat([part.values for part in parts]), parts[0].dims)
    return gathered


def _arranged(program: Program, site: Site, *, together: bool) -> Variable:
    """Bring a site's values into the order draws, data, all else."""
    value, distribution = site["value"], site["fn"]
    value = value.expand(torch.broadcast_shapes(value.shape, distribution.shape()))
    value = value if together else value[None]
    events = distribution.event_dim
    plates = {
        frame.dim - events: frame.name for frame in site["cond_indep_stack"] if frame.vectorized
    }
    data = program.plate.dim - events
    # The particles are the leftmost dimension; one without a plate and a size is there for
    # broadcasting only.
    others = [dim for dim in range(1 - value.dim(), 0) if dim != data]
    kept = [dim for dim in others if dim in plates or dim >= -events or value.shape[dim] != 1]
    empty = [dim for dim in others if dim not in kept]
    value = value.permute(0, data % value.dim(), *(dim % value.dim() for dim in (*empty, *kept)))
    value = value.flatten(1, 1 + len(empty))
    unnamed = iter(f"{site['name']}_dim_{i}" for i in range(len(kept)))
    return Variable(value.cpu(), tuple(plates.get(dim) or next(unnamed) for dim in kept))


def _join(parts: Iterable[Groups], dim: int) -> Groups:
    """Put the same variables of the same groups together, along draws (0) or data (1)."""
    results: dict[str, dict[str, list[Variable]]] = {}
    for groups in parts:
        for group, variables in groups.items():
            for name, variable in variables.items():
                results.setdefault(group, {}).setdefault(name, []).append(variable)
    return {
        group: {
            name: Variable(torch.cat([part.values for part in same], dim), same[0].dims)
            for name, same in variables.items()
        }
        for group, variables in results.items()
    }
