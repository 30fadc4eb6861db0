r"""Posterior expectations of a decoder's means, by importance weights.

.. math::
    \mathbb{E}[\rho_n \mid x_n] \approx \sum_k \bar w_{nk} \, \rho(z_{nk}, c), \qquad
    \bar w_{nk} \propto \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)}

The weights are those of the datum in its own context; :math:`\rho(z, c)` is the likelihood's mean
at a size factor of 1 in the context c, which may be another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError, check_bytes, check_finite
from pyro_bvae.core.inputs.calls import as_distribution
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.protocols import VAE
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation.marginal.averages import effective_sample_size
from pyro_bvae.evaluation.marginal.importance import check_num_samples
from pyro_bvae.evaluation.marginal.proposals import RobustProposal
from pyro_bvae.evaluation.marginal.psis import has_reliable_weights, pareto_k
from pyro_bvae.evaluation.weights import draw_mixture
from pyro_bvae.program.program import Program, open_program

Data = Tensor | Dataset | LazyDataset

# Data that are read at a time, and numbers of particles, data and features that are decoded.
_BLOCK, _MOST_DECODED = 1024, 4_000_000


class ExpressionBlock(NamedTuple):
    """The expression of some consecutive data.

    Attributes:
        means: Posterior means, ``(B, D)``, float64.
        observed: The data at a size factor of 1, and as they would be in the context of reference
            by the ratio of the two means, ``(B, D)``, float64.
        reliable: Whether the importance weights can be trusted, ``(B,)``.
    """

    means: Tensor
    observed: Tensor
    reliable: Tensor


@exclusive
def corrected_expression(
    vae: VAE,
    data: Data,
    *,
    references: Values | None = None,
    num_samples: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    r"""Return the posterior mean of each datum's expression in a context of reference.

    .. math:: \mathbb{E}[\rho(z_n, c^*) \mid x_n, c_n]

    The latents are those of the datum in its own context, by importance weights; they are decoded
    under the covariates of reference and a size factor of 1. So batches are compared as if all
    their cells had been measured in one, or in an average over several. A difference between
    batches that the latents hold, since batch and cells go together, stays.

    Args:
        vae: A model with one latent site.
        data: The data, with the context that they were measured in.
        references: Rows of covariates ``(R, C)`` to decode under, whose means are averaged; NaN,
            and all of them by default, stands for the datum's own.
        num_samples: Importance samples of each datum.
        seed: Seed of the draws.
        progress: Show a progress bar.

    Returns:
        Shape ``(N, D)``, in counts at a size factor of 1: the share of each feature under
        :class:`~pyro_bvae.likelihoods.SoftmaxRate`. Reference: Lopez et al. 2018.

    Raises:
        InputError: for references of another width than the covariates, and for data that the model
            cannot explain.
    """
    rows, covariates = opened(vae, data, references, num_samples)
    check_bytes(8 * len(rows) * rows.num_features, f"expression of {len(rows):,} data")
    blocks = expression_blocks(vae, rows, covariates, num_samples, seed, progress)
    return torch.cat([block.means.cpu() for block in blocks])


def opened(
    vae: VAE, data: Data, references: Values | None, num_samples: int
) -> tuple[Dataset | LazyDataset, Tensor | None]:
    """Return data on the model's device, and the rows of covariates to decode under.

    Raises:
        InputError: as of :func:`corrected_expression`.
    """
    check_num_samples(num_samples)
    own = next(vae.parameters())
    rows = data if isinstance(data, LazyDataset) else as_dataset(data, vae)
    rows = rows.to(own.device, own.dtype)
    if references is None:
        return rows, None
    covariates = None if rows.context is None else rows.context.covariates
    width = 0 if covariates is None else covariates.shape[1]
    table = torch.as_tensor(references).to(own)
    if table.dim() != 2 or not len(table) or table.shape[1] != width or not width:
        raise InputError(
            f"'references' must be rows of the {width} covariates of 'data', shape (R, {width}),"
            f" got shape {tuple(table.shape)}"
        )
    check_finite("references", table.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf))
    return rows, table


def expression_blocks(
    vae: VAE,
    data: Dataset | LazyDataset,
    references: Tensor | None,
    num_samples: int,
    seed: int,
    progress: bool,
) -> Iterator[ExpressionBlock]:
    """Yield the expression of one block of data after another; memory is that of a block."""
    batches = data.batches(_BLOCK, seed=0, epoch=0, shuffle=False)
    total = data.num_batches(_BLOCK)
    for number, (x, context) in enumerate(ProgressBar(batches, total=total, disable=not progress)):
        args = arguments(x, context)
        own = stream_seed(seed, number)
        with open_program(vae.model, vae.guide, args, seed=own) as program, torch.no_grad():
            size = max(1, _MOST_DECODED // (num_samples * data.num_features))
            parts = [
                _expression(vae, program, block, references, num_samples)
                for block in program.blocks(min(size, _BLOCK))
            ]
        yield ExpressionBlock(*(torch.cat(entries) for entries in zip(*parts, strict=True)))


def _expression(
    vae: VAE, program: Program, block: tuple[Any, ...], references: Tensor | None, num_samples: int
) -> ExpressionBlock:
    """Return the expression of a block of data that is decoded at once."""
    if len(program.latents) != 1:
        raise InputError(f"'vae' must have one latent site, got {sorted(program.latents)}")
    mixture = RobustProposal().components(program, block, 0)
    values, log_weights = draw_mixture(program, block, num_samples, mixture)
    weights = log_weights.double().softmax(0)
    x, *contexts = block
    own = contexts[0] if contexts else None

    def mean(row: Tensor | None) -> Tensor:
        rates = _rates(vae, values, _reference(own, row))
        return torch.einsum("kn,knd->nd", weights, rates.double())

    means = in_own = mean(None)
    observed = x.double()
    if own is not None and own.size_factor is not None:
        observed = observed / own.size_factor.double()
    if references is not None:
        means = torch.stack([mean(row) for row in references]).mean(0)
        observed = observed * means / in_own.clamp(min=torch.finfo(torch.double).tiny)
    tails = any(part.has_tails for part in mixture)
    k, effective = pareto_k(log_weights), effective_sample_size(log_weights)
    reliable = has_reliable_weights(log_weights, k, effective, tails)
    return ExpressionBlock(means, observed, reliable.cpu())


def _rates(vae: VAE, z: Tensor, context: Context | None) -> Tensor:
    """Return the likelihood's means, ``(K, B, D)``."""
    decoded = as_distribution("decoder", vae.decoder(*arguments(z, context)))
    means: Tensor = decoded.mean
    return means


def _reference(own: Context | None, row: Tensor | None) -> Context | None:
    """Return a context of size factor 1, and of the covariates of reference where there are any."""
    if own is None:
        return None
    size = None if own.size_factor is None else torch.ones_like(own.size_factor)
    if row is None or own.covariates is None:
        return Context(size, own.covariates)
    return Context(size, torch.where(row.isnan(), own.covariates, row))
