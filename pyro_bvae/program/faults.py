"""Faults that change a program's weights: broadcast shapes, and unaccounted draws.

A measurement refuses the first fault that it meets, and an audit lists them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.internals import is_deterministic
from pyro_bvae.program.sites import Site, Sites, is_delta, samples
from pyro_bvae.program.supports import bijection_of, support_of

# Nats by which a density may change from a number to the next that its precision knows.
_RESOLVED = 1.0


class Fault(NamedTuple):
    """One reason why a program's numbers are not its own.

    Attributes:
        code: The kind of fault, in a word or two with hyphens.
        sites: Names of the sites that it concerns.
        message: The fault in one line, and its remedy.
    """

    code: str
    sites: tuple[str, ...]
    message: str


def latents_of(model_trace: poutine.Trace) -> Sites:
    """Return the unobserved sample sites of a model."""
    return {name: site for name, site in samples(model_trace).items() if not site["is_observed"]}


def drawn_by(guide_trace: poutine.Trace) -> Sites:
    """Return the unobserved sample sites of a guide."""
    return {name: site for name, site in samples(guide_trace).items() if not site["is_observed"]}


def observed_draws(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Iterator[Fault]:
    """Find sites that the guide draws and the model observes: observations would be replaced."""
    sites = samples(model_trace)
    for name in drawn_by(guide_trace):
        if name in sites and sites[name]["is_observed"]:
            words = (
                f"the guide draws site '{name}', which the model observes: nothing stands for"
                " its log q"
            )
            do = (
                "take it out of the guide, or the observation (obs=, poutine.condition) out of"
                " the model"
            )
            yield Fault("drawn-though-observed", (name,), f"{words}; {do}")


# -- points
# --------------------------------------------------------------------------------------------


def plain_points(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Iterator[Fault]:
    """Find latents at points: no draw, or numbers of another kind."""
    sites = drawn_by(guide_trace)
    for name, prior in latents_of(model_trace).items():
        stored: Site = guide_trace.nodes.get(name)
        if stored is not None and is_deterministic(stored):
            yield _point(name, "pyro.deterministic")
        if name not in sites:
            continue
        ours, theirs = prior["fn"], sites[name]["fn"]
        if is_delta(ours) and not is_delta(theirs):
            words = (
                f"latent '{name}' of the model is a point (Delta), which the guide's draws"
                " never meet"
            )
            yield Fault("point", (name,), f"{words}; observe it, or make it pyro.deterministic")
        elif not is_delta(theirs) and _is_discrete(theirs) != _is_discrete(ours):
            kinds = ["continuous", "discrete"]
            words = (
                f"latent '{name}' is {kinds[_is_discrete(ours)]} in the model and"
                f" {kinds[_is_discrete(theirs)]}"
            )
            yield Fault(
                "point", (name,), f"{words} in the guide: their densities have no common unit"
            )
        elif not is_delta(theirs) and (sizes := _free_numbers(prior, sites[name])):
            words = (
                f"an event of latent '{name}' has {sizes[0]} free numbers in the model and"
                f" {sizes[1]} in the guide"
            )
            yield Fault(
                "point",
                (name,),
                f"{words}: their densities have no common unit; give both one support",
            )


def _point(name: str, family: str) -> Fault:
    words = f"guide site '{name}' is a point ({family}), whose density is no finite number"
    do = (
        "draw it from a distribution, or from a noisy auxiliary site with the Jacobian in Delta's"
        " log_density"
    )
    return Fault("point", (name,), f"{words}; {do}")


def points(names: list[str]) -> Iterator[Fault]:
    """Return the faults of latents at a Delta that no noise moves."""
    return (_point(name, "Delta") for name in names)


def _is_discrete(distribution: Any) -> bool:
    return bool(getattr(support_of(distribution), "is_discrete", False))


def _free_numbers(*sites: Site) -> tuple[int, ...] | None:
    """Return the free numbers of an event at each site, where they differ."""
    try:
        shapes = [bijection_of(site["fn"]).inverse_shape(site["value"].shape) for site in sites]
    except (NotImplementedError, ValueError):
        return None
    batch = sites[0]["fn"].batch_shape.numel()
    sizes = tuple(shape.numel() // max(batch, 1) for shape in shapes)
    return sizes if len(set(sizes)) > 1 else None


def unresolved_points(guide_trace: poutine.Trace, _: poutine.Trace) -> Iterator[Fault]:
    """Find densities that change too much from a number to the next: points but for the name."""
    for name, site in drawn_by(guide_trace).items():
        fn, value = site["fn"], site["value"]
        if is_delta(fn) or _is_discrete(fn) or not value.is_floating_point():
            continue
        try:
            here = fn.log_prob(value)
            steps = [fn.log_prob(torch.nextafter(value, value + side)) - here for side in (-1, 1)]
        except (
            ValueError,
            RuntimeError,
            KeyError,
            NotImplementedError,
        ):  # a flow without an inverse, say
            continue
        change = torch.maximum(steps[0].abs(), steps[1].abs()).detach().flatten()
        if float(torch.nanmedian(change)) > _RESOLVED:
            words = (
                f"guide site '{name}' is a point but for its name: its density changes by"
                f" {_RESOLVED:g} nat or more"
            )
            yield Fault(
                "point",
                (name,),
                f"{words} within the rounding of {value.dtype}; give it a larger scale, or"
                " standardise the data",
            )


# -- shapes
# --------------------------------------------------------------------------------------------


def broadcasts(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Iterator[Fault]:
    """Find values whose shape is not their distribution's, so that terms count twice."""
    drawn = drawn_by(guide_trace)
    for program, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in samples(trace).items():
            fn, value = site["fn"], site["value"]
            if (
                not isinstance(value, Tensor)
                or site["infer"].get("enumerate")
                or value.numel() == 0
            ):
                continue
            place = max(value.dim() - fn.event_dim, 0)
            batch, event = _stripped(value.shape[:place]), value.shape[place:]
            whole = _stripped(fn.batch_shape)
            latent = program == "guide" or name in drawn
            fits = batch == whole if latent else batch == whole[len(whole) - len(batch) :]
            # One parameter for several observed numbers is a density of them all; a latent's draws
            # are counted by both.
            shared = not latent and len(event) == len(fn.event_shape)
            alike = shared and all(
                own in (1, size) for own, size in zip(fn.event_shape, event, strict=True)
            )
            if not (alike or event == fn.event_shape) or not fits:
                got, shape = tuple(value.shape), tuple(fn.batch_shape + fn.event_shape)
                words = f"the value of site '{name}' of the {program} has shape {got}, its"
                words += f" distribution {shape}"
                if program == "model" and latent:
                    words = f"latent '{name}' has shape {got} in the guide and {shape} in the model"
                words += ": their log density would broadcast; give both one shape"
                yield Fault("broadcast", (name,), words)


def _stripped(shape: torch.Size) -> tuple[int, ...]:
    sizes = tuple(shape)
    while sizes and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes
