"""The factors of a program at all values of its discrete latents, in one pass or in one a value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from opt_einsum import get_symbol
from pyro import poutine
from pyro.ops import packed
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_bvae.core.internals import dims_of, with_dims
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.discrete.contraction import Axes, Factor
from pyro_bvae.program.sites import Site, Sites, samples

Function = Callable[..., Any]


class Layout(NamedTuple):
    """Whatever a program knows of its sites.

    Attributes:
        data: Frame of the data plate.
        latents: The latents that are not summed out.
        particles: Name of the plate of particles.
        particle_dim: Its dimension.
        terms: Returns the log density of a site at its value, of the site's batch shape; masked
            unless the second argument says that the site is a discrete latent.
        per_datum: Sums terms over all but particles and data, ``(K, N)``.
    """

    data: Any
    latents: frozenset[str]
    particles: str
    particle_dim: int
    terms: Callable[[Site, bool], Tensor]
    per_datum: Callable[[Tensor], Tensor]


class Factors(NamedTuple):
    """The factors of model and guide.

    Attributes:
        model: Those of the model.
        guide: Those of the guide.
        letters: The letter of each discrete latent.
        axes: Particles and data.
        places: For a discrete latent, the letters of its plates by dimension.
        width: The most numbers in a site.
    """

    model: list[Factor]
    guide: list[Factor]
    letters: dict[str, str]
    axes: Axes
    places: dict[str, dict[int, str]]
    width: int


class Run(NamedTuple):
    """One function at given latents, and the discrete sites to list.

    Attributes:
        function: A model or a guide, with its plate of particles.
        names: The discrete sites, with their numbers of values.
    """

    function: Function
    names: dict[str, int]


# -- in one pass
# ----------------------------------------------------------------------------------


def in_one_pass(
    model: Run | None,
    guide: Run | None,
    values: LatentValues,
    args: tuple[Any, ...],
    layout: Layout,
) -> Factors:
    """Return the factors by Pyro's parallel enumeration: every value has a dimension of its own.

    Args:
        model: The model; None to leave it out. It takes the guide's values where there is a guide.
        guide: The guide; None to leave it out.
        values: The other latents.
        args: The arguments of both.
        layout: Whatever is known of the program's sites.
    """
    first: int | None = layout.particle_dim - 1
    traces: list[poutine.Trace] = []
    plates: dict[str, str] = {}
    replayed = poutine.Trace()
    for run in (guide, model):
        if run is None:
            continue
        function = poutine.condition(run.function, data=values)
        function = poutine.replay(function, trace=replayed) if replayed.nodes else function
        left = {name: size for name, size in run.names.items() if name not in replayed.nodes}
        listed = poutine.enum(_configured(function, left), first)
        trace = poutine.trace(listed).get_trace(*args)
        trace.symbolize_dims(plates)
        traces.append(trace)
        first = None  # the model's dimensions lie beyond the guide's
        if run is guide:
            replayed.nodes.update({name: trace.nodes[name] for name in run.names})
    names = {**(guide.names if guide else {}), **(model.names if model else {})}
    return _packed(traces, guide is not None, names, plates, layout)


def _configured(function: Function, names: dict[str, int]) -> Function:
    """Return a function that lists some of its sites, whatever its author chose for them."""

    def config(site: Site) -> Any:
        listed = "parallel" if site["name"] in names else None
        return {"enumerate": listed, "num_samples": None, "expand": False}

    return poutine.infer_config(function, config)


def _is_data(name: str, names: Iterable[str], layout: Layout) -> bool:
    return name not in layout.latents and name not in names


def _packed(
    traces: list[poutine.Trace],
    has_guide: bool,
    names: dict[str, int],
    plates: dict[str, str],
    layout: Layout,
) -> Factors:
    parts: list[list[Factor]] = []
    letters: dict[str, str] = {}
    places: dict[str, dict[int, str]] = {}
    sizes: dict[str, int] = {}
    width = 1
    for trace in traces:
        factors = []
        for name, site in samples(trace).items():
            frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
            sizes.update({plates[frame.name]: frame.size for frame in frames})
            terms = layout.terms(site, name in names).double()
            term = packed.pack(terms, site["infer"]["_dim_to_symbol"])
            lies_in = frozenset(plates[frame.name] for frame in frames)
            factors.append(Factor(term, lies_in, _is_data(name, names, layout)))
            width = max(width, terms.numel() * site["fn"].event_shape.numel())
            if name in names:
                letters[name] = site["infer"]["_enumerate_symbol"]
                places[name] = {frame.dim: plates[frame.name] for frame in frames}
        parts.append(factors)
    axes = Axes(plates.get(layout.particles), plates[layout.data.name], sizes)
    guide = parts.pop(0) if has_guide else []
    return Factors(parts[0] if parts else [], guide, letters, axes, places, width)


# -- in one pass a value
# --------------------------------------------------------------------------


class AtValues(Messenger):  # type: ignore[misc]
    """An effect handler that puts discrete sites at the values of given numbers."""

    def __init__(self, numbers: dict[str, int]) -> None:
        super().__init__()
        self.numbers = numbers

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.numbers and msg["value"] is None:
            values = msg["fn"].enumerate_support(expand=True)
            msg["value"], msg["done"] = values[self.numbers[msg["name"]]], True


def one_at_a_time(
    model: Run | None,
    guide: Run | None,
    values: LatentValues,
    args: tuple[Any, ...],
    layout: Layout,
) -> Factors:
    """Return the factors by running a program at each joint value, the same for all data.

    It asks nothing of the program but that its discrete latents lie in no other plates than the
    data's.
    """
    names = {**(guide.names if guide else {}), **(model.names if model else {})}
    letters = {name: get_symbol(2 + place) for place, name in enumerate(names)}
    parts: list[list[Factor]] = []
    shape = torch.Size(())
    width = 1
    for run, listed in ((guide, guide.names if guide else {}), (model, names)):
        if run is None:
            parts.append([])
            continue
        tables: list[tuple[Tensor, Tensor]] = []
        for numbers in itertools.product(*map(range, listed.values())):
            at = AtValues(dict(zip(listed, numbers, strict=True)))
            conditioned = poutine.condition(run.function, data=values)
            sites = samples(poutine.trace(at(conditioned)).get_trace(*args))
            tables.append(_sums(sites, names, layout))
            width = max(width, *(site["value"].numel() for site in sites.values()))
        shape = tables[0][0].shape
        parts.append(_stacked(tables, listed, letters, shape))
    particles, data = get_symbol(0), get_symbol(1)
    axes = Axes(particles, data, {particles: shape[0], data: shape[1]})
    places = {name: {layout.data.dim: axes.data} for name in names}
    return Factors(parts[1], parts[0], letters, axes, places, width)


def _sums(sites: Sites, names: Iterable[str], layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the log density of latents and of data, ``(K, N)`` each."""
    terms: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, site in sites.items():
        part = layout.per_datum(layout.terms(site, name in names).double())
        terms[_is_data(name, names, layout)].append(part)
    parts = [*terms[True], *terms[False]]
    zeros = torch.zeros_like(sum(parts[1:], parts[0]))
    return sum(terms[False], zeros), sum(terms[True], zeros)


def _stacked(
    tables: list[tuple[Tensor, Tensor]],
    listed: dict[str, int],
    letters: dict[str, str],
    shape: torch.Size,
) -> list[Factor]:
    dims = "".join(letters[name] for name in listed) + get_symbol(0) + get_symbol(1)
    plates = frozenset((get_symbol(0), get_symbol(1)))
    results = []
    for is_observed, column in ((False, 0), (True, 1)):
        stacked = torch.stack([table[column] for table in tables])
        term = stacked.reshape(*listed.values(), *shape)
        results.append(Factor(with_dims(term, dims), plates, is_observed))
    return results


def at(factors: list[Factor], letters: dict[str, Tensor]) -> list[Factor] | None:
    """Return factors at given values of their discrete latents.

    Args:
        factors: The factors.
        letters: For the letter of a latent, the packed numbers of its values.

    Returns:
        None where a factor lies outside a plate of a latent that it depends on.
    """
    results = []
    for factor in factors:
        term = factor.term
        for letter, numbers in letters.items():
            if letter not in dims_of(term):
                continue
            if not set(dims_of(numbers)) <= factor.plates:
                return None
            term = packed.gather(term, numbers, letter)
        results.append(factor._replace(term=term))
    return results
