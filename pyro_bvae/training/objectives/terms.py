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
    """What an objective says of a batch: scalars, summed over its data, in nats.

    Attributes:
        loss: What is minimised, with its gradient.
        distortion: Minus the reconstruction log-likelihood, without gradient.
        rate: ``log q(z|x) - log p(z)`` of the draws, at β = 1 and without gradient.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


class Objective(Protocol):
    """What training takes as an objective: anything that says the terms of a batch."""

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of one batch."""
        ...


class StepsByTerms:
    """What SVI and ``Loss`` call, from the terms of a batch: mixed into a ``pyro.infer.ELBO`` that has them."""

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
        """Return the loss of one batch as a number, and accumulate its gradients: what SVI calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)  # type: ignore[no-untyped-call]
        warn_if_nan(loss, "loss")
        return float(loss.detach())


class TraceTerms(StepsByTerms, Trace_ELBO):
    """Pyro's ``Trace_ELBO``, its loss and its gradients, without a synchronisation with the device in each step.

    ``Trace_ELBO`` turns its loss into a Python number several times a step; here it stays a tensor,
    and comes with distortion and rate apart.
    """

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of one batch, averaged over the particles."""
        particles = [
            self._terms(*traces) for traces in self._get_traces(model, guide, args, kwargs)
        ]
        return Terms(
            *(
                torch.stack(values).sum() / self.num_particles
                for values in zip(*particles, strict=True)
            )
        )

    def _terms(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Terms:
        loss: Any
        model_sites: list[Any] = [
            site for site in model_trace.nodes.values() if site["type"] == "sample"
        ]
        guide_sites: list[Any] = [
            site for site in guide_trace.nodes.values() if site["type"] == "sample"
        ]
        if all(is_identically_zero(site["score_parts"].score_function) for site in guide_sites):
            loss = sum(site["log_prob_sum"] for site in guide_sites) - sum(
                site["log_prob_sum"] for site in model_sites
            )
        else:
            value, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
            loss = value + (surrogate - surrogate.detach())
        with torch.no_grad():
            observed = [site["log_prob_sum"] for site in model_sites if site["is_observed"]]
            # The scale of the latents is the objective's; the rate is what it would be without.
            rate = sum(log_density(site) for site in guide_sites) - sum(
                log_density(site) for site in model_sites if not site["is_observed"]
            )
            distortion = -sum(observed, torch.zeros_like(loss))
        return Terms(loss, distortion, torch.as_tensor(rate))


def subsample_scale(frame: Any) -> float:
    """Return the factor by which a plate scales its sites: the number of its data over that of its subsample."""
    return 1.0 if frame.full_size in (None, frame.size) else frame.full_size / frame.size


def log_density(site: Any) -> Tensor:
    """Return a traced site's log density, summed, at β = 1: of its scales only those of subsampled plates are kept."""
    scale = math.prod(subsample_scale(frame) for frame in site["cond_indep_stack"])
    total: Tensor = site["unscaled_log_prob"].sum()
    return total if scale == 1 else scale * total
