"""Posterior and observed expression of groups and donors, and the change between two groups.

The posterior means of cells are precise and lean towards the model: they shrink, and the decoder is
none of the truth. The observed counts are right on average and noisy. The change of the model is
therefore corrected by as much of its difference from that of the counts as is no noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError

# Relative variance of a group's mean count up to which its logarithm is near normal: that of ten
# Poisson counts.
_MOST_RELATIVE = 0.1
# Level of the upper limit of the model's bias.
_LEVEL = 0.05
_TINY = torch.finfo(torch.double).tiny


class Change(NamedTuple):
    r"""An estimated change of each feature in base 2 logarithms, ``(D,)`` each but the last.

    Attributes:
        log_fold_change: :math:`m + \kappa (c - m)`.
        standard_error: Of that: of sampling, and of the bias that is left.
        degrees: Degrees of freedom of the standard error.
        posterior: The change m of the posterior means.
        observed: The change c of the counts; infinite or NaN where a group has none.
        bias: :math:`\tau`, the standard deviation of the model's bias over features, by its upper
            limit.
    """

    log_fold_change: Tensor
    standard_error: Tensor
    degrees: Tensor
    posterior: Tensor
    observed: Tensor
    bias: float


class _Part(NamedTuple):
    """Squared errors of independent log means, of posterior, of counts, and of both, ``(3, D)``."""

    squares: Tensor
    degrees: int


class ExpressionSums:
    """Count, mean and products of each unit; a unit is a group, or a donor in a group.

    Two blocks are merged as Chan, Golub and LeVeque (1983) do. Memory is that of the units.

    Args:
        units: Group (0 or 1) and donor of each unit, long, ``(U, 2)``.
        num_features: D.
        replicates: Whether the units are donors, which are then the replicates.
    """

    def __init__(self, units: Tensor, num_features: int, replicates: bool) -> None:
        self.units, self.replicates = units, replicates
        self.counts = torch.zeros(len(units), dtype=torch.double)
        self.means = torch.zeros(len(units), 2, num_features, dtype=torch.double)
        self.products = torch.zeros(len(units), 3, num_features, dtype=torch.double)

    def add(self, posterior: Tensor, observed: Tensor, unit: Tensor) -> None:
        """Add cells.

        Args:
            posterior: Their posterior means, ``(B, D)``.
            observed: Their counts at a size factor of 1, ``(B, D)``.
            unit: The unit of each, long, ``(B,)``; -1 for cells that are left out.
        """
        values = torch.stack([posterior, observed], 1).double().cpu()
        for place in unit.unique().tolist():
            if place < 0:
                continue
            own = values[unit == place]
            before, count, mean = float(self.counts[place]), len(own), own.mean(0)
            away, total = mean - self.means[place], before + count
            self.products[place] += _products(own - mean).sum(0)
            self.products[place] += _products(away) * (before * count / total)
            self.means[place] += away * (count / total)
            self.counts[place] = total

    def group_means(self) -> Tensor:
        """Return the means of groups 0 and 1, over cells or over donors, ``(2, 2, D)``."""
        return torch.stack([self.means[self.units[:, 0] == group].mean(0) for group in (0, 1)])

    def _parts(self) -> list[_Part]:
        """Return the squared errors of the log ratio, by the delta method."""
        whole = self.group_means().clamp(min=_TINY)
        members = [self.units[:, 0] == group for group in (0, 1)]
        if not self.replicates:
            return [
                _Part(self.products[group] / (n - 1) / n / _products(whole[group]), int(n) - 1)
                for group, n in enumerate(self.counts)
            ]
        away = [self.means[own] / whole[group] - 1 for group, own in enumerate(members)]
        if is_paired(self.units):  # units are in the order of groups, then of donors
            away = [away[1] - away[0]]
        return [
            _Part(_products(each - each.mean(0)).sum(0) / (n - 1) / n, n - 1)
            for each in away
            for n in [len(each)]
        ]

    def change(self) -> Change:
        r"""Return the change of group 1 against group 0.

        With the changes m of the posterior means and c of the counts, whose difference has the
        sampling variance :math:`\sigma^2`, the bias of the model is taken as normal over features
        with variance :math:`\tau^2`, and

        .. math:: \hat\beta = m + \kappa (c - m), \quad \kappa = \tau^2 / (\tau^2 + \sigma^2)

        whose error is that of sampling and :math:`(1 - \kappa) \tau` of bias. A bias that the
        counts are too noisy to show is a bias all the same, so :math:`\tau^2` is the 95% upper
        limit (after Paule and Mandel 1982). Nor is an error smaller than that of c: a decoder that
        has learned from the same cells may follow their noise, which no error given the decoder
        knows. Degrees of freedom are those of Welch.
        """
        unit = math.log(2) ** 2
        parts = self._parts()
        logs = self.group_means().clamp(min=_TINY).log2()
        posterior, observed = logs[1] - logs[0]
        usable = torch.stack([part.squares[1] for part in parts]).amax(0) <= _MOST_RELATIVE
        usable &= (self.group_means()[:, 1] > 0).all(0)
        whole = torch.stack([part.squares for part in parts]).sum(0) / unit
        noise = (whole[0] + whole[1] - 2 * whole[2]).clamp(min=_TINY)
        difference = observed - posterior
        bias = _bias(difference[usable], noise[usable])
        kappa = torch.where(usable, bias / (bias + noise), 0.0)
        shares = torch.stack([(1 - kappa) ** 2, kappa**2, 2 * kappa * (1 - kappa)])
        own = [(shares * part.squares / unit).sum(0).clamp(min=0) for part in parts]
        total = torch.stack(own).sum(0) + (1 - kappa) ** 2 * bias
        floored = whole[1] > total
        own = [
            torch.where(floored, part.squares[1] / unit, square)
            for square, part in zip(own, parts, strict=True)
        ]
        total = torch.maximum(total, whole[1])
        below = sum(square**2 / part.degrees for square, part in zip(own, parts, strict=True))
        degrees = total**2 / torch.as_tensor(below).clamp(min=_TINY)
        seen = (self.group_means()[:, 1] > 0).any(0)
        return Change(
            posterior + torch.where(usable, kappa * difference, 0.0),
            total.sqrt(),
            degrees.clamp(min=1.0, max=1e6),
            posterior,
            torch.where(seen, observed, torch.nan),
            math.sqrt(bias),
        )


def _products(values: Tensor) -> Tensor:
    """Return squares and product of two rows, ``(*, 2, D)`` to ``(*, 3, D)``."""
    one, other = values.unbind(-2)
    return torch.stack([one * one, other * other, one * other], -2)


def _bias(differences: Tensor, noise: Tensor) -> float:
    r"""Return the upper limit of the variance that differences have beyond their noise, ``(G,)``.

    It solves :math:`\sum_g d_g^2 / (\tau^2 + \sigma_g^2) = \chi^2_{G, 5\%}`, and is 0 where the
    noise alone is more.
    """
    from scipy.special import chdtri

    squares, low = differences.square(), 0.0
    least = float(chdtri(len(squares), 1 - _LEVEL)) / max(len(squares), 1)
    high = float(squares.max()) / least if len(squares) else 0.0
    if not len(squares) or float((squares / noise).mean()) <= least:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        above = float((squares / (middle + noise)).mean()) > least
        low, high = (middle, high) if above else (low, middle)
    return low


def units_of(groups: Tensor, donors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the units ``(U, 2)``, and the unit of each cell ``(N,)``, -1 for one left out.

    Raises:
        InputError: if a group has fewer than 2 cells, or donors, or some donors alone are in both.
    """
    kept = groups >= 0
    for group in (0, 1):
        count = int((groups == group).sum())
        if count < 2:
            raise InputError(f"'groups' must have at least 2 cells of each group, got {count}")
    owners = torch.zeros_like(groups) if donors is None else donors
    pairs = torch.stack([groups, owners], 1)[kept]
    units, places = pairs.unique(dim=0, return_inverse=True)
    if donors is not None:
        _check_donors(units)
    result = torch.full_like(groups, -1)
    result[kept] = places
    return units, result


def is_paired(units: Tensor) -> bool:
    """Whether all donors are in both groups."""
    first, second = (units[units[:, 0] == group, 1].tolist() for group in (0, 1))
    return first == second


def _check_donors(units: Tensor) -> None:
    first, second = (set(units[units[:, 0] == group, 1].tolist()) for group in (0, 1))
    both, every = first & second, first | second
    if both and both != every:
        raise InputError(
            "'donors' must all be in both groups, or each in one of them, got"
            f" {len(both)} of {len(every)} in both: leave cells of the others out"
        )
    least = min(len(first), len(second))
    if least < 2:
        raise InputError(f"'donors' must be at least 2 in each group, got {least}")
