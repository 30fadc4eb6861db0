"""Inference gaps: how far the bound is from the evidence, and what that is due to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.errors import InputError, check_beta
from pyro_bvae.evaluation.bounds import Bound, BoundBlock, bound_block, join_bound
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.importance import (
    EvidenceBlock,
    Weights,
    check_num_samples,
    data_bar,
    error_of_mean,
    join_evidence,
    normalized_weights,
    sample_weights,
    stream_blocks,
)
from pyro_bvae.evaluation.program import Function, Program, program
from pyro_bvae.evaluation.refit import LocalGuideFactory, Refit, RefitSettings, refit
from pyro_bvae.modules import frozen
from pyro_bvae.randomness import REFIT_STREAM, seeded, stream_seed


@dataclass(frozen=True, eq=False)
class InferenceGaps:
    """The variational gap and its parts in nats: ``variational = approximation + beta + amortization``.

    Attributes:
        variational: ``log p(x) - ELBO(q_phi)``, the KL between guide and posterior.
        approximation: ``log p(x) - ELBO(q*)``: the family is too small.
        beta: ``ELBO(q*) - ELBO(q*_beta)``: the guide was fitted to another objective; exactly 0 at β = 1.
        amortization: ``ELBO(q*_beta) - ELBO(q_phi)``: one encoder for all data; may be negative at β ≠ 1.
        evidence: The evidence that the gaps are measured from.
        bound: The bound of the guide with its distortion and rate.
        training_beta: The β of the objective that the guide was fitted to.
        converged: Whether all local refits converged; if not, ``approximation`` is too large by what they missed.
        steps: Steps of the longest refit.
    """

    variational: Estimate
    approximation: Estimate
    beta: Estimate
    amortization: Estimate
    evidence: Estimate
    bound: Bound
    training_beta: float
    converged: bool
    steps: int

    @property
    def elbo(self) -> Estimate:
        """The bound of the guide at β = 1."""
        return self.bound.elbo

    def __str__(self) -> str:
        lines = [
            f"{name:<14}{getattr(self, name)}" for name in ("variational", "approximation", "beta", "amortization")
        ]
        ending = "converged" if self.converged else "did NOT all converge"
        return "\n".join([*lines, f"local refits {ending}, {self.steps} steps at most"])


class GapBlock(NamedTuple):
    """Everything measured on one block of data."""

    evidence: EvidenceBlock
    bound: BoundBlock
    gaps: Tensor  # (4, B): variational, approximation, beta, amortization
    errors: Tensor  # (4, B): their Monte Carlo errors
    converged: bool
    steps: int


def _refits(
    opened: Program,
    args: tuple[Any, ...],
    training_beta: float,
    settings: RefitSettings,
    seed: int,
    local_guide: LocalGuideFactory | None,
    say: Callable[[str], Any],
) -> tuple[Refit, Refit]:
    """Return the refits under the ELBO and under the training objective, the same one at β = 1."""
    under_beta = refit(opened, args, training_beta, settings, seed, local_guide, say=say)
    if training_beta == 1:
        return under_beta, under_beta
    candidates = (under_beta.guide,) if local_guide is None else ()
    best = refit(opened, args, 1.0, settings, seed, local_guide, candidates, say)  # type: ignore[arg-type]
    return best, under_beta


def gap_block(
    opened: Program,
    args: tuple[Any, ...],
    num_samples: int,
    training_beta: float,
    settings: RefitSettings,
    seed: int,
    local_guide: LocalGuideFactory | None = None,
    say: Callable[[str], Any] = str,
) -> GapBlock:
    """Measure evidence, bound and gaps of one block of data.

    The three guides share their noise, so that differences of their bounds have small errors. The evidence is weighed
    with the draws of guide and refit together, as one sample of their mixture. The error of a gap is that of the mean
    of its paired, linearised samples: ``w_k / mean(w)`` for the evidence and ``log w_k`` for a bound.
    """
    best, under_beta = _refits(opened, args, training_beta, settings, seed, local_guide, say)
    say("weighing")
    mixable = opened.proposes_latents_alone

    def weigh(guide: Function, partner: Function | None = None) -> Weights:
        with seeded(seed, 2), torch.no_grad():
            return sample_weights(opened, args, num_samples, guide, partner if mixable else None)

    weights, refitted = weigh(opened.guide, best.guide), weigh(best.guide, opened.guide)
    own, star = weights.log_weights.double(), refitted.log_weights.double()
    star_beta = star if under_beta is best else weigh(under_beta.guide).log_weights.double()
    pooled = torch.cat([weights.mixed, refitted.mixed]) if mixable else weights.mixed
    # One sample a particle: that of the guide, or the mean of the guide's and the refit's.
    linearised = normalized_weights(pooled).unflatten(0, (-1, num_samples)).mean(0) - 1
    evidence = EvidenceBlock.from_log_weights(pooled)._replace(error=error_of_mean(linearised))
    samples = (linearised - own, linearised - star, star - star_beta, star_beta - own)
    values = torch.stack([sample.mean(0) for sample in samples])
    values[:2] += evidence.value - linearised.mean(0)
    return GapBlock(
        evidence,
        bound_block(opened, args, weights),
        values,
        torch.stack([error_of_mean(sample) for sample in samples]),
        best.converged and under_beta.converged,
        max(best.steps, under_beta.steps),
    )


def inference_gaps(
    model: Function,
    guide: Function,
    *args: Any,
    training_beta: float = 1.0,
    num_samples: int = 5000,
    local_guide: LocalGuideFactory | None = None,
    settings: RefitSettings | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InferenceGaps:
    r"""Measure the variational gap and split it into approximation, β and amortization gap.

    .. math::
        \log p(x) - \text{ELBO}(q_\phi) = [\log p(x) - \text{ELBO}(q^*)]
            + [\text{ELBO}(q^*) - \text{ELBO}(q^*_\beta)] + [\text{ELBO}(q^*_\beta) - \text{ELBO}(q_\phi)]

    with :math:`q^*` the best member of the guide's family for each datum under the ELBO and :math:`q^*_\beta` the best
    under the objective the model was trained with, both found by local refits (after Cremer et al. 2018, who have no
    β gap). The evidence is importance weighted from the mixture of guide and refit, a lower bound in expectation that
    lies where the better of the two puts it.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are passed whole.
        training_beta: The β that the guide was trained with, positive.
        num_samples: Particles for each datum behind the evidence and each bound.
        local_guide: For guides whose sites have no local version or depend on each other: called with the arguments
            of a block of data, returns a guide module with free parameters for them.
        settings: How the local refits run.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of all draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Raises:
        InputError: if the guide has no local version and no ``local_guide`` was given, or if β is not positive: at
            β = 0 the best guide is a point, whose bound is minus infinity.
    """
    check_num_samples(num_samples)
    check_beta(training_beta)
    if training_beta == 0:
        raise InputError("'training_beta' must be positive for the gaps to be finite, got 0")
    settings = settings or RefitSettings()
    with (
        program(model, guide, args, data_plate=data_plate, seed=seed) as opened,
        frozen(model, guide),
        data_bar(opened, progress, "inference gaps") as bar,
    ):
        blocks = []
        for index, block in enumerate(stream_blocks(opened, num_samples, bar)):
            block_seed = stream_seed(seed, index, REFIT_STREAM)
            blocks.append(
                gap_block(
                    opened, block, num_samples, training_beta, settings, block_seed, local_guide, bar.set_postfix_str
                )
            )
    values = torch.cat([block.gaps for block in blocks], dim=1)
    errors = torch.cat([block.errors for block in blocks], dim=1)
    parts = [Estimate.over_data(*pair, num_samples=num_samples) for pair in zip(values, errors, strict=True)]
    variational, approximation, beta, amortization = parts
    return InferenceGaps(
        variational,
        approximation,
        beta,
        amortization,
        evidence=join_evidence([block.evidence for block in blocks], num_samples),
        bound=join_bound([block.bound for block in blocks], num_samples),
        training_beta=training_beta,
        converged=all(block.converged for block in blocks),
        steps=max(block.steps for block in blocks),
    )
