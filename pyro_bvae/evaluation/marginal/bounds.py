"""The bound taken apart: distortion, rate, KL per dimension and active units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.evaluation.estimate import Estimate, both_reliable
from pyro_bvae.evaluation.marginal.averages import error_of_mean
from pyro_bvae.evaluation.marginal.importance import (
    check_num_samples,
    data_bar,
    map_weights,
    stream_blocks,
)
from pyro_bvae.evaluation.marginal.psis import has_reliable_mean
from pyro_bvae.evaluation.weights import Weights
from pyro_bvae.program.program import Function, Program, open_program
from pyro_bvae.program.sites import Site, mean_of, product_base, site_of

#: A latent is active when the variance of its posterior mean over the data is above this (Burda et
#: al. 2016).
ACTIVE_VARIANCE = 0.01


class ElboParts(NamedTuple):
    """The bound at β = 1 and its two parts: ``elbo = -(distortion + rate)``."""

    elbo: Estimate
    distortion: Estimate
    rate: Estimate

    def objective(self, beta: float) -> Estimate:
        """Return distortion + β rate, the training loss; its Monte Carlo error is a bound."""
        values = self.distortion.per_datum + beta * self.rate.per_datum
        error = self.distortion.monte_carlo_error + beta * self.rate.monte_carlo_error
        reliable = both_reliable(self.distortion, self.rate)
        estimate = Estimate.over_data(values, num_samples=self.elbo.num_samples, reliable=reliable)
        return replace(estimate, monte_carlo_error=error)


class KLPerDimension(NamedTuple):
    """The KL between guide and prior of each latent dimension, and which of them are active.

    Attributes:
        values: Mean over the data in nats, shape ``(L,)``; None where guide or prior is no product
            of dimensions.
        standard_errors: Over the data, shape ``(L,)``; None likewise.
        mean_variances: Variance over the data of the posterior mean, shape ``(L,)``.
        exact: Whether ``values`` are closed forms.
        monte_carlo_errors: Given the data, shape ``(L,)``: 0 for closed forms, None where there are
            no values.
        reason: Why there are no values, or None.
    """

    values: Tensor | None
    standard_errors: Tensor | None
    mean_variances: Tensor
    exact: bool
    monte_carlo_errors: Tensor | None = None
    reason: str | None = None

    @property
    def active(self) -> Tensor:
        """The active latents: variance of the posterior mean above 0.01, shape ``(L,)``."""
        return self.mean_variances > ACTIVE_VARIANCE


class BoundBlock(NamedTuple):
    """Bound and rate of a block of data with their Monte Carlo errors, each ``(B,)``."""

    elbo: Tensor
    elbo_error: Tensor
    rate: Tensor
    distortion_error: Tensor
    rate_error: Tensor
    reliable: Tensor  # of bound and distortion
    rate_reliable: Tensor


def bound_block(program: Program, args: tuple[Any, ...], weights: Weights) -> BoundBlock:
    """Take the bound of a block apart, with the rate in closed form where there is one.

    The distortion is then ``-elbo - rate``: the draws' own ``log p(x|z)`` with the log weights as
    control variate, which usually has the smaller variance, and the three add up exactly.
    """
    log_weights = weights.log_weights.double()
    kl = closed_form_rate(program, args)
    error = torch.hypot(error_of_mean(log_weights), program.rounding * log_weights.mean(0).abs())
    reliable = has_reliable_mean(log_weights, program.rounding)
    if kl is not None:
        sure = torch.ones_like(reliable)
        return BoundBlock(
            log_weights.mean(0), error, kl.double(), error, torch.zeros_like(error), reliable, sure
        )
    log_ratio = weights.observed.double() - log_weights  # log q(z|x) - log p(z)
    return BoundBlock(
        log_weights.mean(0),
        error,
        log_ratio.mean(0),
        error_of_mean(weights.observed),
        error_of_mean(log_ratio),
        reliable,
        has_reliable_mean(log_ratio, program.rounding),
    )


def join_bound(blocks: list[BoundBlock], num_samples: int) -> ElboParts:
    """Put the bound of all blocks together."""
    elbo, elbo_error, rate, distortion_error, rate_error, reliable, rate_reliable = (
        torch.cat([entry.cpu() for entry in entries]) for entries in zip(*blocks, strict=True)
    )
    cost = num_samples * len(elbo)

    def estimate(values: Tensor, errors: Tensor, sure: Tensor) -> Estimate:
        return Estimate.over_data(values, errors, num_samples=num_samples, cost=cost, reliable=sure)

    return ElboParts(
        estimate(elbo, elbo_error, reliable),
        estimate(-elbo - rate, distortion_error, reliable & rate_reliable),
        estimate(rate, rate_error, rate_reliable),
    )


def latent_distributions(program: Program, args: tuple[Any, ...]) -> tuple[Site, Site] | None:
    """Return guide and model site of the latent, or None unless it is the guide's one site.

    Only then do the two distributions depend on the data alone, and not on other draws or on
    discrete latents that are summed out, and none is masked.
    """
    alone = tuple(program.guide_sites) == program.latents and len(program.latents) == 1
    if not alone or program.summation is not None or program.masked:
        return None
    (name,) = program.latents
    guide_trace = poutine.trace(program.guide).get_trace(*args)
    return guide_trace.nodes[name], site_of(
        poutine.replay(program.model, trace=guide_trace), name, *args
    )


def closed_form_rate(program: Program, args: tuple[Any, ...]) -> Tensor | None:
    """Return the KL of each datum in a block, ``(B,)``, or None without a closed form."""
    sites = latent_distributions(program, args)
    if sites is None:
        return None
    guide_site, model_site = sites
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return None
    return program.per_datum(guide_site, kl)[0]


@exclusive
def elbo_parts(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 100,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ElboParts:
    r"""Estimate the bound at β = 1 with its distortion and rate.

    .. math::
        D = -\mathbb{E}_q \log p(x|z), \qquad R = KL(q(z|x) \| p(z)), \qquad \text{ELBO} = -(D + R)

    D holds all constants of the density. R is a closed form where Pyro knows one, and a Monte Carlo
    mean elsewhere.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        num_samples: Particles for each datum.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        ELBO, distortion and rate in nats, and the objective at any β. Reference: Alemi et al. 2018.

    Raises:
        InputError: if the program has no per-datum weights, or its data or ``num_samples`` cannot
            be used.
    """
    blocks = map_weights(
        model, guide, args, bound_block,
        num_samples=num_samples, data_plate=data_plate, seed=seed, progress=progress, title="bound",
    )  # fmt: skip
    return join_bound(blocks, num_samples)


def _why_not(guide_site: Site, model_site: Site) -> str | None:
    """Return why a KL does not split into dimensions, or None if it does."""
    for name, site in (("guide", guide_site), ("prior", model_site)):
        if product_base(site["fn"]) is None:
            family = type(site["fn"]).__name__
            return f"the {name} ({family}) is no product of independent dimensions"
    return None


class _Dimensions(NamedTuple):
    """The KL of single dimensions, in the shape of the latent, and its Monte Carlo error."""

    kl: Tensor
    error: Tensor
    exact: bool


def _kl_of_dimensions(guide_site: Site, model_site: Site, num_samples: int) -> _Dimensions:
    """Return the KL of each dimension of two products, by Monte Carlo without a closed form."""
    guide, prior = (product_base(site["fn"]) for site in (guide_site, model_site))
    assert guide is not None and prior is not None
    try:
        kl = kl_divergence(guide, prior)
    except NotImplementedError:
        draws = guide.sample(torch.Size([num_samples]))
        log_ratio = (guide.log_prob(draws) - prior.log_prob(draws)).double()
        return _Dimensions(log_ratio.mean(0), error_of_mean(log_ratio), False)
    return _Dimensions(kl, torch.zeros_like(kl), True)


class _Moments:
    """Mean and variance over rows in blocks, by the updates of Chan et al. (1983)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        rows = rows.double().cpu()
        mean, count = rows.mean(0), rows.shape[0]
        shift, total = mean - self.mean, self.count + count
        self.squares = (
            self.squares + (rows - mean).square().sum(0) + shift**2 * self.count * count / total
        )
        self.mean = self.mean + shift * count / total
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self.squares / max(self.count - 1, 1)


@exclusive
def kl_per_dimension(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 100,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> KLPerDimension | None:
    r"""Return the mean KL of each latent dimension, and the variance of its posterior mean.

    For products of independent dimensions, :math:`KL(q(z|x) \| p(z)) = \sum_d KL_d`: an inactive
    dimension has a KL near zero and a posterior mean that does not move. Where the KL of a
    dimension has no closed form (a normal guide and a Student-t prior, say) it is the mean of ``log
    q - log p`` of draws. Where guide or prior is no product of dimensions (a mixture, a flow, a
    full covariance) there is no KL of a dimension, and the reason is given instead.

    Args:
        model: A Pyro model with one latent site under a plate over the data.
        guide: Its guide.
        *args: The arguments of both.
        num_samples: Draws for each datum, where there is no closed form.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the program's randomness.
        progress: Show a progress bar.

    Returns:
        None where the program has several latent sites or auxiliary ones, so that its dimensions
        depend on draws.

    Raises:
        InputError: if the program has no per-datum weights, or its data or ``num_samples`` cannot
            be used.
    """
    check_num_samples(num_samples)
    with (
        open_program(
            model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
        ) as program,
        data_bar(program, progress, "kl per dimension") as bar,
    ):
        result = measure_dimensions(program, num_samples, bar)
    return None if result is None else result[0]


def _rows(values: Tensor, data_dim: int) -> Tensor:
    """Return values with the data first; a latent that is a number is one column."""
    rows = values.movedim(data_dim, 0)
    return rows.unsqueeze(1) if rows.dim() == 1 else rows


@torch.no_grad()
def measure_dimensions(
    program: Program, num_samples: int, bar: ProgressBar
) -> tuple[KLPerDimension, Tensor] | None:
    """Return the KL per dimension and each datum's posterior mean, ``(N, *latent)``."""
    kls, errors, means = _Moments(), _Moments(), _Moments()
    rows: list[Tensor] = []
    exact, reason = True, None
    for block in stream_blocks(program, 1, bar):
        sites = latent_distributions(program, block)
        if sites is None:
            return None
        data_dim = program.plate.dim - sites[0]["fn"].event_dim
        reason = _why_not(*sites)
        if reason is None:
            result = _kl_of_dimensions(*sites, num_samples)
            exact = result.exact
            kls.add(_rows(result.kl, data_dim))
            errors.add(_rows(result.error.square(), data_dim))
        rows.append(_rows(mean_of(sites[0]["fn"]), data_dim).double().cpu())
        means.add(rows[-1])
    if reason is not None:
        return KLPerDimension(None, None, means.variance, False, reason=reason), torch.cat(rows)
    noise = (errors.mean / errors.count).sqrt()
    kl = KLPerDimension(kls.mean, (kls.variance / kls.count).sqrt(), means.variance, exact, noise)
    return kl, torch.cat(rows)
