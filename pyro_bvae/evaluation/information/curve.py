r"""The rate-distortion curve of a sweep over β, held to the law of its slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError, check_beta
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.bounds import elbo_parts
from pyro_bvae.evaluation.merge import join_estimates

_PAIR = 2
# Standard errors by which a neighbour may be on the wrong side before a curve is called not
# monotone, or not convex.
_ERRORS = 3.0


class CurvePoint(NamedTuple):
    """Rate and distortion of the models of one β, which differ in their seed.

    Attributes:
        beta: The β.
        rate: Mean KL from guide to prior, nats per datum, mean over the seeds.
        distortion: Minus the mean reconstruction log-likelihood, likewise.
        rates: Of each seed.
        distortions: Of each seed.
    """

    beta: float
    rate: Estimate
    distortion: Estimate
    rates: tuple[float, ...]
    distortions: tuple[float, ...]


class Slope(NamedTuple):
    r"""The slope of the curve between two neighbouring β.

    Attributes:
        betas: The two.
        value: :math:`\Delta R / \Delta D`; NaN where the distortion does not change.
        error: Its standard error over the data, which both points share.
        law: :math:`-1 / \sqrt{\beta_1 \beta_2}`, between the slopes -1/β of the curve at its ends.
    """

    betas: tuple[float, float]
    value: float
    error: float
    law: float


@dataclass(frozen=True, eq=False)
class RateDistortion:
    r"""A rate-distortion curve; it prints itself.

    Attributes:
        points: One for each β, β rising: rate falling, distortion rising.
        num_features: Number of features D, for bits per dimension.
    """

    points: tuple[CurvePoint, ...]
    num_features: int

    @property
    def betas(self) -> list[float]:
        """The β of the points."""
        return [point.beta for point in self.points]

    @property
    def bits_per_dimension(self) -> list[tuple[float, float]]:
        r"""Rate and distortion of each point in bits per dimension: nats over :math:`D \log 2`."""
        scale = self.num_features * math.log(2)
        return [(point.rate.value / scale, point.distortion.value / scale) for point in self.points]

    @property
    def slopes(self) -> list[Slope]:
        r"""The slopes between neighbours.

        At an optimum of the β-objective :math:`D + \beta R` the curve has the slope :math:`dR/dD =
        -1/\beta` (Alemi et al. 2018), and a chord of a convex one has a slope between those at its
        ends. β = 0 has none.
        """
        return [_slope(left, right) for left, right in pairwise(self.points) if left.beta > 0]

    @property
    def knee(self) -> float:
        """The β of the point farthest below the chord of the curve (Satopää et al. 2011).

        Both axes are scaled to 1.
        """
        rates = torch.tensor([point.rate.value for point in self.points])
        distortions = torch.tensor([point.distortion.value for point in self.points])
        spans = (
            (rates.max() - rates.min()).clamp(min=1e-12),
            (distortions.max() - distortions.min()).clamp(min=1e-12),
        )
        height = (rates - rates.min()) / spans[0] + (distortions - distortions.min()) / spans[1]
        return self.points[int(height.argmin())].beta

    @property
    def monotone(self) -> bool:
        """Whether rate falls and distortion rises with β, to three standard errors."""
        return all(
            _rises(left.distortion, right.distortion) and _rises(right.rate, left.rate)
            for left, right in pairwise(self.points)
        )

    @property
    def convex(self) -> bool:
        """Whether the slopes rise with β, to three of their standard errors."""
        slopes = [slope for slope in self.slopes if math.isfinite(slope.value)]
        return all(
            b.value - a.value > -_ERRORS * math.hypot(a.error, b.error) for a, b in pairwise(slopes)
        )

    def __str__(self) -> str:
        lines = [
            f"{'β':>10}{'rate':>10}{'± error':>10}{'distortion':>12}{'± error':>10}"
            f"{'bits/dim':>10}{'slope':>11}"
        ]
        slopes = {slope.betas[0]: slope for slope in self.slopes}
        for point, (rate, distortion) in zip(self.points, self.bits_per_dimension, strict=True):
            line = f"{point.beta:>10g}{point.rate.value:>10.3f}{point.rate.standard_error:>10.3f}"
            line += f"{point.distortion.value:>12.3f}{point.distortion.standard_error:>10.3f}"
            line += f"{rate + distortion:>10.4f}"
            if slope := slopes.get(point.beta):
                line += f"{slope.value:>11.4f} ± {slope.error:.4f}, the law {slope.law:.4f}"
            lines.append(line)
        shape = f"{'' if self.monotone else 'not '}monotone, {'' if self.convex else 'not '}convex"
        return "\n".join([*lines, f"{shape}; knee at β = {self.knee:g}"])


@exclusive
def rate_distortion(
    sweep: Any,
    data: Tensor | Dataset | None = None,
    *,
    num_samples: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> RateDistortion:
    r"""Measure rate and distortion of each model of a sweep on held-out data.

    .. math:: R = \mathbb{E}_x KL(q(z|x) \,\|\, p(z)), \qquad D = -\mathbb{E}_x \mathbb{E}_q \log
        p(x|z)

    Args:
        sweep: A sweep, trained or loaded, or anything with ``runs``, or an iterable of them: each
            with ``vae`` and ``beta`` or ``training_beta``, or a pair.
        data: Held-out data ``(N, D)``; by default those of the sweep, or the test data of each
            loaded run. Where those differ between seeds, the data of all seeds are taken together.
        num_samples: Particles for each datum; the rate needs none where the KL is a closed form.
        seed: Seed of the draws, the same for every model: differences between β have little noise.
        progress: Show progress bars.

    Raises:
        InputError: if there is no model, or no data, or the runs of two β hold out other data.
    """
    runs = sorted((_pair(run) for run in _runs(sweep)), key=lambda run: run[0])
    if not runs:
        raise InputError("'sweep' must hold at least one model, got none")
    parts = _held_out(runs, getattr(sweep, "validation", None) if data is None else data)
    results: dict[float, list[tuple[Estimate, Estimate]]] = {}
    for (beta, vae, _), part in zip(runs, parts, strict=True):
        args = arguments(part.x, part.context)
        measured = elbo_parts(
            vae.model, vae.guide, *args, num_samples=num_samples, seed=seed, progress=progress
        )
        results.setdefault(beta, []).append((measured.rate, measured.distortion))
    # The seeds of a β are averaged datum by datum, or joined where each held out other data.
    join = _mean if all(_same(part, parts[0]) for part in parts) else join_estimates
    points = [_point(beta, own, join) for beta, own in results.items()]
    return RateDistortion(tuple(points), parts[0].num_features)


def _runs(sweep: Any) -> Iterable[Any]:
    runs: Iterable[Any] = getattr(sweep, "runs", sweep)
    if isinstance(runs, str | PathLike):
        raise InputError(f"'sweep' must be a sweep, got a path: give load({str(sweep)!r})")
    if isinstance(runs, type) or not isinstance(runs, Iterable):
        raise InputError(f"'sweep' must be a sweep, or pairs of β and model, got {shown(sweep)}")
    return runs


def _pair(run: Any) -> tuple[float, Any, Any]:
    """Return β, model and, of a loaded run, its test data."""
    is_pair = isinstance(run, tuple | list) and len(run) == _PAIR
    if not is_pair and not hasattr(run, "vae"):
        raise InputError(f"'sweep' must hold runs, or pairs of β and model, got {shown(run)}")
    if is_pair:
        beta, vae = run
    elif hasattr(run, "training_beta"):
        # The setting, not that of the best checkpoint's epoch, which a warm-up may hold below it.
        options = getattr(run.config, "training", None)
        given = options is not None and options.target_rate is None
        beta, vae = options.beta if options is not None and given else run.training_beta, run.vae
    else:
        beta, vae = getattr(run, "final_beta", run.beta), run.vae
    check_beta(beta)
    return float(beta), vae, getattr(getattr(run, "splits", None), "test", None)


def _held_out(runs: Sequence[tuple[float, Any, Any]], data: Any) -> list[Dataset]:
    """Return the data to measure each model on: those given, or each run's own test data."""
    if data is not None:
        return [as_dataset(data, runs[0][1])] * len(runs)
    if any(test is None for _, _, test in runs):
        raise InputError("'data' must be given: the sweep has no held-out data of its own")
    parts = [test.dense() for _, _, test in runs]
    groups: dict[float, list[Dataset]] = {}
    for (beta, _, _), part in zip(runs, parts, strict=True):
        groups.setdefault(beta, []).append(part)
    first = groups[runs[0][0]]
    same = all(_same(part, parts[0]) for part in parts)
    for beta, own in groups.items():
        if not same and not (len(own) == len(first) and all(map(_same, own, first))):
            raise InputError(
                f"'data' must be given: the runs of β = {runs[0][0]:g} and {beta:g} hold out other"
                " data"
            )
    return parts


def _same(one: Dataset, other: Dataset) -> bool:
    """Return whether two parts are of the same data in the same order."""
    return one is other or (one.x.shape == other.x.shape and torch.equal(one.x, other.x))


def _point(
    beta: float,
    parts: list[tuple[Estimate, Estimate]],
    join: Callable[[Sequence[Estimate]], Estimate],
) -> CurvePoint:
    rates, distortions = zip(*parts, strict=True)
    return CurvePoint(
        beta, join(rates), join(distortions),
        tuple(rate.value for rate in rates), tuple(distortion.value for distortion in distortions),
    )  # fmt: skip


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over seeds, datum by datum."""
    per_datum = torch.stack([estimate.per_datum for estimate in estimates]).mean(0)
    errors = [estimate.errors for estimate in estimates if estimate.errors is not None]
    error = torch.stack(errors).square().sum(0).sqrt() / len(estimates) if errors else None
    return Estimate.over_data(per_datum, error, num_samples=estimates[0].num_samples)


def _slope(left: CurvePoint, right: CurvePoint) -> Slope:
    rates = right.rate.per_datum - left.rate.per_datum
    distortions = right.distortion.per_datum - left.distortion.per_datum
    law = -1 / math.sqrt(left.beta * right.beta)
    change = float(distortions.mean())
    if abs(change) < 1e-9:
        return Slope((left.beta, right.beta), math.nan, math.nan, law)
    value = float(rates.mean()) / change
    error = float((rates - value * distortions).std() / math.sqrt(len(rates)) / abs(change))
    return Slope((left.beta, right.beta), value, error, law)


def _rises(one: Estimate, other: Estimate) -> bool:
    difference = other.per_datum - one.per_datum
    return (
        float(difference.mean())
        > -_ERRORS * float(difference.std() / math.sqrt(len(difference))) - 1e-9
    )
