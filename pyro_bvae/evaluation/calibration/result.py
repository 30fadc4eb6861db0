"""The calibration of a guide, and what it says in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.evaluation.calibration.uniformity import uniformity_p_value

#: The level of the intervals whose coverage is counted, and of the tests.
INTERVAL_LEVEL, TEST_LEVEL = 0.9, 0.05
# Simulations of the posterior version that need enough effective draws for it to be trusted.
_ENOUGH = 0.9


class Interval(NamedTuple):
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


class CalibratedQuantity(NamedTuple):
    """The ranks of the true values of one quantity among the guide's draws.

    Attributes:
        name: Its name.
        ranks: Of each truth, from 0 to the number of draws, ``(S,)``.
        level: Share of ranks in the central interval of the draws that is nearest to 90%.
        coverage: Share of truths inside, with an exact interval (Clopper and Pearson).
        spread: Standard deviation of truths about the draws' mean, over that of the draws: 1 for
            a right guide, 1.25 for one that is 20% too narrow; None for values with ties.
        shift: Mean distance of truths from the draws' mean, in standard deviations of the draws;
            None likewise.
        p_value: Of the exact test of uniform ranks, before any correction.
    """

    name: str
    ranks: Tensor
    level: float
    coverage: Interval
    spread: Interval | None
    shift: Interval | None
    p_value: float

    @classmethod
    def of(
        cls, name: str, ranks: Tensor, num_draws: int, scores: Tensor | None
    ) -> CalibratedQuantity:
        """Summarise ranks ``(S,)`` and truths that were standardised by the draws, ``(S,)``."""
        from scipy.stats import binomtest

        places = num_draws + 1
        outside = round(places * (1 - INTERVAL_LEVEL) / 2)
        held = int(((ranks >= outside) & (ranks < places - outside)).sum())
        found = binomtest(held, len(ranks)).proportion_ci(0.95, method="exact")
        coverage = Interval(held / len(ranks), float(found.low), float(found.high))
        spread = shift = None
        if scores is not None and num_draws > 3 and bool(torch.isfinite(scores).all()):
            # Of normal draws, whose mean and deviation are those of so many draws alone.
            factor = math.sqrt((num_draws - 3) / (num_draws - 1) / (1 + 1 / num_draws))
            mean, count = float(scores.mean()), len(scores)
            error = float(scores.std()) / math.sqrt(count)
            shift = Interval(mean, mean - 1.96 * error, mean + 1.96 * error)
            squares = (scores - mean).square()
            value = factor * math.sqrt(float(squares.mean()))
            error = factor**2 * float(squares.std()) / math.sqrt(count) / (2 * value)
            spread = Interval(value, value - 1.96 * error, value + 1.96 * error)
        p_value = uniformity_p_value(ranks, num_draws)
        level = 1 - 2 * outside / places
        return cls(name, ranks, level, coverage, spread, shift, p_value)

    @property
    def fault(self) -> str:
        """How far the draws are from right, in words; for a quantity whose test has failed."""
        found = []
        if self.spread is not None and not self.spread.low <= 1 <= self.spread.high:
            share = 1 - 1 / self.spread.value
            found.append(f"{abs(share):.0%} too {'narrow' if share > 0 else 'wide'}")
        if self.shift is not None and not self.shift.low <= 0 <= self.shift.high:
            low = "low" if self.shift.value > 0 else "high"
            found.append(f"{abs(self.shift.value):.2f} of their standard deviations too {low}")
        if not found:
            return f"the draws of {self.name} are not distributed as its true values are"
        return f"the draws of {self.name} are {' and '.join(found)}"


class AroundData(NamedTuple):
    """The posterior version: new data around those of the user.

    Attributes:
        quantities: As under the model.
        effective_share: Share of simulations with enough effective draws after weighting.
    """

    quantities: tuple[CalibratedQuantity, ...]
    effective_share: float

    @property
    def p_value(self) -> float:
        """That the guide is right at the data and around them, corrected for the tests."""
        return corrected(self.quantities)

    @property
    def trusted(self) -> bool:
        """Whether nine simulations in ten have enough effective draws."""
        return self.effective_share >= _ENOUGH


class DataComparison(NamedTuple):
    """A quantity under the guide for the user's data, beside the model's own data.

    Attributes:
        name: Its name.
        shift: Mean for the user's data minus that for simulated ones, in standard deviations of
            the latter.
        p_value: Of the Kolmogorov-Smirnov test of equal distributions, before any correction.
    """

    name: str
    shift: float
    p_value: float


def compared(seen: dict[str, Tensor], drawn: dict[str, Tensor]) -> tuple[DataComparison, ...]:
    """Compare quantities of observed data ``(N,)`` with those of simulated ones ``(S,)``."""
    from scipy.stats import ks_2samp

    results = []
    for name, simulated in drawn.items():
        observed, spread = seen[name], float(simulated.std())
        away = float(observed.mean() - simulated.mean()) / spread if spread > 0 else 0.0
        p_value = float(ks_2samp(observed.numpy(), simulated.numpy()).pvalue)
        results.append(DataComparison(name, away, p_value))
    return tuple(results)


def corrected(parts: Sequence[Any]) -> float:
    """Return the smallest p-value times the number of tests (Bonferroni), at most 1."""
    return min(1.0, min(part.p_value for part in parts) * len(parts))


@dataclass(frozen=True, eq=False)
class GuideCalibration:
    """Whether a guide is the posterior, on data drawn from the model; it prints itself.

    Attributes:
        quantities: Latents, functions, the likelihood, and the distance of all latents to a random
            point, whose ranks are the expected coverage of all latents together.
        num_draws: L, draws that each truth was ranked among.
        data: The same quantities for the user's data, beside simulated ones.
        num_data: The user's data that were compared.
        around_data: The posterior version; None where nobody asked.
    """

    quantities: tuple[CalibratedQuantity, ...]
    num_draws: int
    data: tuple[DataComparison, ...]
    num_data: int
    around_data: AroundData | None = None

    @property
    def num_simulations(self) -> int:
        """Number of simulated data."""
        return len(self.quantities[0].ranks)

    @property
    def p_value(self) -> float:
        """That the guide is the posterior under the model, corrected for the number of tests."""
        return corrected(self.quantities)

    @property
    def data_p_value(self) -> float:
        """That the data are the model's, corrected likewise."""
        return corrected(self.data)

    @property
    def worst(self) -> CalibratedQuantity:
        """The quantity of the smallest p-value."""
        return min(self.quantities, key=lambda quantity: quantity.p_value)

    @property
    def verdict(self) -> str:
        """Whether the guide is wrong under the model, and the model about the data, in words."""
        lines = [self._guide_words(), self._data_words()]
        if self.around_data is not None:
            lines.append(self._around_words(self.around_data))
        return "; ".join(lines)

    def _guide_words(self) -> str:
        tests = f"corrected for {len(self.quantities)} tests"
        if self.p_value >= TEST_LEVEL:
            return (
                f"the guide cannot be told from the posterior under the model, on"
                f" {self.num_simulations} simulated data (p {_p(self.p_value)}, {tests})"
            )
        return (
            f"the guide is wrong under the model: {self.worst.fault} (p {_p(self.p_value)},"
            f" {tests})"
            ", which a longer training of the guide or a richer family may cure"
        )

    def _data_words(self) -> str:
        if self.data_p_value >= TEST_LEVEL:
            return (
                f"the {self.num_data} data look like the model's own (p {_p(self.data_p_value)}),"
                " so this holds for data like them"
            )
        worst = min(self.data, key=lambda each: each.p_value)
        side = "higher" if worst.shift > 0 else "lower"
        how = f"{side} by {abs(worst.shift):.2g} standard deviations"
        if abs(worst.shift) < 0.05:
            how = "otherwise distributed"
        return (
            f"the model is wrong about the data: {worst.name} under the guide is {how} than for"
            f" data drawn from the model (p {_p(self.data_p_value)}), which no guide can cure; the"
            " first says nothing of data that the model does not draw"
        )

    def _around_words(self, around: AroundData) -> str:
        if not around.trusted:
            return (
                "around the data nothing can be said: only"
                f" {around.effective_share:.0%} of the simulations have enough effective draws"
            )
        value = around.p_value
        if value >= TEST_LEVEL:
            return f"around the data the guide agrees with itself (p {_p(value)})"
        worst = min(around.quantities, key=lambda quantity: quantity.p_value)
        return f"around the data the guide is wrong: {worst.fault} (p {_p(value)})"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each quantity, for a table or a JSON file."""
        return [_row(quantity) for quantity in self.quantities]

    def to_dict(self) -> dict[str, Any]:
        """Return numbers, lists and None, for a JSON file; ranks are there as numbers of each."""
        around = self.around_data
        return {
            "num_simulations": self.num_simulations,
            "num_draws": self.num_draws,
            "p_value": self.p_value,
            "data_p_value": self.data_p_value,
            "num_data": self.num_data,
            "verdict": self.verdict,
            "quantities": [
                {
                    **_row(each),
                    "counts": torch.bincount(each.ranks, minlength=self.num_draws + 1).tolist(),
                }
                for each in self.quantities
            ],
            "data": [each._asdict() for each in self.data],
            "around_data": None
            if around is None
            else {
                "quantities": [_row(each) for each in around.quantities],
                "effective_share": around.effective_share,
            },
        }

    def __str__(self) -> str:
        lines = [f"{'':24}{'p':>9}  {'90% intervals cover':<26}{'truths spread, draws 1':<24}shift"]
        for each in self.quantities:
            spread, shift = ("-" if part is None else str(part) for part in each[4:6])
            lines.append(
                f"{each.name:<24}{_p(each.p_value):>9}  {each.coverage!s:<26}{spread:<24}{shift}"
            )
        return "\n".join([*lines, self.verdict])


def _row(quantity: CalibratedQuantity) -> dict[str, Any]:
    parts = quantity._asdict()
    return {
        name: list(value) if isinstance(value, Interval) else value
        for name, value in parts.items()
        if name != "ranks"
    }


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
