"""Runs of a program for objectives that weigh particles: log weights and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import is_validation_enabled
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.program.sites import Site, check_sites, find_latents, find_plate, is_delta, samples
from pyro_bvae.training.objectives.terms import log_density, subsample_scale

Function = Callable[..., Any]


class Pair(NamedTuple):
    """A model and its guide with their arguments."""

    model: Function
    guide: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run_guide(self, at: poutine.Trace | None = None) -> poutine.Trace:
        """Run the guide, at the values of a trace where it has any."""
        guide = self.guide if at is None else poutine.replay(self.guide, trace=at)
        return poutine.trace(guide).get_trace(*self.args, **self.kwargs)

    def run_model(self, guide_trace: poutine.Trace) -> poutine.Trace:
        """Run the model at the guide's values."""
        return poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(
            *self.args, **self.kwargs
        )


class Run:
    r"""One run of a pair, of one particle or of all of them.

    ``log_weights``, shape ``(K, N)``, hold every site's log density with its scale and mask, summed
    over all dimensions but particles and data. The scale of a subsampled data plate is no part of
    them: it is ``plate_scale``.

    Args:
        pair: The model and guide that are run.
        particle_dim: The dimension of the particles' plate, if the pair has one.
        data_plate: Name of the data plate, where the latents share more than one.
        doubly: Whether the guide's score is taken out of the gradient of the log weights, and that
            of its draws is multiplied by :math:`1 - \beta (1 - \tilde w)`; needs
            :meth:`set_weights` before the gradient is taken.
        start: A trace at whose draws or subsample the guide starts.

    Raises:
        InputError: if the program has no weights for each datum.
    """

    def __init__(
        self,
        pair: Pair,
        particle_dim: int | None,
        data_plate: str | None,
        doubly: bool = False,
        start: poutine.Trace | None = None,
    ) -> None:
        self.particle_dim = particle_dim
        self.factors: dict[str, Tensor] = {}
        drawn = self.guide_trace = pair.run_guide(start)
        if doubly:
            self.guide_trace = _at(pair, drawn, self._slowed(drawn))
        self.model_trace = pair.run_model(self.guide_trace)
        self.plate = _find_plate(pair, self.guide_trace, self.model_trace, particle_dim, data_plate)
        self.plate_scale = subsample_scale(self.plate)
        log_weights = self._per_datum(self.model_trace) - self._per_datum(self.guide_trace)
        if doubly:
            log_weights = log_weights + self._without_score(pair, drawn)
        self.log_weights = log_weights / self.plate_scale
        if is_validation_enabled():
            for site in self._sites():
                check_site_shape(site, max(self.plate_nesting, site["log_prob"].dim()))

    def _sites(self) -> list[Site]:
        return [*samples(self.guide_trace).values(), *samples(self.model_trace).values()]

    @property
    def plate_nesting(self) -> int:
        """Number of dimensions that the plates take."""
        return max(
            -frame.dim
            for site in self._sites()
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        )

    def _without_score(self, pair: Pair, drawn: poutine.Trace) -> Tensor:
        """Return zeros ``(K, N)`` that take the guide's score out of a gradient."""
        sites = _noisy(drawn)
        first, *others = sites
        for name in others:
            scales = [torch.as_tensor(sites[site]["scale"]) for site in (first, name)]
            # Tensors are looked at with Pyro's validation only: to look is to wait for the device.
            looked_at = is_validation_enabled() or not any(
                isinstance(sites[site]["scale"], Tensor) for site in (first, name)
            )
            if looked_at and not torch.allclose(*torch.broadcast_tensors(*scales)):
                raise InputError(
                    "'doubly_reparametrized' needs the same scale (β) at all sites of the guide,"
                    f" got others at '{first}' and '{name}'"
                )
        still = _at(pair, drawn, {name: site["value"].detach() for name, site in sites.items()})
        if is_validation_enabled():
            with torch.no_grad():
                rerun = self._per_datum(drawn), self._per_datum(self.guide_trace)
            if not torch.allclose(*rerun, rtol=1e-4, atol=1e-3, equal_nan=True):
                raise InputError(
                    "'doubly_reparametrized' needs a guide that is a function of its draws; this"
                    " one gives other densities at the same draws when it is run again (dropout?)"
                )
        score = self._per_datum(still, sites)
        return score - score.detach()

    def _slowed(self, drawn: poutine.Trace) -> dict[str, Tensor]:
        """Return the draws, whose gradients are multiplied by the factors of the weights."""
        sites = _noisy(drawn).items()
        values = {name: site["value"].view_as(site["value"]) for name, site in sites}
        # The hooks know the factors alone: with a trace in reach, they would keep alive the graph
        # that holds them.
        factors = self.factors
        for name, value in values.items():
            if value.requires_grad:
                value.register_hook(lambda gradient, name=name: gradient * factors[name])
        return values

    def set_weights(self, weights: Tensor) -> None:
        """Set the factors of the draws' gradients from the normalised weights, ``(K, N)``."""
        if self.particle_dim is None:
            spread = weights[0].reshape(-1, *[1] * (-self.plate.dim - 1))
        else:
            between, inner = self.plate.dim - self.particle_dim - 1, -self.plate.dim - 1
            spread = weights.reshape(
                weights.shape[0], *[1] * between, weights.shape[1], *[1] * inner
            )
        for name, site in _noisy(self.guide_trace).items():
            scale = site["scale"] / self.plate_scale
            beta = scale_and_mask(weights.new_ones(()), scale, site["mask"])
            factor = 1 - beta * (1 - spread)
            self.factors[name] = factor.reshape(*factor.shape, *[1] * site["fn"].event_dim)

    def _per_datum(self, trace: poutine.Trace, names: Iterable[str] | None = None) -> Tensor:
        """Return the log density of a trace's sites for each particle and datum, ``(K, N)``."""
        trace.compute_log_prob()
        kept = (self.plate.dim, self.particle_dim)
        densities = []
        for name in samples(trace) if names is None else names:
            terms = trace.nodes[name]["log_prob"]
            others = [dim for dim in range(-terms.dim(), 0) if dim not in kept]
            densities.append(terms.sum(others) if others else terms)
        total = functools.reduce(torch.add, densities)
        return total if total.dim() == 2 else total.unsqueeze(0)

    def distortion(self) -> Tensor:
        """Return minus the log likelihood of the observed sites, summed over particles and data."""
        sites = samples(self.model_trace).values()
        return -torch.stack([s["log_prob_sum"] for s in sites if s["is_observed"]]).sum()

    def rate(self) -> Tensor:
        """Return log q(z|x) - log p(z) at β = 1, summed over particles and data."""
        guide = [log_density(site) for site in samples(self.guide_trace).values()]
        sites = samples(self.model_trace).values()
        latent = [log_density(site) for site in sites if not site["is_observed"]]
        return torch.stack(guide).sum() - torch.stack(latent).sum()

    def particle(self, k: int) -> poutine.Trace:
        """Return a trace that starts a guide at the draws and the subsample of a particle."""
        assert self.particle_dim is not None
        values = {}
        for name, site in _noisy(self.guide_trace).items():
            values[name] = site["value"].select(self.particle_dim - site["fn"].event_dim, k)
        return _moved(self.guide_trace, values)

    def subsample(self) -> poutine.Trace:
        """Return a trace that starts a guide at the subsample of this run."""
        return _moved(self.guide_trace, {})


def _noisy(guide_trace: poutine.Trace) -> dict[str, Site]:
    """Return the sites at which a guide draws, without points as those of autoguides."""
    return {name: site for name, site in samples(guide_trace).items() if not is_delta(site["fn"])}


def _moved(guide_trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    """Return a guide's trace with other draws, and without the points that follow from them."""
    moved = guide_trace.copy()
    for name, site in samples(guide_trace).items():
        if name in values:
            moved.nodes[name] = {**site, "value": values[name]}
        else:
            moved.remove_node(name)
    return moved


def _at(pair: Pair, guide_trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    """Return the trace of a guide at other draws, run again if it has several sites."""
    moved = _moved(guide_trace, values)
    return moved if len(samples(guide_trace)) == 1 else pair.run_guide(moved)


def _find_plate(
    pair: Pair,
    guide_trace: poutine.Trace,
    model_trace: poutine.Trace,
    particle_dim: int | None,
    data_plate: str | None,
) -> Any:
    """Return the frame of the data plate, or raise if no datum has weights of its own."""
    for name, site in samples(guide_trace).items():
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise InputError(
                f"guide site '{name}' of family {type(site['fn']).__name__} has no reparametrised"
                " draws: IWELBO accepts sites whose has_rsample is True, such as Normal; Trace_ELBO"
                " accepts the others"
            )
    guide_sites, model_sites = _bare(guide_trace, particle_dim), _bare(model_trace, particle_dim)
    plate = find_plate(
        find_latents(model_sites, guide_sites), model_sites, data_plate, (pair.args, pair.kwargs)
    )
    check_sites(plate, guide_sites, model_sites)
    for trace in (guide_sites, model_sites):
        for name, site in samples(trace).items():
            for frame in site["cond_indep_stack"]:
                sizes = tuple(f"{each.size} of {each.full_size}" for each in (frame, plate))
                if frame.name == plate.name and sizes[0] != sizes[1]:
                    raise InputError(
                        f"plate '{plate.name}' must have one size and subsample in model and guide,"
                        f" got {sizes[0]} at site '{name}' and {sizes[1]} elsewhere"
                    )
                if frame.name != plate.name and subsample_scale(frame) != 1:
                    raise InputError(
                        f"plate '{frame.name}' of site '{name}' is subsampled ({sizes[0]}) inside"
                        f" the weights; IWELBO accepts a subsample of the data plate"
                        f" '{plate.name}' alone"
                    )
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace)
    return plate


def _bare(trace: poutine.Trace, particle_dim: int | None) -> poutine.Trace:
    """Return a trace without the particles' plate, and without masks, which may be β = 0."""
    bare = trace.copy()
    for name, site in samples(trace).items():
        stack = site["cond_indep_stack"]
        frames = [frame for frame in stack if frame.dim is None or frame.dim != particle_dim]
        bare.nodes[name] = {**site, "mask": None, "cond_indep_stack": tuple(frames)}
    return bare
