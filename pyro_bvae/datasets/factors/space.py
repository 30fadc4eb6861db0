"""Factors with known levels: their names, values, and draws of them that may be correlated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, unknown_name
from pyro_bvae.datasets.seeds import SYNTHESIS_STREAM, stream_generator

Fixed = Mapping[str, int]
Correlation = Mapping[tuple[str, str], float]

# Points behind the correlation of two factors' levels, at least; and how near to 1 the normals' own
# may come.
_POINTS = 4096
_MOST = 1 - 1e-6


@dataclass(frozen=True)
class FactorSpace:
    """Every combination of F factors, each with a name and a value for each of its levels.

    Attributes:
        levels: The values of each factor's levels, under the factor's name; its order is that of
            the columns.
    """

    levels: Mapping[str, tuple[float, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each factor."""
        return tuple(self.levels)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of levels of each factor."""
        return tuple(len(values) for values in self.levels.values())

    def count(self, fixed: Fixed | None = None) -> int:
        """Return how many combinations there are.

        Args:
            fixed: Index of each factor that does not vary, by name.

        Raises:
            InputError: if a fixed factor is not known or has no such level.
        """
        return math.prod(self._free_sizes(self._held(fixed)))

    def values_of(self, indices: Tensor) -> Tensor:
        """Return the values of levels: ``(N, F)`` indices to floating ``(N, F)``.

        Raises:
            InputError: if an index is no level of its factor.
        """
        self.check(indices)
        columns = [
            torch.tensor(values)[i]
            for values, i in zip(self.levels.values(), indices.long().T, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def distinct(self, num: int, *, fixed: Fixed | None = None, seed: int = 0) -> Tensor:
        """Draw combinations that all differ, each with the same probability.

        Args:
            num: Number N of combinations.
            fixed: Index of each factor that does not vary, by name.
            seed: Of the draws.

        Returns:
            Indices of levels, long, ``(N, F)``.

        Raises:
            InputError: if there are fewer combinations, or a fixed factor is not known or has no
                such level.
        """
        held = self._held(fixed)
        sizes = self._free_sizes(held)
        total = math.prod(sizes)
        check_count("num", num)
        if num > total:
            raise InputError(
                f"'num' must be at most {total}, the number of different combinations, got {num}"
            )
        order = torch.randperm(total, generator=stream_generator(seed, 0, SYNTHESIS_STREAM))[:num]
        return self._hold(torch.stack(torch.unravel_index(order, sizes), dim=1), held)

    def sample(
        self,
        num: int,
        *,
        fixed: Fixed | None = None,
        correlation: Correlation | None = None,
        seed: int = 0,
    ) -> Tensor:
        r"""Draw combinations independently of each other; within one, factors may be correlated.

        A Gaussian copula: normals :math:`g \sim \mathcal{N}(0, C)` become levels
        :math:`\lfloor n_f \Phi(g_f) \rfloor`, so that each factor stays uniform over its
        :math:`n_f` levels. The entries of :math:`C` are chosen so that the correlation of the
        *indices* is the one asked for. Factors that are not named together are independent. The
        index of a factor that is an angle counts its steps from 0 on: its first and last level are
        far apart there, though their values are not.

        Args:
            num: Number N of combinations; one may be there twice.
            fixed: Index of each factor that does not vary, by name.
            correlation: Of pairs of factors, such as ``{("x", "y"): 0.8}``.
            seed: Of the draws.

        Returns:
            Indices of levels, long, ``(N, F)``. References: Nelsen 2006 (copulas), Träuble et al.
            2021 (correlated factors as a trial of disentanglement).

        Raises:
            InputError: if a factor is not known, a fixed one has no such level or is to be
                correlated, or a correlation is out of reach of the levels or of the other
                correlations.
        """
        check_count("num", num)
        held = self._held(fixed)
        mixing = self._mixing(correlation or {}, held)
        generator = stream_generator(seed, 0, SYNTHESIS_STREAM)
        normals = (
            torch.randn(num, len(self.names), generator=generator, dtype=torch.double) @ mixing.T
        )
        sizes = torch.tensor(self.sizes)
        levels = (torch.special.ndtr(normals) * sizes).long()
        return self._hold(
            levels.minimum(sizes - 1), held
        )  # a normal beyond 8 has a distribution function of 1

    def check(self, indices: Tensor) -> None:
        """Raise unless every entry is a level of its factor.

        Raises:
            InputError: with the factor and the first entry that is none.
        """
        if indices.ndim != 2 or indices.shape[1] != len(self.names):
            raise InputError(
                f"'factors' must have shape (N, {len(self.names)}), got {tuple(indices.shape)}"
            )
        bad = (indices < 0) | (indices >= torch.tensor(self.sizes)) | (indices != indices.long())
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            raise InputError(
                f"factor '{self.names[column]}' must be an index from 0 to "
                f"{self.sizes[column] - 1}, "
                f"got {indices[row, column].item()} at row {row}"
            )

    def _column(self, name: str) -> int:
        if name not in self.levels:
            raise unknown_name("factor", str(name), self.names)
        return self.names.index(name)

    def _held(self, fixed: Fixed | None) -> dict[str, int]:
        """Return the fixed factors, checked."""
        held = dict(fixed or {})
        for name, index in held.items():
            size = self.sizes[self._column(name)]
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < size:
                raise InputError(
                    f"'fixed' must give '{name}' an index from 0 to {size - 1}, got {index!r}"
                )
        return held

    def _free_sizes(self, held: dict[str, int]) -> list[int]:
        """Return the number of levels of each factor, 1 where it is fixed."""
        return [1 if name in held else len(values) for name, values in self.levels.items()]

    def _hold(self, indices: Tensor, held: dict[str, int]) -> Tensor:
        for name, index in held.items():
            indices[:, self._column(name)] = index
        return indices

    def _mixing(self, correlation: Correlation, held: dict[str, int]) -> Tensor:
        """Return the Cholesky factor of the normals' correlation, ``(F, F)``."""
        normal = torch.eye(len(self.names), dtype=torch.double)
        for pair, value in correlation.items():
            row, column = self._pair(pair, held)
            if normal[row, column] != 0:
                raise InputError(
                    f"'correlation' must name a pair once, got '{pair[0]}' and '{pair[1]}' twice"
                )
            normal[row, column] = normal[column, row] = self._of_normals(pair, value)
        factor, failed = torch.linalg.cholesky_ex(normal)
        if bool(failed):
            least = float(torch.linalg.eigvalsh(normal)[0])
            raise InputError(
                f"'correlation' must be positive definite, which {dict(correlation)} is not: no "
                "factors are correlated"
                f" like this (smallest eigenvalue of the copula {least:.3g})"
            )
        return factor

    def _pair(self, pair: tuple[str, str], held: dict[str, int]) -> tuple[int, int]:
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(
                "'correlation' must have pairs of factors as keys, such as ('x', 'y'), got "
                f"{pair!r}"
            )
        columns = self._column(pair[0]), self._column(pair[1])
        for name in pair:
            if name in held:
                raise InputError(
                    f"'correlation' must be of factors that vary, and '{name}' is fixed, at "
                    f"{held[name]}"
                )
        return columns

    def _of_normals(self, pair: tuple[str, str], wanted: float) -> float:
        """Return the correlation of two normals whose levels have the wanted one, by bisection."""
        first, second = (len(self.levels[name]) for name in pair)
        most = 0.0 if min(first, second) == 1 else level_correlation(_MOST, first, second)
        if not abs(wanted) <= most:  # NaN too
            raise InputError(
                f"'correlation' of '{pair[0]}' and '{pair[1]}' must lie between {-most:.4g} and "
                f"{most:.4g}, which is as"
                f" far as {first} and {second} levels go, got {wanted}"
            )
        low, high = -_MOST, _MOST
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (
                (middle, high)
                if level_correlation(middle, first, second) < wanted
                else (low, middle)
            )
        return (low + high) / 2


def level_correlation(correlation: float, first: int, second: int) -> float:
    r"""Return the correlation of two factors' indices under a Gaussian copula, by quadrature.

    With :math:`i = \lfloor n \Phi(g_1) \rfloor` and :math:`t_b = \Phi^{-1}(b / m)`, the second
    index has mean :math:`\sum_{b=1}^{m-1} \Phi((\rho g_1 - t_b) / \sqrt{1 - \rho^2})` given the
    first normal.

    Args:
        correlation: Of the two normals, within (-1, 1).
        first: Number n of levels of the first factor, at least 2.
        second: Number m of levels of the second.

    Returns:
        A number within (-1, 1); for many levels :math:`\frac{6}{\pi} \arcsin(\rho / 2)` (Pearson
        1907).
    """
    count = first * -(-_POINTS // first)
    uniform = (torch.arange(count, dtype=torch.double) + 0.5) / count
    index = torch.arange(first, dtype=torch.double).repeat_interleave(count // first)
    thresholds = torch.special.ndtri(torch.arange(1, second, dtype=torch.double) / second)
    away = (correlation * torch.special.ndtri(uniform)).unsqueeze(1) - thresholds
    mean = torch.special.ndtr(away / math.sqrt(1 - correlation**2)).sum(1)
    covariance = float((index - (first - 1) / 2) @ mean) / count
    return 12 * covariance / math.sqrt((first**2 - 1) * (second**2 - 1))
