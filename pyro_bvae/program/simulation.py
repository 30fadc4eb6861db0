"""Data drawn from a program in the place of the observed ones, with the latents that made them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.internals import tree_map
from pyro_bvae.core.seeds import seeded
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import Sites, samples


class Simulated(NamedTuple):
    """A block of simulated data.

    Attributes:
        program: The program that observes them.
        args: Its arguments.
        latents: Their origin: one exact draw of the posterior, by latent site.
        observed: The data, by observed site.
        data_dims: The dimension of the data in each, counted from the right.
    """

    program: Program
    args: tuple[Any, ...]
    latents: LatentValues
    observed: LatentValues
    data_dims: dict[str, int]


@torch.no_grad()
def simulate(
    program: Program,
    args: tuple[Any, ...],
    seed: int,
    for_guide: bool = False,
    given: LatentValues | None = None,
) -> Simulated:
    """Draw latents and data from the model, as many as there are in a block.

    Args:
        program: The program.
        args: The arguments of the block. Where observed values are found among them, simulated ones
            take their place; where not, the model is conditioned on them.
        seed: Seed of the draw.
        for_guide: Whether the guide has to see the data, so that they must be among the arguments.
        given: Latents to draw the data from, in the place of the prior's.

    Raises:
        InputError: if the guide has to see data that are not among the arguments, or for a model
            with a factor, whose latents are no draw of the posterior.
    """
    model = poutine.uncondition(program.model)
    with seeded(seed):
        trace = poutine.trace(poutine.condition(model, data=given or {})).get_trace(*args)
    sites: Sites = samples(trace)
    for name, site in sites.items():
        if site["infer"].get("was_observed") and site["value"].numel() == 0:
            raise InputError(
                f"site '{name}' of the model is a factor, from which no data can be simulated"
            )
    latents = {name: sites[name]["value"] for name in program.latents}
    drawn = {name: site for name, site in sites.items() if site["infer"].get("was_observed")}
    observed = {name: _as_seen(site["value"], site["infer"]["obs"]) for name, site in drawn.items()}
    dims = {name: program.plate.dim - site["fn"].event_dim for name, site in drawn.items()}
    results: set[str] = set()

    def replaced(leaf: Any) -> Any:
        for name, site in drawn.items():
            if isinstance(leaf, Tensor) and _same(leaf, site["infer"]["obs"]):
                results.add(name)
                return observed[name].to(leaf.dtype)
        return leaf

    arguments = tree_map(replaced, args)
    if missing := set(drawn) - results:
        if for_guide:
            raise InputError(
                f"observed site '{min(missing)}' is none of the arguments, so the guide cannot be"
                " shown simulated data: start from the prior"
            )
        program = copy.copy(program)
        program.model = poutine.condition(poutine.uncondition(program.model), data=observed)
    return Simulated(program, arguments, latents, observed, dims)


def _as_seen(drawn: Tensor, observed: Any) -> Tensor:
    """Return drawn data with NaN where the observed ones are missing."""
    if (
        not isinstance(observed, Tensor)
        or observed.shape != drawn.shape
        or not drawn.is_floating_point()
    ):
        return drawn
    return drawn.masked_fill(torch.isnan(observed), torch.nan)


def _same(leaf: Tensor, observed: Tensor) -> bool:
    if leaf.shape != observed.shape or leaf.dtype != observed.dtype:
        return False
    missing = torch.isnan(leaf) & torch.isnan(observed)
    return bool(((leaf == observed) | missing).all())
