"""Annealed evidence against the truth: what is called trusted, and whether its interval holds.

The repetitions of a cell are the data of one program: equal data, whose chains are independent. All
of a cell's truth is a closed form or a quadrature of one dimension. Seconds are those of one core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_bvae.evaluation import annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.oracle import LinearGaussian

# Scale of the likelihood's noise where the prior's is 1.
_NOISE, _NARROW_NOISE, _MODE_SCALE = 0.3, 0.05, 0.1
_DEGREES = {"student-5": 5.0, "student-3": 3.0}
# Mean and standard deviation of the guide: shift in posterior sds, and ratio r of the sds.
_GUIDES = {"guide r=0.5": (0.0, 0.5), "guide r=1": (0.0, 1.0), "guide shift=1": (1.0, 1.0)}
_SETTINGS = ((10, 8), (60, 32), (200, 16), (1000, 32))
_DIMENSIONS = (1, 4, 10, 50)


@dataclass(frozen=True)
class Cell:
    """One line of the study.

    Attributes:
        posterior: ``"normal"``, ``"student-5"``, ``"student-3"`` (of so many degrees of freedom),
            ``"narrow"`` (sd 0.05 of the prior's), ``"correlated"``, ``"two modes"`` (of weights 0.3
            and 0.7).
        start: ``"prior"``, or a guide.
        dimensions: Number of latents, d.
        temperatures: Of a run.
        chains: Of each repetition.
        repetitions: Data of the program.
        direction: ``"lower"``, or ``"upper"``: reverse chains of simulated data.
    """

    posterior: str
    start: str
    dimensions: int
    temperatures: int
    chains: int
    repetitions: int
    direction: str = "lower"


class Problem(NamedTuple):
    """A program whose evidence is known."""

    model: Callable[..., None]
    guide: Callable[..., None]
    x: Tensor
    truth: Callable[[Tensor], Tensor]


def annealing_cells(quick: bool = False) -> list[Cell]:
    """Return the named part of the grid, whose dearest cells have fewer repetitions.

    Its quick form has two starts, two sizes, and no posteriors beside them but at 60 temperatures.
    """
    cells = []
    settings = _SETTINGS[:3] if quick else _SETTINGS
    starts = ("prior", "guide r=0.5") if quick else ("prior", *_GUIDES)
    for temperatures, chains in settings:
        for size in (1, 4) if quick else _DIMENSIONS:
            count = _repetitions(temperatures, size, quick)
            for posterior in ("normal", "student-5"):
                for start in starts:
                    cells.append(Cell(posterior, start, size, temperatures, chains, count))
    for temperatures, chains in settings[1:2] if quick else settings:
        for posterior, size in (
            ("narrow", 1),
            ("narrow", 10),
            ("correlated", 10),
            ("two modes", 2),
            ("student-3", 4),
        ):
            count = _repetitions(temperatures, size, quick)
            cells.append(Cell(posterior, "prior", size, temperatures, chains, count))
        count = _repetitions(temperatures, 4, quick)
        cells.append(Cell("correlated", "prior", 4, temperatures, chains, count, "upper"))
    return cells


def _repetitions(temperatures: int, size: int, quick: bool) -> int:
    """Return 1,000 for 10 temperatures, 250 for 60 and 200.

    At 1,000, and at 50 latents, what seconds pay for.
    """
    if quick:
        return {10: 200, 60: 40, 200: 16}[temperatures]
    count = {10: 1000, 60: 250, 200: 250, 1000: 64}[temperatures]
    return count if size < 50 else max(32, count // 4)


def annealing_rows(cells: Iterable[Cell] | None = None, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield one line a cell.

    Args:
        cells: By default the named part of the grid.
        seed: Seed of the chains.
    """
    for cell in annealing_cells() if cells is None else cells:
        yield annealing_row(cell, seed)


def annealing_row(cell: Cell, seed: int = 0) -> dict[str, Any]:
    """Measure one cell.

    Returns:
        The cell; ``trusted``, the number of repetitions that call themselves so; ``covered``, those
        of them whose 95% interval holds the truth, and ``covered_all`` of all; ``offset`` and
        ``claimed``, the mean of estimate minus truth and of the claimed error over the trusted;
        ``bias``, the mean claimed bias; ``seconds``.
    """
    started = time.perf_counter()
    problem = _problem(cell)
    settings = AnnealingSettings(num_temperatures=cell.temperatures, num_chains=cell.chains)
    options: dict[str, Any] = {"settings": settings, "seed": seed, "start": "guide"}
    if cell.start == "prior":
        options["start"] = "prior"
    if cell.direction == "upper":
        result = bidirectional_evidence(problem.model, problem.guide, problem.x, **options)
        estimate, x = result.upper, result.simulated["x"]
    else:
        estimate, x = (
            annealed_evidence(problem.model, problem.guide, problem.x, **options),
            problem.x,
        )
    assert (
        estimate.reliable is not None
        and estimate.errors is not None
        and estimate.biases is not None
    )
    off = estimate.per_datum - problem.truth(x)
    claimed = torch.hypot(estimate.errors, estimate.biases)
    inside, trusted = off.abs() <= 1.96 * claimed, estimate.reliable
    count = int(trusted.sum())

    def mean(values: Tensor) -> float:
        return float(values[trusted].mean()) if count else math.nan

    return {
        **vars(cell),
        "trusted": count,
        "covered": int((inside & trusted).sum()),
        "covered_all": int(inside.sum()),
        "offset": mean(off),
        "claimed": mean(claimed),
        "bias": mean(estimate.biases),
        "seconds": time.perf_counter() - started,
    }


def _problem(cell: Cell) -> Problem:
    if cell.posterior == "correlated":
        return _correlated(cell)
    if cell.posterior == "two modes":
        return _two_modes(cell)
    return _independent(cell)


def _plate(x: Tensor) -> Any:
    return pyro.plate("data", len(x))


def _independent(cell: Cell) -> Problem:
    """Return a program of independent dimensions, each a prior N(0, 1) and one observation at 1."""
    scale = _NARROW_NOISE if cell.posterior == "narrow" else _NOISE
    degrees = _DEGREES.get(cell.posterior)

    def likelihood(z: Tensor) -> Any:
        return dist.Normal(z, scale) if degrees is None else dist.StudentT(degrees, z, scale)

    evidence, mean, sd = _quadrature(lambda z: likelihood(z).log_prob(torch.ones_like(z)))
    shift, ratio = _GUIDES.get(cell.start, (0.0, 1.0))

    def model(x: Tensor) -> None:
        with _plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with _plate(x):
            loc = torch.full_like(x, mean + shift * sd)
            pyro.sample("z", dist.Normal(loc, ratio * sd).to_event(1))

    x = torch.ones(cell.repetitions, cell.dimensions, dtype=torch.double)
    return Problem(model, guide, x, lambda x: torch.full_like(x[:, 0], x.shape[1] * evidence))


def _quadrature(log_likelihood: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Return log evidence, posterior mean and sd under the prior N(0, 1)."""
    grid = torch.linspace(-12, 12, 2_000_001, dtype=torch.double)
    log_joint = dist.Normal(torch.zeros_like(grid), 1.0).log_prob(grid) + log_likelihood(grid)
    evidence = log_joint.logsumexp(0) + math.log(24 / 2_000_000)
    weight = log_joint.softmax(0)
    mean = (weight * grid).sum()
    return float(evidence), float(mean), float((weight * (grid - mean).square()).sum().sqrt())


def _correlated(cell: Cell) -> Problem:
    """Return a linear-Gaussian model of two features a latent in random directions, noise 0.3."""
    size = cell.dimensions
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(2 * size, size, generator=generator, dtype=torch.double) / math.sqrt(
        2 * size
    )
    linear = LinearGaussian(weight, _NOISE)
    vae = linear.amortized_vae().double()
    one = cell.direction == "lower"
    x = linear.sample(1).expand(cell.repetitions, -1) if one else linear.sample(cell.repetitions)
    return Problem(vae.model, vae.guide, x.contiguous(), linear.evidence)


def _two_modes(cell: Cell) -> Problem:
    """Return a program whose posterior has two modes far apart, at +1 and -1 in each dimension."""
    shares = torch.tensor([0.3, 0.7], dtype=torch.double).log()
    places = torch.tensor([1.0, -1.0], dtype=torch.double)

    def model(x: Tensor) -> None:
        with _plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            modes = dist.Normal(places * x.unsqueeze(-1), _MODE_SCALE)
            terms = modes.log_prob(z.unsqueeze(-1)).sum(-2) + shares
            pyro.factor("likelihood", terms.logsumexp(-1))

    def guide(x: Tensor) -> None:
        with _plate(x):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    def truth(x: Tensor) -> Tensor:
        return dist.Normal(torch.zeros_like(x), math.hypot(1, _MODE_SCALE)).log_prob(x).sum(-1)

    return Problem(
        model, guide, torch.ones(cell.repetitions, cell.dimensions, dtype=torch.double), truth
    )
