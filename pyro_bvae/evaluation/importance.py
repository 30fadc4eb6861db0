r"""Importance-weighted evidence, and the weights that every estimate of this package is made of.

.. math::
    \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \; z_k \sim q(z \mid x)

is a stochastic lower bound of the evidence that tightens with K (Burda et al. 2016), at β = 1 whatever the model was
trained with: scales never enter a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus
from tqdm import tqdm

from pyro_bvae.errors import InputError
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.program import Function, Program, program
from pyro_bvae.evaluation.psis import pareto_k

# Rows (particles times data) that one pass decodes: enough to keep matrix products busy, few enough for the cache.
_ROWS = 8192
# Data that are weighed together, and weights that are held at a time: fewer data where K is large.
_MOST_DATA, _MOST_WEIGHTS = 512, 2_560_000


class Weights(NamedTuple):
    """What K particles say about one block of B data, every entry of shape ``(K, B)``."""

    log_weights: Tensor
    observed: Tensor  # log p(x | z)
    mixed: Tensor  # log weights as draws of the equal mixture of two guides; of one guide, log_weights


def sample_weights(
    opened: Program,
    args: tuple[Any, ...],
    num_samples: int,
    guide: Function | None = None,
    partner: Function | None = None,
) -> Weights:
    r"""Draw and weigh ``num_samples`` particles for a block of data, a few at a time.

    The randomness is the global generator's: two guides that are given the same seed share their noise. With a partner,
    the draws are also weighed as half of those of the mixture of both guides, :math:`2 p / (q + q')`, the balance
    heuristic of Veach and Guibas (1995).
    """
    log_weights, observed, mixed = [], [], []
    step = max(1, min(num_samples, _ROWS // opened.count(args)))
    for start in range(0, num_samples, step):
        values, densities = opened.draw(min(step, num_samples - start), args, guide)
        weights = densities.log_weights
        log_weights.append(weights)
        observed.append(densities.observed)
        if partner is not None:
            log_ratio = opened.log_guide(values, args, partner) - densities.guide
            weights = weights + math.log(2) - softplus(log_ratio)
        mixed.append(weights)
    weighed = Weights(torch.cat(log_weights), torch.cat(observed), torch.cat(mixed))
    lost = torch.isnan(weighed.log_weights).any(0)
    if bool(lost.any()):
        raise InputError(f"the log weights of datum {int(lost.nonzero()[0])} of a block of {len(lost)} are NaN")
    return weighed


def stream_blocks(opened: Program, num_samples: int, bar: tqdm[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of each block of data, and move the bar by its data when the block is done."""
    for block in opened.blocks(max(1, min(_MOST_DATA, _MOST_WEIGHTS // num_samples))):
        yield block
        bar.update(opened.count(block))


def data_bar(opened: Program, progress: bool, title: str) -> tqdm[Any]:
    """Return a progress bar over the data."""
    return tqdm(total=opened.num_data, desc=title, disable=not progress, unit="data")


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Return the log of the mean weight of each datum, ``(K, N)`` to ``(N,)``, in float64."""
    return log_weights.double().logsumexp(0) - math.log(log_weights.shape[0])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of each datum, ``(K, N)`` to ``(N,)``."""
    log_weights = log_weights.double()
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def normalized_weights(log_weights: Tensor) -> Tensor:
    """Return the weights of each datum divided by their mean, ``(K, N)``: they average to 1."""
    return (log_weights.double() - log_mean_exp(log_weights)).exp()


def error_of_mean(samples: Tensor) -> Tensor:
    """Return the standard error of the mean over the first dimension, ``(K, N)`` to ``(N,)``; NaN for K = 1."""
    if samples.shape[0] < 2:
        return torch.full(samples.shape[1:], math.nan, dtype=torch.double)
    return samples.double().std(0) / math.sqrt(samples.shape[0])


def _mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    return samples.double().mean(0), error_of_mean(samples)


def check_num_samples(num_samples: int) -> None:
    """Raise unless the number of samples is a positive integer."""
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise InputError(f"'num_samples' must be a positive integer, got {num_samples!r}")


class EvidenceBlock(NamedTuple):
    """The evidence of a block of data, every entry of shape ``(B,)``."""

    value: Tensor
    error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor

    @classmethod
    def from_log_weights(cls, log_weights: Tensor) -> EvidenceBlock:
        """Summarise log weights of shape ``(K, B)``."""
        return cls(
            log_mean_exp(log_weights),
            # The delta method: log(mean w) moves by mean(w) / E[w] - 1.
            error_of_mean(normalized_weights(log_weights)),
            effective_sample_size(log_weights),
            pareto_k(log_weights),
        )


def join_evidence(blocks: list[EvidenceBlock], num_samples: int) -> Estimate:
    """Put the evidence of all blocks together."""
    value, error, ess, k = (torch.cat(entries).cpu() for entries in zip(*blocks, strict=True))
    return Estimate.over_data(value, error, effective_sample_size=ess, pareto_k=k, num_samples=num_samples)


def map_weights(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    reduce: Callable[[Program, tuple[Any, ...], Weights], Any],
    *,
    num_samples: int,
    data_plate: str | None,
    seed: int,
    progress: bool,
    title: str,
) -> list[Any]:
    """Reduce the weights of each block of data, one after the other, by ``reduce(program, block, weights)``."""
    check_num_samples(num_samples)
    with (
        program(model, guide, args, data_plate=data_plate, seed=seed) as opened,
        torch.no_grad(),
        data_bar(opened, progress, title) as bar,
    ):
        return [
            reduce(opened, block, sample_weights(opened, block, num_samples))
            for block in stream_blocks(opened, num_samples, bar)
        ]


def evidence(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 5000,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    r"""Estimate the evidence :math:`\log p(x)` of each datum by importance sampling from the guide.

    It is a lower bound in expectation, low by about half the squared Monte Carlo error of a datum, and by more where
    Pareto k is above 0.7: the weights' tail is then too heavy for K samples, and both value and errors are not to be
    trusted. Memory is that of the weights of one block of data.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are passed whole.
        num_samples: K, particles for each datum.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        The mean evidence in nats with standard error, Monte Carlo error, effective sample sizes and Pareto k.
        Reference: Burda, Grosse and Salakhutdinov 2016.

    Raises:
        InputError: if the program has no per-datum weights (see the package's README), or its data or ``num_samples``
            cannot be used.
    """
    blocks = map_weights(
        model, guide, args, lambda _opened, _block, weights: EvidenceBlock.from_log_weights(weights.log_weights),
        num_samples=num_samples, data_plate=data_plate, seed=seed, progress=progress, title="evidence",
    )  # fmt: skip
    return join_evidence(blocks, num_samples)


def elbo(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 100,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    r"""Estimate the bound :math:`\mathbb{E}_q[\log p(x, z) - \log q(z|x)]` of each datum, at β = 1.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are passed whole.
        num_samples: Particles for each datum.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        The mean bound in nats with standard error and Monte Carlo error. Reference: Kingma and Welling 2014.

    Raises:
        InputError: if the program has no per-datum weights (see the package's README), or its data or ``num_samples``
            cannot be used.
    """
    blocks = map_weights(
        model, guide, args, lambda _opened, _block, weights: _mean_and_error(weights.log_weights),
        num_samples=num_samples, data_plate=data_plate, seed=seed, progress=progress, title="elbo",
    )  # fmt: skip
    values, errors = (torch.cat(entries) for entries in zip(*blocks, strict=True))
    return Estimate.over_data(values, errors, num_samples=num_samples)
