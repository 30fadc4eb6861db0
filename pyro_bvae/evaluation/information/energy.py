"""Tests whether two sets of rows are draws of one distribution, jointly and by dimension."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.public import public


class EnergyTest(NamedTuple):
    """The energy distance of two sets of rows, and how often chance alone makes one as large.

    Attributes:
        distance: The squared energy distance, in units of the pooled standard deviations; 0 for
            equal sets.
        p_value: Of the permutation test, at least 1 / (permutations + 1).
        num_rows: Rows of both sets together.
    """

    distance: float
    p_value: float
    num_rows: int


class DimensionTests(NamedTuple):
    """The Kolmogorov-Smirnov test of each dimension.

    Attributes:
        distances: Largest difference of the two distribution functions, ``(L,)``.
        p_values: Corrected for the number of dimensions (Holm 1979), ``(L,)``.
    """

    distances: Tensor
    p_values: Tensor


@public
def energy_test(
    x: Tensor, y: Tensor, *, num_permutations: int = 499, generator: torch.Generator
) -> EnergyTest:
    r"""Test by the energy distance and permutations whether rows are of one distribution.

    .. math:: 2 \, \mathbb{E} \|x - y\| - \mathbb{E} \|x - x'\| - \mathbb{E} \|y - y'\|

    It is 0 for one distribution and positive for two. Each dimension is divided by the standard
    deviation of both sets together, which permutations leave alone, so that the p-value is exact at
    any size. Memory grows with the square of the number of rows. Reference: Székely and Rizzo 2013.

    Args:
        x: Shape ``(N, L)``.
        y: Shape ``(M, L)``.
        num_permutations: How many permutations the distance is held against.
        generator: Of the permutations.

    Raises:
        InputError: if the rows differ in width, if a set has fewer than two, or if
            ``num_permutations`` is no count.
    """
    check_count("num_permutations", num_permutations)
    _check(x, y)
    rows = torch.cat([x, y]).double()
    rows = rows / rows.std(0).clamp(min=torch.finfo(rows.dtype).tiny)
    # With 1 / N at rows of the one set and -1 / M at those of the other the distance is a quadratic
    # form.
    signs = torch.cat([rows.new_full((len(x),), 1 / len(x)), rows.new_full((len(y),), -1 / len(y))])
    orders = [
        torch.arange(len(rows)),
        *(torch.randperm(len(rows), generator=generator) for _ in range(num_permutations)),
    ]
    weights = signs[torch.stack(orders).to(signs.device)]
    distances = -((weights @ torch.cdist(rows, rows)) * weights).sum(1)
    # Permutations that are the same set twice over differ by rounding alone.
    as_large = int((distances[1:] >= distances[0] - 1e-12).sum())
    return EnergyTest(
        max(float(distances[0]), 0.0), (1 + as_large) / (1 + num_permutations), len(rows)
    )


def dimension_tests(x: Tensor, y: Tensor) -> DimensionTests:
    """Test each dimension of two sets of rows by itself, ``(N, L)`` and ``(M, L)``.

    Raises:
        InputError: if the rows differ in width, or if a set has fewer than two.
    """
    from scipy.stats import ks_2samp  # slow to import

    _check(x, y)
    columns = zip(x.double().cpu().T.numpy(), y.double().cpu().T.numpy(), strict=True)
    results = [ks_2samp(one, other, method="asymp") for one, other in columns]
    distances, p_values = (
        torch.tensor([float(getattr(test, name)) for test in results], dtype=torch.double)
        for name in ("statistic", "pvalue")
    )
    return DimensionTests(distances, holm(p_values))


def holm(p_values: Tensor) -> Tensor:
    r"""Return p-values ``(L,)`` that hold for all of them together (Holm 1979).

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (L - j + 1) \, p_{(j)})
    """
    order = p_values.argsort()
    left = torch.arange(len(p_values), 0, -1, device=p_values.device)
    corrected = torch.empty_like(p_values)
    corrected[order] = (left * p_values[order]).clamp(max=1).cummax(0).values
    return corrected


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise InputError(
            f"'x' and 'y' must be rows (N, L) of one width, got {tuple(x.shape)} and"
            f" {tuple(y.shape)}"
        )
    check_finite("x", x)
    check_finite("y", y)
    if min(len(x), len(y)) < 2:
        raise InputError(
            f"a two-sample test takes at least 2 rows of each, got {len(x)} and {len(y)}"
        )
