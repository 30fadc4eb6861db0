"""The paired difference of two models' evidences, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pyro_bvae.evaluation.estimate import Estimate


@dataclass(frozen=True, eq=False, repr=False)
class Difference(Estimate):
    r"""The paired difference of two models' evidences over the same N data, in nats a datum.

    The errors of an :class:`~pyro_bvae.evaluation.Estimate`, with two of them wider:
    ``standard_error`` holds the spread between training seeds where a name has several models
    beside that over data, and ``monte_carlo_error`` leaves ``bias`` apart.

    Attributes:
        better, worse: Names of the models whose evidences are subtracted, ``better - worse``.
        share_won: Share of the data with a larger evidence under ``better``; ties count half.
        low, high: Ends of the interval of the difference on other data like these, of the
            comparison's level, corrected for the number of pairs.
    """

    better: str = ""
    worse: str = ""
    share_won: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def bias(self) -> float:
        """How far the mean may be off beside its error.

        Biases of both evidences, and the allowance of data whose evidence is untrusted.
        """
        return 0.0 if self.biases is None else float(self.biases.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the difference, of the comparison's level."""
        return self.low, self.high

    @property
    def measured(self) -> bool:
        """Whether untrusted data may move the difference by less than its standard error."""
        return math.isfinite(self.value) and self.bias <= max(self.standard_error, 0.0)

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.measured and not self.low <= 0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return the names and the numbers of the pair."""
        names = ("bias", "share_won", "low", "high", "untrusted", "measured", "seen")
        return {
            "better": self.better, "worse": self.worse, **super().to_dict(),
            **{name: getattr(self, name) for name in names},
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.better} - {self.worse}: {self.value:.3f} ± {self.standard_error:.3f} nats"
            f" a datum, between {self.low:.3f} and {self.high:.3f}"
        )


def paired(
    names: tuple[str, str], models: Mapping[str, Sequence[Estimate]], level: float
) -> Difference:
    """Return the difference of two of several models.

    Args:
        names: The two.
        models: The evidences of all models by name, those of several training seeds.
        level: Level of the intervals of all pairs together.
    """
    sides = [models[name] for name in names]
    apart = mean_of_seeds(sides[0]) - mean_of_seeds(sides[1])
    value, over_data = float(apart.mean()), float(apart.std()) / math.sqrt(len(apart))
    # Each training seed is a draw of its own: their spread is that of a mean of few.
    spreads = [_seed_error(side) for side in sides]
    error = math.hypot(over_data, *(spread for spread, _ in spreads))
    pooled = [pool(side) for side in sides]
    biases = _biases(pooled)
    freedom = _freedom([(over_data, len(apart) - 1), *spreads])
    num_pairs = len(models) * (len(models) - 1) // 2
    quantile = float(stats.t.ppf(1 - (1 - level) / (2 * num_pairs), freedom))
    half = quantile * math.hypot(error, 0.0 if biases is None else float(biases.mean()))
    errors = [each.errors.square() for each in pooled if each.errors is not None]
    noise = torch.stack(errors).sum(0).sqrt() if errors else None
    return Difference(
        value, error, 0.0 if noise is None else float(noise.square().sum().sqrt()) / len(apart),
        apart, num_samples=pooled[0].num_samples, errors=noise, biases=biases,
        reliable=reliable_in(each for side in sides for each in side),
        cost=sum(each.cost for each in pooled), better=names[0], worse=names[1],
        share_won=float((apart > 0).double().mean() + 0.5 * (apart == 0).double().mean()),
        low=value - half, high=value + half,
    )  # fmt: skip


def mean_of_seeds(estimates: Sequence[Estimate]) -> Tensor:
    """Return the evidence of each datum, the mean over training seeds, ``(N,)``."""
    return torch.stack([each.per_datum for each in estimates]).mean(0)


def reliable_in(estimates: Iterable[Estimate]) -> Tensor:
    """Return the data whose evidence can be trusted in all estimates, ``(N,)``."""
    known = [
        torch.ones(len(each.per_datum), dtype=torch.bool)
        if each.reliable is None else each.reliable.cpu()
        for each in estimates
    ]  # fmt: skip
    return torch.stack(known).all(0)


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """Return the estimate of the mean over training seeds."""
    errors = [each.errors for each in estimates if each.errors is not None]
    biases = [each.biases for each in estimates if each.biases is not None]
    return Estimate.over_data(
        mean_of_seeds(estimates),
        torch.stack(errors).square().sum(0).sqrt() / len(estimates) if errors else None,
        torch.stack(biases).abs().sum(0) / len(estimates) if biases else None,
        num_samples=estimates[0].num_samples,
        reliable=reliable_in(estimates),
        cost=sum(each.cost for each in estimates),
    )


def _biases(pooled: Sequence[Estimate]) -> Tensor | None:
    """Return how far the difference may be off at each datum: the biases of the worse side.

    Both evidences are too low by their bias at most, so that the biases cancel in part.
    """
    known = [each.biases for each in pooled if each.biases is not None]
    return max(known, key=lambda each: float(each.mean())) if known else None


def _seed_error(estimates: Sequence[Estimate]) -> tuple[float, int]:
    """Return the standard error of the mean over training seeds, and its degrees of freedom."""
    if len(estimates) == 1:
        return 0.0, 1
    means = torch.tensor([each.value for each in estimates], dtype=torch.double)
    return float(means.std()) / math.sqrt(len(means)), len(means) - 1


def _freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of variances (Welch and Satterthwaite)."""
    total = sum(error**2 for error, _ in parts)
    below = sum(error**4 / degrees for error, degrees in parts)
    return total**2 / below if below > 0 else math.inf
