r"""Hamiltonian Monte Carlo moves of many chains at once, along a path of densities.

The path is :math:`\log f_t(u) = a(u) + t\, b(u)`, with t from 0 to 1. Every datum has a step size
and a temperature of its own, every chain accepts or rejects for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """The chains' vectors ``(C, B, d)``, and both parts of the path there, ``(C, B)`` each."""

    vectors: Tensor
    base: Tensor  # a
    ratio: Tensor  # b


# Vectors (C, B, d) to the two parts of the path, (C, B) each.
Path = Callable[[Tensor], tuple[Tensor, Tensor]]


def evaluate_path(path: Path, vectors: Tensor) -> State:
    """Return the state of given vectors, without gradients."""
    with torch.no_grad():
        return _state(path, vectors)


def _state(path: Path, vectors: Tensor) -> State:
    base, ratio = path(vectors)
    return State(vectors, base, ratio)


def _with_gradient(path: Path, vectors: Tensor, temperature: Tensor) -> tuple[State, Tensor]:
    vectors = vectors.detach().requires_grad_()
    with torch.enable_grad():
        state = _state(path, vectors)
        (gradient,) = torch.autograd.grad((state.base + temperature * state.ratio).sum(), vectors)
    return State(*(part.detach() for part in state)), torch.nan_to_num(gradient, 0.0, 0.0, 0.0)


def hmc_step(
    path: Path, state: State, temperature: Tensor, step: Tensor, num_steps: int
) -> tuple[State, Tensor]:
    r"""Move all chains by one trajectory that leaves :math:`f_t` invariant and is its own reverse.

    Args:
        path: The path.
        state: Where the chains are.
        temperature: t of each datum, ``(B,)``.
        step: Step size of each coordinate, ``(B, d)``: step size times scale.
        num_steps: Leapfrog steps, each one evaluation of the path with its gradient, and one more
            to begin with.

    Returns:
        The new state, and the probability of acceptance of each chain, ``(C, B)``.
    """
    momentum = torch.randn_like(state.vectors)
    start = momentum.square().sum(-1) / 2
    here, gradient = _with_gradient(path, state.vectors, temperature)
    for _ in range(num_steps):
        momentum = momentum + 0.5 * step * gradient
        here, gradient = _with_gradient(path, here.vectors + step * momentum, temperature)
        momentum = momentum + 0.5 * step * gradient
    energy = state.base + temperature * state.ratio - start
    proposed = here.base + temperature * here.ratio - momentum.square().sum(-1) / 2
    # A trajectory that left the numbers has no density where it ended.
    log_acceptance = torch.nan_to_num(proposed - energy, nan=-math.inf)
    accepted = torch.rand_like(log_acceptance).log() < log_acceptance
    moved = State(
        torch.where(accepted.unsqueeze(-1), here.vectors, state.vectors),
        torch.where(accepted, here.base, state.base),
        torch.where(accepted, here.ratio, state.ratio),
    )
    return moved, log_acceptance.clamp(max=0).exp()
