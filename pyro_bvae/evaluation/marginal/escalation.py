"""Evidence by the cheapest estimator that can be trusted, chosen for each datum.

The guide's importance samples come first. Data whose weights cannot be trusted are measured again
with a refitted guide, and those that still cannot by annealing. A later estimator replaces an
earlier one for its data whether or not it is trusted there: it is the nearer lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.evaluation.estimate import METHODS, Estimate
from pyro_bvae.evaluation.marginal.annealing import annealed_evidence
from pyro_bvae.evaluation.marginal.proposals import RefitProposal
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings
from pyro_bvae.evaluation.refit.optimisation import RefitSettings, refit_refusal
from pyro_bvae.program.arguments import take
from pyro_bvae.program.differentiability import missing_gradient
from pyro_bvae.program.program import Function, open_program

# Data that are measured again together.
_TOGETHER = 64
# Decoder evaluations of a datum that the default budget allows in the mean, beside the samples.
_DEFAULT_BUDGET = 250_000
# Factor on the cost of a datum so far that the next may take.
_ALLOWANCE = 1.25
# A second annealing has so many times the temperatures of the first.
_LONGER = 4
_FIELDS = ("errors", "biases", "effective_sample_size", "pareto_k", "reliable")


@dataclass(frozen=True)
class Escalation:
    """How evidence goes on for data whose importance weights cannot be trusted.

    Attributes:
        budget: Decoder evaluations that all data together may cost; by default 250,000 a datum in
            the mean. Data that it does not reach keep their estimate, and are untrusted.
        refit: How guides are refitted.
        annealing: How chains run, from the prior; once more with four times the temperatures for
            data that stay untrusted.
    """

    budget: int | None = None
    refit: RefitSettings = field(default_factory=RefitSettings)
    annealing: AnnealingSettings = field(
        default_factory=lambda: AnnealingSettings(num_chains=16, leapfrog_steps=10)
    )

    def __post_init__(self) -> None:
        if self.budget is not None and not (type(self.budget) is int and self.budget > 0):
            raise InputError(f"'budget' must be a positive integer or None, got {self.budget!r}")


Estimator = Callable[..., Estimate]


def escalate(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    first: Estimate,
    importance: Estimator,
    settings: Escalation,
    *,
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
        importance: Importance sampling from a ``proposal`` with a ``seed``.
        settings: Budget and settings of the estimators.
        seed: Seed of the draws.
        data_plate: Name of the data plate.
        progress: Show progress bars.
    """
    whole = replace(first, methods=torch.zeros(len(first.per_datum), dtype=torch.uint8))
    if not first.untrusted:
        return whole
    size, spent = len(first.per_datum), first.cost
    budget = settings.budget or spent + _DEFAULT_BUDGET * size
    with open_program(model, guide, args, data_plate=data_plate, seed=seed) as program:
        if not program.sliceable:
            return whole  # a datum cannot be measured without the others
        refits = refit_refusal(program) is None and program.proposes_latents_alone
        anneals = missing_gradient(program) is None
    options: dict[str, Any] = {"data_plate": data_plate, "progress": progress}
    proposal = RefitProposal(settings.refit)

    def refitted(some: tuple[Any, ...], seed: int) -> Estimate:
        return importance(model, guide, *some, proposal=proposal, seed=seed)

    def annealed(some: tuple[Any, ...], seed: int, times: int = 1) -> Estimate:
        # From the prior: chains from a guide that failed may all miss where it does not reach.
        run = replace(chains, num_temperatures=times * chains.num_temperatures)
        return annealed_evidence(model, guide, *some, settings=run, seed=seed, **options)

    chains = settings.annealing
    annealing = chains.num_chains * chains.num_temperatures * chains.leapfrog_steps
    estimators: list[tuple[int, int, Estimator]] = (
        [(1, first.num_samples, refitted)] if refits else []
    )
    if anneals:
        longer = partial(annealed, times=_LONGER)
        estimators += [(2, annealing, annealed), (2, _LONGER * annealing, longer)]
    for place, (method, least, estimator) in enumerate(estimators):
        dearest = least
        for block in _untrusted(whole):
            # Costs of data are alike: the dearest so far, and a little, stands for the next.
            rows = block[: int(max(0, budget - spent) / (_ALLOWANCE * dearest))]
            if not len(rows):
                break
            again = estimator(take(args, size, rows), stream_seed(seed, place, int(rows[0])))
            spent += again.cost
            dearest = max(dearest, again.cost // len(rows))
            whole = _replaced(whole, rows, again, method)
    return replace(whole, cost=spent)


def _untrusted(estimate: Estimate) -> Iterator[Tensor]:
    """Yield the untrusted data, some at a time; the first alone, to see the cost of a datum."""
    assert estimate.reliable is not None
    rows = (~estimate.reliable.cpu()).nonzero().flatten()
    if len(rows):
        yield rows[:1]
    if len(rows) > 1:
        yield from rows[1:].split(_TOGETHER)


def _replaced(whole: Estimate, rows: Tensor, again: Estimate, method: int) -> Estimate:
    """Return an estimate with those of some data in the place of the old ones."""

    def column(name: str) -> Tensor:
        old, new = getattr(whole, name).clone(), getattr(again, name)
        old[rows] = new.to(old.dtype).cpu()
        return old

    values, methods = column("per_datum"), whole.methods
    assert methods is not None and method < len(METHODS)
    methods = methods.clone()
    methods[rows] = method
    parts = {name: column(name) for name in _FIELDS}
    return Estimate.over_data(
        values, parts.pop("errors"), parts.pop("biases"), num_samples=whole.num_samples,
        methods=methods, **parts,
    )  # fmt: skip
