r"""The rate-distortion curve of one trained decoder, out of one annealing run.

Of all codes :math:`q(z|x)` of a decoder and a prior, the least :math:`R + D / \beta` has the
posterior tempered by β, :math:`q_\beta \propto p(z)\, p(x|z)^{1/\beta}`. Annealing from the prior
passes all of them: with its log normaliser, :math:`R = -D / \beta - \log Z_\beta` (Huang et al.
2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import frozen
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import ANNEALING_STREAM, SIMULATION_STREAM, stream_seed
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.information.decoder_chains import CurveRun, Stops
from pyro_bvae.evaluation.information.decoder_result import Bounds, DecoderCurve, DecoderPoint
from pyro_bvae.evaluation.marginal.averages import effective_sample_size
from pyro_bvae.evaluation.marginal.bounds import elbo_parts
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings
from pyro_bvae.program.differentiability import check_differentiable
from pyro_bvae.program.program import Function, open_program
from pyro_bvae.program.simulation import simulate

#: The β of the curve's points by default.
BETAS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 16.0)
# Chains times data that move together, and the effective share of chains that agree.
_ROWS, _LEAST_SHARE = 8192, 0.25

# Rate and distortion of a block at each stop, ``(J, B)``, with their errors.
Points = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@exclusive
def rate_distortion_curve(
    model: Function,
    guide: Function,
    *args: Any,
    betas: Sequence[float] = BETAS,
    settings: AnnealingSettings | None = None,
    bounds: bool = True,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> DecoderCurve:
    r"""Measure the whole rate-distortion curve of one trained decoder, and the guide beside it.

    Chains move from the prior along :math:`p(z)\, p(x|z)^t` and stop at each :math:`t = 1 / \beta`.
    The log of their mean weight is low in the mean, so a rate is an upper bound in expectation. How
    far above is known for data that the decoder draws: chains from the latents that made them,
    backwards over the same path, give a lower bound of the rate. That is exact at the smallest β
    where this is 1; elsewhere up to the weights of the way from β = 1 to there.

    Args:
        model: A Pyro model whose latents share a plate over the data, differentiable in them.
        guide: Its guide, whose own rate and distortion stand beside the curve.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        betas: The β of the points, positive: 0.1 is four times as long a path as 0.4.
        settings: How to run; 500 temperatures and 16 chains by default.
        bounds: Whether to bound the curve of simulated data from both sides too, which takes twice
            as long again.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the chains.
        progress: Show a progress bar.

    Returns:
        The curve. Reference: Huang, Makhzani, Cao and Grosse 2020.

    Raises:
        InputError: for β that are not positive, or a program that has no per-datum weights or no
            gradient in a latent.
    """
    chosen = _checked(betas)
    settings = settings or AnnealingSettings(num_temperatures=500, num_chains=16)
    found, below, above = [], [], []
    with (
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        frozen(model, guide),
        ProgressBar(disable=not progress, unit="temperatures", desc="annealing") as bar,
    ):
        check_differentiable(program)
        temperatures = [1 / beta for beta in reversed(chosen)]
        for index, block in enumerate(program.blocks(max(1, _ROWS // settings.num_chains))):
            numbers = (settings, stream_seed(seed, index, ANNEALING_STREAM), bar)
            run = CurveRun(temperatures, program, block, "prior", *numbers)
            found.append(_points(run.upward(), temperatures))
            if bounds:
                path = stream_seed(seed, index, SIMULATION_STREAM)
                drawn = simulate(program, block, path)
                run = CurveRun(temperatures, drawn.program, drawn.args, "prior", *numbers)
                above.append(_points(run.upward(), temperatures))
                below.append(_points(run.downward(drawn.latents), temperatures, downward=True))
    parts = elbo_parts(model, guide, *args, num_samples=200, data_plate=data_plate, seed=seed)
    points = _joined(found, chosen)
    certificate = None
    if bounds:
        certificate = tuple(
            Bounds(*pair)
            for pair in zip(_joined(below, chosen), _joined(above, chosen), strict=True)
        )
    return DecoderCurve(points, parts.rate, parts.distortion, certificate)


def _checked(betas: Sequence[float]) -> list[float]:
    chosen = sorted({float(beta) for beta in betas})
    if not chosen or not (chosen[0] > 0 and math.isfinite(chosen[-1])):
        raise InputError(f"'betas' must be positive numbers, at least one, got {list(betas)}")
    return chosen


def _points(stops: Stops, temperatures: Sequence[float], downward: bool = False) -> Points:
    """Return rates, distortions, their jackknife errors, and effective shares, ``(J, B)`` each."""
    t = torch.tensor(temperatures, dtype=torch.double, device=stops.whole.device)[:, None]

    def measure(kept: Tensor) -> tuple[Tensor, Tensor]:
        log_weights = stops.log_weights[:, kept]
        distortion = (log_weights.softmax(1) * stops.distortions[:, kept]).sum(1)
        whole = stops.whole[kept].logsumexp(0) if downward else math.log(len(kept))
        return -t * distortion - (log_weights.logsumexp(1) - whole), distortion

    count = stops.log_weights.shape[1]
    every = torch.arange(count)
    rate, distortion = measure(every)
    left = [measure(every[every != index]) for index in range(count)] if count > 1 else []
    errors = [_spread([part[which] for part in left], rate) for which in (0, 1)]
    flat = stops.log_weights.transpose(0, 1).flatten(1)
    share = effective_sample_size(flat).reshape(rate.shape) / count
    return rate.cpu(), distortion.cpu(), errors[0].cpu(), errors[1].cpu(), share.cpu()


def _spread(left: list[Tensor], like: Tensor) -> Tensor:
    """Return the jackknife's standard error of values that each leave one chain out."""
    if not left:
        return torch.full_like(like, math.nan)
    values = torch.stack(left)
    return (len(left) - 1) ** 0.5 * values.std(0, correction=0)


def _joined(blocks: list[Points], betas: Sequence[float]) -> tuple[DecoderPoint, ...]:
    rate, distortion, rate_error, distortion_error, share = (
        torch.cat(parts, 1).flip(0) for parts in zip(*blocks, strict=True)
    )
    points = []
    for index, beta in enumerate(betas):
        make: Callable[..., Estimate] = Estimate.over_data
        reliable = share[index] >= _LEAST_SHARE
        points.append(
            DecoderPoint(
                beta,
                make(rate[index], rate_error[index], reliable=reliable),
                make(distortion[index], distortion_error[index], reliable=reliable),
            )
        )
    return tuple(points)
