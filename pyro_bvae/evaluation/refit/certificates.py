"""The gain of another step of a local refit: objective, gradients, and certificate."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bvae.core.seeds import seeded
from pyro_bvae.evaluation.refit.settings import RefitSettings
from pyro_bvae.program.program import Function, Program

# Gradients that are averaged for the step of a certificate, and the lengths that are tried: near an
# optimum, in units of the guide's scales, the second derivatives are of order β.
_GRADIENTS, _LENGTHS = 64, (0.5, 0.1)


def objective_samples(
    program: Program, args: tuple[Any, ...], guide: Function, beta: float, num_particles: int
) -> Tensor:
    """Return draws of the β-objective of each datum, shape ``(K, B)``."""
    return program.draw(num_particles, args, guide).objective(beta)


def gradients_of(
    program: Program, args: tuple[Any, ...], guide: nn.Module, beta: float, num_particles: int
) -> list[Tensor]:
    """Return the gradient of the β-objective, summed over the data, in the guide's own parameters.

    Raises:
        InputError: for a guide site without a reparametrised draw, through which no gradient
            passes.
    """
    with torch.enable_grad():
        total = objective_samples(program, args, guide, beta, num_particles).mean(0).sum()
        # Only the guide's own gradients: nothing is left behind on the model.
        gradients = torch.autograd.grad(total, list(guide.parameters()))
    return [torch.nan_to_num(gradient) for gradient in gradients]


class _Certificate(NamedTuple):
    """The gain of another step.

    Attributes:
        gain: Of each datum by the best of the steps, ``(B,)``, in nats of the objective.
        error: Its standard error.
        best: Which step that is.
        stepped: The guides after each step.
        particles: Evaluations of the decoder for each datum.
    """

    gain: Tensor
    error: Tensor
    best: Tensor
    stepped: list[nn.Module]
    particles: int


def certify(
    program: Program,
    args: tuple[Any, ...],
    guide: nn.Module,
    beta: float,
    settings: RefitSettings,
    seed: int,
    looks: int,
) -> _Certificate:
    """Try another gradient step, and measure its gain.

    The gradient is a mean over many particles and the gain is measured on others, so that the
    optimiser's own noise, step size and plateaus have no part in it.
    """

    def look(at: Function) -> Tensor:
        with seeded(seed, 1), torch.no_grad():
            each = (
                objective_samples(program, args, at, beta, settings.check_particles)
                for _ in range(looks)
            )
            return torch.cat(list(each)).double()

    with seeded(seed, 0):
        draws = [
            gradients_of(program, args, guide, beta, settings.num_particles)
            for _ in range(_GRADIENTS)
        ]
    gradients = [torch.stack(parts).mean(0) for parts in zip(*draws, strict=True)]
    before, stepped, differences = look(guide), [], []
    for length in _LENGTHS:
        candidate = copy.deepcopy(guide)
        with torch.no_grad():
            for parameter, gradient in zip(candidate.parameters(), gradients, strict=True):
                parameter.add_(length / beta * gradient)
        stepped.append(candidate)
        differences.append(look(candidate) - before)
    together = torch.stack(differences)  # (lengths, K, B)
    gain, best = torch.nan_to_num(together.mean(1), nan=-math.inf).max(0)
    errors = together.std(1) / math.sqrt(together.shape[1])
    particles = certificate_cost(settings, looks)
    return _Certificate(gain, errors.gather(0, best[None])[0], best, stepped, particles)


def certificate_cost(settings: RefitSettings, looks: int) -> int:
    """Return the evaluations of the decoder for each datum behind a certificate."""
    tried = (1 + len(_LENGTHS)) * looks * settings.check_particles
    return _GRADIENTS * settings.num_particles + tried
