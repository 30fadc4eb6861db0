r"""Importance-weighted evidence, and the weights that every estimate of this package is made of.

.. math::
    \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \; z_k
    \sim q(z \mid x)

is a stochastic lower bound of the evidence that tightens with K (Burda et al. 2016), at β = 1
whatever the model was trained with: scales never enter a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import frozen
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import PROPOSAL_STREAM, stream_seed
from pyro_bvae.evaluation.compiled_joint import compiled_joint
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.averages import Averaging, error_of_mean, plain
from pyro_bvae.evaluation.marginal.blocks import EvidenceBlock, join_evidence
from pyro_bvae.evaluation.marginal.escalation import Escalation, escalate, escalation_of
from pyro_bvae.evaluation.marginal.proposals import Proposal, RobustProposal
from pyro_bvae.evaluation.marginal.psis import has_reliable_mean
from pyro_bvae.evaluation.weights import Weights, sample_mixture, sample_weights
from pyro_bvae.program.program import Function, Program, open_program

# Data that are weighed together, and weights that are held at a time: fewer data where K is large.
_MOST_DATA, _MOST_WEIGHTS = 512, 2_560_000


def stream_blocks(
    program: Program, num_samples: int, bar: ProgressBar
) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of each block of data, and move the bar when a block is done."""
    done = int(bar.n)
    for block in program.blocks(max(1, min(_MOST_DATA, _MOST_WEIGHTS // num_samples))):
        yield block
        done += program.count(block)
        bar.move(done)


def _moving(bar: ProgressBar, share: float) -> Callable[[int], None]:
    """Return a listener to draws, each of which is a share of the data of a block."""
    done = float(bar.n)

    def listener(count: int) -> None:
        nonlocal done
        done += count * share
        bar.move(done)

    return listener


def data_bar(program: Program, progress: bool, title: str) -> ProgressBar:
    """Return a progress bar over the data."""
    return ProgressBar(total=program.num_data, desc=title, disable=not progress, unit="data")


def _bound_of(
    program: Program, _: tuple[Any, ...], weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    samples = weights.log_weights
    mean = samples.double().mean(0)
    return (
        mean,
        torch.hypot(error_of_mean(samples), program.rounding * mean.abs()),
        has_reliable_mean(samples, program.rounding),
    )


def check_num_samples(num_samples: int) -> None:
    """Raise unless the number of samples is a positive integer."""
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise InputError(f"'num_samples' must be a positive integer, got {num_samples!r}")


def map_weights(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    reduce: Callable[[Program, tuple[Any, ...], Weights], Any],
    *,
    num_samples: int,
    data_plate: str | None,
    seed: int,
    progress: bool,
    title: str,
) -> list[Any]:
    """Reduce the weights of each block in turn by ``reduce(program, block, weights)``."""
    check_num_samples(num_samples)
    with (
        open_program(
            model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
        ) as program,
        torch.no_grad(),
        data_bar(program, progress, title) as bar,
    ):
        results = []
        for block in stream_blocks(program, num_samples, bar):
            listener = _moving(bar, program.count(block) / num_samples)
            weights = sample_weights(program, block, num_samples, on_draws=listener)
            results.append(reduce(program, block, weights))
        return results


@exclusive
def evidence(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 5000,
    proposal: Proposal | None = None,
    average: Averaging = plain,
    method: Literal["auto", "importance"] | Escalation = "importance",
    data_plate: str | None = None,
    seed: int = 0,
    compile: bool | None = None,
    progress: bool = False,
) -> Estimate:
    r"""Estimate the evidence :math:`\log p(x)` of each datum by importance sampling.

    The plain average is a lower bound in expectation, low by about half the squared Monte Carlo
    error of a datum, and by more where Pareto k is above its limit: the weights' tail is then too
    heavy for K samples, neither value nor errors are to be trusted, and the estimate says so.
    Memory is that of the weights of one block of data. Discrete latents with a list of values are
    summed out.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        num_samples: K, particles for each datum.
        proposal: Where the samples come from: by default the guide with wider tails and some draws
            of the prior, :class:`~pyro_bvae.evaluation.RobustProposal`; or a
            :class:`~pyro_bvae.evaluation.GuideProposal`,
            :class:`~pyro_bvae.evaluation.RefitProposal`,
            :class:`~pyro_bvae.evaluation.HeavyTailedProposal` or
            :class:`~pyro_bvae.evaluation.DefensiveProposal`. Their refits count in the cost.
        average: The average of the weights: :func:`~pyro_bvae.evaluation.marginal.averages.plain`,
            ``pareto_smoothed``, or ``jackknife(1)`` and ``jackknife(2)``, which are no lower
            bounds.
        method: ``"importance"``, or ``"auto"``: data whose weights cannot be trusted are measured
            again with a refitted guide, and where that fails by annealing. An
            :class:`~pyro_bvae.evaluation.marginal.Escalation` sets the budget and both.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws; the caller's generators are left alone.
        compile: Whether the model's density is compiled, which takes seconds and then saves about a
            sixth of the time on a CPU, with the same numbers to rounding; by default where there is
            so much to do that it is repaid.
        progress: Show a progress bar.

    Returns:
        The mean evidence in nats with standard error, Monte Carlo error, effective sample sizes and
        Pareto k.
        Reference: Burda, Grosse and Salakhutdinov 2016.

    Raises:
        InputError: if the program has no per-datum weights (see the package's README), or its data
            or ``num_samples`` cannot be used.
    """
    escalation = escalation_of(method)
    options: dict[str, Any] = {
        "average": average, "data_plate": data_plate, "compile": compile, "progress": progress
    }  # fmt: skip
    first = _importance(
        model, guide, *args, num_samples=num_samples, proposal=proposal or RobustProposal(),
        seed=seed, **options,
    )  # fmt: skip
    if escalation is None:
        return first
    again = partial(_importance, num_samples=num_samples, **options)
    return escalate(
        model, guide, args, first, again, escalation,
        seed=seed, data_plate=data_plate, progress=progress,
    )  # fmt: skip


def _importance(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int,
    proposal: Proposal,
    average: Averaging,
    data_plate: str | None,
    seed: int,
    compile: bool | None,
    progress: bool,
) -> Estimate:
    """Return the evidence by importance samples of one proposal."""
    check_num_samples(num_samples)
    with (
        open_program(
            model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
        ) as program,
        frozen(model, guide),
        torch.no_grad(),
        data_bar(program, progress, "evidence") as bar,
    ):
        program.compiled = compiled_joint(program, num_samples, compile, bar)
        blocks, cost = [], num_samples * program.num_data
        for index, block in enumerate(stream_blocks(program, num_samples, bar)):
            mixture = proposal.components(program, block, stream_seed(seed, index, PROPOSAL_STREAM))
            cost += sum(part.cost for part in mixture)
            listener = _moving(bar, program.count(block) / num_samples)
            log_weights = sample_mixture(program, block, num_samples, mixture, listener)
            has_tails = any(part.has_tails for part in mixture)
            blocks.append(
                EvidenceBlock.from_log_weights(log_weights, average, has_tails, program.rounding)
            )
    return join_evidence(blocks, num_samples, cost)


@exclusive
def elbo(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 100,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    r"""Estimate the bound :math:`\mathbb{E}_q[\log p(x, z) - \log q(z|x)]` of each datum, at β = 1.

    Discrete latents with a list of values are summed out: under the guide's distribution of those
    that it draws, exactly in the model elsewhere.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        num_samples: Particles for each datum.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        The mean bound in nats with standard error and Monte Carlo error. Reference: Kingma and
        Welling 2014.

    Raises:
        InputError: if the program has no per-datum weights (see the package's README), or its data
            or ``num_samples`` cannot be used.
    """
    blocks = map_weights(
        model, guide, args, _bound_of,
        num_samples=num_samples, data_plate=data_plate, seed=seed, progress=progress, title="elbo",
    )  # fmt: skip
    values, errors, reliable = (
        torch.cat([part.cpu() for part in entries]) for entries in zip(*blocks, strict=True)
    )
    return Estimate.over_data(
        values, errors, num_samples=num_samples, cost=num_samples * len(values), reliable=reliable
    )
