"""The structure of a program in its traces: latents, data plate, and unfit sites."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.internals import is_deterministic, mask_of, tree_leaves

Site = Any  # a trace's message
Sites = dict[str, Site]


def samples(trace: poutine.Trace) -> Sites:
    """Return the sample sites of a trace that carry a density."""
    sites: Sites = dict(trace.nodes)
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)
    }


def is_delta(distribution: Any) -> bool:
    """Whether a distribution is a point, which has no noise of its own."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.Delta)


def mask_at(site: Site) -> Tensor | None:
    """Return the mask of a site, of its effect handlers and its distribution, or None."""
    mask, distribution = site["mask"], site["fn"]
    while hasattr(distribution, "base_dist"):
        if isinstance(distribution, dist.MaskedDistribution):
            own = mask_of(distribution)
            mask = own if mask is None else torch.as_tensor(mask) & torch.as_tensor(own)
        distribution = distribution.base_dist
    return None if mask is None else torch.as_tensor(mask)


def find_latents(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, summed: Collection[str] | None = None
) -> tuple[str, ...]:
    """Return the names of the model's unobserved sites, or raise if they cannot be evaluated.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.
        summed: Discrete latents that are summed out, and left out here; None where any is refused,
            and any latent that is masked out for some data.
    """
    latents = tuple(
        name
        for name, site in samples(model_trace).items()
        if not site["is_observed"] and name not in (summed or ())
    )
    if not latents and not summed:
        raise InputError("the model has no latent site: every sample site is observed")
    for name in latents:
        drawn: Site = guide_trace.nodes.get(name)
        if drawn is None:
            raise InputError(f"the guide has no site for the model's latent '{name}'")
        if is_deterministic(drawn):
            raise InputError(
                f"guide site '{name}' is a point (pyro.deterministic), which has no density: draw"
                " it by pyro.sample"
            )
        if drawn.get("is_observed"):
            raise InputError(
                f"site '{name}' of the guide is observed, and a latent of the model has to be drawn"
            )
        if isinstance(unwrapped(model_trace.nodes[name]["fn"]), dist.ImproperUniform):
            raise InputError(
                f"latent '{name}' has an improper prior (ImproperUniform), under which the data"
                " have no evidence: give it a proper one"
            )
        listed = getattr(model_trace.nodes[name]["fn"], "has_enumerate_support", False)
        if listed and summed is None:
            raise InputError(
                f"latent '{name}' is discrete; only continuous latents can be evaluated"
            )
        for mask in map(mask_at, (model_trace.nodes[name], drawn)):
            if mask is not None and not bool(mask.any() if summed is not None else mask.all()):
                raise InputError(
                    f"latent '{name}' is masked out for some data (β = 0?): pass beta=1.0 when"
                    " evaluating"
                )
    return latents


def find_masked(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> frozenset[str]:
    """Return the sites of the guide that have a mask, there or in the model."""
    return frozenset(
        name
        for sites in map(samples, (guide_trace, model_trace))
        for name, site in sites.items()
        if name in guide_trace.nodes and not site["is_observed"] and mask_at(site) is not None
    )


def find_plate(
    latents: tuple[str, ...],
    model_trace: poutine.Trace,
    data_plate: str | None,
    args: tuple[Any, ...],
) -> Any:
    """Return the frame of the data plate, which all latents share and which has N data."""
    stacks = [
        {
            frame.name: frame
            for frame in model_trace.nodes[name]["cond_indep_stack"]
            if frame.vectorized
        }
        for name in latents
    ]
    shared = {name: stacks[0][name] for name in stacks[0] if all(name in stack for stack in stacks)}
    if not shared:
        raise InputError(
            "the latents share no vectorised plate, so there are no per-datum weights: put "
            f"{', '.join(repr(name) for name in latents)} under one pyro.plate over the data"
        )
    if data_plate is not None:
        if data_plate not in shared:
            raise InputError(f"'data_plate' must be one of {sorted(shared)}, got '{data_plate}'")
        return shared[data_plate]
    sizes = [
        leaf.shape[0] for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 0
    ]
    fitting = [frame for frame in shared.values() if frame.size in sizes[:1]] or list(
        shared.values()
    )
    if len(fitting) > 1:
        raise InputError(
            "the data plate is ambiguous: pass data_plate= one of"
            f" {sorted(f.name for f in fitting)}"
        )
    return fitting[0]


def check_sites(plate: Any, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Raise if a site lies outside the data plate, or if the guide observes one."""
    for trace, program in ((guide_trace, "guide"), (model_trace, "model")):
        for name, site in samples(trace).items():
            if program == "guide" and site["is_observed"]:
                raise InputError(
                    f"site '{name}' of the guide is observed or a factor, which no weight accounts"
                    " for"
                )
            frames = [frame for frame in site["cond_indep_stack"] if frame.name == plate.name]
            if not frames:
                raise InputError(
                    f"site '{name}' of the {program} lies outside the data plate '{plate.name}'"
                )
            if (frames[0].dim, frames[0].size) != (plate.dim, plate.size):
                raise InputError(
                    f"site '{name}' of the {program} has {frames[0].size} data at dim"
                    f" {frames[0].dim} of plate '{plate.name}', the latents have {plate.size} at"
                    f" dim {plate.dim}: give both the same"
                )


def check_batches(particle_dim: int, *traces: poutine.Trace) -> None:
    """Raise if a site has data in a dimension beyond all plates, where particles will lie."""
    for trace in traces:
        for name, site in samples(trace).items():
            if any(size != 1 for size in site["fn"].batch_shape[: particle_dim + 1]):
                raise InputError(
                    f"site '{name}' has batch shape {tuple(site['fn'].batch_shape)}, more than its"
                    " plates declare: put that dimension under a plate, or .to_event(...) it"
                )


def replayable(guide_trace: poutine.Trace) -> poutine.Trace:
    """Return a guide's trace without sites that it does not draw, at which a replay stops."""
    drawn = poutine.Trace()
    drawn.nodes.update(
        {name: site for name, site in guide_trace.nodes.items() if not site.get("is_observed")}
    )
    return drawn


def check_whole_plates(*traces: poutine.Trace) -> None:
    """Raise if a plate is subsampled: evaluation needs all its data."""
    for site in (site for trace in traces for site in trace.nodes.values()):
        for frame in site.get("cond_indep_stack", ()):
            if frame.full_size is not None and frame.full_size != frame.size:
                raise InputError(
                    f"plate '{frame.name}' is subsampled ({frame.size} of {frame.full_size});"
                    " evaluation needs all its data: call the model without subsampling"
                )


def unwrapped(distribution: Any) -> Any:
    """Return a distribution without the wrappers that declare events, or mask."""
    while isinstance(distribution, dist.MaskedDistribution | Independent):
        distribution = distribution.base_dist
    return distribution


def product_base(distribution: Any) -> Any | None:
    """Return the distribution of the single dimensions of a product, or None where it is none."""
    base = unwrapped(distribution)
    return None if base.event_shape else base


class _Reached(Exception):
    """A program has come to the site that it was run for."""


class _UpTo(Messenger):  # type: ignore[misc]
    """An effect handler that ends a program at a site."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == self.name:
            self.site: Site = msg.copy()
            raise _Reached


def site_of(program: Callable[..., Any], name: str, *args: Any) -> Site:
    """Run a program up to a sample site, and return that, without running the rest.

    Args:
        program: A Pyro program that has the site.
        name: Name of the site.
        *args: The program's arguments.
    """
    handler = _UpTo(name)
    try:
        with handler:
            program(*args)
    except _Reached:
        return handler.site
    raise LookupError(f"the program has no site '{name}'")


def mean_of(distribution: Any, num_draws: int = 100) -> Tensor:
    """Return the mean of a distribution, by Monte Carlo where it does not know it."""
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        return distribution.sample(torch.Size([num_draws])).mean(0)
    return mean
