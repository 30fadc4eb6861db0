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
from pyro_bvae.program.sites import Site, Sites, is_delta, samples
from pyro_bvae.program.supports import log_density

Function = Callable[..., Any]

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
        outside: Latents that the guide was seen to draw outside the support of their prior.
        varying: Observed sites whose support moves with the latents, so that it is checked at
            every particle.
        rounding: Relative rounding of a log weight, which is made of a few terms of about its size.
        compiled: A stand-in for :meth:`log_joint` where many passes are made.
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
    outside: tuple[str, ...]
    particle_plate = "particles"

    def __init__(self, model: Function, guide: Function, args: tuple[Any, ...]) -> None:
        self.model, self.guide, self.args = model, guide, args
        floating = (x.dtype for x in tensors(args) if x.is_floating_point())
        self.rounding = 4 * max((torch.finfo(dtype).eps for dtype in floating), default=0)
        self.sliceable = True
        self.compiled: Callable[[LatentValues, tuple[Any, ...]], tuple[Tensor, Tensor]] | None
        self.compiled = None
        self.varying: frozenset[str] = frozenset()

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
            num_particles = count_particles(values)
            return self._log_guide(values, args, self._with_particles(guide, num_particles))
        return torch.cat([self._log_guide(single, args, guide) for single in particles(values)])

    def _log_guide(self, values: LatentValues, args: tuple[Any, ...], guide: Function) -> Tensor:
        trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(*args)
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
        densities = torch.stack([self.log_density(site) for site in drawn.values()]).sum(0)
        return {name: site["value"] for name, site in drawn.items()}, densities

    def draw_prior(self, num_particles: int | None, args: tuple[Any, ...]) -> Particles:
        """Draw latents from the model and score them: the guide's density is the prior's."""
        if num_particles is not None and not self.vectorized:
            return stack([self.draw_prior(None, args) for _ in range(num_particles)])
        sites = samples(
            poutine.trace(self._with_particles(self.model, num_particles)).get_trace(*args)
        )
        densities = self._densities(sites, {})
        values = {name: sites[name]["value"] for name in self.latents}
        return Particles(values, densities._replace(guide=densities.latent))

    def draw_at_once(
        self, num_particles: int | None, args: tuple[Any, ...], guide: Function
    ) -> Particles:
        """Draw particles from a guide in one pass and score them; None is one, without a plate."""
        values, log_guide = self.propose(num_particles, args, guide)
        joint = self._log_joint(values, args, self._with_particles(self.model, num_particles))
        return Particles(values, LogDensities(*joint, log_guide))

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
        if "unscaled_log_prob" in site:
            return self.per_datum(site, site["unscaled_log_prob"])
        value = site["value"]
        is_wide = site["fn"].event_shape.numel() >= _WIDE
        if site["is_observed"] and value.dtype is torch.float32 and is_wide:
            value = value.double()  # the sum over so many features loses its last digits in float32
        return self.per_datum(site, site["fn"].log_prob(value, *site["args"], **site["kwargs"]))

    def _log_within(self, site: Site) -> Tensor:
        """Return the log density of a site, minus infinity outside its support."""
        return self.per_datum(
            site, log_density(site["fn"], site["value"], *site["args"], **site["kwargs"])
        )

    def per_datum(self, site: Site, terms: Tensor) -> Tensor:
        """Mask a site's terms and sum all dimensions but particles and data, ``(K, N)``."""
        terms = scale_and_mask(terms, mask=site["mask"])
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
        return plate_dim - self.guide_sites[name]["fn"].event_dim

    def score(self, single: LatentValues, args: tuple[Any, ...]) -> Particles:
        """Score one particle by the program without a particle plate."""
        # A site without noise follows from the others: at its density, rounding would be minus
        # infinity.
        sites = self.guide_sites
        noisy = {name: single[name] for name in single if not is_delta(sites[name]["fn"])}
        guide_trace = poutine.trace(poutine.condition(self.guide, data=noisy)).get_trace(*args)
        guide_sites = {name: guide_trace.nodes[name] for name in self.guide_sites}
        return Particles(single, self._densities(self.model_sites(single, args), guide_sites))
