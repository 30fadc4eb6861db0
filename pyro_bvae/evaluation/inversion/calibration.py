r"""Simulation-based calibration of an inversion (Talts et al. 2018).

Latents, x and y are drawn from the model, and each y is inverted. The truth is then one more draw
from the posterior: its rank among L draws is uniform on 0, ..., L for any posterior, whatever its
shape, and for no other answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import PREDICTIVE_STREAM, PROPOSAL_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.inversion.methods import BatchedHMCMethod, Draws, prepared
from pyro_bvae.evaluation.inversion.model import InverseProblem, Signal, check_vae
from pyro_bvae.evaluation.inversion.noise import as_noise
from pyro_bvae.evaluation.inversion.starts import PriorStart, start_chains

# Expected ranks in a bin, below which the chi-square distribution is no guide.
_LEAST_EXPECTED = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """The ranks of the truth among posterior draws, over simulated problems.

    Attributes:
        ranks: For each quantity by name, ``(N,)``, from 0 to ``num_ranked``.
        num_ranked: Draws L that the truth is ranked among.
    """

    ranks: dict[str, Tensor]
    num_ranked: int

    @property
    def p_values(self) -> dict[str, float]:
        """Of a chi-square test of uniform ranks, for each quantity, before any correction."""
        return {name: self._p_value(ranks) for name, ranks in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest p-value times the number of quantities (Bonferroni), at most 1."""
        values = self.p_values
        return min(1.0, min(values.values()) * len(values))

    def _p_value(self, ranks: Tensor) -> float:
        from scipy.stats import chi2

        places = self.num_ranked + 1
        divisors = [
            bins
            for bins in range(2, 21)
            if places % bins == 0 and len(ranks) >= _LEAST_EXPECTED * bins
        ]
        if not divisors:
            raise InputError(
                f"{len(ranks)} problems are too few to test ranks among {self.num_ranked} draws"
            )
        bins = max(divisors)
        counts = torch.bincount(ranks * bins // places, minlength=bins).double()
        expected = len(ranks) / bins
        return float(chi2.sf(float((counts - expected).square().sum() / expected), bins - 1))

    def coverage(self, level: float = 0.9) -> dict[str, Estimate]:
        """Return how often the central interval of a level holds the truth, for each quantity.

        Raises:
            InputError: for a level that the number of draws has no exact interval for.
        """
        places = self.num_ranked + 1
        outside = round(places * (1 - level) / 2)
        if not 0 < level < 1 or abs(outside - places * (1 - level) / 2) > 1e-6:
            raise InputError(
                f"'level' must leave whole ranks out at both ends of {places}, got {level}"
            )
        inside = {
            name: (ranks >= outside) & (ranks < places - outside)
            for name, ranks in self.ranks.items()
        }
        return {name: Estimate.over_data(held.double()) for name, held in inside.items()}

    def __str__(self) -> str:
        lines = [f"{name}: p {self.p_values[name]:.3f}, 90% intervals cover {held.value:.1%}"
                 for name, held in self.coverage().items()]  # fmt: skip
        return "\n".join(
            [*lines, f"corrected for {len(self.ranks)} quantities: p {self.p_value:.3f}"]
        )


@exclusive
def calibrate(
    vae: Any,
    operator: Callable[[Tensor], Tensor],
    noise: Callable[[Tensor], Any] | float,
    *,
    prior: Callable[[], Any] | None = None,
    signal: Signal | None = None,
    method: Callable[..., Draws] | None = None,
    context: Context | None = None,
    num_problems: int = 200,
    num_ranked: int = 99,
    seed: int = 0,
) -> Calibration:
    """Simulate problems from the model, invert each, and rank the truth among the draws.

    The ranked quantities are each latent, the mean and the first feature of x, and an inferred
    noise scale.

    Args:
        vae: A model with a ``prior`` and a ``decoder``.
        operator: As for :func:`invert`.
        noise: As for :func:`invert`, but an inferred scale is spelled ``NormalNoise(width=...)``,
            whose prior the problems are drawn from.
        prior: As for :func:`invert`: problems are drawn from it too.
        signal: As for :func:`invert`.
        method: By default :class:`BatchedHMCMethod`, which takes all problems at once.
        context: The context of the problems, one row for each.
        num_problems: N.
        num_ranked: L, draws spread evenly over those of the method, which are to be nearly
            independent; 19, 99 and 199 have exact 90% intervals.
        seed: Of problems and chains.

    Raises:
        InputError: as :func:`invert`; also if the method draws too few.
    """
    check_count("num_problems", num_problems)
    check_count("num_ranked", num_ranked)
    check_vae(vae)
    method = method or BatchedHMCMethod()
    problem = InverseProblem(prior or vae.prior, vae.decoder, operator, as_noise(noise), signal)
    with prepared(problem):
        problem.settle(num_problems, context)
        truth = problem.simulate(num_problems, context, seed)
        problem.check(truth.y, context)
        num_chains = getattr(method, "num_chains", 1)
        begin = start_chains(
            vae,
            problem,
            truth.y,
            context,
            [PriorStart()],
            num_chains,
            stream_seed(seed, PROPOSAL_STREAM),
        )
        results = method(problem, truth.y, context, begin, seed)
        drawn = {name: value.flatten(0, 1) for name, value in results.sites.items()}
        total = len(drawn["z"])
        if total < num_ranked:
            raise InputError(
                f"'num_ranked' must be at most the {total} draws of the method, got {num_ranked}"
            )
        kept = torch.linspace(0, total - 1, num_ranked).round().long()
        drawn = {name: value[kept] for name, value in drawn.items()}
        with seeded(seed, PREDICTIVE_STREAM):
            x = problem.restore(drawn, truth.y, context)
            ranks = _ranks(_quantities(truth.sites, truth.x), _quantities(drawn, x))
    return Calibration(ranks, num_ranked)


def _quantities(sites: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    results = {f"z[{index}]": part for index, part in enumerate(sites["z"].unbind(-1))}
    results |= {name: value for name, value in sites.items() if name != "z"}
    return results | {"mean of x": x.mean(-1), "x[0]": x[..., 0]}


def _ranks(truth: dict[str, Tensor], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return how many draws lie below the truth; ties, as counts have, are broken at random."""
    ranks = {}
    for name, values in drawn.items():
        ties = (values == truth[name]).sum(0)
        share = (torch.rand(ties.shape) * (ties + 1).cpu()).floor().long()
        ranks[name] = (values < truth[name]).sum(0).cpu() + share
    return ranks
