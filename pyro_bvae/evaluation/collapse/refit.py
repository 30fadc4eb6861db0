"""The latents under a guide without an encoder: the local refit, in short."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.module_modes import frozen
from pyro_bvae.core.seeds import REFIT_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.collapse.latents import Latents
from pyro_bvae.evaluation.refit.optimisation import LocalGuideFactory, RefitSettings, refit
from pyro_bvae.program.densities import Particles
from pyro_bvae.program.program import Function, Program

# Far from any optimum, as a lagging encoder is, few steps tell; nothing is certified.
_SETTINGS = RefitSettings(
    num_particles=8,
    steps_per_round=20,
    max_rounds=15,
    tolerance=0.01,
    num_plateaus=3,
    check_particles=32,
    certified_gain=math.inf,
    num_starts=0,
)
_DRAWS = 64
# At β = 0 a refit has no optimum.
_LEAST_BETA = 1e-3


class LocalAnswer(NamedTuple):
    """The local refit beside the encoder.

    Attributes:
        variances: Of the refitted means over the data, ``(L,)``, without their Monte Carlo error.
        worths: The worth of each refitted latent beside another datum's, ``(L,)``, in nats.
        worth_errors: Their standard errors, ``(L,)``.
        gain: The gain of the β-objective by the refit, mean over the data, in nats.
        error: Its standard error over the data.
        rate: The refit's rate, in nats.
        encoder_rate: The encoder's.
    """

    variances: Tensor
    worths: Tensor
    worth_errors: Tensor
    gain: float
    error: float
    rate: float
    encoder_rate: float


def local_answer(
    program: Program,
    args: tuple[Any, ...],
    beta: float,
    seed: int,
    local_guide: LocalGuideFactory | None,
) -> LocalAnswer:
    """Refit the guide of some data under the β-objective, and compare.

    Raises:
        InputError: for a guide that has no local version, where none is given.
    """
    beta = max(beta, _LEAST_BETA)

    def look(guide: Function) -> Particles:
        with seeded(seed, REFIT_STREAM, 1), torch.no_grad():
            return program.draw(_DRAWS, args, guide)

    with frozen(program.model, program.guide):
        guide = refit(
            program, args, beta, _SETTINGS, stream_seed(seed, REFIT_STREAM), local_guide
        ).guide
        before, after = look(program.guide), look(guide)
    latents = Latents(program, args)
    objectives, rates = [], []
    for _, (latent, observed, guided), _ in (before, after):
        objectives.append((observed + beta * (latent - guided)).double().mean(0))
        rates.append(float((guided - latent).mean()))
    gains = objectives[1] - objectives[0]
    draws = torch.stack(
        [latents.rows(one.unsqueeze(0)) for one in after.values[latents.name]]
    ).double()
    variances = draws.mean(0).var(0) - draws.var(0).mean(0) / len(draws)
    with torch.no_grad(), seeded(seed, REFIT_STREAM, 2):
        worths, errors = latents.worths(draws[0].to(latents.drawn))
    error = float(gains.std() / len(gains) ** 0.5)
    return LocalAnswer(
        variances.clamp(min=0),
        worths[:-1],
        errors[:-1],
        float(gains.mean()),
        error,
        rates[1],
        rates[0],
    )
