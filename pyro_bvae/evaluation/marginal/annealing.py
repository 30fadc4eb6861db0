r"""Annealed importance sampling and its reverse: stochastic bounds of the evidence.

Chains move by Hamiltonian Monte Carlo along :math:`\log f_t = a + t\, b`, from the prior,
:math:`f_t \propto p(z)\, p(x|z)^t`, or from the guide, :math:`f_t \propto q(z|x)^{1-t} p(x, z)^t`,
to the posterior. The weight of a chain, :math:`\log w = \sum_i (t_i - t_{i-1})\, b(u_{i-1})`, has
the mean :math:`p(x)` however poorly the chains mix (Neal 2001; for decoders Wu et al. 2017). The
same moves in reverse order, from an exact draw of the posterior, give weights of mean :math:`1 /
p(x)`, and so an upper bound (Grosse et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import frozen
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import ANNEALING_STREAM, SIMULATION_STREAM, stream_seed
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.annealing_run import AnnealingRun, ChainWeights, Start
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.differentiability import check_differentiable
from pyro_bvae.program.program import Function, Program, open_program
from pyro_bvae.program.simulation import simulate

# Chains times data that move together.
_ROWS = 8192
# Errors by which the two bounds of a datum may lie apart.
_AGREE = 3.0


class Sandwich(NamedTuple):
    """Two-sided bounds of the evidence of simulated data, whose latents are known.

    Attributes:
        lower: From chains that start at the prior or the guide.
        upper: From chains that start at the true latents.
        gap: ``upper - lower`` in nats: the evidence of these data is known that well, and annealing
            with the same settings is off by no more, in the mean, on data like them.
        simulated: The data, by observed site.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    simulated: LatentValues


@exclusive
def annealed_evidence(
    model: Function,
    guide: Function,
    *args: Any,
    start: Start = "prior",
    settings: AnnealingSettings | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    r"""Estimate the evidence of each datum by annealed importance sampling.

    A lower bound in expectation, far tighter than importance sampling where the guide is poor.
    Temperatures and step sizes come from a pilot run of chains of its own and are frozen.
    Evaluations of the pilot run count in the cost.

    Errors are those of the largest spread that so few chains leave possible: a fifth above the
    usual ones of 32 chains. A datum is trusted where that spread is small. Fewer than 11 chains, or
    than 25 temperatures, are never trusted. Chains that all miss a mode agree; that one is missing
    shows neither here nor in any weights.

    Args:
        model: A Pyro model whose latents share a plate over the data, differentiable in them.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        start: Where the chains start: ``"prior"`` or ``"guide"``.
        settings: How to run.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the chains; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        The mean evidence in nats; effective sample sizes and Pareto k are those of the chains'
        weights.
        References: Neal 2001; Wu, Burda, Salakhutdinov and Grosse 2017.

    Raises:
        InputError: if the program has no per-datum weights, or its density no gradient in a latent.
    """
    settings = settings or AnnealingSettings()
    _check_start(start)
    return anneal(
        model, guide, args, start, settings, data_plate=data_plate, seed=seed, progress=progress
    )


def data_together(settings: AnnealingSettings) -> int:
    """Return how many data's chains move together."""
    return max(1, _ROWS // settings.num_chains)


def anneal(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    start: Start,
    settings: AnnealingSettings,
    *,
    data_plate: str | None,
    seed: int,
    progress: bool,
    local: Callable[[Program, tuple[Any, ...]], Function] | None = None,
) -> Estimate:
    """Anneal from the prior, the guide or a guide of each block's own.

    Args:
        model: A Pyro model.
        guide: Its guide.
        args: The arguments of both.
        start: Where the chains start.
        settings: How to run.
        data_plate: Name of the data plate.
        seed: Seed of the chains.
        progress: Show a progress bar.
        local: The guide to start a block from, of the block's arguments.
    """
    blocks = []
    with (
        open_program(
            model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
        ) as program,
        frozen(model, guide),
        _bar(program, progress, settings, 1) as bar,
    ):
        _check_program(program, start)
        for index, block in enumerate(program.blocks(data_together(settings))):
            stream = stream_seed(seed, index, ANNEALING_STREAM)
            own = None if local is None else local(program, block)
            blocks.append(AnnealingRun(program, block, start, settings, stream, bar, own).forward())
    return _join(blocks, settings)


@exclusive
def bidirectional_evidence(
    model: Function,
    guide: Function,
    *args: Any,
    start: Start = "prior",
    settings: AnnealingSettings | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Sandwich:
    r"""Bound the evidence of simulated data from both sides: the certificate of an annealing run.

    The model draws latents and data in the place of the observed ones, so the latents are an exact
    draw of the posterior of those data. Annealing forward from the start and backward from the
    latents then gives a stochastic lower and a stochastic upper bound. All chains of a datum share
    that one draw: the errors of ``upper`` and ``gap`` are taken from the spread over data, where it
    is the larger, and a datum whose bounds lie further apart than their errors and biases allow is
    not trusted.

    Args:
        model: A Pyro model whose latents share a plate over the data, differentiable in them.
        guide: Its guide.
        *args: The arguments of both. Observed values among them are replaced by simulated ones of
            the same number.
        start: Where the chains start: ``"prior"`` or ``"guide"``.
        settings: How to run.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the data and the chains.
        progress: Show a progress bar.

    Returns:
        Both bounds, their gap and the data. Reference: Grosse, Ghahramani and Adams 2015.

    Raises:
        InputError: as :func:`annealed_evidence`; also for chains from a guide that does not see the
            data among its arguments.
    """
    settings = settings or AnnealingSettings()
    _check_start(start)
    lower, upper, blocks = [], [], []
    with (
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        frozen(model, guide),
        _bar(program, progress, settings, 2) as bar,
    ):
        _check_program(program, start)
        for index, block in enumerate(program.blocks(data_together(settings))):
            drawn = simulate(
                program, block, stream_seed(seed, index, SIMULATION_STREAM), start == "guide"
            )
            run = AnnealingRun(
                drawn.program,
                drawn.args,
                start,
                settings,
                stream_seed(seed, index, ANNEALING_STREAM),
                bar,
            )
            lower.append(run.forward())
            upper.append(run.backward(drawn.latents))
            blocks.append(drawn)
    below, above = _join(lower, settings), _join(upper, settings)
    above, gap = _hold_together(below, above)
    simulated = {
        name: torch.cat([part.observed[name] for part in blocks], dim)
        for name, dim in blocks[0].data_dims.items()
    }
    return Sandwich(below, above, gap, simulated)


def _hold_together(below: Estimate, above: Estimate) -> tuple[Estimate, Estimate]:
    """Return the upper bound, with the trust that the lower one leaves it, and their gap.

    The evidence cancels in the gap, whose spread over data is all noise; the biases of its two
    sides add up. A datum whose bounds lie further apart than they claim has chains that never
    parted from the draw they share.
    """
    apart = above.per_datum - below.per_datum
    errors = torch.hypot(_known(below.errors), _known(above.errors))
    biases = _known(below.biases) - _known(above.biases)
    claimed = Estimate.over_data(apart, errors, biases)
    agree = apart.abs() <= _AGREE * errors + biases
    reliable = torch.as_tensor(above.reliable) & agree
    # Of few data the spread is small by chance; of one there is none, and the gap has no error.
    error = float(np.maximum(claimed.standard_error, claimed.monte_carlo_error))
    gap = Estimate.over_data(apart, num_samples=below.num_samples, cost=below.cost + above.cost)
    gap = replace(
        gap,
        monte_carlo_error=error,
        biases=biases,
        reliable=torch.as_tensor(below.reliable) & reliable,
    )
    error = float(np.fmax(above.monte_carlo_error, error))
    return replace(above, monte_carlo_error=error, reliable=reliable), gap


def _known(part: Tensor | None) -> Tensor:
    assert part is not None, "chains have errors and biases"
    return part


def _join(blocks: list[ChainWeights], settings: AnnealingSettings) -> Estimate:
    """Put the bounds of all blocks together."""
    value, error, bias, k = (
        torch.cat([part.cpu() for part in parts])
        for parts in zip(*(block.average for block in blocks), strict=True)
    )
    ess, reliable = (
        torch.cat([getattr(block, name).cpu() for block in blocks])
        for name in ("effective_sample_size", "reliable")
    )
    return Estimate.over_data(
        value,
        error,
        bias,
        effective_sample_size=ess,
        pareto_k=k,
        num_samples=settings.num_chains,
        reliable=reliable,
        cost=sum(block.cost for block in blocks),
    )


def _bar(
    program: Program, progress: bool, settings: AnnealingSettings, directions: int
) -> ProgressBar:
    total = program.num_data * settings.num_temperatures * directions
    return ProgressBar(total=total, desc="annealing", disable=not progress, unit="temperatures")


def _check_program(program: Program, start: Start) -> None:
    """Raise unless chains can start where they are to and be moved from there."""
    if program.masked:
        raise InputError(
            f"latent '{min(program.masked)}' is masked out for some data, where annealing has"
            " nothing to move: measure evidence(...) by importance sampling"
        )
    if not program.latents:
        raise InputError(
            "every latent is discrete and summed out, so there is nothing to anneal: evidence(...)"
            " is exact"
        )
    if start == "guide" and not program.proposes_latents_alone:
        raise InputError(
            "chains can start at a guide only where it draws the model's latents with a density of"
            f" their own; its sites are {sorted(program.guide_sites)} for the latents"
            f" {sorted(program.latents)}: start from the prior"
        )
    check_differentiable(program)


def _check_start(start: str) -> None:
    if start not in ("prior", "guide"):
        raise InputError(f"'start' must be 'prior' or 'guide', got {start!r}")
