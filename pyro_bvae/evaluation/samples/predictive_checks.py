"""Posterior predictive checks of counts: simulated data beside observed data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import PREDICTIVE_STREAM, seeded
from pyro_bvae.program.predictive import draw_groups
from pyro_bvae.program.program import Function, open_program


class Statistic(NamedTuple):
    """A statistic of the data, and of each simulated copy of them.

    Attributes:
        observed: Shape ``(*)``.
        simulated: Shape ``(K, *)``.
    """

    observed: Tensor
    simulated: Tensor


class CountChecks(NamedTuple):
    """Statistics of counts, observed and simulated from guide and likelihood.

    Attributes:
        zero_share: Share of zeros of each feature, ``(D,)``.
        mean: Mean of each feature, ``(D,)``.
        variance: Variance of each feature over the data, ``(D,)``.
        total: Sum over the features of each datum, its library size, ``(N,)``.
    """

    zero_share: Statistic
    mean: Statistic
    variance: Statistic
    total: Statistic

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


@exclusive
@torch.no_grad()
def count_checks(
    model: Function, guide: Function, *args: object, num_copies: int = 20, seed: int = 0
) -> CountChecks:
    """Compare counts with copies of them that the model draws (Gelman et al. 1996).

    Args:
        model: Pyro model with one observed site of shape ``(N, D)``.
        guide: Pyro guide.
        args: The arguments of both.
        num_copies: Copies of the whole data, at least 2: their spread is that of the statistic.
        seed: Seed of all draws.

    Raises:
        InputError: for fewer copies, or a model that does not observe one table or cannot draw it.
    """
    check_count("num_copies", num_copies)
    if num_copies < 2:
        raise InputError(f"'num_copies' must be at least 2, got {num_copies}")
    with open_program(model, guide, args) as program, seeded(seed, PREDICTIVE_STREAM):
        groups = draw_groups(program, num_copies, num_copies, seed)
    observed = groups["observed_data"]
    if len(observed) != 1 or "posterior_predictive" not in groups:
        raise InputError(
            f"the model must observe one site that it can draw, got {sorted(observed)}"
        )
    ((name, variable),) = observed.items()
    values, copies = (
        variable.values[0].double(),
        groups["posterior_predictive"][name].values.double(),
    )
    if values.dim() != 2:
        raise InputError(f"site '{name}' must have shape (N, D), got {tuple(values.shape)}")
    return CountChecks(
        Statistic((values == 0).double().mean(0), (copies == 0).double().mean(1)),
        Statistic(values.mean(0), copies.mean(1)),
        Statistic(values.var(0), copies.var(1)),
        Statistic(values.sum(-1), copies.sum(-1)),
    )
