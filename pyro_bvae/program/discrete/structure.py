"""The discrete latents of a program: which can be summed out, and how many values they have."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pyro import poutine
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.internals import is_deterministic
from pyro_bvae.program.sites import Site, Sites, samples, unwrapped
from pyro_bvae.program.supports import support_of

#: The most joint values of discrete latents that one density is computed for.
MOST_VALUES = 10_000


class DiscreteSites(NamedTuple):
    """The discrete latents that are summed out, with their numbers of values.

    Attributes:
        model: By site of the model.
        guide: By site of the guide; a latent of the model alone has none.
    """

    model: dict[str, int]
    guide: dict[str, int]

    @property
    def left(self) -> dict[str, int]:
        """The sites that the model alone has."""
        return {name: size for name, size in self.model.items() if name not in self.guide}


#: No discrete latents.
NONE = DiscreteSites({}, {})


def values_of(distribution: Any) -> Tensor | None:
    """Return the values of a discrete distribution, ``(C, *)``, or None where they are no list."""
    if not getattr(distribution, "has_enumerate_support", False):
        return None
    try:
        values: Tensor = distribution.enumerate_support(expand=False)
    except (NotImplementedError, ValueError, RuntimeError):
        return None
    return values


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution is of numbers that can be counted."""
    listed = bool(getattr(distribution, "has_enumerate_support", False))
    return listed or bool(getattr(support_of(distribution), "is_discrete", False))


def find_discrete(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> DiscreteSites:
    """Return the discrete latents whose values can be listed.

    Raises:
        InputError: for a discrete latent that is neither listed nor drawn by the guide, for a guide
            site of other values, and for too many joint values.
    """
    model: dict[str, int] = {}
    guide: dict[str, int] = {}
    for name, site in samples(model_trace).items():
        if site["is_observed"] or not is_discrete(site["fn"]):
            continue
        values = values_of(site["fn"])
        drawn: Site = guide_trace.nodes.get(name)
        if values is None:
            if drawn is None:
                raise InputError(_unlisted(name, site["fn"]))
            continue  # drawn by the guide, as any other latent
        model[name] = len(values)
        if drawn is not None:
            guide[name] = _values_of_guide(name, drawn, values)
    if model:
        _check_size(model, samples(model_trace))
    return DiscreteSites(model, guide)


def _unlisted(name: str, distribution: Any) -> str:
    words = f"latent '{name}' ({type(unwrapped(distribution)).__name__}) is discrete"
    remedy = "give the guide one"
    if distribution.event_shape.numel() > 1:
        remedy = "put the numbers of this vector under a pyro.plate, or give the guide a site"
    return f"{words} without a list of values, and the guide has no site for it: {remedy}"


def _values_of_guide(name: str, drawn: Site, values: Tensor) -> int:
    if is_deterministic(drawn):
        raise InputError(
            f"guide site '{name}' is a point (pyro.deterministic), which has no density: draw it by"
            " pyro.sample"
        )
    if drawn["is_observed"]:
        raise InputError(
            f"site '{name}' of the guide is observed, and a latent of the model has to be drawn"
        )
    own = values_of(drawn["fn"])
    if own is None or len(own) != len(values) or own.shape[1:].numel() != values.shape[1:].numel():
        got = "no list of values" if own is None else f"{len(own)} values"
        raise InputError(
            f"latent '{name}' has {len(values)} values in the model, and its guide site of family"
            f" {type(drawn['fn']).__name__} has {got}: give both the same"
        )
    return len(own)


def _check_size(sizes: dict[str, int], sites: Sites) -> None:
    """Raise if a site may depend on too many joint values of discrete latents."""
    everywhere: list[
        str
    ] = []  # those outside a markov context, on which all later sites may depend
    for name, site in sites.items():
        scope = site["infer"].get("_markov_scope")
        own = [name] if name in sizes else []
        near = [*everywhere, *(each for each in scope or () if each in sizes), *own]
        count = math.prod(sizes[each] for each in near)
        if count > MOST_VALUES:
            raise InputError(_too_many(near, count))
        if scope is None:
            everywhere += own


def _too_many(names: list[str], count: int) -> str:
    if len(names) == 1:
        return (
            f"discrete latent '{names[0]}' has {count:,} values, and at most {MOST_VALUES:,} are"
            " summed out"
        )
    words = ", ".join(f"'{name}'" for name in names)
    return (
        f"discrete latents {words} have {count:,} joint values, and at most {MOST_VALUES:,} are"
        " summed out: loop over a sequence by pyro.markov, or put independent ones under a"
        " pyro.plate"
    )
