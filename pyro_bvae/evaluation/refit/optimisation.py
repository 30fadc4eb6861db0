r"""Local refits: the best member of the guide's family for each datum, without an encoder.

The β-objective of a datum,

.. math:: \mathbb{E}_q[\log p(x|z)] + \beta \, \mathbb{E}_q[\log p(z) - \log q(z)],

is maximised over free parameters for each datum, for many data at once, from the best of the
encoder's own answer and the modes that were found from elsewhere
(:mod:`~pyro_bvae.evaluation.refit.modes`). Parameters count in units of the present scales, which
follow the curvature, and not in those of the start. A datum keeps the encoder's answer where the
refit was worse; a guide of the caller's own (``local_guide``) is taken as it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.protocols import HasLogDensity
from pyro_bvae.core.seeds import PROBE_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.refit.certificates import certificate_cost, certify, gradients_of
from pyro_bvae.evaluation.refit.curvature import newton_gain, noises, rows_of
from pyro_bvae.evaluation.refit.joint_guides import JointLocalGuide
from pyro_bvae.evaluation.refit.local_guides import LocalGuide, local_guide_of, local_refusal
from pyro_bvae.evaluation.refit.modes import Modes, find_modes
from pyro_bvae.evaluation.refit.settings import RefitSettings
from pyro_bvae.program.differentiability import missing_gradient
from pyro_bvae.program.program import Function, Program
from pyro_bvae.program.sites import is_delta, samples

LocalGuideFactory = Callable[..., nn.Module]
# Is told the name of each phase, and the share of the work that is done by then.
OnProgress = Callable[[str, float], Any]
# The share of a refit's work that is its descent; the rest is its certificate.
_DESCENT = 0.7


def silent(phase: str, share: float) -> None:
    """Tell nobody of a phase."""


@dataclass(frozen=True)
class Refit:
    """A refitted guide for one block of data, and how it came about.

    Attributes:
        guide: The guide.
        certified: Which data's refits are certified to have converged, ``(B,)``.
        steps: Gradient steps taken.
        cost: Evaluations of the decoder, over all data of the block.
        noise: How much the ELBO of each datum wavers with the optimiser's noise, ``(B,)``.
        remaining: The gain that the certificate leaves to each datum, ``(B,)``, at least 0.
        modes: The modes of the search; None where there was none.
    """

    guide: Function
    certified: Tensor
    steps: int
    cost: int
    noise: Tensor
    remaining: Tensor
    modes: Modes | None = None


class _Descent:
    """Adam on the free parameters of one guide, in rounds that end at the objective."""

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        guide: nn.Module,
        beta: float,
        settings: RefitSettings,
        seed: int,
    ) -> None:
        self.program, self.args, self.guide, self.beta = program, args, guide, beta
        self.settings, self.seed = settings, seed
        self.rounds = 0
        self.bounds: list[Tensor] = []  # the ELBO of each datum after each round, of the same noise

    def look(self, at: Function) -> Tensor:
        """Return draws of the objective, ``(K, B)``, of the same noise at every call."""
        with seeded(self.seed, 1), torch.no_grad():
            drawn = self.program.draw(self.settings.check_particles, self.args, at)
        if at is self.guide:
            self.bounds.append(drawn.elbo.double().mean(0))
        return drawn.objective(self.beta).double()

    def run(self, on_progress: OnProgress) -> None:
        """Go down in smaller and smaller steps until the data no longer gain in the mean."""
        settings = self.settings
        value, plateaus = self.look(self.guide), 0
        with seeded(self.seed, 0):
            while plateaus < settings.num_plateaus and self.rounds < settings.max_rounds:
                self._round(settings.learning_rate * settings.decay**plateaus)
                improved = self.look(self.guide)
                plateaus += int(not float((improved - value).mean()) >= settings.tolerance)
                value = improved
                self.rounds += 1
                share = max(plateaus / settings.num_plateaus, self.rounds / settings.max_rounds)
                on_progress(f"refit at β = {self.beta:g}, round {self.rounds}", _DESCENT * share)

    def _round(self, learning_rate: float) -> None:
        if isinstance(self.guide, (LocalGuide, JointLocalGuide)):
            self.guide.restart()
        adam = torch.optim.Adam(self.guide.parameters(), lr=learning_rate)
        for _ in range(self.settings.steps_per_round):
            gradients = gradients_of(
                self.program, self.args, self.guide, self.beta, self.settings.num_particles
            )
            for parameter, gradient in zip(self.guide.parameters(), gradients, strict=True):
                parameter.grad = -gradient
            adam.step()

    @property
    def noise(self) -> Tensor:
        """How much the ELBO of each datum still wavers with the optimiser's noise, ``(B,)``.

        At β ≠ 1 the refit is no optimum of the ELBO, which then moves with the parameters to first
        order.
        """
        last = torch.stack(self.bounds[-_LAST_ROUNDS:])
        return torch.nan_to_num(last.std(0) if len(last) > 1 else torch.zeros_like(last[0]))

    @property
    def steps(self) -> int:
        """Gradient steps taken."""
        return self.rounds * self.settings.steps_per_round

    @property
    def particles(self) -> int:
        """Evaluations of the decoder for each datum."""
        return (
            self.steps * self.settings.num_particles
            + (self.rounds + 1) * self.settings.check_particles
        )


def refit(
    program: Program,
    args: tuple[Any, ...],
    beta: float,
    settings: RefitSettings,
    seed: int,
    local_guide: LocalGuideFactory | None = None,
    candidates: tuple[Function, ...] = (),
    on_progress: OnProgress = silent,
) -> Refit:
    """Fit free parameters for each datum of a block under the β-objective.

    After the descent comes the certificate: the gain of another gradient step, with far less noise.
    Data that gain take it, and are certified again.

    Args:
        program: The program.
        args: The arguments of the block.
        beta: Weight of the KL in the objective.
        settings: How to run.
        seed: Seed of the block's noise.
        local_guide: Called with ``args``, returns a guide module to fit instead of the program's
            own family.
        candidates: Other local guides of the same kind and data; a datum takes over the one of
            highest objective.
        on_progress: Called with where the refit stands, after every round.
    """

    def make() -> Any:
        return local_guide(*args) if local_guide is not None else local_guide_of(program, args)

    guide = make()
    if reason := _unreparametrised(args, guide) or missing_gradient(program):
        raise InputError(reason)
    descent = _Descent(program, args, guide, beta, settings, seed)
    start = descent.look(guide)
    modes = None
    if isinstance(guide, LocalGuide) and settings.num_starts:
        on_progress(f"modes at β = {beta:g}", 0.0)
        modes = find_modes(program, args, beta, settings.num_starts, stream_seed(seed, 4))
    placed: tuple[Any, ...] = () if modes is None else _at_modes(guide, modes)
    for other in placed:
        guide.keep(is_better(descent.look(other), descent.look(guide)), other, program.plate.dim)
    descent.run(on_progress)
    noise = descent.noise
    keeps = callable(getattr(guide, "keep", None))
    if keeps:
        guide.keep(is_better(start, descent.look(guide)), make(), program.plate.dim)
        for other in (*placed, *candidates):
            guide.keep(
                is_better(descent.look(other), descent.look(guide)), other, program.plate.dim
            )
    cost = program.count(args) * (descent.particles + 2 * len(placed) * settings.check_particles)
    cost += 0 if modes is None else program.count(args) * modes.cost
    certified, remaining, evaluations = _certified(
        program, args, guide, beta, settings, seed, on_progress
    )
    cost += evaluations
    return Refit(guide, certified.cpu(), descent.steps, cost, noise, remaining, modes)


def _at_modes(guide: LocalGuide, modes: Modes) -> tuple[LocalGuide, ...]:
    """Return local guides at the modes of most mass, of their scales."""
    results = []
    noise = noises(modes.locs.shape[-1], 16).to(modes.locs).unsqueeze(1)
    marginal, conditional = (modes.scales(conditional=given) for given in (False, True))
    for rank in range(min(_PLACED, len(modes.locs))):
        around = (modes.locs[rank] + scale[rank] * noise for scale in (marginal, conditional))
        results.append(
            guide.placed(*(modes.coordinates.unflatten(vectors)[0] for vectors in around))
        )
    return tuple(results)


def _certified(
    program: Program,
    args: tuple[Any, ...],
    guide: Any,
    beta: float,
    settings: RefitSettings,
    seed: int,
    on_progress: OnProgress,
) -> tuple[Tensor, Tensor, int]:
    """Return the certified data, their gains left, and the evaluations over all data."""
    own = isinstance(guide, (LocalGuide, JointLocalGuide))
    if own:
        guide.restart()
    certified, gain, cost = _polished(program, args, guide, beta, settings, seed, on_progress)
    try:
        newton = newton_gain(program, args, guide, beta) if own else None
    except InputError:  # latents without coordinates
        newton = None
    if newton is None:
        return certified, gain, cost
    certified = certified & (newton.gain + 2 * newton.error <= settings.certified_gain)
    return certified, torch.maximum(gain, beta * newton.gain), cost + len(gain) * newton.draws


def _polished(
    program: Program,
    args: tuple[Any, ...],
    guide: Any,
    beta: float,
    settings: RefitSettings,
    seed: int,
    on_progress: OnProgress,
) -> tuple[Tensor, Tensor, int]:
    """Return the data that a gradient step would not gain, their gains, and all evaluations.

    Data that gain take the step. Those that are not certified or gain notably are tried again,
    without the others where the block can be divided.
    """
    divides, cost = isinstance(guide, LocalGuide) and program.sliceable, 0
    limit = settings.certified_gain * beta
    part, dim = guide, program.plate.dim
    for attempt in range(_POLISHES + 1):
        on_progress(f"refit at β = {beta:g}, certificate", _DESCENT)
        looks, stream = _LOOKS * 2**attempt, stream_seed(seed, 3, attempt)
        results = certify(program, args, part, beta, settings, stream, looks=looks)
        cost += len(results.gain) * results.particles
        sure = results.gain + 2 * results.error <= limit
        if attempt == 0:
            rows = torch.arange(len(sure), device=sure.device)
            certified, gain = sure.clone(), results.gain.clone()
        certified[rows], gain[rows] = sure, results.gain
        if bool(sure.all()) or attempt == _POLISHES or not callable(getattr(guide, "keep", None)):
            break
        for place, stepped in enumerate(results.stepped):
            better = (results.best == place) & (results.gain > results.error)
            part.keep(better, stepped, dim)
        if divides:
            if part is not guide:
                guide.put(rows, part, dim)
            left = (~sure | (results.gain > _NOTABLE * limit)).nonzero()[:, 0]
            rows, args = rows[left], rows_of(program, args, left)
            part = part.rows(program, args, left)
    return certified, gain.clamp(min=0), cost


# Modes at which the guide's family is tried.
_PLACED = 2
# Rounds behind the optimiser's noise.
_LAST_ROUNDS = 4
# How often the data that a certificate's own step improves take that step, and looks behind the
# first certificate.
_POLISHES, _LOOKS = 3, 4
# Evaluations of a datum for each place that modes are searched for from, generously.
_SEARCH = 2_000
# The part of the certified gain that is notable: the step that gained it has not ended there.
_NOTABLE = 0.25


def most_evaluations(settings: RefitSettings) -> int:
    """Return about the most decoder evaluations that the refit of a datum may take."""
    step = settings.steps_per_round * settings.num_particles + settings.check_particles
    certificates = sum(
        certificate_cost(settings, _LOOKS * 2**attempt) for attempt in range(_POLISHES + 1)
    )
    return settings.max_rounds * step + certificates + (1 + settings.num_starts) * _SEARCH


def refit_refusal(program: Program) -> str | None:
    """Return why a program's own guide cannot be refitted, or None if it can."""
    return (
        local_refusal(program, program.probe)
        or _unreparametrised(program.probe, program.guide)
        or missing_gradient(program)
    )


@torch.no_grad()
def _unreparametrised(args: tuple[Any, ...], guide: Function) -> str | None:
    """Return a sentence on a guide site without a reparametrised gradient, or None."""
    for name, site in samples(poutine.trace(guide).get_trace(*args)).items():
        if not getattr(site["fn"], "has_rsample", False):
            return (
                f"guide site '{name}' of family {type(site['fn']).__name__} has no reparametrised"
                " draw (rsample); a local refit needs a gradient through it"
            )
    return None


def has_density(program: Program, args: tuple[Any, ...], guide: Function) -> bool:
    """Whether :meth:`Program.log_guide` gives the density of a guide at another's draws."""
    if isinstance(guide, HasLogDensity):
        return True
    with torch.no_grad(), seeded(0, PROBE_STREAM):
        drawn = samples(poutine.trace(guide).get_trace(*args))
    return set(drawn) == set(program.latents) and not any(
        is_delta(site["fn"]) for site in drawn.values()
    )


# A guide that is worse by so many nats in the mean is so, whatever the noise.
_LOST = 10.0


def is_better(one: Tensor, other: Tensor) -> Tensor:
    """Whether each datum's paired samples favour the first by two errors, or the other is lost.

    Without the margin, the noise of the samples would bring back guides that are worse. It ends
    where a guide is lost: a few draws that are off by any number of nats make the error as large as
    the mean.
    """
    difference = one - other
    error = difference.std(0) / math.sqrt(len(difference))
    return (difference.mean(0) > (2 * error).clamp(max=_LOST)) | ~torch.isfinite(other.mean(0))
