r"""Predictive checks for any likelihood: statistics of copies, and the rank of each number.

A Bayesian p-value is the share of copies whose statistic is as far out as that of the data (Gelman,
Meng and Stern 1996). A probability integral transform (PIT) is the share of predictive draws below
an observed number, with ties, as discrete data have, broken at random (Czado, Gneiting and Held
2009): uniform where the predictive distribution is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import NULL_STREAM, PREDICTIVE_STREAM, seeded
from pyro_bvae.evaluation.calibration.uniformity import uniformity_p_value
from pyro_bvae.evaluation.samples.statistics import TestStatistic, applied, statistics_of
from pyro_bvae.program.predictive import draw_groups
from pyro_bvae.program.program import Function, open_program

# Standard deviations of the copies beyond which a statistic is called a misfit, and the level of
# the test of uniform PITs.
_FAR, _TEST_LEVEL = 4.0, 0.05
_MOST_FAULTS = 5


class CheckedStatistic(NamedTuple):
    """One statistic of the data beside that of copies of them.

    Attributes:
        name: Its name.
        observed: ``()`` or ``(D,)``.
        simulated: ``(K,)`` or ``(K, D)``.
    """

    name: str
    observed: Tensor
    simulated: Tensor

    @property
    def p_value(self) -> Tensor:
        r"""Two-sided Bayesian p-value, :math:`2 \min(P(T' \le T), P(T' \ge T))`, at most 1."""
        count = len(self.simulated) + 1
        low = 1 + (self.simulated <= self.observed).sum(0)
        high = 1 + (self.simulated >= self.observed).sum(0)
        return (2 * torch.minimum(low, high) / count).clamp(max=1.0).double()

    @property
    def distance(self) -> Tensor:
        """Observed minus mean of the copies, in their standard deviations; ±inf without any."""
        away = self.observed - self.simulated.mean(0)
        rounding = 1e-9 * self.observed.abs().clamp(min=1)
        return torch.where(away.abs() <= rounding, 0.0, away / self.simulated.std(0))

    @property
    def fault(self) -> str | None:
        """The misfit in words, or None where all features lie near."""
        away = self.distance.reshape(-1)
        far = away.abs() > _FAR
        if not bool(far.any()):
            return None
        index = int(away.abs().nan_to_num(0.0).argmax())
        observed = float(self.observed.reshape(-1)[index])
        copies = float(self.simulated.reshape(len(self.simulated), -1)[:, index].mean())
        where = "" if away.numel() == 1 else f" of feature {index}"
        more = int(far.sum()) - 1
        tail = f", and {more} more features" if more else ""
        return (
            f"{self.name}{where} is {observed:.4g}, {abs(float(away[index])):.0f} standard"
            f" deviations {'above' if float(away[index]) > 0 else 'below'} the {copies:.4g} of the"
            f" model's copies{tail}"
        )


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Predictive checks of data; it prints itself.

    Attributes:
        statistics: Statistics of data and copies.
        pit: Randomised PIT of each number under the prior predictive, ``(N, D)``, uniform between
            0 and 1 for a right model; NaN where nothing was observed.
        ranks: The same as ranks among the copies, from 0 to K.
        source: Where the copies' latents are from: ``"posterior"`` or ``"prior"``.
    """

    statistics: tuple[CheckedStatistic, ...]
    pit: Tensor
    ranks: Tensor
    source: str

    @property
    def num_copies(self) -> int:
        """Number K of copies."""
        return len(self.statistics[0].simulated)

    def coverage(self, level: float = 0.9) -> Tensor:
        """Return how often the central predictive interval holds the data, ``(D,)``.

        Raises:
            InputError: if the level does not lie between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"'level' must lie between 0 and 1, got {level}")
        seen = ~torch.isnan(self.pit)
        held = seen & ((self.pit - 0.5).abs() <= level / 2)
        return held.sum(0).double() / seen.sum(0)

    @property
    def interval_p_values(self) -> Tensor:
        """Exact p-values of uniform PITs, ``(D,)``; NaN for a feature that was never observed."""
        values = []
        for ranks, pit in zip(self.ranks.unbind(1), self.pit.unbind(1), strict=True):
            kept = ranks[~torch.isnan(pit)]
            values.append(uniformity_p_value(kept, self.num_copies) if len(kept) else torch.nan)
        return torch.tensor(values, dtype=torch.double)

    @property
    def faults(self) -> list[str]:
        """The misfits in words, worst statistic first."""
        found = [(float(s.distance.abs().max()), s.fault) for s in self.statistics]
        lines = [words for _, words in sorted(found, key=lambda each: -each[0]) if words]
        p_values = self.interval_p_values.nan_to_num(1.0)
        worst, count = int(p_values.argmin()), len(p_values)
        if float(p_values.min()) * count < _TEST_LEVEL:
            bad = int((p_values * count < _TEST_LEVEL).sum())
            lines.append(
                f"predictive intervals of {bad} of {count} features are off, worst feature {worst}:"
                f" 90% hold {float(self.coverage()[worst]):.0%} of the data"
                f" (p {float(p_values[worst]):.1g}, corrected for {count} features"
                f" {min(1.0, float(p_values[worst]) * count):.1g})"
            )
        return lines

    @property
    def verdict(self) -> str:
        """Whether the model draws data like those observed, in words."""
        faults = self.faults
        if not faults:
            return (
                f"no statistic lies {_FAR:.0f} standard deviations off, and predictive intervals"
                " hold as many data as they say"
            )
        rest = len(faults) - _MOST_FAULTS
        more = [f"and {rest} more"] if rest > 0 else []
        return "misfit: " + "; ".join([*faults[:_MOST_FAULTS], *more])

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each statistic, with its worst feature."""
        return [
            {
                "statistic": each.name,
                "observed": float(each.observed.mean()),
                "simulated": float(each.simulated.mean()),
                "smallest_p_value": float(each.p_value.min()),
                "largest_distance": float(each.distance.abs().max()),
            }
            for each in self.statistics
        ]

    def __str__(self) -> str:
        lines = [f"{'':22}{'observed':>12}{'simulated':>12}{'smallest p':>12}{'most sd off':>13}"]
        for row in self.rows():
            name, *numbers = row.values()
            lines.append(
                f"{name:<22}{numbers[0]:>12.4g}{numbers[1]:>12.4g}{numbers[2]:>12.3f}"
                f"{numbers[3]:>13.1f}"
            )
        held = self.coverage()
        low, high = float(held.nan_to_num(1).min()), float(held.nan_to_num(0).max())
        lines.append(
            f"90% intervals hold {float(held.nanmean()):.1%} of the data, between {low:.1%} and"
            f" {high:.1%} for a feature"
        )
        return "\n".join([*lines, self.verdict])


@exclusive
@torch.no_grad()
def predictive_check(
    model: Function,
    guide: Function,
    *args: object,
    statistics: Mapping[str, TestStatistic] | Sequence[str] | None = None,
    num_copies: int = 99,
    source: Literal["posterior", "prior"] = "posterior",
    seed: int = 0,
) -> PredictiveCheck:
    """Compare data with copies of them that the model draws, for any likelihood.

    Statistics are compared with copies whose latents are from the guide, or from the prior. The
    PITs are always those of the prior predictive, given the context of each datum: the guide has
    seen the datum, and a right model's intervals about its draws hold too much.

    Args:
        model: Pyro model with one observed site whose first dimension is the data; others are
            flattened to features.
        guide: Pyro guide.
        args: The arguments of both. Missing entries are NaN, and left out of copies and PITs.
        statistics: Names (mean, standard deviation, share of zeros, smallest, largest, median,
            skewness, correlation, spread of totals), or a mapping of names to callables from the
            data ``(N, D)`` to one number or one a feature. Five of them by default.
        num_copies: K, copies of the whole data, at least 19.
        source: Where the latents of the copies are from.
        seed: Seed of all draws.

    References: Gelman, Meng and Stern 1996; Czado, Gneiting and Held 2009.

    Raises:
        InputError: for fewer copies, an unknown statistic, or a model that does not observe one
            site or cannot draw it.
    """
    check_count("num_copies", num_copies)
    if num_copies < 19:
        raise InputError(f"'num_copies' must be at least 19, got {num_copies}")
    chosen = statistics_of(statistics)
    with open_program(model, guide, args) as program, seeded(seed, PREDICTIVE_STREAM):
        groups = draw_groups(program, num_copies, num_copies, seed)
    seen = groups["observed_data"]
    if len(seen) != 1 or "posterior_predictive" not in groups:
        raise InputError(f"the model must observe one site that it can draw, got {sorted(seen)}")
    ((name, variable),) = seen.items()
    observed = _table(variable.values)[0]
    drawn = {
        each: _table(groups[f"{each}_predictive"][name].values) for each in ("posterior", "prior")
    }
    missing = torch.isnan(observed)
    kept = ~missing.any(-1)  # a statistic takes whole data
    if int(kept.sum()) < 2:
        raise InputError(
            f"at least 2 data must be without missing entries, got {int(kept.sum())} of {len(kept)}"
        )
    found = []
    for label, function in chosen.items():
        copies = [applied(label, function, copy[kept]) for copy in drawn[source]]
        value = applied(label, function, observed[kept])
        found.append(CheckedStatistic(label, value, torch.stack(copies)))
    with seeded(seed, NULL_STREAM):
        ranks, pit = _ranked(observed, drawn["prior"])
    return PredictiveCheck(tuple(found), pit.masked_fill(missing, torch.nan), ranks, source)


def _table(values: Tensor) -> Tensor:
    """Return values ``(K, N, *)`` as ``(K, N, D)``, float64."""
    return values.double().reshape(*values.shape[:2], -1)


def _ranked(observed: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return ranks among copies and randomised PITs, ``(N, D)`` each."""
    below, ties = (copies < observed).sum(0), (copies == observed).sum(0)
    share = torch.rand(observed.shape, dtype=torch.double)
    ranks = below + (share * (ties + 1)).floor().long()
    return ranks, (ranks + torch.rand(observed.shape, dtype=torch.double)) / (len(copies) + 1)
