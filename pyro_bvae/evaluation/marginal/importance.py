r"""Importance-weighted evidence, and the weights that every estimate of this package is made of.

.. math::
    \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \; z_k
    \sim q(z \mid x)

is a stochastic lower bound of the evidence that tightens with K (Burda et al. 2016), at β = 1
whatever the model was trained with: scales never enter a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.internals import tree_leaves
from pyro_bvae.core.module_modes import frozen
from pyro_bvae.core.seeds import PROPOSAL_STREAM, stream_seed
from pyro_bvae.evaluation.compiled_joint import COMPILED_PASS, compiled_joint
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.averages import Averaging, error_of_mean, plain
from pyro_bvae.evaluation.marginal.blocks import EvidenceBlock, join_evidence
from pyro_bvae.evaluation.marginal.escalation import Escalation, escalate, escalation_of
from pyro_bvae.evaluation.marginal.proposals import Component, Proposal, RobustProposal
from pyro_bvae.evaluation.marginal.psis import has_reliable_mean
from pyro_bvae.program.densities import LatentValues, LogDensities, Particles
from pyro_bvae.program.program import Function, Program, open_program

# Rows (particles times data) that one pass of the model takes at most, and numbers in its widest
# site: enough to hide the time Python takes to set a pass up, and little memory. The guide, which
# is narrower, goes some passes ahead.
_ON_CPU, _ON_CUDA = (16_384, 8_300_000), (262_144, 250_000_000)
_PASSES_AHEAD = 4
# Data that are weighed together, and weights that are held at a time: fewer data where K is large.
_MOST_DATA, _MOST_WEIGHTS = 512, 2_560_000


class Weights(NamedTuple):
    """Weights of K particles for one block of B data, every entry of shape ``(K, B)``."""

    log_weights: Tensor
    observed: Tensor  # log p(x | z)
    mixed: Tensor  # log weights as draws of the mixture; of a single guide, log_weights


def sample_weights(
    program: Program,
    args: tuple[Any, ...],
    num_samples: int,
    guide: Function | None = None,
    mixture: tuple[Component, ...] = (),
) -> Weights:
    r"""Draw and weigh ``num_samples`` particles for a block of data, a few at a time.

    The randomness is the global generator's: two guides that are given the same seed share their
    noise. With a mixture that the guide is a component of, the draws are also weighed as some of
    the mixture's.
    """
    whole: list[Tensor] = []
    done = 0
    for values, densities in _draws(program, num_samples, args, guide or program.guide):
        terms = [densities.log_weights, densities.observed]
        if len(mixture) > 1:
            joint = densities.observed + densities.latent
            terms.append(joint - _log_mixture(program, args, mixture, guide, values, densities))
        # Not a list of parts: each would lie where the large blocks of its pass were, and keep
        # those of the next out.
        whole = whole or [term.new_empty(num_samples, term.shape[1]) for term in terms]
        for kept, term in zip(whole, terms, strict=True):
            kept[done : done + len(term)] = term
        done += len(terms[0])
    weighed = Weights(whole[0], whole[1], whole[2] if len(mixture) > 1 else whole[0])
    lost = torch.isnan(weighed.log_weights).any(0)
    if bool(lost.any()):
        raise InputError(
            f"the log weights of datum {int(lost.nonzero()[0])} of a block of {len(lost)} are NaN"
        )
    return weighed


def _draws(
    program: Program, num_samples: int, args: tuple[Any, ...], guide: Function
) -> Iterator[Particles]:
    """Yield draws of all particles, a few at a time, from a guide that draws more at once."""
    on_cuda = any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves(args))
    most, passes = _ON_CUDA if on_cuda else _ON_CPU, _PASSES_AHEAD
    if program.compiled is not None and not on_cuda:
        most, passes = COMPILED_PASS, passes * _ON_CPU[0] // COMPILED_PASS[0]
    rows, numbers = most
    step = max(1, min(rows, numbers // program.width) // program.count(args))
    joint = program.compiled or program.log_joint
    ahead = step * (passes if program.vectorized else 1)
    if guide is program.model:  # whose latents are drawn with the data's density: one pass, not two
        sizes = [min(step, num_samples - first) for first in range(0, num_samples, step)]
        yield from (program.draw_prior(size, args) for size in sizes)
        return
    for first in range(0, num_samples, ahead):
        count = min(ahead, num_samples - first)
        if not program.vectorized:
            yield program.draw(count, args, guide)
            continue
        values, log_guide = program.propose(count, args, guide)
        for start in range(0, count, step):
            some = {name: value[start : start + step] for name, value in values.items()}
            yield Particles(some, LogDensities(*joint(some, args), log_guide[start : start + step]))


def _log_mixture(
    program: Program,
    args: tuple[Any, ...],
    mixture: tuple[Component, ...],
    guide: Function | None,
    values: LatentValues,
    densities: LogDensities,
) -> Tensor:
    """Return the log density of a mixture at the draws of one of its components, ``(K, B)``."""

    def log_density(component: Component) -> Tensor:
        if component.function is guide:
            return densities.guide
        return (
            densities.latent
            if component.is_prior
            else program.log_guide(values, args, component.function)
        )

    return torch.stack([math.log(part.share) + log_density(part) for part in mixture]).logsumexp(0)


def sample_mixture(
    program: Program, args: tuple[Any, ...], num_samples: int, mixture: tuple[Component, ...]
) -> Tensor:
    """Return the log weights of draws from all components, by their shares, ``(K, B)``.

    A component whose share of the samples is less than half of one is left out.

    Raises:
        InputError: for more than one component of a guide whose density at another's draws cannot
            be had.
    """
    return torch.cat(
        [
            sample_weights(program, args, count, part.function, drawn).mixed
            for part, count, drawn in _shares(program, num_samples, mixture)
        ]
    )


def draw_mixture(
    program: Program, args: tuple[Any, ...], num_samples: int, mixture: tuple[Component, ...]
) -> tuple[Tensor, Tensor]:
    """Return draws of the first latent from all components, ``(K, B, *)``, and their log weights.

    Raises:
        InputError: as of :func:`sample_mixture`.
    """
    draws, weights = [], []
    for part, count, drawn in _shares(program, num_samples, mixture):
        for values, densities in _draws(program, count, args, part.function):
            joint = densities.observed + densities.latent
            draws.append(values[program.latents[0]])
            weights.append(
                joint - _log_mixture(program, args, drawn, part.function, values, densities)
            )
    return torch.cat(draws), torch.cat(weights)


def _shares(
    program: Program, num_samples: int, mixture: tuple[Component, ...]
) -> list[tuple[Component, int, tuple[Component, ...]]]:
    """Return each component that draws, its number of samples, and the mixture that is drawn."""
    if len(mixture) > 1 and not program.proposes_latents_alone:
        raise InputError(
            "draws can be mixed only where the guide draws the model's latents with a density of"
            f" their own; its sites are {sorted(program.guide_sites)} for the latents"
            f" {sorted(program.latents)}: use the guide alone"
        )
    counts = [round(part.share * num_samples) for part in mixture[1:]]
    counts = [max(0, num_samples - sum(counts)), *counts]
    drawn = tuple(
        part._replace(share=count / sum(counts))
        for part, count in zip(mixture, counts, strict=True)
        if count
    )
    return [(part, count, drawn) for part, count in zip(drawn, filter(None, counts), strict=True)]


def stream_blocks(program: Program, num_samples: int, bar: tqdm[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of each block of data, and move the bar when a block is done."""
    for block in program.blocks(max(1, min(_MOST_DATA, _MOST_WEIGHTS // num_samples))):
        yield block
        bar.update(program.count(block))


def data_bar(program: Program, progress: bool, title: str) -> tqdm[Any]:
    """Return a progress bar over the data."""
    return tqdm(total=program.num_data, desc=title, disable=not progress, unit="data")


def _bound_of(
    program: Program, _: tuple[Any, ...], weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    samples = weights.log_weights
    mean = samples.double().mean(0)
    return (
        mean,
        torch.hypot(error_of_mean(samples), program.rounding * mean.abs()),
        has_reliable_mean(samples),
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
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        torch.no_grad(),
        data_bar(program, progress, title) as bar,
    ):
        return [
            reduce(program, block, sample_weights(program, block, num_samples))
            for block in stream_blocks(program, num_samples, bar)
        ]


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
    Memory is that of the weights of one block of data.

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
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        frozen(model, guide),
        torch.no_grad(),
        data_bar(program, progress, "evidence") as bar,
    ):
        program.compiled = compiled_joint(program, num_samples, compile, bar)
        blocks, cost = [], num_samples * program.num_data
        for index, block in enumerate(stream_blocks(program, num_samples, bar)):
            mixture = proposal.components(program, block, stream_seed(seed, index, PROPOSAL_STREAM))
            cost += sum(part.cost for part in mixture)
            log_weights = sample_mixture(program, block, num_samples, mixture)
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
