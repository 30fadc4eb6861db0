r"""A Pyro model and guide of known structure, as log densities of many particles for each datum.

Each site's log density is summed over every dimension but particles and data. Scales (β,
subsampling) are dropped, since importance weights are made of densities; masks (missing data) are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_bvae.core.protocols import HasLogDensity
from pyro_bvae.core.scored_draws import ScoredDraws
from pyro_bvae.program.arguments import take, tensors
from pyro_bvae.program.densities import (
    LatentValues,
    LogDensities,
    Particles,
    count_particles,
    particles,
    stack,
)
from pyro_bvae.program.discrete.factors import Run
from pyro_bvae.program.discrete.summation import Summation
from pyro_bvae.program.sites import Site, Sites, is_delta, samples
from pyro_bvae.program.supports import log_density

Function = Callable[..., Any]

#: The name of the value that stands for latents where all of them are summed out.
NO_LATENT = ""
# Features from which the density of a datum is summed in float64.
_WIDE = 4096


class ScoredProgram:
    """A (model, guide) pair whose structure is known, which draws and scores particles.

    Attributes:
        model: Pyro model.
        guide: Pyro guide with the same arguments.
        args: The arguments of both.
        latents: Names of the model's unobserved sites.
        plate: The data plate, which all latents share.
        guide_sites: The unobserved sites of the guide.
        num_data: Number N of data.
        probe: The arguments for a few data.
        sliceable: Whether blocks of data can be run alone.
        vectorized: Whether many particles can be drawn at once.
        particle_plate: Name of the plate of particles.
        particle_dim: Dimension of the plate of particles.
        width: Numbers a datum in the widest site.
        unbounded: Whether no latent's prior is bounded, so that no draw lies outside.
        masked: Latents that are masked out for some data.
        outside: Latents that the guide was seen to draw outside the support of their prior.
        varying: Observed sites whose support moves with the latents, so that it is checked at
            every particle.
        rounding: Relative rounding of a log weight, which is made of a few terms of about its size.
        compiled: A stand-in for :meth:`log_joint` where many passes are made.
        summation: The sums over discrete latents, which are then none of ``latents`` and
            ``guide_sites``; None without such latents.
    """

    latents: tuple[str, ...]
    plate: Any  # Pyro's frame of it
    guide_sites: Sites
    num_data: int
    probe: tuple[Any, ...]
    vectorized: bool
    particle_dim: int
    width: int
    unbounded: bool
    masked: frozenset[str]
    outside: tuple[str, ...]
    particle_plate = "particles"

    def __init__(self, model: Function, guide: Function, args: tuple[Any, ...]) -> None:
        self.model, self.guide, self.args = model, guide, args
        floating = (x.dtype for x in tensors(args) if x.is_floating_point())
        self.rounding = 4 * max((torch.finfo(dtype).eps for dtype in floating), default=0)
        self.sliceable = True
        self.in_training = False
        self.compiled: Callable[[LatentValues, tuple[Any, ...]], tuple[Tensor, Tensor]] | None
        self.compiled = None
        self.varying: frozenset[str] = frozenset()
        self.summation: Summation | None = None

    def blocks(self, size: int) -> Iterator[tuple[Any, ...]]:
        """Yield the arguments of consecutive blocks of at most ``size`` data."""
        size = size if self.sliceable else self.num_data
        for start in range(0, self.num_data, size):
            yield self.take(slice(start, start + size))

    def take(self, index: slice | Tensor) -> tuple[Any, ...]:
        """Return the arguments for some of the data."""
        return take(self.args, self.num_data, index)

    def count(self, args: tuple[Any, ...]) -> int:
        """Return how many data the arguments of a block hold."""
        if not self.sliceable:
            return self.num_data
        pairs = zip(tensors(self.args), tensors(args), strict=True)
        return next(part.shape[0] for whole, part in pairs if whole.shape[0] == self.num_data)

    def draw(
        self, num_particles: int, args: tuple[Any, ...], guide: Function | None = None
    ) -> Particles:
        """Draw particles from the guide, or from another one in its place, and score them."""
        if not self.vectorized:
            return stack(
                [self.draw_at_once(None, args, guide or self.guide) for _ in range(num_particles)]
            )
        return self.draw_at_once(num_particles, args, guide or self.guide)

    def log_guide(self, values: LatentValues, args: tuple[Any, ...], guide: Function) -> Tensor:
        """Return the log density of another guide at the latents of a draw, shape ``(K, N)``.

        The guide has sites for the latents alone, or a ``log_density(values)`` of its own.
        """
        if isinstance(guide, HasLogDensity):
            return guide.log_density(values)
        if self.vectorized:
            return self._log_guide(count_particles(values), values, args, guide)
        return torch.cat(
            [self._log_guide(None, single, args, guide) for single in particles(values)]
        )

    def _log_guide(
        self,
        num_particles: int | None,
        values: LatentValues,
        args: tuple[Any, ...],
        guide: Function,
    ) -> Tensor:
        many = self._with_particles(guide, num_particles)
        if self.summation is not None and (names := self.summation.drawn_by(guide, args)):
            return self.summation.log_guide(Run(many, names), self._noisy(values), args)
        if not self.latents:
            return self.sum_others(values[NO_LATENT])
        trace = poutine.trace(poutine.condition(many, data=values)).get_trace(*args)
        return torch.stack([self._log_within(trace.nodes[name]) for name in self.latents]).sum(0)

    def log_joint(self, values: LatentValues, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return ``log p(z)`` and ``log p(x | z)`` at given latents, ``(K, N)`` each."""
        if self.vectorized:
            num_particles = count_particles(values)
            return self._log_joint(values, args, self._with_particles(self.model, num_particles))
        parts = [self._log_joint(single, args, self.model) for single in particles(values)]
        latent, observed = zip(*parts, strict=True)
        return torch.cat(latent), torch.cat(observed)

    def _log_joint(
        self, values: LatentValues, args: tuple[Any, ...], model: Function
    ) -> tuple[Tensor, Tensor]:
        if self.summation is not None:
            return self.summation.log_joint(model, self._noisy(values), args)
        densities = self._densities(self.model_sites(values, args, model), {})
        return densities.latent, densities.observed

    def model_sites(
        self, values: LatentValues, args: tuple[Any, ...], model: Function | None = None
    ) -> Sites:
        """Return the sites of the model at given latents; observed values stay as they are."""
        latents = {name: values[name] for name in self.latents}
        trace = poutine.trace(poutine.condition(model or self.model, data=latents)).get_trace(*args)
        return samples(trace)

    @property
    def summed(self) -> frozenset[str]:
        """The discrete latents that are summed out."""
        return frozenset(self.summation.sites.model if self.summation is not None else ())

    @property
    def proposes_latents_alone(self) -> bool:
        """Whether the guide draws the latents, each with a density, and nothing beside them."""
        noisy = not any(is_delta(site["fn"]) for site in self.guide_sites.values())
        return noisy and set(self.guide_sites) == set(self.latents)

    def propose(
        self, num_particles: int | None, args: tuple[Any, ...], guide: Function
    ) -> tuple[LatentValues, Tensor]:
        """Draw particles from a guide with their log density, without running the model."""
        with ScoredDraws():
            trace = poutine.trace(self._with_particles(guide, num_particles)).get_trace(*args)
        drawn = {name: site for name, site in samples(trace).items() if not site["is_observed"]}
        if self.summation is not None:
            values = self._without_discrete(drawn, num_particles, args)
            if not values.keys() & drawn.keys() or self.summation.drawn_by(guide, args):
                return values, self._log_guide(num_particles, values, args, guide)
        densities = torch.stack([self.log_density(site) for site in drawn.values()]).sum(0)
        return {name: site["value"] for name, site in drawn.items()}, densities

    def draw_prior(self, num_particles: int | None, args: tuple[Any, ...]) -> Particles:
        """Draw latents from the model and score them: the guide's density is the prior's."""
        if num_particles is not None and not self.vectorized:
            return stack([self.draw_prior(None, args) for _ in range(num_particles)])
        model = self._with_particles(self.model, num_particles)
        sites = samples(poutine.trace(model).get_trace(*args))
        values = {name: sites[name]["value"] for name in self.latents}
        if self.summation is not None:
            values = self._without_discrete({n: sites[n] for n in values}, num_particles, args)
            latent, observed = self._log_joint(values, args, model)
            return Particles(values, LogDensities(latent, observed, latent))
        densities = self._densities(sites, {})
        return Particles(values, densities._replace(guide=densities.latent))

    def draw_at_once(
        self, num_particles: int | None, args: tuple[Any, ...], guide: Function
    ) -> Particles:
        """Draw particles from a guide in one pass and score them; None is one, without a plate."""
        if self.summation is not None and guide is self.model:
            return self.draw_prior(num_particles, args)
        values, log_guide = self.propose(num_particles, args, guide)
        if self.summation is not None:
            return self.weigh(num_particles, values, args, guide, log_guide)
        joint = self._log_joint(values, args, self._with_particles(self.model, num_particles))
        return Particles(values, LogDensities(*joint, log_guide))

    def weigh(
        self,
        num_particles: int | None,
        values: LatentValues,
        args: tuple[Any, ...],
        guide: Function,
        log_guide: Tensor,
    ) -> Particles:
        """Score draws of a guide by a program with discrete latents."""
        assert self.summation is not None
        if not self.latents and num_particles is not None:
            single = {NO_LATENT: values[NO_LATENT][0]}
            one = self.weigh(None, single, args, guide, log_guide[:1])
            return one.repeated(values, num_particles)
        model = self._with_particles(self.model, num_particles)
        names = self.summation.drawn_by(guide, args)
        if not names:
            return Particles(values, LogDensities(*self._log_joint(values, args, model), log_guide))
        run = Run(self._with_particles(guide, num_particles), names)
        return Particles(values, *self.summation.weigh(model, run, self._noisy(values), args))

    def _without_discrete(
        self, drawn: Sites, num_particles: int | None, args: tuple[Any, ...]
    ) -> LatentValues:
        """Return the values of sites that are not summed out, or a stand-in where none is left."""
        assert self.summation is not None
        summed = self.summation.sites.model
        values = {name: site["value"] for name, site in drawn.items() if name not in summed}
        if values:
            return values
        shape = [1] * -(self.particle_dim if num_particles is not None else self.plate.dim)
        shape[0], shape[self.plate.dim] = num_particles or 1, self.count(args)
        device = next((leaf.device for leaf in tensors(args)), None)
        return {NO_LATENT: torch.zeros(shape, dtype=torch.double, device=device)}

    def _noisy(self, values: LatentValues) -> LatentValues:
        """Return values without those of points.

        A site without noise follows from the others: at its density, rounding would be minus
        infinity.
        """
        sites = self.guide_sites
        points = {name for name in values if name in sites and is_delta(sites[name]["fn"])}
        points.add(NO_LATENT)
        return {name: value for name, value in values.items() if name not in points}

    def _with_particles(self, function: Function, num_particles: int | None) -> Function:
        if num_particles is None:
            return function
        # Outermost, so that a plate without a dim of its own still gets the rightmost free one.
        return pyro.plate(self.particle_plate, num_particles, dim=self.particle_dim)(function)

    def _densities(self, model_sites: Sites, guide_sites: Sites) -> LogDensities:
        latent = [self._log_within(model_sites[name]) for name in self.latents]
        observed = [
            self._log_within(site) if name in self.varying else self.log_density(site)
            for name, site in model_sites.items()
            if name not in self.latents
        ]
        guide = [self.log_density(site) for site in guide_sites.values()]
        zeros = torch.zeros_like(latent[0])
        result = LogDensities(*(sum(terms, zeros) for terms in (latent, observed, guide)))
        if self.unbounded:
            return result
        # Outside the prior's support a likelihood may be NaN, of a negative scale, say, and the
        # weight is still 0.
        lost = torch.isneginf(result.latent) & torch.isnan(result.observed)
        return result._replace(observed=result.observed.masked_fill(lost, -torch.inf))

    def log_density(self, site: Site) -> Tensor:
        """Return the log density of a site at its value, shape ``(K, N)``."""
        return self.per_datum(site, self._terms(site))

    def _terms(self, site: Site) -> Tensor:
        """Return the log density of a site at its value, of the site's batch shape."""
        if "unscaled_log_prob" in site:
            terms: Tensor = site["unscaled_log_prob"]
            return terms
        value = site["value"]
        is_wide = site["fn"].event_shape.numel() >= _WIDE
        if site["is_observed"] and value.dtype is torch.float32 and is_wide:
            value = value.double()  # the sum over so many features loses its last digits in float32
        terms = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
        return terms

    def _log_within(self, site: Site) -> Tensor:
        """Return the log density of a site, minus infinity outside its support."""
        return self.per_datum(site, _within(site))

    def summed_terms(self, site: Site, is_summed: bool) -> Tensor:
        """Return the terms of a site of a program with discrete latents, before they are summed.

        The distribution of a discrete latent keeps the rows that a mask hides: it sums to one.
        """
        if is_summed:
            return _within(site)
        own = site["name"] in self.latents or site["name"] in self.varying
        return scale_and_mask(_within(site) if own else self._terms(site), mask=site["mask"])

    def per_datum(self, site: Site, terms: Tensor) -> Tensor:
        """Mask a site's terms and sum all dimensions but particles and data, ``(K, N)``."""
        return self.sum_others(scale_and_mask(terms, mask=site["mask"]))

    def sum_others(self, terms: Tensor) -> Tensor:
        """Sum all dimensions of terms but particles and data, ``(K, N)``."""
        kept = (self.plate.dim, self.particle_dim)
        others = [dim for dim in range(-terms.dim(), 0) if dim not in kept]
        terms = terms.sum(others) if others else terms
        return terms if terms.dim() == 2 else terms.unsqueeze(0)

    def trace(self, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
        """Return guide trace and model trace of one particle, without a particle plate."""
        guide_trace = poutine.trace(self.guide).get_trace(*args)
        replayed = poutine.replay(self.model, trace=guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(*args)

    def dim_of(self, name: str, plate_dim: int) -> int:
        """Return the dimension of a plate in the values of a guide site, counted from the right."""
        return plate_dim - (self.guide_sites[name]["fn"].event_dim if name != NO_LATENT else 0)

    def score(self, single: LatentValues, args: tuple[Any, ...]) -> Particles:
        """Score one particle by the program without a particle plate."""
        if self.summation is not None:
            log_guide = self._log_guide(None, single, args, self.guide)
            return self.weigh(None, single, args, self.guide, log_guide)
        noisy = self._noisy(single)
        guide_trace = poutine.trace(poutine.condition(self.guide, data=noisy)).get_trace(*args)
        guide_sites = {name: guide_trace.nodes[name] for name in self.guide_sites}
        return Particles(single, self._densities(self.model_sites(single, args), guide_sites))


def _within(site: Site) -> Tensor:
    return log_density(site["fn"], site["value"], *site["args"], **site["kwargs"])
