"""Checks of a program before it is measured: faults, densities, supports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.protocols import HasLogDensity
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.program.auxiliary import noise_faults
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.faults import broadcasts, observed_draws, plain_points, unresolved_points
from pyro_bvae.program.scoring import ScoredProgram
from pyro_bvae.program.sites import Site, mask_at, samples
from pyro_bvae.program.supports import (
    bounds,
    declares_its_support,
    inside,
    is_angle,
    is_unbounded,
    support_of,
)

# Numbers of the widest site, over data, that one pass of the check of all rows takes at most, and
# data.
_NUMBERS, _MOST_DATA = 4_000_000, 4096


@torch.no_grad()
def check_faults(
    program: ScoredProgram, guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> None:
    """Raise at the first fault of a program; a guide's own density is taken as given.

    Raises:
        InputError: naming the site.
    """
    resolving = () if program.in_training else (unresolved_points,)
    for check in (observed_draws, broadcasts, plain_points, *resolving):
        for fault in check(guide_trace, model_trace):
            raise InputError(fault.message)
    if not isinstance(program.guide, HasLogDensity):
        guide, args = program.guide, program.probe
        for fault in noise_faults(
            guide, lambda function: function(*args), model_trace, program.plate
        ):
            raise InputError(fault.message)


def outside_priors(latents: tuple[str, ...], model_trace: poutine.Trace) -> Iterator[str]:
    """Yield the latents of which some draw lies outside the support of its prior."""
    for name in latents:
        site: Site = model_trace.nodes[name]
        within = inside(site["fn"], site["value"])
        if within is not None and not bool(within.all()):
            yield name


@torch.no_grad()
def score(
    program: ScoredProgram, guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> frozenset[str]:
    """Score every site of a trace under Pyro's validation, within the supports of latents.

    Returns:
        Observed sites at which validation stopped: their rows tell whether a mask hides the reason.

    Raises:
        InputError: for a site without a density at its value, or with one that is NaN or no number
            for each datum.
    """
    doubtful = set()
    for trace, role in ((guide_trace, "guide"), (model_trace, "model")):
        for name, site in samples(trace).items():
            if role == "model" and (program.outside or name in program.varying):
                continue
            try:
                density = program.log_density(site)
            except ValueError as error:
                if role == "model" and name not in program.latents:
                    doubtful.add(name)
                    continue
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"site '{name}' of the {role} has no density at its value: {reason}"
                ) from error
            if bool(torch.isnan(density).any()):
                raise InputError(f"site '{name}' of the {role} has a log density that is NaN")
            if density.shape != (1, program.plate.size):
                raise InputError(
                    f"site '{name}' of the {role} has log densities of shape {tuple(density.shape)}"
                    " after all but"
                    f" the data are summed, where (1, {program.plate.size}) is one for each datum"
                )
    return frozenset(doubtful)


@torch.no_grad()
def varying_sites(program: ScoredProgram, model_trace: poutine.Trace) -> frozenset[str]:
    """Return the observed sites whose support is another one at other latents."""
    bounded = [
        site for name, site in samples(model_trace).items() if _is_checked(program, name, site)
    ]
    result = frozenset(site["name"] for site in bounded if not declares_its_support(site["fn"]))
    moving = [site for site in bounded if any(True for _ in bounds(support_of(site["fn"])))]
    if not moving:
        return result
    with seeded(1, PROBE_STREAM), pyro.validation_enabled(False):
        others = samples(program.trace(program.probe)[1])
    varying = set(result)
    for site in moving:
        here, there = (bounds(support_of(s["fn"])) for s in (site, others[site["name"]]))
        if not all(torch.equal(*pair) for pair in zip(here, there, strict=True)):
            varying.add(site["name"])
    return frozenset(varying)


def _is_checked(program: ScoredProgram, name: str, site: Site) -> bool:
    bounded = not is_unbounded(site["fn"]) and not is_angle(site["fn"])
    return name not in program.latents and site["value"].numel() > 0 and bounded


@torch.no_grad()
def check_rows(
    program: ScoredProgram, model_trace: poutine.Trace, doubtful: frozenset[str]
) -> None:
    """Raise unless all observed data lie in the support of their likelihood.

    Missing values (NaN) and masked ones are let through. Supports that move with the latents are no
    matter of the data alone: the density is minus infinity outside, at every particle.

    Raises:
        InputError: naming the site, the datum and the value.
    """
    names = {
        name
        for name, site in samples(model_trace).items()
        if name in doubtful or (_is_checked(program, name, site) and name not in program.varying)
    }
    if not names:
        return
    start = 0
    with seeded(0, PROBE_STREAM), pyro.validation_enabled(False):
        for block in program.blocks(max(1, min(_MOST_DATA, _NUMBERS // program.width))):
            sites = samples(program.trace(block)[1])
            for name in names & sites.keys():
                _check_row(program, name, sites[name], start)
            start += program.count(block)


def _check_row(program: ScoredProgram, name: str, site: Site, start: int) -> None:
    within = inside(site["fn"], site["value"])
    within = (
        torch.ones_like(site["fn"].log_prob(site["value"]), dtype=torch.bool)
        if within is None
        else within
    )
    if bool(torch.isnan(site["value"]).any()):  # missing, if the density can say so
        within = within & ~torch.isnan(site["fn"].log_prob(site["value"]))
    mask = torch.as_tensor(True if site["mask"] is None else site["mask"], device=within.device)
    outside = ~(within | ~mask)
    if not bool(outside.any()):
        return
    rows = (
        outside.movedim(program.plate.dim, 0).flatten(1).any(-1) if outside.dim() > 1 else outside
    )
    row = int(rows.nonzero()[0])
    value, dim = site["value"], program.plate.dim - site["fn"].event_dim
    if value.dim() >= -dim:  # else its values are shared by the data
        value = value.select(dim, min(row, value.shape[dim] - 1))
    value = value[~torch.isnan(value)]
    raise InputError(
        f"site '{name}' of the model has no density at its value: datum {start + row} is outside"
        f" the support {support_of(site['fn'])}, its values lie between {float(value.min()):g} and"
        f" {float(value.max()):g}"
        if value.numel()
        else f"site '{name}' of the model has no density at its value: datum {start + row} is NaN"
    )


@torch.no_grad()
def masked_latents(program: ScoredProgram, masks: frozenset[str]) -> frozenset[str]:
    """Return the latents that are masked out for some data, where they weigh nothing.

    Model and guide have to mask the same, and no density may change with the hidden values: else
    they are latents whose densities are missing.

    Args:
        program: The program.
        masks: The sites of the guide that have a mask, there or in the model.

    Raises:
        InputError: naming the site.
    """
    masked: set[str] = set()
    if not masks:
        return frozenset()
    with seeded(3, PROBE_STREAM), pyro.validation_enabled(False):
        for block in program.blocks(max(1, min(_MOST_DATA, _NUMBERS // program.width))):
            pairs = [tuple(map(samples, program.trace(block))) for _ in range(2)]
            guide_sites, model_sites = pairs[0]
            seen = {name: _seen(model_sites.get(name), guide_sites[name]) for name in masks}
            hidden = {
                name
                for name, mask in seen.items()
                if name in program.latents and not bool(mask.all())
            }
            if not hidden:
                continue
            masked |= hidden
            values, others = (
                {name: guide[name]["value"] for name in program.guide_sites} for guide, _ in pairs
            )
            other = {
                name: torch.where(_over_events(seen[name], value), value, others[name])
                for name, value in values.items()
                if name in hidden
            }
            _check_hidden(program, block, values, values | other, hidden)
    return frozenset(masked)


def _check_hidden(
    program: ScoredProgram,
    block: tuple[Any, ...],
    values: LatentValues,
    others: LatentValues,
    hidden: set[str],
) -> None:
    densities = [program.score(each, block).densities for each in (values, others)]
    for one, other in zip(*densities, strict=True):
        if not torch.allclose(one, other, rtol=1e-6, atol=1e-5, equal_nan=True):
            names = ", ".join(f"'{name}'" for name in sorted(hidden))
            raise InputError(
                f"latent {names} is masked out for some data, whose densities depend on it: mask"
                " these as well; at β = 0, pass beta=1.0 when evaluating"
            )


def _seen(model_site: Site | None, guide_site: Site) -> Tensor:
    """Return the mask of a latent, which model and guide have to share, of its batch's shape.

    A site of the guide alone has none, since its density would be missing.
    """
    value = guide_site["value"]
    shape = value.shape[: value.dim() - guide_site["fn"].event_dim]
    full = torch.ones(shape, dtype=torch.bool, device=value.device)
    masks = [None if site is None else mask_at(site) for site in (model_site, guide_site)]
    ours, theirs = (full if mask is None else mask.to(full.device) & full for mask in masks)
    if not torch.equal(ours, theirs):
        name = guide_site["name"]
        if model_site is None:
            raise InputError(
                f"auxiliary site '{name}' of the guide is masked out for some data, where its"
                " density is missing: leave out the mask"
            )
        raise InputError(
            f"latent '{name}' is masked out for other data in the model than in the guide: give"
            " both the same mask"
        )
    return ours


def _over_events(mask: Tensor, value: Tensor) -> Tensor:
    """Return a mask with a dimension of size 1 for each of a value's event."""
    return mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
