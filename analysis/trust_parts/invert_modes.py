r"""Planted inverse problems of two modes and of one: are the modes of the first found, and the second left in peace?

    python -m analysis.trust_parts.invert_modes --method variational

Two modes: an absolute value or a square is seen, under a prior that leans to one side, or the prior
is a mixture of two normals. They lie 3 to 10 posterior standard deviations apart (5 to 10 for
squares, which have one mode below) with 0.05 to 0.5 of the mass in the lighter one, in a random
direction among d = 1, 2 or 5 latents. The truth is a quadrature along that direction. One mode:
normal, skewed, banana-shaped and heavy-tailed posteriors. A result is *found* if the share of draws
on each side is the truth's within 0.03 and three standard errors, *flagged* if it names a problem.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bvae import invert
from pyro_bvae.distributions import NormalMixture
from pyro_bvae.evaluation.inversion import (
    BatchedHMCMethod,
    Inversion,
    MeanSignal,
    NUTSMethod,
    VariationalMethod,
)

METHODS: dict[str, Any] = {
    "variational": VariationalMethod(num_draws=1000, num_steps=200, num_particles=16),
    "batched": BatchedHMCMethod(
        num_chains=8, num_draws=160, num_warmup=80, leapfrog_steps=3, target_acceptance=0.9
    ),
    "nuts": NUTSMethod(num_chains=4, num_draws=150, num_warmup=100),
}
DIMENSIONS = (1, 2, 5)
GRID = torch.linspace(-12, 12, 48_001, dtype=torch.double)


@dataclass
class Planted:
    """A problem with its truth.

    Attributes:
        kind: Its family.
        prior: p(z).
        mean: From z to the decoder's mean.
        noise: From the mean to a distribution of y.
        y: What was seen.
        axis: The direction of the modes, ``(d,)``.
        separation: Distance of the modes in posterior standard deviations; 0 for one mode.
        share: Posterior mass on the upper side of the axis; NaN for one mode.
    """

    kind: str
    prior: dist.Distribution
    mean: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Any]
    y: Tensor
    axis: Tensor
    separation: float = 0.0
    share: float = math.nan


class _Parts:
    """As much of a VAE as an inversion needs."""

    def __init__(self, planted: Planted) -> None:
        self.planted = planted

    def prior(self) -> dist.Distribution:
        """Return p(z)."""
        return self.planted.prior

    def decoder(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), whose mean is all that is seen."""
        return dist.Normal(self.planted.mean(z), torch.ones_like(self.planted.y)).to_event(1)


def _share(log_density: Tensor) -> float:
    return float(log_density.softmax(0)[GRID > 0].sum())


def _leaning(wanted: float, log_density: Callable[[float], Tensor]) -> float:
    """Return the lean at which the upper side has the wanted share, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(log_density(middle)) < wanted else (low, middle)
    return (low + high) / 2


def two_modes(index: int, seed: int) -> Planted:
    """Return a problem of two modes; the number says family and dimension, the seed all else."""
    random = torch.Generator().manual_seed(10_000 * seed + index)
    kind = ("absolute value", "square", "mixture prior")[index % 3]
    size = DIMENSIONS[index // 3 % 3]
    uniform = torch.rand(4, generator=random, dtype=torch.double).tolist()
    least = 5.0 if kind == "square" else 3.0
    separation, place = least + (10 - least) * uniform[0], 0.6 + 0.8 * uniform[1]
    light = 0.05 * 10 ** uniform[2]
    wanted = light if uniform[3] < 0.5 else 1 - light
    turn = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.double))[0]
    width = 2 * place / separation
    scales = 0.3 * torch.ones(size, dtype=torch.double)
    y = torch.randn(size, generator=random, dtype=torch.double)
    build = _mixture_prior if kind == "mixture prior" else _folded
    return build(kind, turn, scales, y, (separation, place, width, wanted))


def _folded(
    kind: str, turn: Tensor, scales: Tensor, y: Tensor, shape: tuple[float, float, float, float]
) -> Planted:
    separation, place, width, wanted = shape
    fold: Callable[[Tensor], Tensor] = torch.abs if kind == "absolute value" else torch.square
    if kind == "absolute value":
        scales[0] = (1 / (1 / width**2 - 1)) ** 0.5 if width < 1 else 10.0
        y[0] = place * (1 + scales[0] ** 2)
    else:
        scales[0], y[0] = 2 * place * width, place**2
    seen = -0.5 * ((fold(GRID) - y[0]) / scales[0]).square()
    lean = _leaning(wanted, lambda centre: seen - 0.5 * (GRID - centre).square())
    centre = torch.zeros_like(y)
    centre[0] = lean

    def mean(z: Tensor) -> Tensor:
        turned = z @ turn
        return torch.cat([fold(turned[..., :1]), turned[..., 1:]], -1)

    prior = dist.Normal(turn @ centre, torch.ones_like(y)).to_event(1)
    share = _share(seen - 0.5 * (GRID - lean).square())
    return Planted(
        kind,
        prior,
        mean,
        lambda s: dist.Normal(s, scales).to_event(1),
        y,
        turn[:, 0],
        separation,
        share,
    )


def _mixture_prior(
    kind: str, turn: Tensor, scales: Tensor, y: Tensor, shape: tuple[float, float, float, float]
) -> Planted:
    separation, place, width, wanted = shape
    scales[0] = 2.0
    y[0] = 0.5 * y[0]
    own = (1 / (1 / width**2 - 1 / scales[0] ** 2)) ** 0.5 if width < scales[0] else width
    own = torch.as_tensor(own, dtype=torch.double)
    seen = -0.5 * ((GRID - y[0]) / scales[0]).square()

    def density(lean: float) -> Tensor:
        sides = [
            -0.5 * ((GRID - side * place) / own).square() + side * lean / 2 for side in (-1, 1)
        ]
        return torch.stack(sides).logsumexp(0) + seen

    lean = _leaning(wanted, density)
    centres = torch.zeros(2, len(y), dtype=torch.double)
    centres[:, 0] = torch.tensor([-place, place])
    logits = torch.tensor([-lean / 2, lean / 2], dtype=torch.double)
    prior = NormalMixture(logits, centres @ turn.T, own.expand_as(centres))
    return Planted(
        kind, prior, lambda z: z @ turn, lambda s: dist.Normal(s, scales).to_event(1), y, turn[:, 0], separation,
        _share(density(lean)),
    )  # fmt: skip


def one_mode(index: int, seed: int) -> Planted:
    """Return a problem of one mode; the number says family and dimension, the seed all else."""
    random = torch.Generator().manual_seed(10_000 * seed + 5_000 + index)
    kind = ("normal", "skewed", "banana", "heavy noise", "heavy prior")[index % 5]
    size = DIMENSIONS[index // 5 % 3]
    size = max(size, 2) if kind == "banana" else size
    turn = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.double))[0]
    strength = float(torch.rand((), generator=random, dtype=torch.double))
    y = torch.randn(size, generator=random, dtype=torch.double).clamp(-1.5, 1.5)
    scales = 0.2 + 0.6 * torch.rand(size, generator=random, dtype=torch.double)
    weights = torch.randn(size, size, generator=random, dtype=torch.double) / size**0.5
    ones = torch.ones(size, dtype=torch.double)
    prior: dist.Distribution = dist.Normal(0 * ones, ones).to_event(1)
    noise: Callable[[Tensor], Any] = lambda s: dist.Normal(s, scales).to_event(1)  # noqa: E731
    mean: Callable[[Tensor], Tensor] = lambda z: z @ weights  # noqa: E731
    if kind == "skewed":
        y[0] = y[0].abs() / 2
        mean = lambda z: _skewed(z @ turn, 0.5 + strength)  # noqa: E731
    elif kind == "banana":
        scales[0] = 3.0
        mean = lambda z: _bent(z @ turn, 0.2 + 0.3 * strength)  # noqa: E731
    elif kind == "heavy noise":
        noise = lambda s: dist.StudentT(3.0, s, scales).to_event(1)  # noqa: E731
        mean, y = lambda z: z @ turn, y.clamp(-0.7, 0.7)
    elif kind == "heavy prior":
        prior, mean = dist.StudentT(3.0, 0 * ones, ones).to_event(1), lambda z: z @ turn
        scales = 1 + scales
    return Planted(kind, prior, mean, noise, y, turn[:, 0])


def _skewed(turned: Tensor, strength: float) -> Tensor:
    return torch.cat([(strength * turned[..., :1]).exp(), turned[..., 1:]], -1)


def _bent(turned: Tensor, bend: float) -> Tensor:
    second = turned[..., 1:2] + bend * (turned[..., :1].square() - 1)
    return torch.cat([turned[..., :1], second, turned[..., 2:]], -1)


def solve(planted: Planted, method: str, seed: int) -> Inversion:
    """Invert a planted problem."""
    return invert(
        _Parts(planted),
        planted.y,
        lambda x: x,
        planted.noise,
        signal=MeanSignal(),
        method=METHODS[method],
        seed=seed,
    )


def invert_rows(
    num_problems: int = 50, seed: int = 0, method: str = "variational"
) -> list[dict[str, Any]]:
    """Solve as many problems of two modes as of one, and return a row for each.

    Args:
        num_problems: Of each kind.
        seed: Of problems and methods.
        method: ``"variational"``, ``"batched"`` or ``"nuts"``.

    Returns:
        Rows with ``method``, ``modes`` (2 or 1), ``kind``, ``dimension``, ``separation``, ``truth``
        and ``share`` (mass and draws on the upper side), ``result``, ``flagged``, ``right`` (found
        or flagged; of one mode: not flagged), ``problem`` and ``seconds``.
    """
    rows = []
    for modes, plant in ((2, two_modes), (1, one_mode)):
        for index in range(num_problems):
            planted = plant(index, seed)
            begun = time.perf_counter()
            result = solve(planted, method, seed + index)
            rows.append(_row(planted, result, modes, method, time.perf_counter() - begun))
    return rows


def _row(
    planted: Planted, result: Inversion, modes: int, method: str, seconds: float
) -> dict[str, Any]:
    share = float(((result.z @ planted.axis) > 0).double().mean())
    truth, flagged = planted.share, result.problem is not None
    error = (
        (truth * (1 - truth) / max(result.effective_draws, 1.0)) ** 0.5 if modes == 2 else math.nan
    )
    seen = abs(share - truth) <= 0.03 + 3 * error and 0 < share < 1
    return {
        "method": method,
        "modes": modes,
        "kind": planted.kind,
        "dimension": len(planted.y),
        "separation": planted.separation,
        "truth": truth,
        "share": share,
        "found": seen if modes == 2 else not flagged,
        "flagged": flagged,
        "right": (seen or flagged) if modes == 2 else not flagged,
        "problem": result.problem or "",
        "seconds": seconds,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Say how many of the rows are right."""
    two, one = ([row for row in rows if row["modes"] == modes] for modes in (2, 1))
    result, right = sum(row["found"] for row in two), sum(row["right"] for row in two)
    alarms, seconds = sum(row["flagged"] for row in one), sum(row["seconds"] for row in rows)
    return (
        f"{rows[0]['method']}: of {len(two)} posteriors of two modes {result} have both with their "
        f"shares, {right} have"
        f" or are flagged; of {len(one)} of one mode {alarms} are flagged; {seconds:.0f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=list(METHODS), default="variational")
    parser.add_argument(
        "--num-problems", type=int, default=50, help="of each kind; 12 of NUTS, which is slow"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    table = invert_rows(given.num_problems, given.seed, given.method)
    for line in table:
        if not line["right"]:
            print(line)
    print(summary(table))
