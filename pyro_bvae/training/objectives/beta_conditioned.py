"""One model for all β, which is the last covariate of its encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.protocols import latent_dim_of, num_features_of
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.training.objectives.kl import check_number
from pyro_bvae.training.objectives.terms import Terms, TraceTerms
from pyro_bvae.vae import BetaVAE


@public
class ConditionedBeta(TraceTerms):
    r"""The β-bound at a β drawn for each datum, which the networks take as a covariate.

    .. math::
        \sum_n \Bigl( - \mathbb{E}_{q(z \mid x_n, \beta_n)} \log p(x_n \mid z, \beta_n)
        + \beta_n \, KL(q(z \mid x_n, \beta_n) \,\|\, p(z)) \Bigr), \qquad
        \log \beta_n \sim \mathcal{U}(\log \beta_{\min}, \log \beta_{\max}),

    in nats: one model for a whole rate-distortion curve (Dosovitskiy and Djolonga 2020, Bae et al.
    2022). The N draws of a batch are stratified, one in each N-th of the range, so that the sum
    varies little with them.

    The last covariate of the data is log β, which this objective overwrites: :func:`with_beta` puts
    it there, and :func:`at_beta` is the trained model at one β. The β of ``fit`` multiplies those
    drawn: leave it at 1. ``fit`` measures the distortion and rate of validation data at the
    β that they carry.

    Args:
        low: The least β, positive.
        high: The largest, above ``low``.
        num_particles: Draws of the latents for each datum, at least 1.

    Raises:
        InputError: if an argument cannot be used; at a step, if the data have no covariates.
    """

    def __init__(self, low: float, high: float, num_particles: int = 1) -> None:
        for name, value in (("low", low), ("high", high)):
            check_number(name, value, positive=True)
        if not low < high:
            raise InputError(f"'high' must be above 'low', {low}, got {high}")
        super().__init__(num_particles=num_particles)
        self.low, self.high = float(low), float(high)

    def __repr__(self) -> str:
        return f"ConditionedBeta({self.low}, {self.high}, num_particles={self.num_particles})"

    def draw(self, x: Tensor) -> Tensor:
        """Return a β for each datum of a batch ``(N, D)``, shape ``(N,)``."""
        stratum = torch.randperm(len(x), device=x.device).to(x)
        share = (stratum + torch.rand_like(stratum)) / len(x)
        return self.low * (share * math.log(self.high / self.low)).exp()

    def terms(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Tensor,
        context: Context | None = None,
        beta: float | Tensor = 1.0,
    ) -> Terms:
        """Return the terms of one batch: distortion and rate are means over the β drawn."""
        if context is None or context.covariates is None:
            raise InputError(
                "the data must carry log β as their last covariate, got none: see"
                " training.with_beta"
            )
        drawn = self.draw(x)
        covariates = torch.cat([context.covariates[:, :-1], drawn.log().unsqueeze(1)], dim=1)
        return super().terms(model, guide, x, context._replace(covariates=covariates), beta * drawn)


@public
def with_beta(data: Tensor | Dataset, beta: float = 1.0) -> Dataset:
    """Return data with log β as their last covariate, for :class:`ConditionedBeta`.

    Args:
        data: The data, ``(N, D)``.
        beta: The β at which ``fit`` measures them, positive.

    Raises:
        InputError: if β is not positive.
    """
    data = as_dataset(data)
    return replace(data, context=_conditioned(data.x, beta, data.context))


@public
def at_beta(vae: BetaVAE, beta: float) -> BetaVAE:
    """Return a β-conditioned model at one β: an ordinary model that shares its parameters.

    It takes data without log β, as any :class:`~pyro_bvae.BetaVAE`.

    Args:
        vae: A model whose encoder and decoder have log β as their last covariate.
        beta: The β, positive.

    Raises:
        InputError: if β is not positive.
    """
    decoder, encoder = _AtBeta(vae.decoder, beta), _AtBeta(vae.encoder, beta)
    return BetaVAE(vae.prior, decoder, encoder, missing=vae.missing, name=f"{vae.name}_at_{beta:g}")


class _AtBeta(nn.Module):
    """An encoder or decoder at the same β for all data."""

    def __init__(self, part: Any, beta: float) -> None:
        super().__init__()
        check_number("beta", beta, positive=True)
        self.part, self.beta = part, beta
        self.latent_dim, self.num_features = latent_dim_of(part), num_features_of(part)

    def forward(self, value: Tensor, context: Context | None = None) -> Any:
        return self.part(value, _conditioned(value, self.beta, context))


def _conditioned(value: Tensor, beta: float, context: Context | None) -> Context:
    """Return the context of data ``(*, N, D)`` with log β as its last covariate."""
    check_number("beta", beta, positive=True)
    column = value.new_full((value.shape[-2], 1), math.log(beta))
    context = Context() if context is None else context
    others = [] if context.covariates is None else [context.covariates.to(value)]
    return context._replace(covariates=torch.cat([*others, column], dim=1))
