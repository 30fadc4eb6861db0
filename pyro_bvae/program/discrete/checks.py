"""Checks of sums over discrete latents: listed values weigh as drawn ones, masked ones nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.ops import packed
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.program.discrete.contraction import Factor, log_sum
from pyro_bvae.program.discrete.factors import (
    Factors,
    Function,
    Layout,
    Run,
    at,
    in_one_pass,
    one_at_a_time,
)
from pyro_bvae.program.discrete.structure import values_of
from pyro_bvae.program.discrete.summation import Summation
from pyro_bvae.program.sites import Site, Sites, is_delta, samples

# Joint values for each of which the program is run where one pass will not do, at most.
MOST_PASSES = 256
# Whatever a program raises whose shapes allow no dimension for a discrete latent.
_ERRORS = (
    RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError,
    NotImplementedError,
)  # fmt: skip


class Checked(Protocol):
    """A program as its sums are checked."""

    model: Function
    guide: Function
    probe: tuple[Any, ...]
    plate: Any
    width: int

    def trace(self, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
        """Return guide trace and model trace of one particle."""


@torch.no_grad()
def check_summation(program: Checked, summation: Summation, *traces: poutine.Trace) -> None:
    """Choose how a program is run at all values of its discrete latents, and check that.

    At drawn values, every factor has to be the density that the program itself has there: this
    finds data that a program mixes, and latents that a site outside their plate depends on.

    Raises:
        InputError: if no way gives the program's own densities.
    """
    with pyro.validation_enabled(False), seeded(2, PROBE_STREAM):
        pairs = [traces, program.trace(program.probe)]
        reason = ""
        for gather in (in_one_pass, one_at_a_time):
            if gather is one_at_a_time and not _can_repeat(summation, traces[1]):
                break
            summation.gather = gather
            found = [_difference(program, summation, *pair) for pair in pairs]
            reason = next(filter(None, found), "")
            if not reason:
                _check_masks(program, summation, *traces)
                return
    names = ", ".join(f"'{name}'" for name in summation.sites.model)
    raise InputError(
        f"discrete latent {names} cannot be summed out: {reason}; let every site take values with"
        " more dimensions on the left, and none outside a plate depend on latents inside it"
    )


def _can_repeat(summation: Summation, model_trace: poutine.Trace) -> bool:
    """Whether a program can be run at each joint value: few, and in no plate but the data's."""
    frames = {
        frame.name
        for name in summation.sites.model
        for frame in model_trace.nodes[name]["cond_indep_stack"]
        if frame.vectorized
    }
    count = math.prod(summation.sites.model.values())
    return frames <= {summation.layout.data.name} and count <= MOST_PASSES


def _gathered(
    program: Checked, summation: Summation, guide_trace: poutine.Trace
) -> Iterator[Factors]:
    """Yield the factors of the model alone, and of both where the guide draws discrete latents."""
    summed = summation.sites.model
    values = {
        name: site["value"]
        for name, site in samples(guide_trace).items()
        if not (site["is_observed"] or name in summed or is_delta(site["fn"]))
    }
    latents = {
        name: site["value"] for name, site in samples(guide_trace).items() if name not in summed
    }
    run = Run(program.model, summed)
    yield summation.gather(run, None, latents, program.probe, summation.layout)
    if summation.sites.guide:
        guide = Run(program.guide, summation.sites.guide)
        yield summation.gather(run, guide, values, program.probe, summation.layout)


def _difference(
    program: Checked, summation: Summation, guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> str:
    """Return how factors differ from the densities of a plain run, or nothing."""
    sites, summed, layout = samples(model_trace), summation.sites.model, summation.layout
    observed = {name for name, site in sites.items() if site["is_observed"]}
    try:
        for factors in _gathered(program, summation, guide_trace):
            program.width = max(program.width, factors.width // program.plate.size)
            letters = {
                factors.letters[name]: packed.pack(_numbers(sites[name]), factors.places[name])
                for name in summed
            }
            latent = [factor for factor in factors.model if not factor.is_observed]
            data = [factor for factor in factors.model if factor.is_observed]
            pairs: list[tuple[str, list[Factor], Sites]] = [
                ("latents", latent, {n: s for n, s in sites.items() if n not in observed}),
                ("data", data, {n: sites[n] for n in observed}),
            ]
            if factors.guide:
                pairs.append(("guide", factors.guide, samples(guide_trace)))
            for words, parts, own in pairs:
                chosen = at(parts, letters)
                if chosen is None:
                    return f"the {words} depend on it outside its plate"
                listed = log_sum(chosen, set(), factors.axes)
                plain = _plain(own, summed, layout, listed)
                if not torch.allclose(listed, plain, rtol=1e-4, atol=1e-3, equal_nan=True):
                    return (
                        f"the density of the {words} is {float(plain.sum()):.4g} at drawn values"
                        f" and {float(listed.sum()):.4g} where all are listed"
                    )
    except _ERRORS as error:
        text = " ".join(str(error).split("Trace Shapes")[0].split())[:200]
        return f"the program stops with {type(error).__name__}: {text}"
    return ""


def _plain(sites: Sites, summed: dict[str, int], layout: Layout, like: Tensor) -> Tensor:
    terms = (
        layout.per_datum(layout.terms(site, name in summed).double())
        for name, site in sites.items()
    )
    return sum(terms, torch.zeros_like(like))


def _numbers(site: Site) -> Tensor:
    """Return the place of each value of a site in the list of its distribution's values."""
    listed = values_of(site["fn"])
    assert listed is not None
    same = listed == site["value"].unsqueeze(0)
    event_dim = site["fn"].event_dim
    return (same.flatten(-event_dim).all(-1) if event_dim else same).long().argmax(0)


def _check_masks(
    program: Checked, summation: Summation, guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> None:
    """Raise if a density changes with a discrete latent that is masked out.

    Its own distribution is then another one, under which the rest would have another sum.
    """
    sites = samples(model_trace)
    masked = {
        name: torch.as_tensor(sites[name]["mask"])
        for name in summation.sites.model
        if sites[name]["mask"] is not None
    }
    if not any(not bool(mask.all()) for mask in masked.values()):
        return
    layout = summation.layout

    def flat(site: Site, is_summed: bool) -> Tensor:
        terms = layout.terms(site, is_summed)
        if site["name"] not in masked:
            return terms
        uniform = torch.full_like(terms, -math.log(summation.sites.model[site["name"]]))
        return torch.where(masked[site["name"]], terms, uniform)

    totals = []
    for each in (layout, layout._replace(terms=flat)):
        summation.layout = each
        factors = next(_gathered(program, summation, guide_trace))
        totals.append(log_sum(factors.model, set(factors.letters.values()), factors.axes))
    summation.layout = layout
    if not torch.allclose(totals[0], totals[1], rtol=1e-6, atol=1e-4):
        names = ", ".join(f"'{name}'" for name in masked)
        raise InputError(
            f"discrete latent {names} is masked out for some data, and a site that is not masked"
            " depends on it: mask that as well"
        )
