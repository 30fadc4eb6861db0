"""Evidence, bound, refits and gaps of one block of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import seeded, stream_seed
from pyro_bvae.evaluation.marginal.averages import error_of_mean, normalized_weights
from pyro_bvae.evaluation.marginal.blocks import EvidenceBlock
from pyro_bvae.evaluation.marginal.bounds import BoundBlock, bound_block
from pyro_bvae.evaluation.marginal.proposals import TAIL_SHARE, Component
from pyro_bvae.evaluation.marginal.psis import has_reliable_mean
from pyro_bvae.evaluation.marginal.tails import robust_guide
from pyro_bvae.evaluation.refit.joint_guides import Family, JointLocalGuide
from pyro_bvae.evaluation.refit.local_guides import local_refusal
from pyro_bvae.evaluation.refit.mode_guides import mode_guide
from pyro_bvae.evaluation.refit.modes import Modes, find_modes
from pyro_bvae.evaluation.refit.optimisation import (
    LocalGuideFactory,
    OnProgress,
    Refit,
    RefitSettings,
    has_density,
    is_better,
    refit,
    silent,
)
from pyro_bvae.evaluation.weights import Weights, sample_weights
from pyro_bvae.program.program import Function, Program

# The share of a block's work that its refits are.
_REFITTING = 0.85


class GapBlock(NamedTuple):
    """Everything measured on one block of data."""

    evidence: EvidenceBlock
    bound: BoundBlock
    gaps: Tensor  # (4 + families, B): variational, approximation, beta, amortization, families
    gap_errors: Tensor  # of the same shape: their Monte Carlo errors
    gap_biases: Tensor  # of the same shape: of the evidence, and a refit's gain left
    gap_reliable: Tensor  # of the same shape: whether all that a gap is made of can be trusted
    elbos: Tensor  # (1 + families, B): of the refit, then of each family's
    elbo_errors: Tensor  # of the same shape
    elbo_reliable: Tensor  # of the same shape
    certified: Tensor  # (B,)
    steps: int
    cost: int
    evidence_cost: int  # of the draws behind the evidence
    modes: Tensor | None  # (B,): how many were found; None where none were searched for
    looked: str  # where for
    guide: Function  # the refit under the ELBO


class _Refits(NamedTuple):
    """The refits of a block: under the ELBO, under the training objective, of families."""

    best: Refit
    under_beta: Refit
    families: tuple[Refit, ...]

    @property
    def all(self) -> tuple[Refit, ...]:
        same = self.best is self.under_beta
        return (self.best, *(() if same else (self.under_beta,)), *self.families)


@dataclass(frozen=True)
class Request:
    """The settings of a measurement, the same for every block."""

    num_samples: int
    training_beta: float
    settings: RefitSettings
    local_guide: LocalGuideFactory | None
    families: tuple[Family, ...]


def _refits(
    program: Program, args: tuple[Any, ...], request: Request, seed: int, on_progress: OnProgress
) -> _Refits:
    if program.masked or not program.latents:
        raise InputError(local_refusal(program, args))
    beta, settings, local_guide = request.training_beta, request.settings, request.local_guide
    count = 1 + (beta != 1) + len(request.families)

    def part(number: int) -> OnProgress:
        """Return the listener of one of the refits, of which each takes as long."""
        return lambda phase, share: on_progress(phase, _REFITTING * (number + share) / count)

    under_beta = refit(program, args, beta, settings, seed, local_guide, on_progress=part(0))
    best = under_beta
    if beta != 1:
        candidates = (under_beta.guide,) if local_guide is None else ()
        best = refit(program, args, 1.0, settings, seed, local_guide, candidates, part(1))
    results: list[Refit] = []
    for family in request.families:
        start = results[-1].guide if results else best.guide

        def make(*args: Any, family: Family = family, start: Function = start) -> JointLocalGuide:
            return JointLocalGuide(program, args, family, start)

        listener = part(len(results) + 1 + (beta != 1))
        results.append(refit(program, args, 1.0, settings, seed, make, on_progress=listener))
    return _Refits(best, under_beta, tuple(results))


def gap_block(
    program: Program,
    args: tuple[Any, ...],
    request: Request,
    seed: int,
    on_progress: OnProgress = silent,
) -> GapBlock:
    """Measure evidence, bound and gaps of one block of data.

    The guides share their noise, so that differences of their bounds have small errors. The
    evidence is weighed with the draws of guide and refits and heavy-tailed ones around the modes
    that were found, as one sample of their mixture. The error of a gap is that of the mean of its
    paired, linearised samples: ``w_k / mean(w)`` for the evidence and ``log w_k`` for a bound.
    """
    refits = _refits(program, args, request, seed, on_progress)
    on_progress("weighing", _REFITTING)
    modes, starts = refits.best.modes, request.settings.num_starts
    if modes is None and starts:
        modes = find_modes(program, args, 1.0, starts, stream_seed(seed, 4))
    mixed, has_tails = _mixed(program, args, request, refits, modes)
    guides = (program.guide, *mixed, *(part.guide for part in refits.all))
    weights = _weights(program, args, request.num_samples, seed, guides, mixed)
    own = weights[program.guide]
    pooled = torch.cat([weights[guide].mixed for guide in mixed])
    evidence, linearised = _pooled_evidence(
        pooled, request.num_samples, has_tails, program.rounding
    )
    beta = request.training_beta
    star = _at_least(weights[refits.best.guide], own, 1.0)
    star_beta = star if beta == 1 else _at_least(weights[refits.under_beta.guide], own, beta)
    bounds = [own.log_weights.double(), star.log_weights.double(), star_beta.log_weights.double()]
    richer = [
        _at_least(weights[part.guide], star, 1.0).log_weights.double() for part in refits.families
    ]
    values, errors = _gap_values(linearised, bounds, richer, evidence.value)
    elbo_errors = torch.stack([error_of_mean(part) for part in (bounds[1], *richer)])
    certified = (
        torch.stack([part.certified for part in refits.all]).all(0).to(evidence.reliable.device)
    )
    best = [
        has_reliable_mean(part, program.rounding).to(certified.device) & certified
        for part in richer
    ]
    gap_reliable, star_reliable = _reliability(
        evidence.reliable, bounds, certified, beta, program.rounding
    )
    return GapBlock(
        evidence,
        bound_block(program, args, own),
        values,
        torch.hypot(errors, _refit_noise(refits)),
        _biases(evidence, refits),
        torch.stack([*gap_reliable, *(evidence.reliable & part for part in best)]),
        torch.stack([part.mean(0) for part in (bounds[1], *richer)]),
        torch.hypot(
            elbo_errors, torch.stack([part.noise for part in (refits.best, *refits.families)])
        ),
        torch.stack([star_reliable, *best]),
        certified.cpu(),
        max(part.steps for part in refits.all),
        sum(part.cost for part in refits.all) + len(weights) * own.log_weights.numel(),
        pooled.numel(),
        None if modes is None else modes.counts.cpu(),
        "" if modes is None else modes.looked,
        refits.best.guide,
    )


@torch.no_grad()
def _weights(
    program: Program,
    args: tuple[Any, ...],
    num_samples: int,
    seed: int,
    guides: tuple[Function, ...],
    mixed: tuple[Function, ...],
) -> dict[Function, Weights]:
    """Return the weights of guides that share their noise, the mixed ones also as a mixture."""
    mixture = tuple(Component(guide, 1 / len(mixed)) for guide in mixed) if len(mixed) > 1 else ()
    weights = {}
    for guide in dict.fromkeys(guides):
        with seeded(seed, 2):
            shares = mixture if guide in mixed else ()
            weights[guide] = sample_weights(program, args, num_samples, guide, shares)
    return weights


def _gap_values(
    linearised: Tensor, bounds: list[Tensor], richer: list[Tensor], evidence: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gaps and Monte Carlo errors from paired samples, ``(4 + families, B)`` each."""
    own, star, star_beta = bounds
    samples = [linearised - own, linearised - star, star - star_beta, star_beta - own]
    samples += [linearised - part for part in richer]
    values = torch.stack([part.mean(0) for part in samples])
    values[[0, 1, *range(4, len(samples))]] += evidence - linearised.mean(0)
    return values, torch.stack([error_of_mean(part) for part in samples])


def _pooled_evidence(
    pooled: Tensor, num_samples: int, has_tails: bool, rounding: float
) -> tuple[EvidenceBlock, Tensor]:
    """Return the evidence of the draws of all guides, and their mean linearised samples."""
    linearised = normalized_weights(pooled).unflatten(0, (-1, num_samples)).mean(0) - 1
    evidence = EvidenceBlock.from_log_weights(pooled, has_tails=has_tails)
    error = torch.hypot(error_of_mean(linearised), rounding * evidence.value.abs())
    return evidence._replace(error=error), linearised


def _reliability(
    evidence: Tensor, bounds: list[Tensor], certified: Tensor, beta: float, rounding: float
) -> tuple[list[Tensor], Tensor]:
    """Return the data of reliable gaps, and of a reliable best bound, ``(B,)`` each."""
    own, star, star_beta = (
        has_reliable_mean(part, rounding).to(certified.device) for part in bounds
    )
    star, star_beta = star & certified, star_beta & certified
    between = torch.ones_like(certified) if beta == 1 else star & star_beta
    return [evidence & own, evidence & star, between, star_beta & own], star


def _mixed(
    program: Program, args: tuple[Any, ...], request: Request, refits: _Refits, modes: Modes | None
) -> tuple[tuple[Function, ...], bool]:
    """Return the guides behind the evidence, and whether some of them have tails.

    They are the guide, its refits, the refit with tails and a heavy-tailed guide of all modes; the
    guide with tails alone where they cannot be mixed.
    """
    own_family = request.local_guide is None or has_density(program, args, refits.best.guide)
    if not (program.proposes_latents_alone and own_family):
        guide, has_tails = robust_guide(program, TAIL_SHARE, program.guide, args)
        return (guide,), has_tails
    fitted = (program.guide, refits.best.guide, *(part.guide for part in refits.families))
    tailed, has_tails = robust_guide(program, TAIL_SHARE, refits.best.guide, args)
    wider = (tailed,) if has_tails else ()
    if modes is None:
        return (*fitted, *wider), has_tails
    return (*fitted, *wider, mode_guide(program, args, modes)), True


def _refit_noise(refits: _Refits) -> Tensor:
    """Return the optimiser's noise in the errors of the gaps, ``(4 + families, B)``."""
    best, under_beta = refits.best.noise, refits.under_beta.noise
    zero = torch.zeros_like(best)
    between = zero if refits.best is refits.under_beta else torch.hypot(best, under_beta)
    return torch.stack([zero, best, between, under_beta, *(part.noise for part in refits.families)])


def _biases(evidence: EvidenceBlock, refits: _Refits) -> Tensor:
    """Return the gaps' biases by evidence and unfinished refits, ``(4 + families, B)``.

    Only under the ELBO is a refit's gain left the bound's.
    """
    best, bias = refits.best.remaining, evidence.bias
    zero = torch.zeros_like(best)
    shared = refits.best is refits.under_beta
    families = (bias + part.remaining for part in refits.families)
    return torch.stack(
        [bias, bias + best, zero if shared else best, best if shared else zero, *families]
    )


def _at_least(refitted: Weights, start: Weights, beta: float) -> Weights:
    """Return the weights of a refit, or of its start for the data where that is surely better.

    The refit judged itself on few samples; these are many, and no refit ends below its start by
    more than their noise.
    """
    objectives = (
        part.observed + beta * (part.log_weights - part.observed) for part in (start, refitted)
    )
    fell = is_better(*(objective.double() for objective in objectives))
    return Weights(
        *(torch.where(fell, before, after) for before, after in zip(start, refitted, strict=True))
    )
