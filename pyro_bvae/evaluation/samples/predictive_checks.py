"""Posterior predictive checks of counts: simulated data beside observed data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import PREDICTIVE_STREAM, seeded
from pyro_bvae.program.predictive import draw_groups
from pyro_bvae.program.program import Function, open_program

# Standard deviations of the copies beyond which the data are called a misfit.
_FAR = 4.0
# Features and groups that a verdict names at most.
_MOST_NAMED = 3


class Statistic(NamedTuple):
    """A statistic of the data, and of each simulated copy of them.

    Attributes:
        observed: Shape ``(*)``.
        simulated: Shape ``(K, *)``.
    """

    observed: Tensor
    simulated: Tensor

    def distance(self, least: float | Tensor = 0.0) -> Tensor:
        r"""Return how many standard deviations the data lie above the copies, ``(*)``.

        .. math:: (T - \bar T') / (s \sqrt{1 + 1 / K})

        with the mean and the standard deviation of K copies.

        Args:
            least: The smallest standard deviation that is taken for one.
        """
        spread = self.simulated.std(0).clamp(min=torch.as_tensor(least).to(self.observed))
        away = self.observed - self.simulated.mean(0)
        scaled = away / (spread * (1 + 1 / len(self.simulated)) ** 0.5)
        return torch.where(away.abs() <= 1e-12, 0.0, scaled)


class CountChecks(NamedTuple):
    """Statistics of counts, observed and simulated from guide and likelihood.

    Attributes:
        zero_share: Share of zeros of each feature, ``(D,)``.
        mean: Mean of each feature, ``(D,)``.
        variance: Variance of each feature over the data, ``(D,)``.
        total: Sum over the features of each datum, its library size, ``(N,)``.
        group_zero_share: Share of zeros in each group of data, such as a batch, ``(G,)``; None
            without groups.
        group_sizes: Number of data of each group, ``(G,)``.
        group_names: Names of the groups, or none.
        feature_names: Names of the features, or none.
    """

    zero_share: Statistic
    mean: Statistic
    variance: Statistic
    total: Statistic
    group_zero_share: Statistic | None = None
    group_sizes: Tensor | None = None
    group_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()

    @property
    def zeros(self) -> Statistic:
        """The share of zeros of the whole table, ``()``."""
        return Statistic(self.zero_share.observed.mean(), self.zero_share.simulated.mean(-1))

    @property
    def faults(self) -> list[str]:
        """The misfits in words: zeros of the whole table, of features, of groups."""
        found, lines = self.zeros, []
        size = len(self.total.observed)
        away = float(found.distance(1 / (size * len(self.zero_share.observed))))
        if abs(away) > _FAR:
            lines.append(
                f"{float(found.observed):.2%} of the counts are zeros, {abs(away):.0f} standard"
                f" deviations {'above' if away > 0 else 'below'} the"
                f" {float(found.simulated.mean()):.2%} ± {float(found.simulated.std()):.2%} of the"
                " model's copies"
            )
        lines += _worst(self.zero_share, 1 / size, self.feature_names, "feature")
        if self.group_zero_share is not None:
            assert self.group_sizes is not None
            least = 1 / (self.group_sizes * len(self.zero_share.observed))
            lines += _worst(self.group_zero_share, least, self.group_names, "batch")
        return lines

    @property
    def verdict(self) -> str:
        """Whether the model draws as many zeros as were observed, in words."""
        if faults := self.faults:
            return "misfit: " + "; ".join(faults)
        batches = "" if self.group_zero_share is None else ", of any batch"
        return (
            f"the share of zeros lies within {_FAR:.0f} standard deviations of the model's copies,"
            f" of the whole table, of any feature{batches}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the zeros and the verdict for a JSON file."""
        found, size = self.zeros, len(self.total.observed)
        features = self.zero_share.distance(1 / size).abs()
        return {
            "num_copies": len(found.simulated),
            "zeros": {
                "observed": float(found.observed),
                "simulated": float(found.simulated.mean()),
                "standard_deviation": float(found.simulated.std()),
            },
            "misfit_features": int((features > _FAR).sum()),
            "faults": self.faults,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        lines = []
        for name, check, unit in (
            ("zeros", self.zero_share, 100.0),
            ("mean count", self.mean, 1.0),
            ("variance", self.variance, 1.0),
        ):
            copies = unit * check.simulated.mean(-1)
            lines.append(
                f"{name}: {unit * float(check.observed.mean()):.4g}{'%' if unit > 1 else ''}"
                f" observed, {float(copies.mean()):.4g} ± {float(copies.std()):.2g} simulated"
            )
        return "; ".join(lines)


def _worst(
    statistic: Statistic, least: float | Tensor, names: tuple[str, ...], kind: str
) -> list[str]:
    """Return the sentence of the features or groups whose share of zeros lies far off, if any."""
    away = statistic.distance(least)
    far = int((away.abs() > _FAR).sum())
    if not far:
        return []
    copies = statistic.simulated.mean(0)
    worst = [
        f"{names[i] if names else i} ({float(statistic.observed[i]):.1%} for"
        f" {float(copies[i]):.1%}, {float(away[i]):+.0f} sd)"
        for i in away.abs().argsort(descending=True)[: min(far, _MOST_NAMED)].tolist()
    ]
    return [
        f"the share of zeros is off in {far} of {len(away)}"
        f" {kind}{'es' if kind == 'batch' else 's'}, the worst {', '.join(worst)}"
    ]


@exclusive
@torch.no_grad()
def count_checks(
    model: Function,
    guide: Function,
    *args: object,
    num_copies: int = 20,
    groups: Values | None = None,
    group_names: Sequence[str] = (),
    feature_names: Sequence[str] = (),
    seed: int = 0,
) -> CountChecks:
    """Compare counts with copies of them that the model draws (Gelman et al. 1996).

    Args:
        model: Pyro model with one observed site of shape ``(N, D)``.
        guide: Pyro guide.
        args: The arguments of both.
        num_copies: Copies of the whole data, at least 2: their spread is that of the statistic.
        groups: The group of each datum, such as its batch, whole numbers from 0, ``(N,)``.
        group_names: Names of the groups.
        feature_names: Names of the features.
        seed: Seed of all draws.

    Returns:
        Statistics of data and copies. Their ``verdict`` is a misfit where a share of zeros, of the
        table, of a feature or of a group, lies four standard deviations of the copies off.

    Raises:
        InputError: for fewer copies, groups that are none, names that are not as many as they name,
            or a model that does not observe one table or cannot draw it.
    """
    check_count("num_copies", num_copies)
    if num_copies < 2:
        raise InputError(f"'num_copies' must be at least 2, got {num_copies}")
    with open_program(model, guide, args) as program, seeded(seed, PREDICTIVE_STREAM):
        drawn = draw_groups(program, num_copies, num_copies, seed)
    observed = drawn["observed_data"]
    if len(observed) != 1 or "posterior_predictive" not in drawn:
        raise InputError(
            f"the model must observe one site that it can draw, got {sorted(observed)}"
        )
    ((name, variable),) = observed.items()
    values, copies = (
        variable.values[0].double(),
        drawn["posterior_predictive"][name].values.double(),
    )
    if values.dim() != 2:
        raise InputError(f"site '{name}' must have shape (N, D), got {tuple(values.shape)}")
    zeros = (values == 0).double(), (copies == 0).double()
    shares, sizes = _by_group(*zeros, groups)
    for label, names, count in (
        ("group_names", group_names, 0 if sizes is None else len(sizes)),
        ("feature_names", feature_names, values.shape[1]),
    ):
        if names and len(names) != count:
            raise InputError(f"'{label}' must be {count} names, got {len(names)}")
    return CountChecks(
        Statistic(zeros[0].mean(0), zeros[1].mean(1)),
        Statistic(values.mean(0), copies.mean(1)),
        Statistic(values.var(0), copies.var(1)),
        Statistic(values.sum(-1), copies.sum(-1)),
        shares,
        sizes,
        tuple(group_names),
        tuple(feature_names),
    )


def _by_group(
    observed: Tensor, copies: Tensor, groups: Values | None
) -> tuple[Statistic | None, Tensor | None]:
    """Return the mean of each group of data, and the sizes of the groups."""
    if groups is None:
        return None, None
    numbers = torch.as_tensor(groups).double().cpu()
    if numbers.shape != (len(observed),):
        raise InputError(f"'groups' must have shape ({len(observed)},), got {tuple(numbers.shape)}")
    inside = (numbers == numbers.round()) & (numbers >= 0) & (numbers < len(numbers))
    if not bool(inside.all()):
        raise InputError("'groups' must be whole numbers from 0, one for each group")
    members = torch.nn.functional.one_hot(numbers.long()).double()
    sizes = members.sum(0)
    if bool((sizes == 0).any()):
        raise InputError(
            f"'groups' must have data in each group, got none in {int(sizes.argmin())}"
        )
    share = members.T / sizes[:, None]
    return Statistic(share @ observed.mean(-1), copies.mean(-1) @ share.T), sizes
