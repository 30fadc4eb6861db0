"""Evidence from guides that are too narrow, too wide or in the wrong place, beside the exact evidence."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from scipy.integrate import quad
from torch import Tensor

from pyro_bvae import evidence
from pyro_bvae.evaluation.marginal import (
    DefensiveProposal,
    GuideProposal,
    HeavyTailedProposal,
    RefitProposal,
    RobustProposal,
    averages,
)
from pyro_bvae.evaluation.marginal.averages import Average
from pyro_bvae.evaluation.refit import RefitSettings

PRIOR_SCALE, DEGREES = 10.0, 5.0
RATIOS, SHIFTS = (0.3, 0.5, 0.7, 0.8, 1.0, 1.25, 1.5), (0.0, 1.0, 2.0, 3.0)
SIZES, SAMPLES = (1, 2, 4, 10, 50), (100, 1000, 5000)
PROPOSALS: dict[str, Any] = {
    "default": RobustProposal(),
    "guide alone": GuideProposal(),
    "heavy-tailed": HeavyTailedProposal(),
    "defensive": DefensiveProposal(),
    "refit": RefitProposal(RefitSettings(num_particles=8, max_rounds=8, num_plateaus=2)),
}
AVERAGES = {
    "plain": averages.plain,
    "pareto-smoothed": averages.pareto_smoothed,
    "jackknife-1": averages.jackknife(1),
    "jackknife-2": averages.jackknife(2),
}


class Cell(NamedTuple):
    """One setting of the study."""

    estimator: str
    posterior: str
    latents: int
    num_samples: int
    ratio: float
    shift: float


def cells(quick: bool) -> Iterator[Cell]:
    """Yield the settings; the proposals that are no default, on a part of the grid."""
    latents, samples = ((1, 4, 10), (1000,)) if quick else (SIZES, SAMPLES)
    ratios, shifts = ((0.5, 1.0, 1.25), (0.0, 1.0)) if quick else (RATIOS, SHIFTS)
    settings = itertools.product(
        PROPOSALS, ("normal", "student-t"), latents, samples, ratios, shifts
    )
    measured = (cell for setting in settings if _is_measured(cell := Cell(*setting)))
    yield from (cell for cell in measured if not (quick and cell.estimator == "refit"))


def _is_measured(cell: Cell) -> bool:
    if cell.estimator == "default":
        return True
    if cell.estimator == "refit":  # which costs most
        return (
            cell.latents in (1, 4, 10)
            and cell.num_samples == 1000
            and cell.ratio in (0.5, 1.25)
            and cell.shift <= 1
        )
    return cell.ratio in (0.5, 1.0, 1.25) and cell.shift in (0.0, 1.0, 3.0)


@functools.cache
def student_moments() -> tuple[float, float]:
    """Return log evidence and standard deviation of one latent whose posterior is close to a Student-t."""
    prior, noise = dist.Normal(0.0, PRIOR_SCALE), dist.StudentT(DEGREES)

    def density(z: float) -> float:
        place = torch.tensor(z, dtype=torch.double)
        return float((prior.log_prob(place) + noise.log_prob(place)).exp())

    mass = 2 * quad(density, 0, 200, limit=500, points=[1.0, 5.0, 20.0])[0]
    second = 2 * quad(lambda z: z * z * density(z), 0, 200, limit=500, points=[1.0, 5.0, 20.0])[0]
    return math.log(mass), math.sqrt(second / mass)


def program_of(cell: Cell) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], float]:
    """Return model, guide and exact log evidence of a datum.

    All data are zero, the latents independent.
    """
    noise_scale = math.sqrt(1 / (1 - PRIOR_SCALE**-2))  # so that the normal posterior has scale 1
    normal = cell.posterior == "normal"
    each = (
        float(
            dist.Normal(0.0, math.hypot(PRIOR_SCALE, noise_scale)).log_prob(
                torch.zeros(()).double()
            )
        )
        if normal
        else student_moments()[0]
    )
    scale = 1.0 if normal else student_moments()[1]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[0]), PRIOR_SCALE).to_event(1))
            noise = dist.Normal(z, noise_scale) if normal else dist.StudentT(DEGREES, z, 1.0)
            pyro.sample("x", noise.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = torch.zeros_like(x)
        loc[:, 0] = cell.shift * scale
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, cell.ratio * scale).to_event(1))

    return model, guide, cell.latents * each


def rows(cell: Cell, repetitions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return one row for each average: how often it is trusted, and how often its interval then holds the truth.

    The repetitions are data of one program: each has draws of its own.
    """
    model, guide, exact = program_of(cell)
    kept: dict[str, list[Average]] = {name: [] for name in AVERAGES}

    def every(log_weights: Tensor) -> Average:
        smoothed = averages.smooth(log_weights)
        with mock.patch.object(averages, "smooth", lambda _: smoothed):  # once for all averages
            for name, average in AVERAGES.items():
                kept[name].append(average(log_weights))
        return kept["plain"][-1]

    x = torch.zeros(repetitions, cell.latents)
    options = {"num_samples": cell.num_samples, "proposal": PROPOSALS[cell.estimator], "seed": seed}
    estimate = evidence(model, guide, x, average=every, **options)
    reliable = estimate.reliable
    assert reliable is not None and estimate.errors is not None
    # Rounding and the uncertainty of the error itself are added where averages end.
    added = estimate.errors / torch.cat([part.error for part in kept["plain"]])
    results = []
    for name, parts in kept.items():
        value, error, bias, _ = (torch.cat(entries) for entries in zip(*parts, strict=True))
        off, half_width = value - exact, 1.96 * torch.hypot(added * error, bias)
        covered = (off.abs() <= half_width) & reliable
        trusted = int(reliable.sum())
        results.append(
            {
                "estimator": cell.estimator,
                "average": name,
                "posterior": cell.posterior,
                "latents": cell.latents,
                "num_samples": cell.num_samples,
                "ratio": cell.ratio,
                "shift": cell.shift,
                "repetitions": repetitions,
                "trusted": trusted,
                "covered": int(covered.sum()),
                "mean_offset": f"{float(off[reliable].mean()):.5f}" if trusted else "",
                "mean_error": f"{float(half_width[reliable].mean() / 1.96):.5f}" if trusted else "",
            }
        )
    return results
