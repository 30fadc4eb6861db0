"""Draws of a guide or a mixture, and their log weights, a few particles at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.internals import tree_leaves
from pyro_bvae.evaluation.compiled_joint import COMPILED_PASS
from pyro_bvae.evaluation.marginal.proposals import Component
from pyro_bvae.program.densities import LatentValues, LogDensities, Particles
from pyro_bvae.program.program import Function, Program

# Rows (particles times data) that one pass of the model takes at most, and numbers in its widest
# site: enough to hide the time Python takes to set a pass up, and little memory. The guide, which
# is narrower, goes some passes ahead.
_ON_CPU, _ON_CUDA = (16_384, 8_300_000), (262_144, 250_000_000)
_PASSES_AHEAD = 4


class Weights(NamedTuple):
    """Weights of K particles for one block of B data, every entry of shape ``(K, B)``."""

    log_weights: Tensor
    observed: Tensor  # log p(x | z)
    mixed: Tensor  # log weights as draws of the mixture; of a single guide, log_weights, but where
    # it draws discrete latents: log_weights are then draws of its bound, and these of the evidence


def _silent(count: int) -> None:
    """Tell nobody how many particles are weighed."""


def sample_weights(
    program: Program,
    args: tuple[Any, ...],
    num_samples: int,
    guide: Function | None = None,
    mixture: tuple[Component, ...] = (),
    on_draws: Callable[[int], Any] = _silent,
) -> Weights:
    r"""Draw and weigh ``num_samples`` particles for a block of data, a few at a time.

    The randomness is the global generator's: two guides that are given the same seed share their
    noise. With a mixture that the guide is a component of, the draws are also weighed as some of
    the mixture's. ``on_draws`` is told how many more particles are weighed.
    """
    whole: list[Tensor] = []
    done = 0
    for drawn in _draws(program, num_samples, args, guide or program.guide):
        values, densities, bound = drawn
        terms = [drawn.elbo, drawn.observed]
        if len(mixture) > 1:
            joint = densities.observed + densities.latent
            terms.append(joint - _log_mixture(program, args, mixture, guide, values, densities))
        elif bound is not None:
            terms.append(densities.log_weights)
        # Not a list of parts: each would lie where the large blocks of its pass were, and keep
        # those of the next out.
        whole = whole or [term.new_empty(num_samples, term.shape[1]) for term in terms]
        for kept, term in zip(whole, terms, strict=True):
            kept[done : done + len(term)] = term
        done += len(terms[0])
        on_draws(len(terms[0]))
    weighed = Weights(whole[0], whole[1], whole[-1] if len(whole) > 2 else whole[0])
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
            if program.summation is not None:
                own = log_guide[start : start + step]
                yield program.weigh(len(own), some, args, guide, own)
                continue
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
    program: Program,
    args: tuple[Any, ...],
    num_samples: int,
    mixture: tuple[Component, ...],
    on_draws: Callable[[int], Any] = _silent,
) -> Tensor:
    """Return the log weights of draws from all components, by their shares, ``(K, B)``.

    A component whose share of the samples is less than half of one is left out. ``on_draws`` is
    told how many more particles are weighed.

    Raises:
        InputError: for more than one component of a guide whose density at another's draws cannot
            be had.
    """
    return torch.cat(
        [
            sample_weights(program, args, count, part.function, drawn, on_draws).mixed
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
        for values, densities, _ in _draws(program, count, args, part.function):
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
