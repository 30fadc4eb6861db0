"""Evidence by the cheapest estimator that can be trusted, chosen for each datum.

The guide's importance samples come first. Data whose weights cannot be trusted are measured again
with a refitted guide, and those that still cannot by annealing, from the guide and from the prior.
All of them are lower bounds in expectation. So an estimate that lies below another by more than
their errors has missed something, and the higher one stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.annealing import anneal, data_together
from pyro_bvae.evaluation.marginal.annealing_run import Start
from pyro_bvae.evaluation.marginal.proposals import Component, RefitProposal
from pyro_bvae.evaluation.marginal.tails import scores_prior_draws
from pyro_bvae.evaluation.marginal.temperatures import PILOT_MOVES, AnnealingSettings
from pyro_bvae.evaluation.refit.local_guides import LocalGuide, guide_of_rows
from pyro_bvae.evaluation.refit.optimisation import RefitSettings, most_evaluations, refit_refusal
from pyro_bvae.program.arguments import take
from pyro_bvae.program.differentiability import missing_gradient
from pyro_bvae.program.program import Function, Program, open_program

# Data that are measured again together.
_TOGETHER = 64
# What the default budget allows in the mean, in samples of the first estimate.
_DEFAULT_BUDGET = 100
# The last annealing has so many times the temperatures of the first.
_LONGER = 4
# One from a refitted guide has so many times fewer.
_NEARER = 2
# Errors by which two estimates of a datum may lie apart.
_AGREE = 3.0
_FIELDS = ("per_datum", "errors", "biases", "effective_sample_size", "pareto_k", "reliable")
# Places in METHODS.
_REFIT, _ANNEALING = 1, 2


@dataclass(frozen=True)
class Escalation:
    """How evidence goes on for data whose importance weights cannot be trusted.

    Attributes:
        budget: Decoder evaluations that the evidence of all data together may cost; by default 100
            times those of its samples. Data that it does not reach keep their estimate, and are
            untrusted.
        refit: How guides are refitted.
        annealing: How chains run, from the guide and from the prior; once more from the prior with
            four times the temperatures for data that stay untrusted.
    """

    budget: int | None = None
    refit: RefitSettings = field(default_factory=RefitSettings)
    annealing: AnnealingSettings = field(default_factory=lambda: AnnealingSettings(num_chains=16))

    def __post_init__(self) -> None:
        if self.budget is not None and not (type(self.budget) is int and self.budget > 0):
            raise InputError(f"'budget' must be a positive integer or None, got {self.budget!r}")


def escalation_of(method: Any) -> Escalation | None:
    """Return the settings of a method, or None for importance sampling alone.

    Raises:
        InputError: for another method.
    """
    escalation = Escalation() if isinstance(method, str) and method == "auto" else method
    if isinstance(escalation, Escalation):
        return escalation
    if isinstance(method, str) and method == "importance":
        return None
    raise InputError(f"'method' must be 'importance', 'auto' or an Escalation, got {method!r}")


Estimator = Callable[..., Estimate]


# The numbers of some data, in rising order, and their refitted guide.
Refitted = tuple[Tensor, LocalGuide]


class _Rung(NamedTuple):
    """One estimator of some data, its place in METHODS, and the most evaluations of a datum."""

    method: int
    most: int
    estimator: Callable[[tuple[Any, ...], Tensor, int], Estimate]


def escalate(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    first: Estimate,
    importance: Estimator | None,
    settings: Escalation,
    *,
    refits: Sequence[Refitted] = (),
    seed: int,
    data_plate: str | None,
    progress: bool,
) -> Estimate:
    """Return the evidence with its untrusted data measured again.

    Args:
        model: A Pyro model.
        guide: Its guide.
        args: The arguments of both.
        first: The evidence of all data by importance sampling.
        importance: Importance sampling from a ``proposal`` with a ``seed``; None where ``first``
            is of refitted guides already.
        settings: Budget and settings of the estimators.
        refits: Guides that ``first`` is of.
        seed: Seed of the draws.
        data_plate: Name of the data plate.
        progress: Show progress bars.
    """
    size, spent = len(first.per_datum), first.cost
    method = 0 if importance is not None else _REFIT
    budget = settings.budget or _DEFAULT_BUDGET * first.num_samples * size
    methods = torch.full((size,), method, dtype=torch.uint8)
    whole = replace(first, methods=methods, budget=max(budget, spent))
    if not first.untrusted:
        return whole
    with open_program(
        model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
    ) as program:
        if not program.sliceable:
            return whole  # a datum cannot be measured without the others
        ladder = _Ladder(model, guide, importance, settings, [*refits], data_plate, progress)
        rungs = ladder.rungs(program, first.num_samples)
    for place, rung in enumerate(rungs):
        left = torch.tensor(whole.untrusted_rows)
        # What is left of the most that the data may take goes to the next ones.
        while (
            count := min(len(left), _TOGETHER, ladder.together, (budget - spent) // rung.most)
        ) > 0:
            rows, left = left[:count], left[count:]
            stream = stream_seed(seed, place, int(rows[0]))
            try:
                again = rung.estimator(take(args, size, rows), rows, stream)
            except InputError:  # such as latents that have no coordinates
                break
            spent += again.cost
            whole = _with_rows(whole, rows, again, rung.method)
    return replace(whole, cost=spent)


def most_of_a_run(chains: AnnealingSettings, times: int) -> int:
    """Return the most evaluations that annealing a datum may take, pilot run and all."""
    moves = times * chains.num_temperatures * chains.num_chains
    pilot = PILOT_MOVES * chains.pilot_temperatures * chains.pilot_chains
    return (moves + pilot) * (chains.leapfrog_steps + 1)


@dataclass
class _Ladder:
    """The estimators of a program, from cheap to dear, and the guides that were refitted."""

    model: Function
    guide: Function
    importance: Estimator | None
    settings: Escalation
    refits: list[Refitted]
    data_plate: str | None
    progress: bool

    @property
    def together(self) -> int:
        """How many data at most are measured together."""
        return data_together(self.settings.annealing)

    def rungs(self, program: Program, num_samples: int) -> list[_Rung]:
        """Return the estimators that a program has."""
        rungs, fits, chains = [], self.settings.refit, self.settings.annealing
        alone = program.proposes_latents_alone
        if self.importance and alone and refit_refusal(program) is None:
            rungs.append(_Rung(_REFIT, num_samples + most_evaluations(fits), self._refitted))
        if missing_gradient(program) is not None:
            return rungs
        near = rungs or self.refits or scores_prior_draws(program, self.guide)
        first = self._annealed if near else self._from_prior
        once = most_of_a_run(chains, 1)
        return [
            *rungs,
            _Rung(_ANNEALING, 2 * once if near else once, first),
            _Rung(_ANNEALING, most_of_a_run(chains, _LONGER), self._longer),
        ]

    def _refitted(self, args: tuple[Any, ...], rows: Tensor, seed: int) -> Estimate:
        """Return the evidence by the guide and its refit, which is kept."""
        proposal, importance = _Kept(RefitProposal(self.settings.refit)), self.importance
        assert importance is not None
        estimate = importance(self.model, self.guide, *args, proposal=proposal, seed=seed)
        blocks = rows.split([count for count, _ in proposal.guides])
        for block, (_, guide) in zip(blocks, proposal.guides, strict=True):
            if isinstance(guide, LocalGuide):
                self.refits.append((block, guide))
        return estimate

    def _annealed(self, args: tuple[Any, ...], rows: Tensor, seed: int) -> Estimate:
        """Anneal from the best guide and from the prior.

        Chains from the guide are near, but may all miss where it does not reach. Those from the
        prior have farther to go, and show it.
        """
        known = torch.cat([torch.empty(0, dtype=torch.long), *(part for part, _ in self.refits)])
        if bool(torch.isin(rows, known).all()):
            parts = self.refits
            near = self._anneal(
                args, "guide", seed, 1 / _NEARER,
                lambda program, block: guide_of_rows(program, block, rows, parts),
            )  # fmt: skip
        else:
            near = self._anneal(args, "guide", seed)
        return nearer_bound(near, self._from_prior(args, rows, stream_seed(seed, 1)))[0]

    def _from_prior(self, args: tuple[Any, ...], rows: Tensor, seed: int) -> Estimate:
        return self._anneal(args, "prior", seed)

    def _longer(self, args: tuple[Any, ...], rows: Tensor, seed: int) -> Estimate:
        return self._anneal(args, "prior", seed, _LONGER)

    def _anneal(
        self,
        args: tuple[Any, ...],
        start: Start,
        seed: int,
        times: float = 1.0,
        local: Callable[[Program, tuple[Any, ...]], Function] | None = None,
    ) -> Estimate:
        chains = self.settings.annealing
        run = replace(chains, num_temperatures=math.ceil(times * chains.num_temperatures))
        return anneal(
            self.model, self.guide, args, start, run,
            data_plate=self.data_plate, seed=seed, progress=self.progress, local=local,
        )  # fmt: skip


class _Kept:
    """A refitted proposal that keeps the number of data and the guide of each block."""

    def __init__(self, proposal: RefitProposal) -> None:
        self.proposal = proposal
        self.guides: list[tuple[int, Any]] = []

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return guide and refit."""
        fitted = self.proposal.fit(program, args, seed)
        self.guides.append((program.count(args), fitted.guide))
        return self.proposal.components_of(program, args, fitted)


def nearer_bound(one: Estimate, other: Estimate) -> tuple[Estimate, Tensor]:
    """Return the nearer of two lower bounds of each datum, and where it is the second, ``(N,)``.

    The higher one where they lie apart, which is then not trusted if the lower one claims to be;
    else the trusted one, and of two the one of smaller error.
    """
    mine, yours = _columns(one), _columns(other)
    apart = yours["per_datum"] - mine["per_datum"]
    errors = torch.hypot(mine["errors"], yours["errors"])
    limit = torch.nan_to_num(_AGREE * errors, nan=0.0)
    above, below = apart > limit, apart < -limit
    sure, other_sure = mine["reliable"], yours["reliable"]
    better = other_sure & (~sure | (yours["errors"] < mine["errors"]))
    second = above | (~below & (better | (~sure & ~other_sure & (apart > 0))))
    columns = {name: torch.where(second, yours[name], mine[name]) for name in mine}
    columns["reliable"] = torch.where(
        second, other_sure & ~(above & sure), sure & ~(below & other_sure)
    )
    return _estimate(columns, num_samples=other.num_samples, cost=one.cost + other.cost), second


def _with_rows(whole: Estimate, rows: Tensor, again: Estimate, method: int) -> Estimate:
    """Return an estimate with that of some data measured again."""
    nearer, second = nearer_bound(whole.take(rows), again)
    columns, methods = _columns(whole), whole.methods
    assert methods is not None
    methods = methods.clone()
    methods[rows[second]] = method
    for name, part in _columns(nearer).items():
        columns[name] = columns[name].index_copy(0, rows, part)
    return _estimate(columns, num_samples=whole.num_samples, methods=methods, budget=whole.budget)


def with_rows(whole: Estimate, rows: Tensor, again: Estimate, method: int) -> Estimate:
    """Return the evidence of all data with that of some of them in its place.

    Args:
        whole: The evidence of all data.
        rows: The numbers of some of them.
        again: Their evidence by other estimators.
        method: Their place in METHODS, where ``again`` does not say.
    """
    columns, methods = _columns(whole), whole.methods
    methods = torch.zeros(len(whole.per_datum), dtype=torch.uint8) if methods is None else methods
    own = torch.full_like(methods[rows], method) if again.methods is None else again.methods
    columns = {
        name: part.index_copy(0, rows, _columns(again)[name]) for name, part in columns.items()
    }
    return _estimate(
        columns,
        num_samples=whole.num_samples,
        methods=methods.index_copy(0, rows, own),
        cost=whole.cost + again.cost,
        budget=whole.cost + max(again.budget, again.cost),
    )


def _columns(estimate: Estimate) -> dict[str, Tensor]:
    """Return the parts of an estimate that have a row for each datum, float64 or bool."""
    parts = {name: torch.as_tensor(getattr(estimate, name)).cpu() for name in _FIELDS}
    return {name: part if name == "reliable" else part.double() for name, part in parts.items()}


def _estimate(columns: dict[str, Tensor], **details: Any) -> Estimate:
    values, errors, biases, *others = (columns[name] for name in _FIELDS)
    named = dict(zip(_FIELDS[3:], others, strict=True))
    return Estimate.over_data(values, errors, biases, **named, **details)
