"""Training objectives: ``pyro.infer.ELBO`` subclasses, so that stock SVI runs them too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.util import warn_if_nan
from torch import Tensor


class Terms(NamedTuple):
    """Scalars of an objective, summed over the data of a batch, in nats.

    Attributes:
        loss: The loss, with its gradient.
        distortion: Minus the reconstruction log-likelihood, without gradient.
        rate: ``log q(z|x) - log p(z)`` of the draws, at β = 1 and without gradient.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


class Objective(Protocol):
    """A training objective: anything that returns the terms of a batch."""

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of one batch."""
        ...


class StepsByTerms:
    """The methods that SVI calls, mixed into a ``pyro.infer.ELBO`` with :meth:`terms`."""

    num_particles: int
    retain_graph: bool | None
    terms: Callable[..., Terms]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_particles={self.num_particles})"

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the loss of one batch, a tensor with its gradient."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return the loss of one batch as a number, and accumulate its gradients."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)  # type: ignore[no-untyped-call]
        warn_if_nan(loss, "loss")
        return float(loss.detach())

    @torch.no_grad()
    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return the loss of one batch as a number, without gradients."""
        loss = self.terms(model, guide, *args, **kwargs).loss
        warn_if_nan(loss, "loss")
        return float(loss)


class TraceTerms(StepsByTerms, Trace_ELBO):
    """Pyro's ``Trace_ELBO``, its loss and gradients, without waiting for the device.

    ``Trace_ELBO`` turns its loss into a Python number several times a step; here it stays a tensor,
    and comes with distortion and rate apart.
    """

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of one batch, averaged over the particles."""
        traces = self._get_traces(model, guide, args, kwargs)
        columns = zip(*(self._terms(*pair) for pair in traces), strict=True)
        return Terms(*(torch.stack(values).sum() / self.num_particles for values in columns))

    def _terms(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Terms:
        loss: Any
        sites: list[list[Any]] = [
            [site for site in trace.nodes.values() if site["type"] == "sample"]
            for trace in (model_trace, guide_trace)
        ]
        model_sites, guide_sites = sites
        if all(is_identically_zero(site["score_parts"].score_function) for site in guide_sites):
            loss = sum(site["log_prob_sum"] for site in guide_sites) - sum(
                site["log_prob_sum"] for site in model_sites
            )
        else:
            value, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
            loss = value + (surrogate - surrogate.detach())
        with torch.no_grad():
            observed = [site["log_prob_sum"] for site in model_sites if site["is_observed"]]
            # The scale of the latents is the objective's; the rate is without it.
            rate = sum(log_density(site) for site in guide_sites) - sum(
                log_density(site) for site in model_sites if not site["is_observed"]
            )
            distortion = -sum(observed, torch.zeros_like(loss))
        return Terms(loss, distortion, torch.as_tensor(rate))


def subsample_scale(frame: Any) -> float:
    """Return the factor by which a plate scales its sites: its data over its subsample."""
    return 1.0 if frame.full_size in (None, frame.size) else frame.full_size / frame.size


def log_density(site: Any) -> Tensor:
    """Return a traced site's log density, summed, at β = 1 and at the scale of subsampling."""
    scale = math.prod(subsample_scale(frame) for frame in site["cond_indep_stack"])
    total: Tensor = site["unscaled_log_prob"].sum()
    return total if scale == 1 else scale * total
