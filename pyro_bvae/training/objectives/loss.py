"""The loss as a module, for optimizers, compilers and process groups."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.scored_draws import ScoredDraws
from pyro_bvae.training.objectives.terms import Objective, Terms, TraceTerms


class Loss(nn.Module):
    """The objective of a model and guide, as a module that owns their parameters.

    Pyro's own ``Trace_ELBO()(vae.model, vae.guide)`` is handed bound methods and registers no
    parameter at all.

    Args:
        vae: A module with Pyro functions ``model(x, context, beta)`` and ``guide(x, context,
            beta)``.
        objective: Turns a pair and its arguments into :class:`~pyro_bvae.training.Terms`.
    """

    def __init__(self, vae: Any, objective: Objective | None = None) -> None:
        super().__init__()
        self.vae: Any = vae
        self.objective: Objective = TraceTerms() if objective is None else objective

    @property
    def has_own_objective(self) -> bool:
        """Whether the objective is another one than the β-bound."""
        return type(self.objective) is not TraceTerms

    def forward(
        self,
        x: Tensor,
        context: Context | None = None,
        beta: float | Tensor = 1.0,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """Return the terms of one batch.

        Args:
            x: The batch, shape ``(B, D)``.
            context: Its context.
            beta: Weight of the KL.
            noise: Standard normal noise for latent sites by name, instead of the global
                generator's: shape ``(B, L)`` for a site of that shape. The loss is then a function
                of its arguments and parameters.

        Raises:
            InputError: if noise is given for a site that does not draw, or of another shape.
        """
        with ScoredDraws(), GivenNoise(noise or {}) as given:
            terms = self.objective.terms(self.vae.model, self.vae.guide, x, context, beta)
        if unused := set(given.noise) - given.used:
            raise InputError(
                f"'noise' must be for sites that draw, got it for {', '.join(sorted(unused))}"
            )
        return terms


class GivenNoise(Messenger):  # type: ignore[misc]
    """An effect handler that builds the draws of named sites from given standard normal noise."""

    def __init__(self, noise: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.noise = noise
        self.used: set[str] = set()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name not in self.noise or msg["is_observed"] or msg["value"] is not None:
            return
        noise, shape = self.noise[name], msg["fn"].shape()
        if noise.shape != shape:
            raise InputError(
                f"'noise' of site '{name}' must have shape {tuple(shape)}, got {tuple(noise.shape)}"
            )
        msg["value"] = reparametrize(msg["fn"], noise)
        self.used.add(name)


@functools.singledispatch
def reparametrize(distribution: Any, noise: Tensor) -> Tensor:
    """Return the draw of a distribution that standard normal noise stands for.

    Raises:
        InputError: for a family whose draws are no function of standard normal noise of their
            shape.
    """
    raise InputError(f"{type(distribution).__name__} draws are not built from given normal noise")


@reparametrize.register
def _(distribution: torch.distributions.Normal, noise: Tensor) -> Tensor:
    return distribution.loc + distribution.scale * noise


@reparametrize.register
def _(distribution: torch.distributions.MultivariateNormal, noise: Tensor) -> Tensor:
    return distribution.loc + (
        distribution._unbroadcasted_scale_tril @ noise.unsqueeze(-1)
    ).squeeze(-1)


@reparametrize.register
def _(distribution: torch.distributions.Independent, noise: Tensor) -> Tensor:
    return reparametrize(distribution.base_dist, noise)


@reparametrize.register
def _(distribution: torch.distributions.TransformedDistribution, noise: Tensor) -> Tensor:
    value = reparametrize(distribution.base_dist, noise)
    for transform in distribution.transforms:
        value = transform(value)
    return value
