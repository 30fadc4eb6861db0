"""An audit of a program's draws: noise, points and shapes that make weights another's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyro_bvae.core.context import check_contexts
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.findings import Finding
from pyro_bvae.evaluation.program_audit.traces import Function, View
from pyro_bvae.program.auxiliary import noise_faults
from pyro_bvae.program.faults import (
    Fault,
    broadcasts,
    drawn_by,
    observed_draws,
    plain_points,
    unresolved_points,
)
from pyro_bvae.program.sites import Sites, is_delta
from pyro_bvae.program.supports import is_unbounded, support_of


def check_context(args: tuple[Any, ...]) -> Iterator[Finding]:
    """Find contexts without a row for each datum."""
    try:
        check_contexts(args)
    except InputError as error:
        yield Finding("context-shape", "error", ("context",), f"{error}.")


def check_noise(
    view: View,
    guide: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    results: list[Finding],
) -> Iterator[Finding]:
    """Find the faults that a measurement refuses, but shapes that were reported already."""
    if "guide" in view.failures:
        return
    yield from _told(observed_draws(view.guide, view.model))
    yield from _told(plain_points(view.guide, view.model))
    yield from _told(unresolved_points(view.guide, view.model))
    if view.failures or any(finding.code == "latent-shape" for finding in results):
        return
    known = {site for finding in results for site in finding.sites}
    yield from (
        fault for fault in _told(broadcasts(view.guide, view.model)) if not known & set(fault.sites)
    )
    nodes: Sites = dict(view.guide.nodes)
    held = {
        name: node["value"]
        for name, node in nodes.items()
        if node["type"] == "sample"
        and site_is_subsample(node)
        and len(node["value"]) != node["fn"].size
    }

    def run(function: Function) -> Any:
        return poutine.condition(function, data=held)(*args, **kwargs)

    yield from _told(noise_faults(guide, run, view.model, _shared_plate(view)))


def _told(faults: Iterator[Fault]) -> Iterator[Finding]:
    return (Finding(fault.code, "error", fault.sites, f"{fault.message}.") for fault in faults)


def _shared_plate(view: View) -> Any | None:
    """Return a plate over all auxiliary sites of the guide, and the latents that follow."""
    sites = drawn_by(view.guide)
    made = [s for name, s in sites.items() if is_delta(s["fn"]) or name not in view.latents]
    stacks = [
        {(f.name, f.dim, f.size): f for f in site["cond_indep_stack"] if f.vectorized}
        for site in made
    ]
    return (
        next((frame for key, frame in stacks[0].items() if all(key in s for s in stacks)), None)
        if stacks
        else None
    )


@torch.no_grad()
def check_supports(view: View, results: list[Finding]) -> Iterator[Finding]:
    """Find guides that reach outside the support of a prior, or over a part of it alone."""
    known = {
        site for finding in results for site in finding.sites if finding.code == "outside-support"
    }
    for name, (prior, site) in view.pairs.items():
        if is_delta(site["fn"]) or name in known:
            continue
        wide, whole = is_unbounded(site["fn"]), is_unbounded(prior["fn"])
        if wide and not whole:
            found_words = (
                f"latent '{name}' has any value in the guide, and the support"
                f" {support_of(prior['fn'])} in the"
            )
            do = (
                "model: the ELBO is minus infinity; give the guide a distribution with that support"
            )
            yield Finding("wider-support", "error", (name,), f"{found_words} {do}.")
        elif whole and not wide:
            words = (
                f"latent '{name}' may be any number in the model, and in the guide its support is"
            )
            do = (
                "an evidence misses all mass outside; give the guide a distribution with the"
                " prior's support"
            )
            yield Finding(
                "narrower-support", "warning", (name,), f"{words} {support_of(site['fn'])}: {do}."
            )
