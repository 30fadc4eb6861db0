"""An audit of scales and masks: β on one side only, on the data, or for good."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.findings import Finding
from pyro_bvae.evaluation.program_audit.traces import View
from pyro_bvae.program.sites import Site, samples


def own_scale(site: Site) -> Tensor:
    """Return the scale that the program put on a site, without its subsampled plates'."""
    return torch.as_tensor(site["scale"]).cpu().double() / subsample_factor(site)


def subsample_factor(site: Site) -> float:
    """Return the factor of a site's subsampled plates, the product of full size over size."""
    frames = [
        frame
        for frame in site["cond_indep_stack"]
        if frame.full_size not in (None, -1) and frame.size > 0
    ]
    return math.prod(frame.full_size / frame.size for frame in frames)


def mask_of(site: Site) -> Tensor:
    """Return the mask of a site, that of its handlers and that of its distribution together."""
    parts = [site["mask"], getattr(site["fn"], "_mask", None)]
    result = torch.tensor(True)
    for part in parts:
        if part is not None:
            result = result & torch.as_tensor(part, dtype=torch.bool).cpu()
    return result


def _same(one: Tensor, other: Tensor) -> bool:
    try:
        return bool(torch.isclose(one.double(), other.double(), rtol=1e-5).all())
    except RuntimeError:  # shapes that do not broadcast
        return False


def _is_one(scale: Tensor) -> bool:
    return _same(scale, torch.ones(()))


def _words(scale: Tensor) -> str:
    low, high = float(scale.min()), float(scale.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def check_sides(view: View) -> Iterator[Finding]:
    """Find latents that model and guide scale or mask differently."""
    for name, (model, guide) in view.pairs.items():
        ours, theirs = own_scale(model), own_scale(guide)
        if not _same(ours, theirs):
            results = (
                f"latent '{name}' is scaled by {_words(ours)} in the model and by {_words(theirs)}"
                " in the guide"
            )
            do = (
                "the objective is then no β-ELBO: put the same poutine.scale(scale=beta) around"
                " the site in both"
            )
            one_sided = _is_one(ours) or _is_one(theirs)
            yield Finding(
                "beta-one-side" if one_sided else "beta-unequal",
                "error",
                (name,),
                f"{results}; {do}.",
            )
        if not _same(mask_of(model), mask_of(guide)):
            results = f"latent '{name}' is masked otherwise in the model than in the guide"
            yield Finding(
                "mask-one-side",
                "error",
                (name,),
                f"{results}; put the same poutine.mask around it in both.",
            )


def check_observed(plain: View, weighted: list[View]) -> Iterator[Finding]:
    """Find observed sites that stand under the latents' scale."""
    for view in [*weighted, plain]:
        latent_scales = [own_scale(site) for pair in view.pairs.values() for site in pair]
        for name, site in view.observed.items():
            scale = own_scale(site)
            if (
                _is_one(scale)
                or _undoes_plate(site)
                or not any(_same(scale, latent) for latent in latent_scales)
            ):
                continue
            before = plain.observed.get(name)
            moved = view is not plain and not _same(
                scale, torch.ones(()) if before is None else own_scale(before)
            )
            yield Finding(
                "observed-scaled",
                "error" if moved else "warning",
                (name,),
                f"observed site '{name}' is scaled by {_words(scale)}, as the latents are: β then"
                " weighs the whole objective and changes nothing but the step size. Take"
                " pyro.sample(..., obs=) out of the poutine.scale block; if the scale is that of a"
                " minibatch, use pyro.plate(name, size=N, subsample_size=B) instead.",
            )


def _undoes_plate(site: Site) -> bool:
    """Whether a site is scaled by hand with its subsampled plate's factor, or its inverse."""
    factor, scale = subsample_factor(site), own_scale(site)
    return factor != 1 and (
        _same(scale, torch.tensor(factor)) or _same(scale, torch.tensor(1 / factor))
    )


def check_permanent(plain: View, results: list[Finding]) -> Iterator[Finding]:
    """Find scales that stay when no β is passed, and so enter the trace's log densities."""
    codes = {"beta-one-side", "beta-unequal", "observed-scaled"}
    known = {site for finding in results for site in finding.sites if finding.code in codes}
    for name, site in {**samples(plain.guide), **samples(plain.model)}.items():
        scale = own_scale(site)
        if name in known or _is_one(scale):
            continue
        if _undoes_plate(site):
            words = (
                f"site '{name}' is scaled by {_words(scale)} by hand and by"
                f" {subsample_factor(site):g} by its plate"
            )
            do = "a subsampled plate scales by itself: take poutine.scale away"
            yield Finding("subsample-scaled-twice", "error", (name,), f"{words}; {do}.")
            continue
        yield Finding(
            "scale-in-weights",
            "warning",
            (name,),
            f"site '{name}' is scaled by {_words(scale)} even where no β is passed. Importance"
            " weights made of"
            " trace.log_prob_sum(), pyro.infer.Importance and RenyiELBO take the scale in, and are"
            " then no weights;"
            " pyro_bvae.evidence drops it and measures the model without it. Make beta an argument"
            " of model and guide with default 1.0.",
        )


def check_ignored(plain: View, weighted: list[View]) -> Iterator[Finding]:
    """Find a β that is an argument and changes nothing."""
    if not weighted or plain.failures or any(view.failures for view in weighted):
        return
    names = tuple(plain.latents)
    if all(_fingerprint(view) == _fingerprint(plain) for view in weighted):
        results = "'beta' is an argument and changes no scale, no mask and no density"
        do = "put poutine.scale(scale=beta) around the latents in model and guide"
        yield Finding("beta-ignored", "warning", names, f"{results}; {do}.")


def _fingerprint(view: View) -> list[Any]:
    sums = []
    for _, _, site in view.sites:
        try:
            density = site["fn"].log_prob(site["value"]).double().sum().item()
        except (ValueError, RuntimeError):
            density = None
        sums.append((str(own_scale(site).tolist()), str(mask_of(site).tolist()), str(density)))
    return sums
