r"""Simulation-based calibration of a guide, under its model and around data.

Latents and data are drawn from the model, and the guide draws latents for each datum. If the guide
is the posterior, the true value of anything is one more of its draws: its rank among L of them is
uniform on 0, ..., L (Talts et al. 2018). The distance to a random point is such a quantity over all
latents together, the expected coverage of Lemos et al. 2023 (TARP).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import CHOICE_STREAM, NULL_STREAM, SIMULATION_STREAM, stream_seed
from pyro_bvae.evaluation.calibration.quantities import (
    DISTANCE,
    LIKELIHOOD,
    Functions,
    check_functions,
    distances,
    latent_vectors,
    quantities,
)
from pyro_bvae.evaluation.calibration.result import (
    AroundData,
    CalibratedQuantity,
    GuideCalibration,
    compared,
)
from pyro_bvae.program.densities import Particles
from pyro_bvae.program.program import Function, Program, open_program
from pyro_bvae.program.simulation import Simulated, simulate

# Draws times data, and numbers of the widest site, that are made at once.
_ROWS, _NUMBERS = 16384, 4_000_000
# Around data: draws that are weighted, of which some are ranked among.
_PROPOSED, _RESAMPLED = 1000, 19
# Fewer effective draws for each ranked one are no sample of the weighted distribution.
_LEAST_EFFECTIVE = 5


class _Ranked(NamedTuple):
    """Ranks and standardised truths of a block by quantity, ``(B,)`` each, and what came along."""

    ranks: dict[str, Tensor]
    scores: dict[str, Tensor]
    drawn: dict[str, Tensor]  # the first draw
    effective: Tensor | None = None


@exclusive
@torch.no_grad()
def calibrate_guide(
    model: Function,
    guide: Function,
    *args: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    functions: Functions | None = None,
    around_data: bool = False,
    data_plate: str | None = None,
    seed: int = 0,
) -> GuideCalibration:
    r"""Test whether a guide is the posterior, on data drawn from the model.

    Ranked are each latent, each function of the latents, :math:`\log p(x|z)`, and the distance of
    all latents to a random point. Each has an exact p-value; they are corrected for their number
    (Bonferroni). Your data serve for the contexts of the simulated ones, and are compared with
    them: the same quantities under the guide have the same distribution for both if the model is
    right about the data, be the guide right or wrong.

    ``around_data`` adds the posterior version: latents are drawn from the guide at your data,
    :math:`z \sim q(z|x)`, new data from them, :math:`x' \sim p(x'|z)`, and z is ranked among draws
    from :math:`q(z|x')\, p(x|z)`, the posterior of both if the guide is right at either. These are
    draws of the guide, resampled by their weights; too few effective ones are reported.

    Args:
        model: A Pyro model whose latents share a plate over the data, and which can draw them.
        guide: Its guide, which is to read the data from its arguments.
        *args: The arguments of both: your data, better not those of training.
        num_simulations: Simulated data; at least 20.
        num_draws: L, draws of the guide for each.
        functions: More quantities by name: from the latents ``(K, N, *)``, or from a dictionary of
            them where there are several sites, to ``(K, N)`` or ``(K, N, *)``. A sign is
            ``lambda z: z > 0``, a reconstruction ``vae.decode``.
        around_data: Whether to run the posterior version too.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of all draws; the caller's generators are left alone.

    References: Talts et al. 2018; Säilynoja, Bürkner and Vehtari 2022; Lemos et al. 2023; Modrák et
    al. 2023; Säilynoja et al. 2025.

    Raises:
        InputError: for a program that cannot be simulated, or whose guide does not read the data
            from its arguments; for functions that are none, or too few simulations.
    """
    check_count("num_draws", num_draws)
    check_count("num_simulations", num_simulations)
    if num_simulations < 20:
        raise InputError(f"'num_simulations' must be at least 20, got {num_simulations}")
    functions = check_functions(functions)
    with open_program(model, guide, args, data_plate=data_plate, seed=seed) as program:
        scales = _scales(program)
        parts, seen = [], []
        for index, block in enumerate(_blocks(program, num_simulations, num_draws)):
            parts.append(_rank(program, block, num_draws, functions, scales, (seed, index)))
        for block in _blocks(program, min(num_simulations, program.num_data), 1):
            seen.append(_first(program, program.draw(1, block), functions))
        around = [
            _rank_around(program, block, functions, (seed, index))
            for index, block in enumerate(_blocks(program, num_simulations, _PROPOSED))
            if around_data
        ]
    observed = _join(seen)
    return GuideCalibration(
        _summaries(parts, num_draws),
        num_draws,
        compared(observed, _join([part.drawn for part in parts])),
        len(observed[LIKELIHOOD]),
        _around(around) if around_data else None,
    )


def _blocks(program: Program, count: int, num_draws: int) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of so many data, in turn or spread evenly; whole where they must be."""
    if not program.sliceable:
        yield from (program.args for _ in range(-(-count // program.num_data)))
        return
    number = program.num_data
    rows = torch.arange(count) * number // count if count < number else torch.arange(count) % number
    size = max(1, min(_ROWS // num_draws, _NUMBERS // (num_draws * program.width)))
    yield from (program.take(part) for part in rows.split(size))


def _scales(program: Program) -> dict[str, Tensor]:
    """Return the standard deviation of each latent under the prior, ``(d,)`` by site."""
    drawn = latent_vectors(program, program.draw_prior(64, program.probe).values)
    spreads = {name: value.flatten(0, 1).std(0) for name, value in drawn.items()}
    return {name: torch.where(std > 0, std, 1.0).nan_to_num(1.0) for name, std in spreads.items()}


def _first(program: Program, drawn: Particles, functions: Functions) -> dict[str, Tensor]:
    """Return the quantities of the first draw, ``(B,)`` each."""
    values = {name: value[:1] for name, value in drawn.values.items()}
    found = quantities(program, values, functions)
    return {name: value[0].cpu() for name, value in found.items()} | {
        LIKELIHOOD: drawn.densities.observed[0].double().cpu()
    }


def _truth(simulated: Simulated, functions: Functions) -> tuple[Particles, dict[str, Tensor]]:
    """Return the latents behind simulated data as one particle, and their quantities."""
    program = simulated.program
    density = program.score(simulated.latents, simulated.args).densities
    values = {name: value.unsqueeze(0) for name, value in simulated.latents.items()}
    found = quantities(program, values, functions) | {LIKELIHOOD: density.observed.double()}
    return Particles(values, density), found


def _rank(
    program: Program,
    block: tuple[Any, ...],
    num_draws: int,
    functions: Functions,
    scales: dict[str, Tensor],
    path: tuple[int, int],
) -> _Ranked:
    """Simulate a block of data and rank the truth among the guide's draws."""
    simulated = simulate(program, block, stream_seed(*path, SIMULATION_STREAM), for_guide=True)
    other = simulate(program, block, stream_seed(*path, NULL_STREAM), for_guide=True).latents
    drawn = simulated.program.draw(num_draws, simulated.args)
    truth, true = _truth(simulated, functions)
    found = quantities(program, drawn.values, functions)
    found[LIKELIHOOD] = drawn.densities.observed.double()
    point = latent_vectors(program, {name: value.unsqueeze(0) for name, value in other.items()})
    for values, into in ((truth.values, true), (drawn.values, found)):
        into[DISTANCE] = distances(latent_vectors(program, values), point, scales)
    return _Ranked(*_standing(true, found), _first(program, drawn, functions))


def _rank_around(
    program: Program, block: tuple[Any, ...], functions: Functions, path: tuple[int, int]
) -> _Ranked:
    """Draw data around a block of data, and rank their latents given both."""
    origin = program.propose(None, block, program.guide)[0]
    latents = {name: origin[name] for name in program.latents}
    seed = stream_seed(*path, CHOICE_STREAM)
    simulated = simulate(program, block, seed, for_guide=True, given=latents)
    drawn = simulated.program.draw(_PROPOSED, simulated.args)
    _, true = _truth(simulated, functions)
    latent_draws = {name: drawn.values[name] for name in program.latents}
    log_weights = program.log_joint(latent_draws, block)[1].double()
    weights = log_weights.softmax(0)
    chosen = torch.multinomial(weights.T, _RESAMPLED, replacement=True).T  # (L, B)
    found = quantities(program, drawn.values, functions)
    found[LIKELIHOOD] = drawn.densities.observed.double()
    found = {name: value.gather(0, chosen) for name, value in found.items()}
    effective = (1 / weights.square().sum(0)).cpu()
    return _Ranked(*_standing(true, found), {}, effective)


def _standing(
    true: dict[str, Tensor], found: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return rank and standardised value of each truth; ties of ranks are broken at random."""
    ranks, scores = {}, {}
    for name, values in found.items():
        ties = (values == true[name]).sum(0)
        share = torch.rand(ties.shape, dtype=torch.double, device=ties.device)
        ranks[name] = ((values < true[name]).sum(0) + (share * (ties + 1)).floor().long()).cpu()
        scores[name] = ((true[name][0] - values.mean(0)) / values.std(0)).cpu()
        scores[name] = torch.where(ties.cpu() > 0, torch.nan, scores[name])
    return ranks, scores


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _summaries(parts: list[_Ranked], num_draws: int) -> tuple[CalibratedQuantity, ...]:
    ranks, scores = _join([part.ranks for part in parts]), _join([part.scores for part in parts])
    return tuple(
        CalibratedQuantity.of(
            name, ranks[name], num_draws, None if name == DISTANCE else scores[name]
        )
        for name in ranks
    )


def _around(parts: list[_Ranked]) -> AroundData:
    effective = torch.cat([part.effective for part in parts if part.effective is not None])
    enough = effective >= _LEAST_EFFECTIVE * _RESAMPLED
    return AroundData(_summaries(parts, _RESAMPLED), float(enough.double().mean()))
