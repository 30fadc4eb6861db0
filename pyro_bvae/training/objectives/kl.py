"""Objectives of the KL itself: the latent site of a program, its KL and its distortion."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from torch.distributions import Independent

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.program.sites import Site, find_plate, samples
from pyro_bvae.training.objectives.terms import StepsByTerms, Terms, subsample_scale


class Latent(NamedTuple):
    """The latent site of a program in the traces of guide and model, and its data plate."""

    guide: Site
    model: Site
    plate: Any

    @property
    def num_data(self) -> float:
        """The number of data of the whole plate, also where it is subsampled."""
        size: int = self.plate.size
        return size * subsample_scale(self.plate)

    @property
    def subsampling(self) -> float:
        """The factor of subsampled plates in the scale of the site; 1 without any."""
        return math.prod(subsample_scale(frame) for frame in self.guide["cond_indep_stack"])

    @property
    def weights(self) -> Tensor:
        """The scale of the site, β times ``subsampling``, 0 where masked; in its batch shape."""
        return _weights(self.guide)


class KLObjective(StepsByTerms, Trace_ELBO):
    """An objective of distortion and KL to the prior, for programs with one latent site.

    A subclass defines the KL of a batch and its penalty. The draws serve the distortion, and the KL
    only where it has no closed form. The rate of its :class:`~pyro_bvae.training.Terms` is that KL
    at β = 1.

    Args:
        num_particles: Draws for each datum, at least 1.
        data_plate: Name of the data plate, where the latent has more than one.

    Raises:
        InputError: if an argument cannot be used; at a step, if guide and model do not have one
            latent site alone and the same, if its draws are not reparametrised, or if its scale (β)
            differs between the two.
    """

    def __init__(self, num_particles: int = 1, *, data_plate: str | None = None) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        self.data_plate = data_plate

    @abstractmethod
    def kl(self, latent: Latent) -> Tensor:
        """Return the KL at β = 1, at least in the batch shape of the latent."""

    @abstractmethod
    def penalty(self, latent: Latent, kl: Tensor) -> Tensor:
        """Return the loss without the distortion, from the particles' mean KL; a scalar."""

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of one batch, averaged over the particles."""
        distortions, kls = [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            latent = find_latent(model_trace, guide_trace, self.data_plate, (args, kwargs))
            observed = [
                site["log_prob_sum"]
                for site in samples(model_trace).values()
                if site["is_observed"]
            ]
            kls.append(self.kl(latent))
            distortions.append(-sum(observed, kls[-1].new_zeros(())))
        kl, distortion = torch.stack(kls).mean(0), torch.stack(distortions).mean()
        loss = distortion + self.penalty(latent, kl)
        return Terms(loss, distortion.detach(), latent.subsampling * kl.detach().sum())


def find_latent(
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    data_plate: str | None,
    arguments: tuple[Any, ...],
) -> Latent:
    """Return the one latent site of two traces.

    Args:
        model_trace: A trace of the model with its log densities.
        guide_trace: The one of the guide.
        data_plate: Name of the data plate, where the latent has more than one.
        arguments: Those of the program, whose tensors tell the number of data.

    Raises:
        InputError: as of :class:`KLObjective`.
    """
    sites = samples(guide_trace)
    latents = tuple(name for name, site in samples(model_trace).items() if not site["is_observed"])
    if len(latents) != 1 or tuple(sites) != latents:
        raise InputError(
            "an objective of the KL needs one latent site, the same in guide and model, got"
            f" {', '.join(sites) or 'none'} in the guide and {', '.join(latents) or 'none'} in the"
            " model"
        )
    (name,) = latents
    latent = Latent(
        sites[name],
        model_trace.nodes[name],
        find_plate(latents, model_trace, data_plate, arguments),
    )
    family = type(latent.guide["fn"]).__name__
    if not latent.guide["fn"].has_rsample:
        raise InputError(
            f"guide site '{name}' of family {family} has no reparametrised draws: an objective of"
            " the KL accepts sites whose has_rsample is True, such as Normal"
        )
    # Tensors are looked at with Pyro's validation only: to look is to wait for the device.
    if is_validation_enabled() and not torch.allclose(
        *torch.broadcast_tensors(*map(_weights, latent[:2]))
    ):
        raise InputError(
            f"site '{name}' must have one scale (β) and mask in guide and model, got two"
        )
    return latent


def product_base(need: str, owner: str, site: Site) -> Any:
    """Return the distribution of the single dimensions of a product.

    Args:
        need: The need of an objective for the error, as in "FreeBits needs a KL".
        owner: ``guide`` or ``prior``.
        site: A traced site.

    Raises:
        InputError: where it is no product.
    """
    base: Any = site["fn"]
    while isinstance(base, Independent):
        base = base.base_dist
    if base.event_shape:
        raise InputError(
            f"{need} of each latent, but the {owner} ({type(base).__name__}) is no product of"
            " independent dimensions; such as NormalPosterior and NormalPrior are accepted"
        )
    return base


def check_number(name: str, value: float, *, positive: bool = False) -> None:
    """Raise unless a setting of an objective is a finite number of at least zero, or above it.

    Raises:
        InputError: with the name and the value.
    """
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (positive and value == 0):
        sign = "positive" if positive else "non-negative"
        raise InputError(f"'{name}' must be {sign} and finite, got {value!r}")


def _weights(site: Site) -> Tensor:
    weights: Tensor = scale_and_mask(
        torch.ones_like(site["unscaled_log_prob"]), site["scale"], site["mask"]
    )
    return weights
