r"""A Pyro model and guide as what evaluation needs: per-datum log densities of many particles at once.

Nothing is assumed of the program's names. The latents are the model's unobserved sites, the data
plate is the plate that all of them share, and each site's log density is summed over every
dimension but particles and data. Scales (β, subsampling) are dropped, since importance weights are
made of densities; masks (missing data) are kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_bvae.core.context import check_contexts
from pyro_bvae.core.module_modes import EvalModeCheck, evaluating, owner
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import fast_products, full_precision
from pyro_bvae.core.seeds import PROBE_STREAM, PROGRAM_STREAM, seeded
from pyro_bvae.distributions.scored_draws import ScoredDraws
from pyro_bvae.program.arguments import check_in_parts, take, tensors
from pyro_bvae.program.checks import check_faults, check_rows, outside_priors, score, varying_sites
from pyro_bvae.program.densities import (
    LatentValues,
    LogDensities,
    Particles,
    count_particles,
    is_close,
    particles,
    stack,
)
from pyro_bvae.program.sites import (
    Site,
    Sites,
    check_batches,
    check_sites,
    check_whole_plates,
    find_latents,
    find_plate,
    is_delta,
    replayable,
    samples,
)
from pyro_bvae.program.supports import is_unbounded, log_density

Function = Callable[..., Any]

# Data with which a program is looked over before it is run.
_PROBE = 64
# Features from which the density of a datum is summed in float64.
_WIDE = 4096


class Program:
    """A (model, guide) pair at work on its arguments.

    Args:
        model: Pyro model.
        guide: Pyro guide with the same arguments.
        args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        data_plate: Name of the data plate where the latents share more than one.

    Raises:
        InputError: if latents share no data plate, lie outside it, are discrete, or are missing
            from the guide, or if a plate is subsampled.
    """

    def __init__(
        self, model: Function, guide: Function, args: tuple[Any, ...], data_plate: str | None = None
    ) -> None:
        self.model, self.guide, self.args = model, guide, args
        #: Relative rounding of a log weight, which is made of a few terms of about its size.
        self.rounding = 4 * max(
            (torch.finfo(x.dtype).eps for x in tensors(args) if x.is_floating_point()), default=0
        )
        self.sliceable = True
        #: What stands in for :meth:`log_joint` where many passes are made.
        self.compiled: Callable[[LatentValues, tuple[Any, ...]], tuple[Tensor, Tensor]] | None = (
            None
        )
        #: Observed sites whose support moves with the latents, so that it is checked at every
        #: particle.
        self.varying: frozenset[str] = frozenset()
        traces = self._open(args, data_plate)
        check_sites(self.plate, *traces)
        check_batches(self.particle_dim, *traces)
        check_faults(self, *traces)
        #: Whether no latent's prior is bounded, so that no draw lies outside.
        self.unbounded = all(is_unbounded(traces[1].nodes[name]["fn"]) for name in self.latents)
        #: Latents that the guide was seen to draw outside the support of their prior.
        self.outside = tuple(outside_priors(self.latents, traces[1]))
        self.varying = varying_sites(self, traces[1])
        doubtful = score(self, *traces)
        self.vectorized = self._is_vectorized()
        if self.sliceable and self._mixes_data():
            self.sliceable = False
        check_rows(self, traces[1], doubtful)

    def _open(
        self, args: tuple[Any, ...], data_plate: str | None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Find latents, plate and number of data from a few data; from all where the program takes no fewer."""
        for size in dict.fromkeys(leaf.shape[0] for leaf in tensors(args)):
            self.num_data = size
            self.probe = self.take(slice(0, _PROBE))
            try:
                traces = self._find(self.probe, data_plate)
            except (
                RuntimeError,
                ValueError,
                IndexError,
            ):  # said again below, if it is true of all the data
                continue
            if self.plate.size == min(size, _PROBE):
                return traces
        self.probe, self.sliceable = args, False
        traces = self._find(args, data_plate)
        self.num_data = self.plate.size
        return traces

    def _find(
        self, args: tuple[Any, ...], data_plate: str | None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        guide_trace, model_trace = self._trace_once(args)
        self.latents = find_latents(model_trace, guide_trace)
        self.plate = find_plate(self.latents, model_trace, data_plate, args)
        self.guide_sites = {
            name: site for name, site in samples(guide_trace).items() if not site["is_observed"]
        }
        numbers = [site["value"].numel() for site in samples(model_trace).values()]
        self.width = max(1, max(numbers) // self.plate.size)  # numbers a datum in the widest site
        stacks = [
            site["cond_indep_stack"]
            for trace in (guide_trace, model_trace)
            for site in samples(trace).values()
        ]
        self.particle_dim = (
            min(frame.dim for stack in stacks for frame in stack if frame.vectorized) - 1
        )
        return guide_trace, model_trace

    # -- running
    # ---------------------------------------------------------------------------------------------------

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
                [self._draw(None, args, guide or self.guide) for _ in range(num_particles)]
            )
        return self._draw(num_particles, args, guide or self.guide)

    def log_guide(self, values: LatentValues, args: tuple[Any, ...], guide: Function) -> Tensor:
        """Return the log density of another guide at the latents of a draw, shape ``(K, N)``.

        The guide has sites for the latents alone, or says itself what its ``log_density(values)``
        is.
        """
        if callable(own := getattr(guide, "log_density", None)):
            return own(values)
        if self.vectorized:
            return self._log_guide(
                values, args, self._with_particles(guide, count_particles(values))
            )
        return torch.cat([self._log_guide(single, args, guide) for single in particles(values)])

    def _log_guide(self, values: LatentValues, args: tuple[Any, ...], guide: Function) -> Tensor:
        trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(*args)
        return torch.stack([self._log_within(trace.nodes[name]) for name in self.latents]).sum(0)

    def log_joint(self, values: LatentValues, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return ``log p(z)`` and ``log p(x | z)`` at given values of the latents, each of shape ``(K, N)``."""
        if self.vectorized:
            return self._log_joint(
                values, args, self._with_particles(self.model, count_particles(values))
            )
        parts = [self._log_joint(single, args, self.model) for single in particles(values)]
        return torch.cat([latent for latent, _ in parts]), torch.cat(
            [observed for _, observed in parts]
        )

    def _log_joint(
        self, values: LatentValues, args: tuple[Any, ...], model: Function
    ) -> tuple[Tensor, Tensor]:
        densities = self._densities(self.model_sites(values, args, model), {})
        return densities.latent, densities.observed

    def model_sites(
        self, values: LatentValues, args: tuple[Any, ...], model: Function | None = None
    ) -> Sites:
        """Return the sites of the model at given latents; what it observes stays as it is."""
        latents = {name: values[name] for name in self.latents}
        trace = poutine.trace(poutine.condition(model or self.model, data=latents)).get_trace(*args)
        return samples(trace)

    @property
    def proposes_latents_alone(self) -> bool:
        """Whether the guide draws the latents themselves, each with a density, and nothing beside them."""
        noisy = not any(is_delta(site["fn"]) for site in self.guide_sites.values())
        return noisy and set(self.guide_sites) == set(self.latents)

    def propose(
        self, num_particles: int | None, args: tuple[Any, ...], guide: Function
    ) -> tuple[LatentValues, Tensor]:
        """Draw particles from a guide, vectorised, with their log density under it; the model is not run."""
        with ScoredDraws():
            trace = poutine.trace(self._with_particles(guide, num_particles)).get_trace(*args)
        drawn = {name: site for name, site in samples(trace).items() if not site["is_observed"]}
        densities = torch.stack([self.log_density(site) for site in drawn.values()]).sum(0)
        return {name: site["value"] for name, site in drawn.items()}, densities

    def draw_prior(self, num_particles: int | None, args: tuple[Any, ...]) -> Particles:
        """Draw latents from the model itself and score them: the guide's density is then the prior's."""
        if num_particles is not None and not self.vectorized:
            return stack([self.draw_prior(None, args) for _ in range(num_particles)])
        sites = samples(
            poutine.trace(self._with_particles(self.model, num_particles)).get_trace(*args)
        )
        densities = self._densities(sites, {})
        values = {name: sites[name]["value"] for name in self.latents}
        return Particles(values, densities._replace(guide=densities.latent))

    def _draw(self, num_particles: int | None, args: tuple[Any, ...], guide: Function) -> Particles:
        values, log_guide = self.propose(num_particles, args, guide)
        joint = self._log_joint(values, args, self._with_particles(self.model, num_particles))
        return Particles(values, LogDensities(*joint, log_guide))

    def _with_particles(self, function: Function, num_particles: int | None) -> Function:
        if num_particles is None:
            return function
        # Outermost, so that a plate without a dim of its own still gets the rightmost free one.
        return pyro.plate("particles", num_particles, dim=self.particle_dim)(function)

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
        if (
            site["is_observed"]
            and value.dtype is torch.float32
            and site["fn"].event_shape.numel() >= _WIDE
        ):
            value = value.double()  # the sum over so many features loses its last digits in float32
        return self.per_datum(site, site["fn"].log_prob(value, *site["args"], **site["kwargs"]))

    def _log_within(self, site: Site) -> Tensor:
        """Return the log density of a site, minus infinity outside its support."""
        return self.per_datum(
            site, log_density(site["fn"], site["value"], *site["args"], **site["kwargs"])
        )

    def per_datum(self, site: Site, terms: Tensor) -> Tensor:
        """Mask a site's terms and sum them over all dimensions but particles and data, shape ``(K, N)``."""
        terms = scale_and_mask(terms, mask=site["mask"])
        kept = (self.plate.dim, self.particle_dim)
        others = [dim for dim in range(-terms.dim(), 0) if dim not in kept]
        terms = terms.sum(others) if others else terms
        return terms if terms.dim() == 2 else terms.unsqueeze(0)

    def trace(self, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
        """Return guide trace and model trace of one particle, without a particle plate."""
        guide_trace = poutine.trace(self.guide).get_trace(*args)
        return guide_trace, poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(
            *args
        )

    # -- finding out what the program is
    # ---------------------------------------------------------------------------

    @torch.no_grad()
    def _trace_once(self, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
        with seeded(0, PROBE_STREAM), pyro.validation_enabled(), EvalModeCheck():
            guide_trace = poutine.trace(self.guide).get_trace(*args)
            replayed = poutine.replay(self.model, trace=replayable(guide_trace))
            try:
                model_trace = poutine.trace(replayed).get_trace(*args)
            except ValueError:
                # Latents outside their support may make parameters that validation refuses, such as
                # a negative scale.
                with pyro.validation_enabled(False):
                    model_trace = poutine.trace(replayed).get_trace(*args)
                if not any(
                    True
                    for _ in outside_priors(find_latents(model_trace, guide_trace), model_trace)
                ):
                    raise
        check_whole_plates(guide_trace, model_trace)
        return guide_trace, model_trace

    @torch.no_grad()
    def _is_vectorized(self) -> bool:
        """Whether two particles drawn together weigh what each weighs alone."""
        try:
            with seeded(0, PROBE_STREAM), full_precision(), pyro.validation_enabled(False):
                together = self._draw(2, self.probe, self.guide)
                dims = {name: self.dim_of(name, self.particle_dim) for name in together.values}
                single = [
                    {name: part.select(dims[name], k) for name, part in together.values.items()}
                    for k in (0, 1)
                ]
                alone = stack([self._score(values, self.probe) for values in single])
        except (
            RuntimeError,
            ValueError,
            IndexError,
            KeyError,
        ):  # Pyro's flows without an inverse raise the last
            return False
        return is_close(together.densities, alone.densities)

    @torch.no_grad()
    def _mixes_data(self) -> bool:
        """Whether some data weigh otherwise together than in two halves, so that blocks would change the numbers."""
        size = min(self.num_data, _PROBE)
        if size < 2:
            return False
        halves = (slice(0, size // 2), slice(size // 2, size))
        try:
            with seeded(0, PROBE_STREAM), full_precision(), pyro.validation_enabled(False):
                together = self._draw(None, self.probe, self.guide)
                apart = []
                for half in halves:
                    values = {
                        name: value.narrow(
                            self.dim_of(name, self.plate.dim), half.start, half.stop - half.start
                        )
                        for name, value in together.values.items()
                    }
                    apart.append(self._score(values, self.take(half)).densities)
        except (RuntimeError, ValueError, IndexError, KeyError):
            return True
        return not is_close(
            together.densities,
            LogDensities(*(torch.cat(parts, 1) for parts in zip(*apart, strict=True))),
        )

    def dim_of(self, name: str, plate_dim: int) -> int:
        """Return the dimension of a plate in the values of a guide site, counted from the right."""
        return plate_dim - self.guide_sites[name]["fn"].event_dim

    def _score(self, single: LatentValues, args: tuple[Any, ...]) -> Particles:
        """Score one particle by the program without a particle plate."""
        # A site without noise follows from the others; rounding would make its density minus
        # infinity.
        noisy = {
            name: value
            for name, value in single.items()
            if not is_delta(self.guide_sites[name]["fn"])
        }
        guide_trace = poutine.trace(poutine.condition(self.guide, data=noisy)).get_trace(*args)
        guide_sites = {name: guide_trace.nodes[name] for name in self.guide_sites}
        return Particles(single, self._densities(self.model_sites(single, args), guide_sites))


@contextmanager
def open_program(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    *,
    data_plate: str | None = None,
    seed: int = 0,
) -> Iterator[Program]:
    """Open a program for evaluation: eval mode, a private parameter store, its own randomness, all restored after.

    A program that cannot be vectorised over particles is run one particle at a time, with a
    warning.
    """
    check_contexts(args)
    check_data = getattr(owner(model), "check_data", None)
    if callable(check_data):
        check_in_parts(check_data, args[:2])
    device = next((leaf.device for leaf in tensors(args)), torch.device("cpu"))
    with (
        evaluating(model, guide),
        private_store(model, guide),
        seeded(seed, PROGRAM_STREAM),
        fast_products(device),
    ):
        program = Program(model, guide, args, data_plate)
        if not program.vectorized:
            warnings.warn(
                "the program gives other weights with a plate of particles around it than without (does it mix or "
                "count batch dimensions?), so it is run one particle at a time, which is slow",
                stacklevel=3,
            )
        if program.outside:
            names = ", ".join(f"'{name}'" for name in program.outside)
            warnings.warn(
                f"the guide draws latent {names} outside the support of its prior: such draws weigh nothing in an"
                " evidence, and the ELBO is minus infinity",
                stacklevel=3,
            )
        with pyro.validation_enabled(False):
            yield program
