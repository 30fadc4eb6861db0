"""An audit of sites and plates: missing sites, shapes, sizes, values without density."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_bvae.core.findings import Finding
from pyro_bvae.evaluation.program_audit.scales import mask_of
from pyro_bvae.evaluation.program_audit.traces import View
from pyro_bvae.program.sites import Site, samples
from pyro_bvae.program.supports import inside, is_angle

_MISMATCH = re.compile(
    r"Shape mismatch inside plate\('(.+?)'\) at site (.+?) dim (-\d+), (\d+) vs (\d+)"
)


def check_latents(view: View) -> Iterator[Finding]:
    """Find latents that only one of model and guide has."""
    guide, latents, observed = samples(view.guide), view.latents, view.observed
    for name, site in latents.items() if "guide" not in view.failures else ():
        enumerated = getattr(
            site["fn"], "has_enumerate_support", False
        )  # may be summed out, in no need of a guide
        stored: Any = view.guide.nodes.get(name, {})
        pointed = stored.get("infer", {}).get("_deterministic")  # a point: said elsewhere
        if name not in guide and not enumerated and not pointed:
            words = (
                f"latent '{name}' of the model has no site in the guide, so it is drawn from its"
                " prior"
            )
            yield Finding(
                "latent-not-in-guide",
                "error",
                (name,),
                f"{words}; give the guide a pyro.sample('{name}', ...).",
            )
    for name, site in guide.items():
        if site["infer"].get("is_auxiliary"):
            continue
        if site["is_observed"]:
            words = f"site '{name}' is observed in the guide, and no weight accounts for it"
            yield Finding(
                "observed-in-guide", "error", (name,), f"{words}; observe it in the model only."
            )
        elif name not in latents and name not in observed and "model" not in view.failures:
            words = (
                f"latent '{name}' of the guide is no site of the model: its log q is subtracted"
                " and nothing is added"
            )
            do = (
                "name it as the model does, or mark it infer={'is_auxiliary': True} where latents"
                " are a map of it"
            )
            yield Finding("latent-not-in-model", "error", (name,), f"{words}; {do}.")


def check_shapes(view: View) -> Iterator[Finding]:
    """Find latents whose shapes in model and guide differ."""
    for name, (model, guide) in view.pairs.items():
        ours, theirs = ((s["fn"].batch_shape, s["fn"].event_shape) for s in (model, guide))
        if ours[1] == theirs[1] and _without_ones(ours[0]) == _without_ones(theirs[0]):
            continue
        result = (
            f"latent '{name}' has batch and event shape {_pair(ours)} in the model and"
            f" {_pair(theirs)} in the guide"
        )
        do = "give both the same sizes, plates and .to_event(...)"
        yield Finding("latent-shape", "error", (name,), f"{result}; {do}.")


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    sizes = tuple(shape)
    while sizes and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes


def _pair(shapes: tuple[torch.Size, torch.Size]) -> str:
    return f"{tuple(shapes[0])}, {tuple(shapes[1])}"


def check_events(view: View) -> Iterator[Finding]:
    """Find batch dimensions that no plate declares independent."""
    for program, name, site in view.sites:
        under = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
        shape = site["fn"].batch_shape
        loose = [dim for dim in range(-len(shape), 0) if shape[dim] != 1 and dim not in under]
        if loose:
            result = (
                f"site '{name}' of the {program} has batch shape {tuple(shape)}, of which dim"
                f" {loose} is under no plate"
            )
            do = (
                "add .to_event(...) where it is one event's features, a pyro.plate where it is"
                " independent data"
            )
            yield Finding("missing-to-event", "error", (name,), f"{result}; {do}.")


def check_failures(view: View) -> Iterator[Finding]:
    """Find plates whose sizes are those of nothing in them: Pyro stops there."""
    for program, error in view.failures.items():
        match = _MISMATCH.search(str(error))
        if match is None:
            continue
        plate, site, dim, size, got = match[1], match[2], match[3], int(match[4]), int(match[5])
        trace = view.model if program == "model" else view.guide
        full = getattr(trace.nodes.get(plate, {}).get("fn"), "size", size)
        result = (
            f"site '{site}' of the {program} has size {got} at dim {dim} of plate '{plate}', whose"
            f" size is {size}"
        )
        if full != size:
            do = (
                f"the plate takes {size} of {full}: index the data by it, 'with pyro.plate(...) as"
                " index: ... x[index]'"
            )
            yield Finding("subsample-not-used", "error", (site, plate), f"{result}; {do}.")
        elif got == view.num_data or size not in view.sizes:
            yield Finding(
                "plate-size",
                "error",
                (site, plate),
                f"{result}; give the plate the number of data, {got}.",
            )
        else:
            do = "add .to_event(1) where that dimension is one event's features"
            yield Finding("missing-to-event", "error", (site,), f"{result}; {do}.")


def check_plates(view: View) -> Iterator[Finding]:
    """Find plates that differ between model and guide, or whose size no argument has."""
    for name, (model, guide) in view.pairs.items():
        ours, theirs = ({f.name: f for f in site["cond_indep_stack"]} for site in (model, guide))
        for plate in ours.keys() & theirs.keys():
            sizes = [
                (f.size, f.full_size if f.full_size is not None else f.size)
                for f in (ours[plate], theirs[plate])
            ]
            if sizes[0] != sizes[1]:
                result = (
                    f"plate '{plate}' takes {_of(sizes[0])} in the model and {_of(sizes[1])} in"
                    " the guide"
                )
                yield Finding(
                    "plate-unequal", "error", (name, plate), f"{result}; give both the same sizes."
                )
        if ours.keys() != theirs.keys():
            result = (
                f"latent '{name}' is under plates {sorted(ours)} in the model and {sorted(theirs)}"
                " in the guide"
            )
            do = "give the plates the same names: a subsample is shared by name"
            yield Finding(
                "plate-names",
                "error",
                (name, *sorted(ours.keys() ^ theirs.keys())),
                f"{result}; {do}.",
            )
    yield from _strange_sizes(view)


def _of(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} data" if sizes[0] == sizes[1] else f"{sizes[0]} of {sizes[1]} data"


def _strange_sizes(view: View) -> Iterator[Finding]:
    for name, site in view.observed.items():
        frames = [
            frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.size > 0
        ]
        if not frames or view.num_data is None:
            continue
        sizes = {
            size for frame in frames for size in (frame.size, frame.full_size) if size is not None
        }
        if not sizes & view.sizes:
            result = (
                f"observed site '{name}' is under plates of sizes {sorted(sizes)}, and the data"
                f" are {view.num_data}"
            )
            do = (
                "a plate over part of the data is pyro.plate(name, size=N, subsample_size=B),"
                " which scales by N / B"
            )
            yield Finding(
                "plate-size", "warning", (name, *(f.name for f in frames)), f"{result}; {do}."
            )


def check_subsamples(view: View, again: View) -> Iterator[Finding]:
    """Find observed sites that show the same data whatever subsample their plate draws."""
    for name, site in view.observed.items():
        other = again.observed.get(name)
        for frame in site["cond_indep_stack"]:
            whole = frame.full_size is None or frame.full_size == frame.size
            if other is None or whole or frame.full_size not in view.sizes or not frame.vectorized:
                continue
            drawn: list[Any] = [
                trace.nodes[frame.name]["value"] for trace in (view.model, again.model)
            ]
            if not torch.equal(drawn[0], drawn[1]) and torch.equal(site["value"], other["value"]):
                result = (
                    f"plate '{frame.name}' draws {frame.size} of {frame.full_size}, and site"
                    f" '{name}' shows the same"
                )
                do = (
                    "data at every draw: index them by the plate, 'with pyro.plate(...) as index:"
                    " ... x[index]'"
                )
                yield Finding("subsample-not-used", "error", (name, frame.name), f"{result} {do}.")


def check_values(view: View) -> Iterator[Finding]:
    """Find values outside a support or of another shape, and densities that are not finite."""
    for program, name, site in view.sites:
        where = f"site '{name}' of the {program}"
        if name in view.pairs and program == "model" and view.failures.get("model") is not None:
            continue  # then the model ran alone, and its latents are its own
        try:
            density = site["fn"].log_prob(site["value"])
        except (ValueError, RuntimeError, IndexError) as error:
            yield _unscored(name, site, where, error)
            continue
        if (
            density.dim() > len(site["fn"].batch_shape)
            or density.numel() > site["fn"].batch_shape.numel()
        ):
            result = (
                f"the value of {where} has shape {tuple(site['value'].shape)}, its distribution"
                f" {_shape(site)}"
            )
            do = f"the log density broadcasts to {tuple(density.shape)}: give both one shape"
            yield Finding("value-shape", "error", (name,), f"{result}; {do}.")
        yield from _without_density(name, site, where, density)


def _shape(site: Site) -> tuple[int, ...]:
    return tuple(site["fn"].batch_shape + site["fn"].event_shape)


def _unscored(name: str, site: Site, where: str, error: Exception) -> Finding:
    value, shape = tuple(site["value"].shape), _shape(site)
    event_dim = site["fn"].event_dim
    if (
        len(value) == len(shape)
        and value[len(value) - event_dim :] == shape[len(shape) - event_dim :]
    ):
        plates = tuple(f.name for f in site["cond_indep_stack"] if f.vectorized)
        if any(f.full_size not in (None, f.size) for f in site["cond_indep_stack"]):
            result = (
                f"the value of {where} has shape {value}, its subsampled plate and its"
                f" distribution {shape}"
            )
            return Finding(
                "subsample-not-used",
                "error",
                (name, *plates),
                f"{result}; index the data by the plate.",
            )
        result = f"the value of {where} has shape {value}, its plates and its distribution {shape}"
        return Finding(
            "plate-size", "error", (name, *plates), f"{result}; give the plate the number of data."
        )
    reason = " ".join(str(error).split())[:120]
    result = (
        f"the value of {where} has shape {value}, its distribution {shape}, and there is no"
        f" density: {reason}"
    )
    return Finding("value-shape", "error", (name,), f"{result}; give both one shape.")


def _without_density(name: str, site: Site, where: str, density: Tensor) -> Iterator[Finding]:
    within, mask = _within(site), mask_of(site)
    if within is not None:
        outside = ~(within.cpu() | ~mask)
        if bool(outside.any()):
            values = site["value"].float()
            result = (
                f"{where} has values outside its support, {site['fn'].support}:"
                f" {int(outside.sum())} rows"
            )
            span = f"values from {float(values.min()):g} to {float(values.max()):g}"
            do = "rescale the data or take a distribution with their support"
            yield Finding("outside-support", "error", (name,), f"{result}, {span}; {do}.")
            return
    if not bool((torch.isfinite(density).cpu() | ~mask).all()):
        result = f"{where} has a log density that is NaN or infinite"
        do = (
            "look at its parameters: a scale of 0, a logarithm of 0, NaN in the data without a mask"
        )
        yield Finding("not-finite", "error", (name,), f"{result}; {do}.")


def _within(site: Site) -> Tensor | None:
    """Return which values of a site lie in its support, None for all; angles take any turn."""
    try:
        return (
            None
            if site["is_observed"] and is_angle(site["fn"])
            else inside(site["fn"], site["value"])
        )
    except (
        NotImplementedError,
        AttributeError,
        RuntimeError,
        ValueError,
    ):  # a support that cannot be asked
        return None


def check_orphans(view: View) -> Iterator[Finding]:
    """Find subsampled plates of the guide alone: the model's subsample is then another one."""
    ours, theirs = (
        {
            name: node
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and site_is_subsample(node)
        }
        for trace in (view.model, view.guide)
    )
    for name in (theirs.keys() - ours.keys()) if "model" not in view.failures else ():
        plate: Any = theirs[name]
        if len(plate["value"]) != plate["fn"].size:
            result = f"plate '{name}' of the guide is subsampled and is no plate of the model"
            do = "give both the same plate, so that they see the same data"
            yield Finding("plate-names", "error", (name,), f"{result}; {do}.")
