r"""Differential expression between two groups of cells by the importance-weighted posterior.

The change of a feature is that of its mean expression in the populations of two groups,

.. math:: \beta_d = \log_2 \mathbb{E}_1[\rho_d] - \log_2 \mathbb{E}_0[\rho_d]

and the hypothesis is :math:`|\beta_d| \le \delta`, tested as McCarthy and Smyth (2009) do. It is
estimated from posterior means, corrected by the counts where these tell more than noise: see
:meth:`~pyro_bvae.evaluation.expression.ExpressionSums.change`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.protocols import VAE, part_of
from pyro_bvae.evaluation.expression.posterior import Data, expression_blocks, opened
from pyro_bvae.evaluation.expression.result import DifferentialExpression
from pyro_bvae.evaluation.expression.sums import ExpressionSums, units_of


@exclusive
def differential_expression(
    vae: VAE,
    data: Data,
    groups: Values,
    *,
    donors: Values | None = None,
    references: Values | None = None,
    threshold: float = 0.25,
    level: float = 0.05,
    num_samples: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> DifferentialExpression:
    r"""Compare the expression of each feature between two groups of cells.

    A cell's expression is its posterior mean by importance weights (Lopez et al. 2020), decoded at
    a size factor of 1 and, with ``references``, in a context common to all cells. Posterior means
    shrink, and a decoder is never quite right: the change is corrected by that of the counts
    themselves, as far as the two differ by more than noise, and the bias that is left is part of
    the interval. Cells pass in blocks, so that memory does not grow with their number. Donors,
    where they are given, are the replicates: cells of one donor are more alike than cells of two.

    Args:
        vae: A model of counts with one latent site.
        data: The cells, with the context that they were measured in.
        groups: 1 for the cells of interest, 0 for those that they are compared with, -1 for cells
            that are left out, ``(N,)``.
        donors: A whole number for the donor of each cell, ``(N,)``. All of them are in both groups,
            and are then paired, or each of them is in one.
        references: Rows of covariates ``(R, C)`` to decode all cells under, whose means are
            averaged; NaN, and all of them by default, stands for the cell's own.
        threshold: :math:`\delta`, the change in :math:`\log_2` that is of no interest; 0 for the
            hypothesis of no change at all, which a model that is nearly right may break.
        level: False discovery rate of the calls; the intervals hold ``1 - level``.
        num_samples: Importance samples of each cell.
        seed: Seed of the draws.
        progress: Show a progress bar.

    Returns:
        Fold changes with intervals, p-values and Benjamini-Hochberg q-values.
        References: Lopez, Boyeau, Yosef, Jordan and Regier 2020; McCarthy and Smyth 2009.

    Raises:
        InputError: for groups or donors that cannot be compared, and as of
            :func:`~pyro_bvae.evaluation.expression.corrected_expression`.
    """
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise InputError(f"'threshold' must be non-negative and finite, got {threshold}")
    if not 0 < level < 1:
        raise InputError(f"'level' must lie between 0 and 1, got {level}")
    support = part_of(vae, "decoder", "likelihood", "support")
    if support not in (None, constraints.nonnegative_integer):
        raise InputError(f"'vae' must be a model of counts, got one of support {support}")
    rows, covariates = opened(vae, data, references, num_samples)
    chosen = _whole("groups", groups, len(rows), -1, 1)
    owners = None if donors is None else _whole("donors", donors, len(rows), 0, 2**31)
    units, unit = units_of(chosen, owners)
    kept = (unit >= 0).nonzero().flatten()
    sums = ExpressionSums(units, rows.num_features, donors is not None)
    untrusted, start = 0, 0
    some, unit = rows[kept], unit[kept]
    for block in expression_blocks(vae, some, covariates, num_samples, seed, progress):
        sums.add(block.means, block.observed, unit[start : start + len(block.means)])
        untrusted += int((~block.reliable).sum())
        start += len(block.means)
    return compared(sums, threshold, level, untrusted, np.array(rows.feature_names))


def compared(
    sums: ExpressionSums,
    threshold: float,
    level: float,
    untrusted: int = 0,
    names: np.ndarray | None = None,
) -> DifferentialExpression:
    """Return the comparison of the sums of two groups.

    Args:
        sums: The sums.
        threshold: The change that is of no interest.
        level: The false discovery rate.
        untrusted: Number of cells whose weights cannot be trusted.
        names: Names of the features; their numbers by default.
    """
    from scipy.stats import false_discovery_control, t

    change = sums.change()
    estimate, error, degrees, posterior, observed = (part.numpy() for part in change[:-1])
    p_values = _p_values(estimate, error, degrees, threshold)
    half = t.ppf(1 - level / 2, degrees) * error
    against, own = sums.group_means()[:, 0].numpy()
    which = sums.units[:, 0]
    cells = tuple(int(sums.counts[which == group].sum()) for group in (1, 0))
    count = tuple(int((which == group).sum()) for group in (1, 0))
    known = names is not None and len(names)
    return DifferentialExpression(
        names if known else np.arange(len(estimate)),  # type: ignore[arg-type]
        estimate, error, estimate - half, estimate + half, p_values,
        false_discovery_control(p_values), posterior, observed, own, against, change.bias,
        threshold, level, cells, count if sums.replicates else None,  # type: ignore[arg-type]
        untrusted,
    )  # fmt: skip


def _p_values(
    estimate: np.ndarray, error: np.ndarray, degrees: np.ndarray, threshold: float
) -> np.ndarray:
    r"""Return the p-values of :math:`|\beta| \le \delta`, ``(D,)``."""
    from scipy.stats import t

    size, error = np.abs(estimate), np.maximum(error, 1e-300)
    tails = t.sf((size - threshold) / error, degrees) + t.sf((size + threshold) / error, degrees)
    return np.minimum(tails, 1.0)


def _whole(name: str, values: Values, count: int, least: int, most: int) -> Tensor:
    """Return whole numbers within bounds, ``(N,)``.

    Raises:
        InputError: naming the first value that is none.
    """
    numbers = torch.as_tensor(values).double().cpu()
    if numbers.shape != (count,):
        raise InputError(
            f"'{name}' must have shape ({count},) as 'data' has {count} rows, got"
            f" {tuple(numbers.shape)}"
        )
    bad = ~((numbers == numbers.round()) & (numbers >= least) & (numbers <= most))
    if bool(bad.any()):
        raise InputError(
            f"'{name}' must be whole numbers from {least} to {most:,}, got"
            f" {float(numbers[bad][0]):g} at index {int(bad.nonzero()[0])}"
        )
    return numbers.long()
