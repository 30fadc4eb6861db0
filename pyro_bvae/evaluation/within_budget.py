"""An evaluation in a given time, the most telling measurements first.

A few data tell how fast the program is and whether its weights can be trusted. Bound, rate, KL and
evidence come next, of as many data as fit. Gaps follow block by block, and annealing takes the time
that is left. Time decides on counts alone: a plan of the same counts gives the same numbers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_beta
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import BLOCK_STREAM, CHOICE_STREAM, stream_seed
from pyro_bvae.evaluation._evaluate import Evaluation, annealed, gaps_note, given_of
from pyro_bvae.evaluation.estimate import METHODS, Estimate
from pyro_bvae.evaluation.gaps.measure import gaps_and_refits
from pyro_bvae.evaluation.gaps.result import InferenceGaps
from pyro_bvae.evaluation.marginal.bounds import ElboParts, elbo_parts, kl_per_dimension
from pyro_bvae.evaluation.marginal.escalation import (
    Escalation,
    Refitted,
    escalate,
    escalation_of,
    with_rows,
)
from pyro_bvae.evaluation.marginal.importance import evidence
from pyro_bvae.evaluation.merge import join_gaps
from pyro_bvae.evaluation.plan import Budget, Plan
from pyro_bvae.evaluation.refit.joint_guides import family_of
from pyro_bvae.evaluation.refit.settings import RefitSettings
from pyro_bvae.program.arguments import take
from pyro_bvae.program.program import Function, open_program

# Data and samples of the first look, and of the one before, which has the libraries loaded.
_LOOK, _WARM = (64, 256), (4, 16)
# Samples that the evidence may have, and those behind the bound and, at least, behind the gaps.
_SAMPLES, _BOUND_SAMPLES, _GAP_SAMPLES = (500, 1000, 2000, 5000), 100, 1000
# A Monte Carlo error is small enough below this share of the standard error over data.
_SMALL = 0.1
# Weights are worth more time where they can be trusted for this share of the data.
_TRUSTED = 0.9
# Shares of the time by which evidence, the same where the weights cannot be trusted, gaps (where
# something is left to anneal), and all are over.
_EVIDENCE, _DOUBTFUL, _GAPS, _ALL = 0.3, 0.15, 0.7, 0.92
# Data of the gaps that are enough to stand for all, where the evidence of the others is in doubt.
_ENOUGH = 50
# Decoder evaluations of the refits of a datum, gradients counted, by which the first block of gaps
# is sized, and the share of the time for it.
_REFIT, _FIRST = 60_000, 0.1
# Data of a block of gaps, at least and at most.
_BLOCK = (4, 512)
# A step of a chain takes as long as so many evaluations.
_GRADIENT = 3
# The place in METHODS of an estimate that refits are behind.
_REFITTED = METHODS.index("refit")


@exclusive
def evaluate_within(
    model: Function,
    guide: Function,
    *args: Any,
    within: float | Budget | Plan = 60.0,
    training_beta: float = 1.0,
    families: tuple[str, ...] = (),
    method: Literal["auto", "importance"] | Escalation = "auto",
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    r"""Measure as much of what :func:`~pyro_bvae.evaluation.evaluate` does as a time allows.

    Some of the data are drawn by the seed. Their ELBO, rate, KL and evidence come first, with K
    samples such that the Monte Carlo error is a tenth of the standard error over data. The gaps
    follow, of some of these data, and then annealing, where the evidence cannot be trusted. If that
    of all cannot be trusted in the end, and gaps of 50 data or more are there, everything is of
    these data alone, whose evidence is by their refits.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        within: Seconds, a :class:`~pyro_bvae.evaluation.plan.Budget` that fixes some of the
            counts, or the :class:`~pyro_bvae.evaluation.plan.Plan` of another evaluation, whose
            counts are taken.
        training_beta: The β that the guide was trained with; at 0 there are no gaps.
        families: Richer families to fit to each datum of the gaps too.
        method: Whether evidence that cannot be trusted is annealed: ``"auto"``, ``"importance"`` or
            an :class:`~pyro_bvae.evaluation.marginal.Escalation`, whose budget is not used.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of all draws.
        progress: Show progress bars.

    Returns:
        The evaluation, with its ``plan`` and the numbers of the data that it is of, ``drawn``.

    Raises:
        InputError: as of :func:`~pyro_bvae.evaluation.evaluate`, and for a plan of more data than
            there are.
    """
    for name in families:
        family_of(name)
    check_beta(training_beta)
    escalation = escalation_of(method)
    with open_program(
        model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
    ) as program:
        size, note = program.num_data, gaps_note(program, training_beta)
    generator = torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM))
    measuring = _Measuring(
        model, guide, args, training_beta, families, escalation,
        {"data_plate": data_plate, "seed": seed, "progress": progress},
        torch.randperm(size, generator=generator), note,
    )  # fmt: skip
    if not isinstance(within, Budget | Plan):
        within = Budget(float(within))
    if not (within.gap_blocks if isinstance(within, Plan) else within.gaps):
        measuring = replace(measuring, note=note or "not measured here")
    if isinstance(within, Budget):
        return measuring.run(_Timed(within, time.monotonic()))
    if within.num_data > size:
        raise InputError(f"'within' plans {within.num_data} data, and there are {size}")
    return measuring.run(_Planned(within))


class _Start(NamedTuple):
    """The first counts: of the data and their samples, and whether the evidence is apart.

    Else it is that of the gaps, of all these data.
    """

    num_data: int
    num_samples: int
    apart: bool
    gap_samples: int


class _Pace(Protocol):
    """Decides how much is measured, step by step."""

    def start(self, measuring: _Measuring) -> _Start: ...

    def block(self, left: int, untrusted: bool) -> int:
        """Return the data of the next block of gaps, of those that are left; 0 for no more."""
        ...

    def annealing(self) -> int:
        """Return the evaluations that annealing may take."""
        ...


class _Planned:
    """The counts of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.blocks = plan, list(plan.gap_blocks)

    def start(self, measuring: _Measuring) -> _Start:
        plan = self.plan
        apart = plan.num_data > plan.num_gaps
        return _Start(plan.num_data, plan.num_samples, apart, plan.gap_samples)

    def block(self, left: int, untrusted: bool) -> int:
        return self.blocks.pop(0) if self.blocks else 0

    def annealing(self) -> int:
        return self.plan.annealing


class _Timed:
    """The counts that fit into a budget of time, by how long the last ones took.

    Args:
        budget: The budget.
        begun: When its time began.
    """

    def __init__(self, budget: Budget, begun: float) -> None:
        self.budget, self.begun = budget, begun
        self.rate = 1.0  # evaluations a second
        self.last, self.since = 0, begun  # data of the last block, and when it began

    def left(self, share: float) -> float:
        """Return the seconds until a share of the time is over."""
        return self.begun + share * self.budget.seconds - time.monotonic()

    def start(self, measuring: _Measuring) -> _Start:
        look, self.rate = measuring.look()
        data, samples = self.budget.num_data, self.budget.num_samples
        trusted = look.untrusted <= (1 - _TRUSTED) * len(look.per_datum)
        share = _ALL if measuring.note is not None else _EVIDENCE if trusted else _DOUBTFUL
        affordable = self.rate * max(0.0, self.left(share))
        size = len(measuring.order)

        def fits(count: int) -> int:
            least = len(look.per_datum)
            return min(size, max(least, int(affordable / (count + _BOUND_SAMPLES))))

        if samples is None and not trusted:  # more samples would mend nothing, more data do
            samples = _GAP_SAMPLES
        if samples is None:
            small = (count for count in _SAMPLES if _is_small(look, count, data or fits(count)))
            samples = next(small, _SAMPLES[-1])
        gap_samples = self.budget.num_samples or max(samples, _GAP_SAMPLES)
        count = fits(samples) if data is None else min(size, data)
        return _Start(count, samples, True, gap_samples)

    def block(self, left: int, untrusted: bool) -> int:
        now, seconds = time.monotonic(), self.left(_GAPS if untrusted else _ALL)
        least, most = _BLOCK
        if not self.last:
            count = int(_FIRST * seconds * self.rate / _REFIT)
            count = min(max(count, least), most // 8)
        else:
            count = int(0.8 * seconds * self.last / (now - self.since))
            if count < max(least, self.last // 4):
                return 0
        self.last, self.since = min(count, most, left), now
        return self.last

    def annealing(self) -> int:
        return int(max(0.0, self.left(_ALL)) * self.rate / _GRADIENT)


def _is_small(look: Estimate, num_samples: int, num_data: int) -> bool:
    """Whether the error of so many samples is small beside that of so many data."""
    assert look.errors is not None and look.biases is not None
    share = look.num_samples / num_samples
    noise = float(look.errors.square().mean().sqrt()) * math.sqrt(share / num_data)
    bias = float(look.biases.mean()) * share
    spread = float(look.per_datum.std()) if len(look.per_datum) > 1 else 0.0
    return math.hypot(noise, bias) <= _SMALL * spread / math.sqrt(num_data)


@dataclass(frozen=True)
class _Measuring:
    """A program, its data in the order in which they are taken, and the settings."""

    model: Function
    guide: Function
    args: tuple[Any, ...]
    training_beta: float
    families: tuple[str, ...]
    escalation: Escalation | None
    options: dict[str, Any]
    order: Tensor
    note: str | None  # why there are no gaps

    def of(self, rows: Tensor) -> tuple[Any, ...]:
        """Return the arguments of some of the data."""
        return take(self.args, len(self.order), rows)

    def look(self) -> tuple[Estimate, float]:
        """Return the evidence of a few data, and the evaluations a second."""
        options = {**self.options, "progress": False, "compile": False}
        for count, samples in (_WARM, _LOOK):
            begun, args = time.monotonic(), self.of(self.order[:count].sort().values)
            look = evidence(self.model, self.guide, *args, num_samples=samples, **options)
        return look, look.cost / max(time.monotonic() - begun, 1e-6)

    def run(self, pace: _Pace) -> Evaluation:
        """Measure by the counts of a pace, and write them down."""
        start = pace.start(self)
        rows, annealing = self.order[: start.num_data].sort().values, 0
        blocks: list[Tensor] = []
        whole = self._whole(rows, start.num_samples) if start.apart else None
        gaps = None
        if self.note is None:
            gaps, blocks, annealing = self._gaps(pace, start)
            measured = torch.cat(blocks)
            if whole is not None:
                places = torch.searchsorted(rows, measured)
                whole = (with_rows(whole[0], places, gaps.evidence, _REFITTED), whole[1])
            doubtful = whole is None or (not whole[0].trusted and len(measured) >= _ENOUGH)
            if doubtful or len(measured) == len(rows):
                rows, whole = measured, (gaps.evidence, gaps.bound)
        assert whole is not None, "without gaps, the evidence stands apart"
        likelihood, bound = whole
        if gaps is None and likelihood.untrusted and self.escalation is not None:
            annealing = pace.annealing()
            likelihood = self._annealed(likelihood, rows, [], annealing)
        plan = Plan(
            len(rows), start.num_samples, tuple(map(len, blocks)),
            start.gap_samples if blocks else 0, annealing,
        )  # fmt: skip
        args = self.of(rows)
        own = {name: self.options[name] for name in ("data_plate", "seed")}
        kl = kl_per_dimension(self.model, self.guide, *args, **own)
        return Evaluation(
            self.training_beta, likelihood, bound, gaps, self.note, kl, given_of(args),
            plan=plan, drawn=rows,
        )  # fmt: skip

    def _whole(self, rows: Tensor, num_samples: int) -> tuple[Estimate, ElboParts]:
        """Return evidence and bound of data, by the guide's own weights."""
        args = self.of(rows)
        bound = elbo_parts(
            self.model, self.guide, *args, num_samples=_BOUND_SAMPLES, **self.options
        )
        weighed = evidence(self.model, self.guide, *args, num_samples=num_samples, **self.options)
        return weighed, bound

    def _gaps(self, pace: _Pace, start: _Start) -> tuple[InferenceGaps, list[Tensor], int]:
        """Return gaps, the data of each of their blocks, and what annealing was allowed."""
        settings = RefitSettings() if self.escalation is None else self.escalation.refit
        settings = replace(settings, families=self.families)
        parts: list[InferenceGaps] = []
        blocks: list[Tensor] = []
        refits: list[Refitted] = []
        done, untrusted = 0, False
        while done < start.num_data and (count := pace.block(start.num_data - done, untrusted)):
            rows = self.order[done : done + count].sort().values
            stream = stream_seed(self.options["seed"], BLOCK_STREAM, len(blocks))
            part, fitted = gaps_and_refits(
                self.model, self.guide, self.of(rows), training_beta=self.training_beta,
                num_samples=start.gap_samples, settings=settings,
                **{**self.options, "seed": stream},
            )  # fmt: skip
            refits += [(done + places, guide) for places, guide in fitted]
            parts.append(part)
            blocks.append(rows)
            done += count
            untrusted |= self.escalation is not None and part.evidence.untrusted > 0
        gaps = join_gaps(parts)
        if self.escalation is None:
            return gaps, blocks, 0
        annealing = pace.annealing() if untrusted else 0
        likelihood = self._annealed(gaps.evidence, torch.cat(blocks), refits, annealing)
        return annealed(gaps, likelihood), blocks, annealing

    def _annealed(
        self, first: Estimate, rows: Tensor, refits: list[Refitted], evaluations: int
    ) -> Estimate:
        """Return the evidence of data, annealed where it cannot be trusted."""
        assert self.escalation is not None
        settings = replace(self.escalation, budget=first.cost + evaluations)
        return escalate(
            self.model, self.guide, self.of(rows), first, None, settings, refits=refits,
            **self.options,
        )  # fmt: skip
