r"""Holes: regions of prior mass without aggregated posterior, which no datum has taught."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.programs import program_arguments
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.internals import tree_leaves
from pyro_bvae.core.seeds import CHOICE_STREAM, PREDICTIVE_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.information.aggregate import Aggregate, log_marginals
from pyro_bvae.evaluation.information.energy import EnergyTest, dimension_tests, energy_test
from pyro_bvae.evaluation.information.latent_draws import (
    aggregate_at,
    check_densities,
    check_one_latent,
    draw_latents,
)
from pyro_bvae.evaluation.marginal.bounds import latent_distributions
from pyro_bvae.evaluation.marginal.importance import check_num_samples
from pyro_bvae.program.program import Function, Program, open_program

if TYPE_CHECKING:
    import pandas as pd

# Rows of either kind that the energy test looks at: its time grows with their square.
_MOST_TESTED = 1000
# Resamples of the held-out data behind the error of the threshold.
_RESAMPLES = 200


class Mass(NamedTuple):
    """A share of the prior's mass, from 0 to 1.

    Attributes:
        value: The share.
        standard_error: Of other draws of the prior and other held-out data; the aggregated
            posterior is taken as given.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f}% ± {100 * self.standard_error:.2f}%"


@dataclass(frozen=True, eq=False)
class HoleMass:
    """How well the aggregated posterior covers the prior; :func:`hole_mass` defines it.

    Attributes:
        hole_mass: The share of the prior's mass in holes. It is ``share`` if the two are one
            distribution.
        threshold: The log density of the aggregated posterior, in nats, below which a point lies in
            a hole.
        share: The share of encoded held-out data below it.
        energy: The energy distance between prior and aggregated posterior, and its p-value.
        dimensions: The same of each latent by itself, a row for each, ``z0`` and so on:
            ``hole_mass`` and ``standard_error`` (NaN for a guide whose single dimensions have no
            density), ``distance`` of Kolmogorov and Smirnov, and its ``p_value``, corrected for the
            number of latents.
        points: Draws of the prior, ``(M, *)``.
        log_density: The log density of the aggregated posterior there, ``(M,)``, in nats, float64.
        held_out: The log density at the encoded held-out data, ``(H,)``.
        num_data: Over how many data the aggregated posterior is taken.
    """

    hole_mass: Mass
    threshold: float
    share: float
    energy: EnergyTest
    dimensions: pd.DataFrame
    points: Tensor
    log_density: Tensor
    held_out: Tensor
    num_data: int

    @property
    def p_value(self) -> float:
        """The p-value of the energy distance of prior and aggregated posterior."""
        return self.energy.p_value

    @property
    def in_hole(self) -> Tensor:
        """Which draws of the prior lie in holes, ``(M,)``."""
        return self.log_density < self.threshold

    def inside(self, count: int) -> Tensor:
        """Return draws of the prior inside the holes, at most ``count``: ``(<= count, *)``."""
        check_count("count", count)
        return self.points[self.in_hole.to(self.points.device)][:count]

    def outside(self, count: int) -> Tensor:
        """Return draws of the prior outside the holes, at most ``count``: ``(<= count, *)``."""
        check_count("count", count)
        return self.points[~self.in_hole.to(self.points.device)][:count]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a JSON file."""
        return {
            "hole_mass": self.hole_mass.value,
            "standard_error": self.hole_mass.standard_error,
            "threshold": self.threshold,
            "share": self.share,
            "energy_distance": self.energy.distance,
            "p_value": self.p_value,
            "dimensions": self.dimensions.to_dict(orient="index"),
        }

    def __str__(self) -> str:
        unlike = int((self.dimensions["p_value"] < 0.01).sum())
        return "\n".join(
            [
                f"hole mass of the prior  {self.hole_mass} ({100 * self.share:g}% if it were the"
                " aggregated posterior)",
                f"energy distance         {self.energy.distance:.4f}, p = {self.p_value:.2g}",
                f"single latents          {unlike} of {len(self.dimensions)} unlike their prior (p"
                " < 0.01, corrected)",
                f"over the empirical aggregate of {self.num_data} data; holes are where log q(z) <"
                f" {self.threshold:.2f}, as it is at {100 * self.share:g}% of {len(self.held_out)}"
                " held-out data",
            ]
        )


@exclusive
def hole_mass(
    model: Function,
    guide: Function,
    *args: Any,
    held_out: Any,
    num_samples: int = 4000,
    share: float = 0.01,
    num_permutations: int = 499,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> HoleMass:
    r"""Measure which share of the prior's mass lies where the aggregated posterior puts hardly any.

    .. math::
        \text{hole mass} = \mathbb{P}_{z \sim p(z)} [\log q(z) < t], \qquad
        q(z) = \frac1N \sum_n q(z | x_n), \qquad
        \mathbb{P}_{x, \, z \sim q(z|x)} [\log q(z) < t] = \text{share}

    with the threshold t from held-out data x, one draw for each: data that the aggregate does not
    hold, so that posteriors too narrow to reach beyond their own datum count as narrow.
    Whether prior and aggregated posterior are one distribution is tested by the energy distance of
    draws of the prior and of encoded held-out data, and for each latent by the test of Kolmogorov
    and Smirnov.

    Every draw meets every posterior: time grows with N times the number of draws, memory with N
    beside a block.

    Args:
        model: A Pyro model with one latent site under a plate over the data, and the same prior for
            all data.
        guide: Its guide.
        *args: The arguments of both, over whose data the aggregated posterior is taken: those of
            the training.
        held_out: The same for other data: a tensor in place of ``x``, or a tuple of all arguments.
        num_samples: Draws of the prior.
        share: Share of the held-out data that may lie in holes, between 0 and 1.
        num_permutations: Permutations behind the p-value.
        data_plate: Name of the data plate, where the latent has more than one.
        seed: Seed of all randomness; the caller's generators are left alone.
        progress: Show progress bars.

    Returns:
        The hole mass with its error, the tests, and the draws of the prior with their log
        densities. References: Hoffman and Johnson 2016, Rosca et al. 2018 (the mismatch), Székely
        and Rizzo 2013 (the test).

    Raises:
        InputError: if there is more than one latent or it is discrete, if the guide's density
            cannot be evaluated at another datum's draws, if the prior is another one for each
            datum, if the held-out data are too few for the share, are of another width or those of
            ``args``, or if an argument cannot be used.
    """
    check_num_samples(num_samples)
    check_count("num_permutations", num_permutations)
    if not 0 < share < 1:
        raise InputError(f"'share' must lie between 0 and 1, got {share}")
    kept = held_out if isinstance(held_out, tuple) else (held_out,)
    if len(kept) == len(args):
        kept = program_arguments(model, guide, *kept, name="hole_mass")[2:]
    _check_held_out(args, kept)
    options: dict[str, Any] = {"data_plate": data_plate, "seed": seed}
    with open_program(model, guide, kept, **options) as program, torch.no_grad():
        check_one_latent(program)
        least = math.ceil(1 / min(share, 1 - share))
        if program.num_data < least:
            raise InputError(
                f"'held_out' must hold at least {least} data for a share of {share:g} of them to be"
                f" seen, got {program.num_data}; a share nearer to one half takes fewer"
            )
        encoded = draw_latents(program, 1, progress).values[0]
    with open_program(model, guide, args, **options) as program, torch.no_grad():
        check_one_latent(program)
        check_densities(program)
        points = _prior_draws(program, num_samples, seed)
        draws, rows = draw_latents(program, 1, False), torch.cat([points, encoded])
        result = aggregate_at(program, draws, rows, progress)
        if draws.normals is not None:
            marginals = log_marginals(rows.reshape(len(rows), -1), draws.normals)
            result = result._replace(marginals=marginals)
        return _summarise(points, encoded, result, share, num_permutations, seed, program.num_data)


@exclusive
def log_aggregate(
    model: Function,
    guide: Function,
    *args: Any,
    points: Tensor,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    r"""Return the log density of the aggregated posterior at any points.

    .. math:: \log q(z) = \log \frac1N \sum_n q(z | x_n)

    Below the threshold of a :class:`HoleMass` of the same data a point lies in a hole.

    Args:
        model: A Pyro model with one latent site under a plate over the data.
        guide: Its guide.
        *args: The arguments of both, over whose data the aggregated posterior is taken.
        points: Values of the latent without the dimension of the data, ``(M, *)``.
        data_plate: Name of the data plate, where the latent has more than one.
        seed: Seed of the guide's further draws; the densities do not depend on it.
        progress: Show a progress bar.

    Returns:
        Shape ``(M,)``, in nats, float64. Reference: Hoffman and Johnson 2016.

    Raises:
        InputError: if the points have not the latent's shape or are not finite, or as of
            :func:`hole_mass`.
    """
    with (
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        torch.no_grad(),
    ):
        check_one_latent(program)
        check_densities(program)
        draws = draw_latents(program, 1, False)
        wanted = tuple(draws.values.shape[2:])
        if tuple(points.shape[1:]) != wanted or points.dim() < 1 or not len(points):
            shown = ", ".join(["M", *map(str, wanted)])
            raise InputError(
                f"'points' must have shape ({shown}), as the latent has, got {tuple(points.shape)}"
            )
        check_finite("points", points)
        return aggregate_at(program, draws, points.to(draws.values), progress).joint


def _check_held_out(args: tuple[Any, ...], kept: tuple[Any, ...]) -> None:
    """Raise unless the held-out arguments are made as the others are, of other data."""
    given, other = (
        [leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)] for part in (args, kept)
    )
    if len(args) != len(kept) or len(given) != len(other):
        raise InputError(
            f"'held_out' must be made as the {len(args)} arguments with {len(given)} tensors are,"
            f" got {len(kept)} with"
            f" {len(other)}: a tensor in place of 'x', or a tuple of all arguments"
        )
    for one, another in zip(given, other, strict=True):
        if one.dim() and one.shape[1:] != another.shape[1:]:
            raise InputError(
                f"'held_out' must be of the shape (H, {', '.join(map(str, one.shape[1:]))}) as the"
                f" data are, got {tuple(another.shape)}"
            )
    if given and torch.equal(given[0], other[0]):
        raise InputError(
            "'held_out' must be other data than those whose posteriors are aggregated, got the same"
        )


def _prior_draws(program: Program, num_samples: int, seed: int) -> Tensor:
    """Draw from the prior, which is the same for all data: ``(M, *)``."""
    sites = latent_distributions(program, program.probe)
    assert sites is not None  # there is one latent
    dim, times = (
        program.dim_of(program.latents[0], program.plate.dim),
        -(-num_samples // program.count(program.probe)),
    )
    with seeded(seed, PREDICTIVE_STREAM):
        values = sites[1]["fn"].sample(torch.Size([times]))
    rows: Tensor = values.movedim(dim, 1).flatten(0, 1)
    return rows[:num_samples]


def _summarise(
    points: Tensor,
    encoded: Tensor,
    result: Aggregate,
    share: float,
    num_permutations: int,
    seed: int,
    num_data: int,
) -> HoleMass:
    import pandas as pd

    generator = torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM))
    count, joint = len(points), result.joint.cpu()
    rows, others = points.reshape(count, -1), encoded.reshape(len(encoded), -1)
    tests = dimension_tests(rows, others)
    marginals = None if result.marginals is None else result.marginals.cpu()
    masses = (
        [Mass(math.nan, math.nan)] * rows.shape[1]
        if marginals is None
        else [_mass(column[:count], column[count:], share, generator)[1] for column in marginals.T]
    )
    columns: Mapping[str, Any] = {
        "hole_mass": [mass.value for mass in masses],
        "standard_error": [mass.standard_error for mass in masses],
        "distance": np.asarray(tests.distances),
        "p_value": np.asarray(tests.p_values),
    }
    threshold, mass = _mass(joint[:count], joint[count:], share, generator)
    # Held-out data may come in an order that tells them apart, such as that of their labels.
    some = [
        part[torch.randperm(len(part), generator=generator)[:_MOST_TESTED]]
        for part in (rows.cpu(), others.cpu())
    ]
    return HoleMass(
        mass,
        threshold,
        share,
        energy_test(*some, num_permutations=num_permutations, generator=generator),
        pd.DataFrame(columns, index=[f"z{place}" for place in range(rows.shape[1])]),
        points,
        joint[:count],
        joint[count:],
        num_data,
    )


def _mass(
    prior: Tensor, held_out: Tensor, share: float, generator: torch.Generator
) -> tuple[float, Mass]:
    """Return the threshold and the share of the prior below it, with the errors of both."""
    count, ordered = len(prior), prior.sort().values
    size = len(held_out)
    again = held_out[torch.randint(size, (_RESAMPLES, size), generator=generator)].quantile(
        share, 1
    )
    threshold = held_out.quantile(share)
    below = int(torch.searchsorted(ordered, threshold))
    of_threshold = float((torch.searchsorted(ordered, again) / count).std())
    expected = (below + 1) / (count + 2)  # so that no draw in a hole is no certainty
    return float(threshold), Mass(
        below / count, math.hypot(math.sqrt(expected * (1 - expected) / count), of_threshold)
    )
