"""Models in the order of their evidence, paired differences, and a verdict in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, listed, unknown_name
from pyro_bvae.evaluation.comparison.difference import Difference, mean_of_seeds, paired, pool
from pyro_bvae.evaluation.comparison.stacking import stacking_weights
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps.result import InferenceGaps

#: The gaps of a model, or the reason why it has none.
Gaps = tuple[InferenceGaps, ...] | str
GAPS = ("variational", "approximation", "beta", "amortization")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Trained models on the same data.

    Attributes:
        models: The evidences of each model by name, one for each of its training seeds, over the
            same data in the same order. Ordered by evidence, the largest first.
        level: Level of the intervals, of all pairs together.
        given: The condition of all densities, such as size factors; None for unconditional ones.
        gaps: By name, the inference gaps of each training seed where they were asked for, or the
            reason why a model has none.
    """

    models: dict[str, tuple[Estimate, ...]]
    level: float = 0.95
    given: str | None = None
    gaps: dict[str, Gaps] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        estimates: Mapping[str, Estimate | Sequence[Estimate]],
        *,
        level: float = 0.95,
        given: str | None = None,
        gaps: Mapping[str, Gaps] | None = None,
    ) -> Comparison:
        """Compare evidences over the same data.

        Args:
            estimates: By name of the model, its evidence, or those of several training seeds.
            level: Level of the intervals.
            given: The condition of all densities, in words.
            gaps: By name, the gaps of each of these models, or why there are none.

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
        means = {name: float(mean_of_seeds(models[name]).mean()) for name in models}
        order = sorted(models, key=lambda name: (math.isnan(means[name]), -means[name]))
        return cls({name: models[name] for name in order}, level, given, dict(gaps or {}))

    @property
    def names(self) -> list[str]:
        """The models in the order of their evidence."""
        return [*self.models]

    @property
    def best(self) -> str:
        """The model of the largest evidence, whether or not a difference can be seen."""
        return self.names[0]

    @property
    def num_data(self) -> int:
        """The number of data."""
        return len(next(iter(self.models.values()))[0].per_datum)

    @cached_property
    def per_datum(self) -> Tensor:
        """Evidence of each datum under each model, the mean over training seeds, ``(M, N)``."""
        return torch.stack([mean_of_seeds(each) for each in self.models.values()])

    @cached_property
    def wins(self) -> dict[str, float]:
        """Share of the data with the largest evidence under each model; ties are shared."""
        largest = self.per_datum == self.per_datum.amax(0)
        shares = (largest.double() / largest.sum(0).clamp(min=1)).mean(1)
        return dict(zip(self.names, shares.tolist(), strict=True))

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
        return paired((better, worse), self.models, self.level)

    @property
    def verdict(self) -> str:
        """Sentences on the model to keep, or that no difference can be seen."""
        best, *others = self.names
        against = [self.difference(best, other) for other in others]
        sentences = []
        close = [each.worse for each in against if each.measured and not each.seen]
        lost = [each for each in against if each.seen]
        unmeasured = [each for each in against if not each.measured and math.isfinite(each.value)]
        impossible = [each for each in against if not math.isfinite(each.value)]
        if close:
            sentences.append(f"No difference can be seen between {best} and {_and(close)}.")
        if lost:
            low, high = lost[0].interval
            by = f"by {lost[0].value:.2f} nats a datum (between {low:.2f} and {high:.2f})"
            nearest = f"; the nearest is {lost[0].worse}" if len(lost) > 1 else ""
            names = _and([each.worse for each in lost])
            sentences.append(f"{best} explains these data better than {names}{nearest}, {by}.")
        if unmeasured:
            count = max(each.untrusted for each in unmeasured)
            sentences.append(
                f"{best} cannot be compared with {_and([each.worse for each in unmeasured])}: the"
                f" evidence of up to {count} of {self.num_data} data is untrusted, and may move the"
                " difference by more than its error."
            )
        for each in impossible:
            count = int((~torch.isfinite(each.per_datum)).sum())
            sentences.append(
                f"{best} cannot be compared with {each.worse}: the evidence of {count} of"
                f" {self.num_data} data is not finite."
            )
        return " ".join([*sentences, *self._limits()])

    def _limits(self) -> list[str]:
        """Return sentences on the ELBO's order and on training seeds."""
        bounds = {
            name: sum(each.elbo.value for each in gaps) / len(gaps)
            for name, gaps in self.gaps.items()
            if not isinstance(gaps, str)
        }
        sentences = []
        if len(bounds) == len(self.models) and max(bounds, key=lambda n: bounds[n]) != self.best:
            first = max(bounds, key=lambda name: bounds[name])
            lost = {name: _mean_gap(self.gaps[name], "variational") for name in (first, self.best)}
            sentences.append(
                f"By the ELBO {first} would come first: its guide loses {lost[first]:.2f} nats, and"
                f" that of {self.best} {lost[self.best]:.2f}."
            )
        seeds = [len(each) for each in self.models.values()]
        sentences.append(
            "The spread between training seeds is in the intervals."
            if min(seeds) > 1
            else "This compares these trained models: another training seed may order them"
            " differently."
        )
        return sentences

    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers of each model, the best first."""
        rows = []
        for rank, name in enumerate(self.names):
            whole = pool(self.models[name])
            row: dict[str, Any] = {
                "model": name, "rank": rank, "evidence": whole.value,
                "standard_error": whole.standard_error,
                "monte_carlo_error": whole.monte_carlo_error,
                "difference": 0.0, "difference_standard_error": 0.0,
                "difference_monte_carlo_error": 0.0, "low": 0.0, "high": 0.0,
                "share_won": self.wins[name], "weight": self.weights[name],
                "untrusted": whole.untrusted, "seeds": len(self.models[name]),
            }  # fmt: skip
            if rank:
                apart = self.difference(self.best, name)
                row |= {
                    "difference": apart.value, "difference_standard_error": apart.standard_error,
                    "difference_monte_carlo_error": apart.monte_carlo_error,
                    "low": apart.low, "high": apart.high,
                }  # fmt: skip
            if gaps := self.gaps.get(name):
                measured = not isinstance(gaps, str)
                row |= {
                    f"{part}_gap": _mean_gap(gaps, part) if measured else math.nan for part in GAPS
                }
            rows.append(row)
        return rows

    def table(self) -> pd.DataFrame:
        """Return the numbers of each model as a table whose index is the models' names.

        The columns: ``rank`` from 0; ``evidence`` with ``standard_error`` over data and
        ``monte_carlo_error``; ``difference`` from the best, best minus this, with its two errors
        and the ends ``low`` and ``high`` of its interval; ``share_won`` of the data; stacking
        ``weight``; number of ``untrusted`` data and of training ``seeds``; and four gaps where they
        were measured.
        """
        return pd.DataFrame(self.rows()).set_index("model")

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as numbers, lists and None."""
        notes = {name: gaps for name, gaps in self.gaps.items() if isinstance(gaps, str)}
        return {
            "num_data": self.num_data, "level": self.level, "given": self.given,
            "best": self.best, "verdict": self.verdict, "effective_models": self.effective_models,
            "models": [_finite(row) for row in self.rows()],
            "pairs": [_finite(pair.to_dict()) for pair in self.pairs], "no_gaps": notes,
        }  # fmt: skip

    def __str__(self) -> str:
        width = max(5, *map(len, self.names))
        lines = [
            f"{'model':{width}}  evidence (± over data)  behind the best (± of the pair)"
            "   wins  weight  untrusted"
        ]
        for row in self.rows():
            lines.append(
                f"{row['model']:{width}}  {row['evidence']:10.3f} ± {row['standard_error']:<9.3f}"
                f"  {row['difference']:14.3f} ± {row['difference_standard_error']:<12.3f}"
                f"  {100 * row['share_won']:4.0f}%  {row['weight']:6.2f}  {row['untrusted']:9d}"
            )
        lines += [f"effective number of models in the stack: {self.effective_models:.2f}"]
        return "\n".join([*lines, *self._gap_lines(width), self.verdict])

    def _gap_lines(self, width: int) -> list[str]:
        """Return a table of the gaps; none where they were not asked for."""
        if not self.gaps:
            return []
        lines = [f"{'model':{width}}" + "".join(f"{part:>15}" for part in GAPS) + "  gaps, nats"]
        for name in self.names:
            gaps = self.gaps[name]
            numbers = (
                f"  none, since {gaps}"
                if isinstance(gaps, str)
                else "".join(f"{_mean_gap(gaps, part):15.3f}" for part in GAPS)
            )
            lines.append(f"{name:{width}}{numbers}")
        return lines


def _mean_gap(gaps: Gaps, part: str) -> float:
    """Return a gap, the mean over training seeds."""
    assert not isinstance(gaps, str)
    return sum(float(getattr(each, part).value) for each in gaps) / len(gaps)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as JSON has them: None for those that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
