"""Models in the order of their evidence, paired differences, and a verdict in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pyro_bvae.core.errors import InputError, listed, unknown_name
from pyro_bvae.evaluation.comparison.stacking import stacking_weights
from pyro_bvae.evaluation.estimate import Estimate


@dataclass(frozen=True)
class Difference:
    r"""The paired difference of two models' evidences over the same N data, in nats a datum.

    Attributes:
        better, worse: Names of the models whose evidences are subtracted, ``better - worse``.
        value: Mean over the data.
        standard_error: Standard error of the mean over data, of the paired differences. It holds
            the Monte Carlo error of each datum, and the spread between training seeds where a name
            has several models.
        monte_carlo_error: Error of ``value`` given the data.
        bias: How far the mean may be off beside its error: biases of both evidences, and the
            allowance of data whose evidence is untrusted.
        share_won: Share of the data with a larger evidence under ``better``; ties count half.
        interval: Interval of the difference on other data like these, of the comparison's level,
            corrected for the number of pairs.
        untrusted: Number of data whose evidence is untrusted under either model.
    """

    better: str
    worse: str
    value: float
    standard_error: float
    monte_carlo_error: float
    bias: float
    share_won: float
    interval: tuple[float, float]
    untrusted: int

    @property
    def measured(self) -> bool:
        """Whether untrusted data may move the difference by less than its standard error."""
        return math.isfinite(self.value) and self.bias <= max(self.standard_error, 0.0)

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.measured and not self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.better} - {self.worse}: {self.value:.3f} ± {self.standard_error:.3f} nats"
            f" a datum, between {low:.3f} and {high:.3f}"
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Trained models on the same data.

    Attributes:
        models: The evidences of each model by name, one for each of its training seeds, over the
            same data in the same order. Ordered by evidence, the largest first.
        level: Level of the intervals, of all pairs together.
        given: The condition of all densities, such as size factors; None for unconditional ones.
    """

    models: dict[str, tuple[Estimate, ...]]
    level: float = 0.95
    given: str | None = None

    @classmethod
    def of(
        cls,
        estimates: Mapping[str, Estimate | Sequence[Estimate]],
        *,
        level: float = 0.95,
        given: str | None = None,
    ) -> Comparison:
        """Compare evidences over the same data.

        Args:
            estimates: By name of the model, its evidence, or those of several training seeds.
            level: Level of the intervals.
            given: The condition of all densities, in words.

        Raises:
            InputError: for fewer than two models or data, or evidences of other numbers of data.
        """
        models = {
            name: (each,) if isinstance(each, Estimate) else tuple(each)
            for name, each in estimates.items()
        }
        if len(models) < 2:
            raise InputError(f"a comparison takes at least two models, got {listed([*models])}")
        if not 0 < level < 1:
            raise InputError(f"'level' must lie between 0 and 1, got {level}")
        sizes = {len(each.per_datum) for of_name in models.values() for each in of_name}
        if len(sizes) != 1 or min(sizes) < 2:
            raise InputError(
                "a comparison takes evidences of the same data, two or more; got numbers of data"
                f" {listed(sorted(sizes))}"
            )
        order = sorted(models, key=lambda name: -_mean(models[name]))
        return cls({name: models[name] for name in order}, level, given)

    @property
    def names(self) -> list[str]:
        """The models in the order of their evidence."""
        return [*self.models]

    @property
    def num_data(self) -> int:
        """The number of data."""
        return len(next(iter(self.models.values()))[0].per_datum)

    @cached_property
    def per_datum(self) -> Tensor:
        """Evidence of each datum under each model, the mean over training seeds, ``(M, N)``."""
        return torch.stack([_per_datum(each) for each in self.models.values()])

    @cached_property
    def weights(self) -> dict[str, float]:
        """Stacking weights by name (Yao et al. 2018)."""
        return dict(zip(self.names, stacking_weights(self.per_datum).tolist(), strict=True))

    @property
    def effective_models(self) -> float:
        r"""The effective number of models in the stack, :math:`1 / \sum_m w_m^2`."""
        return 1 / sum(weight**2 for weight in self.weights.values())

    @cached_property
    def pairs(self) -> list[Difference]:
        """The differences of all pairs, the better model first."""
        return [self.difference(*pair) for pair in itertools.combinations(self.names, 2)]

    def difference(self, better: str, worse: str) -> Difference:
        """Return the paired difference of two models.

        Args:
            better: Name of the model whose evidence comes first.
            worse: Name of the model whose evidence is subtracted.

        Raises:
            InputError: for a name that is none of the models'.
        """
        for name in (better, worse):
            if name not in self.models:
                raise unknown_name("model", name, self.models)
        sides = self.models[better], self.models[worse]
        apart = _per_datum(sides[0]) - _per_datum(sides[1])
        value, over_data = float(apart.mean()), float(apart.std()) / math.sqrt(len(apart))
        # Each training seed is a draw of its own: their spread is that of a mean of few.
        spreads = [_seed_error(side) for side in sides]
        error = math.hypot(over_data, *(spread for spread, _ in spreads))
        noise, bias = _noise(sides), _bias(sides)
        pairs = len(self.models) * (len(self.models) - 1) // 2
        freedom = _freedom([(over_data, len(apart) - 1), *spreads])
        quantile = float(stats.t.ppf(1 - (1 - self.level) / (2 * pairs), freedom))
        half = math.hypot(quantile * error, quantile * bias)
        won = float((apart > 0).double().mean() + 0.5 * (apart == 0).double().mean())
        untrusted = ~torch.stack([_reliable(each) for side in sides for each in side]).all(0)
        return Difference(
            better, worse, value, error, noise, bias, won, (value - half, value + half),
            int(untrusted.sum()),
        )  # fmt: skip

    @property
    def verdict(self) -> str:
        """Sentences on the model to keep, or that no difference can be seen."""
        best, *others = self.names
        against = [self.difference(best, other) for other in others]
        sentences = []
        close = [each.worse for each in against if each.measured and not each.seen]
        lost = [each for each in against if each.seen]
        unmeasured = [each.worse for each in against if not each.measured]
        if close:
            sentences.append(f"No difference can be seen between {best} and {_and(close)}.")
        if lost:
            low, high = lost[0].interval
            by = f"by {lost[0].value:.2f} nats a datum (between {low:.2f} and {high:.2f})"
            nearest = f"; the nearest is {lost[0].worse}" if len(lost) > 1 else ""
            names = _and([each.worse for each in lost])
            sentences.append(f"{best} explains these data better than {names}{nearest}, {by}.")
        if unmeasured:
            count = max(each.untrusted for each in against if not each.measured)
            sentences.append(
                f"{best} and {_and(unmeasured)} cannot be compared: the evidence of up to {count}"
                f" of {self.num_data} data is untrusted, and may move the difference by more than"
                " its error."
            )
        seeds = [len(each) for each in self.models.values()]
        sentences.append(
            "The spread between training seeds is in the intervals."
            if min(seeds) > 1
            else "This compares these trained models: another training seed may order them"
            " differently."
        )
        return " ".join(sentences)

    def table(self) -> list[dict[str, Any]]:
        """Return a row a model, the best first: its evidence and its difference from the best."""
        rows = []
        for rank, name in enumerate(self.names):
            whole = _pooled(self.models[name])
            row: dict[str, Any] = {
                "model": name, "rank": rank, "evidence": whole.value,
                "standard_error": whole.standard_error,
                "monte_carlo_error": whole.monte_carlo_error,
                "weight": self.weights[name], "untrusted": whole.untrusted,
                "seeds": len(self.models[name]), "difference": 0.0, "difference_error": 0.0,
                "difference_monte_carlo_error": 0.0, "low": 0.0, "high": 0.0, "share_won": 0.5,
            }  # fmt: skip
            if rank:
                apart = self.difference(self.names[0], name)
                row |= {
                    "difference": apart.value, "difference_error": apart.standard_error,
                    "difference_monte_carlo_error": apart.monte_carlo_error,
                    "low": apart.interval[0], "high": apart.interval[1],
                    "share_won": 1 - apart.share_won,
                }  # fmt: skip
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as numbers, lists and None."""
        return {
            "num_data": self.num_data, "level": self.level, "given": self.given,
            "verdict": self.verdict, "effective_models": self.effective_models,
            "models": self.table(), "pairs": [vars(pair) for pair in self.pairs],
        }  # fmt: skip

    def __str__(self) -> str:
        width = max(5, *map(len, self.names))
        lines = [
            f"{'model':{width}}  evidence (± over data)  behind the best (± of the pair)"
            "   wins  weight  untrusted"
        ]
        for row in self.table():
            lines.append(
                f"{row['model']:{width}}  {row['evidence']:10.3f} ± {row['standard_error']:<9.3f}"
                f"  {row['difference']:14.3f} ± {row['difference_error']:<12.3f}"
                f"  {100 * row['share_won']:4.0f}%  {row['weight']:6.2f}  {row['untrusted']:9d}"
            )
        return "\n".join([*lines, self.verdict])


def _per_datum(estimates: Sequence[Estimate]) -> Tensor:
    return torch.stack([each.per_datum for each in estimates]).mean(0)


def _mean(estimates: Sequence[Estimate]) -> float:
    return float(_per_datum(estimates).mean())


def _reliable(estimate: Estimate) -> Tensor:
    known = estimate.reliable
    return torch.ones(len(estimate.per_datum), dtype=torch.bool) if known is None else known.cpu()


def _pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Return the estimate of the mean over training seeds."""
    errors = [each.errors for each in estimates if each.errors is not None]
    biases = [each.biases for each in estimates if each.biases is not None]
    return Estimate.over_data(
        _per_datum(estimates),
        torch.stack(errors).square().sum(0).sqrt() / len(estimates) if errors else None,
        torch.stack(biases).mean(0) if biases else None,
        num_samples=estimates[0].num_samples,
        reliable=torch.stack([_reliable(each) for each in estimates]).all(0),
        cost=sum(each.cost for each in estimates),
    )


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


def _noise(sides: Sequence[Sequence[Estimate]]) -> float:
    """Return the Monte Carlo error of a difference of means, biases apart."""
    total = 0.0
    for side in sides:
        for each in side:
            if each.errors is not None:
                total += float(each.errors.square().sum()) / (len(each.per_datum) * len(side)) ** 2
    return math.sqrt(total)


def _bias(sides: Sequence[Sequence[Estimate]]) -> float:
    """Return how far the difference may be off: the larger bias of the two sides.

    Both evidences are too low by their bias at most, so that the biases cancel in part.
    """
    return max(
        sum(float(each.biases.abs().mean()) for each in side if each.biases is not None) / len(side)
        for side in sides
    )


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
