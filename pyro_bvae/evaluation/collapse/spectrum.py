r"""Eigenvalues of the residuals' covariance, in units of the likelihood's noise.

A linear VAE opens a latent where :math:`\lambda_i > \beta \sigma^2` (Lucas et al. 2019; the
oracle's :func:`~pyro_bvae.oracle.optimum`). With :math:`r = (x - \mathbb{E}[x|z]) /
\sqrt{\operatorname{Var}[x|z]}`, Pearson's residuals at the encoder's answer, the law reads
:math:`\operatorname{eig} \operatorname{Cov}(r) > \beta` for every
likelihood: the squared score of its mean over its Fisher information.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.collapse.latents import Latents
from pyro_bvae.program.sites import Sites, samples

# Permutations behind the edge of the noise, and how many of their standard deviations above their
# mean it lies.
_PERMUTATIONS, _EDGE_ERRORS = 10, 4.0
# Draws of p(x|z) for each datum where its moments are not known or its features see each other, at
# most; each may take a pass of the network for each feature, of which there are to be no more than
# so many.
_DRAWS, _DRAW_PASSES = 8, 512
# A feature has more variance than the likelihood says only if so by this many standard errors.
_VARIANCE_ERRORS = 3.0


class Residuals(NamedTuple):
    """Residuals of the data.

    Attributes:
        pearson: In units of the likelihood's own standard deviation, ``(N, D)``; 0 for entries that
            are missing.
        drawn: The same of draws of the likelihood, ``(M, D)``; None where its features are
            independent given z.
        num_draws: Draws behind each mean that residuals are taken from; None for exact means.
        noise_variance: The likelihood's variance, mean over data and features.
    """

    pearson: Tensor
    drawn: Tensor | None
    num_draws: int | None
    noise_variance: float


class Spectrum(NamedTuple):
    r"""Eigenvalues of the residuals, in units of the likelihood's variance, largest first.

    Attributes:
        values: Of the data's residuals, ``(r,)``.
        explained: Variance of the likelihood itself along the same directions, ``(r,)``; 1 for
            independent features.
        edge: The largest if features had nothing in common and no more variance than the likelihood
            says.
        scores: Of each datum along the directions, ``(N, r)``.
    """

    values: Tensor
    explained: Tensor
    edge: float
    scores: Tensor

    @property
    def left(self) -> Tensor:
        """The eigenvalues in units of the likelihood's variance along their direction, ``(r,)``."""
        return self.values / self.explained


def residuals_of(latents: Latents, independent: bool) -> Residuals:
    """Return the residuals of the data at the encoder's mean answer.

    Args:
        latents: The latents of the program at work on its data.
        independent: Whether the features are independent given z, so that their moments say all.

    Raises:
        InputError: for a likelihood with neither moments nor draws, or of infinite variance.
    """
    sites = _observed(latents, latents.program.model)
    x = _rows(latents, sites, lambda site: site["value"])
    moments = _moments(latents, sites) if independent else None
    if moments is None:
        return _from_draws(latents, x, independent)
    mean, variance = moments
    if not bool(torch.isfinite(variance).all()):
        raise InputError(
            "p(x|z) has an infinite variance, in units of which no residual can be measured"
        )
    pearson = torch.nan_to_num(
        (x - mean) / variance.clamp(min=torch.finfo(torch.float).tiny).sqrt()
    )
    return Residuals(pearson, None, None, float(variance.mean()))


def _observed(latents: Latents, model: Any) -> Sites:
    """Return the observed sites of a model at the encoder's mean answer."""
    given = poutine.condition(model, data=latents.single(latents.means))
    with torch.no_grad():
        trace = poutine.trace(given).get_trace(*latents.args)
    return {name: site for name, site in samples(trace).items() if name != latents.name}


def _rows(latents: Latents, sites: Sites, part: Any) -> Tensor:
    """Return a part of all observed sites as rows of features, ``(N, D)``, on the CPU."""
    results = []
    for site in sites.values():
        value = part(site).expand(site["fn"].batch_shape + site["fn"].event_shape)
        moved = value.movedim(latents.program.plate.dim - site["fn"].event_dim, 0)
        results.append(moved.reshape(len(moved), -1))
    return torch.cat(results, 1).double().cpu()


def _moments(latents: Latents, sites: Sites) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of the features, each ``(N, D)``; None where they are not known."""
    try:
        mean = _rows(latents, sites, lambda site: site["fn"].mean)
        return mean, _rows(latents, sites, lambda site: site["fn"].variance)
    except (NotImplementedError, AttributeError):
        return None


def _from_draws(latents: Latents, x: Tensor, independent: bool) -> Residuals:
    """Return residuals in units of the standard deviation of draws, one for each feature."""
    model = poutine.uncondition(latents.program.model)
    count = max(2, min(_DRAWS, _DRAW_PASSES // x.shape[1]))
    try:
        draws = torch.stack(
            [
                _rows(latents, _observed(latents, model), lambda site: site["value"])
                for _ in range(count)
            ]
        )
    except NotImplementedError as error:
        raise InputError(
            f"p(x|z) has neither moments nor draws, so nothing is known of residuals: {error}"
        ) from error
    mean = draws.mean(0)
    within = (draws - mean) * (count / (count - 1)) ** 0.5
    variance = within.square().mean((0, 1))
    scale = variance.clamp(min=torch.finfo(torch.float).tiny).sqrt()
    # The mean of few draws has an error of its own, which is no residual of the data.
    pearson = torch.nan_to_num((x - mean) / scale) / (1 + 1 / count) ** 0.5
    drawn = None if independent else (within / scale).flatten(0, 1)
    return Residuals(pearson, drawn, count, float(variance.mean()))


def spectrum(residuals: Residuals, carried: Tensor) -> Spectrum:
    """Take the residuals apart into directions.

    Args:
        residuals: The residuals.
        carried: Means of the latents that are in use, ``(N, a)``: a part linear in them is not for
            another latent to carry, and is taken out.
    """
    rows = residuals.pearson
    design = torch.cat([torch.ones_like(rows[:, :1]), carried.to(rows)], 1)
    rows = rows - design @ torch.linalg.lstsq(design, rows, driver="gelsd").solution
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    values = singular.square() / len(rows)
    explained = torch.ones_like(values)
    if residuals.drawn is not None:
        explained = (residuals.drawn @ right.mT).square().mean(0).clamp(min=1e-12)
    if residuals.num_draws is not None:  # without the variance of a mean of few draws
        values = values * (1 + 1 / residuals.num_draws) - explained / residuals.num_draws
    # Each latent in use has taken a direction's noise along with its signal: the residual has the
    # rest of them.
    lost = min(carried.shape[1], rows.shape[1] - 1)
    return Spectrum(
        values, explained, _edge(rows * (1 - lost / rows.shape[1]) ** -0.5), left * singular
    )


def _edge(rows: Tensor) -> float:
    """Return the largest eigenvalue that independent features would show (Horn 1965).

    Each feature is permuted on its own. One that has more variance than the likelihood, beyond
    the error of a variance, is scaled back to it: the excess is for a latent to explain.
    """
    squares = rows.square()
    variance = squares.mean(0)
    error = (squares - variance).square().mean(0).sqrt() / len(rows) ** 0.5
    above = variance - _VARIANCE_ERRORS * error > 1
    rows = rows / torch.where(above, variance, torch.ones_like(variance)).sqrt()
    tops = []
    for _ in range(_PERMUTATIONS):
        order = torch.rand(rows.shape, device=rows.device).argsort(0)
        shuffled = rows.gather(0, order)
        gram = shuffled.mT @ shuffled if rows.shape[1] <= len(rows) else shuffled @ shuffled.mT
        tops.append(torch.linalg.eigvalsh(gram / len(rows))[-1])
    results = torch.stack(tops)
    return float(results.mean() + _EDGE_ERRORS * results.std())
