r"""Local refits: the best member of the guide's family for each datum, without an encoder.

The β-objective of a datum,

.. math:: \mathbb{E}_q[\log p(x|z)] + \beta \, \mathbb{E}_q[\log p(z) - \log q(z)],

is maximised over free parameters for each datum, from the encoder's own answer, for many data at once. A datum keeps
the encoder's answer where the refit was worse; a guide of the caller's own (``local_guide``) is taken as it ends.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bvae.errors import InputError
from pyro_bvae.evaluation.gradients import check_differentiable
from pyro_bvae.evaluation.local_guides import local_guide_of
from pyro_bvae.evaluation.program import Function, Program
from pyro_bvae.evaluation.sites import is_delta, samples
from pyro_bvae.randomness import PROBE_STREAM, seeded, stream_seed

LocalGuideFactory = Callable[..., nn.Module]


@dataclass(frozen=True)
class RefitSettings:
    """How local refits run.

    Attributes:
        num_particles: Particles behind each gradient.
        steps_per_round: Steps between two looks at the objective; the step size is lowered after each round.
        max_rounds: Rounds after which a refit ends without having converged.
        learning_rate: Step size of Adam in the first round, in units of the guide's scales.
        tolerance: A round that improves the mean objective by less, in nats, is a plateau.
        decay: Factor on the step size after a plateau.
        num_plateaus: A refit has converged after so many plateaus, each at a smaller step size.
        check_particles: Particles behind each look, the same ones every time.
        certified_gain: A datum's refit is certified when another gradient step is sure, by two errors, to gain less:
            this many nats of KL, β times that of the objective.
    """

    num_particles: int = 16
    steps_per_round: int = 50
    max_rounds: int = 40
    learning_rate: float = 0.1
    tolerance: float = 2e-3
    decay: float = 0.4
    num_plateaus: int = 5
    check_particles: int = 128
    certified_gain: float = 0.01

    def __post_init__(self) -> None:
        least = {"num_particles": 1, "steps_per_round": 1, "max_rounds": 1, "num_plateaus": 1, "check_particles": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise InputError(f"'{name}' must be an integer from {smallest}, got {value!r}")
        for name in ("learning_rate", "certified_gain"):
            if not getattr(self, name) > 0:
                raise InputError(f"'{name}' must be positive, got {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise InputError(f"'decay' must be above 0 and at most 1, got {self.decay}")


@dataclass(frozen=True)
class Refit:
    """A refitted guide for one block of data, and how it came about.

    Attributes:
        guide: The guide.
        certified: Which data's refits are certified to have converged, ``(B,)``.
        steps: Gradient steps taken.
        cost: Evaluations of the decoder, over all data of the block.
        noise: How much the ELBO of each datum wavers with the optimiser's noise, ``(B,)``.
        remaining: What the certificate's step would still gain for each datum, ``(B,)``, at least 0.
    """

    guide: Function
    certified: Tensor
    steps: int
    cost: int
    noise: Tensor
    remaining: Tensor


def objective_samples(
    opened: Program, args: tuple[Any, ...], guide: Function, beta: float, num_particles: int
) -> Tensor:
    """Return draws of the β-objective of each datum, shape ``(K, B)``."""
    _, densities = opened.draw(num_particles, args, guide)
    return densities.observed + beta * (densities.latent - densities.guide)


def gradients_of(
    opened: Program, args: tuple[Any, ...], guide: nn.Module, beta: float, num_particles: int
) -> list[Tensor]:
    """Return the gradient of the β-objective, summed over the data, in the guide's own parameters.

    Raises:
        InputError: for a guide site without a reparametrised draw, through which no gradient passes.
    """
    with torch.enable_grad():
        total = objective_samples(opened, args, guide, beta, num_particles).mean(0).sum()
        # Only the guide's own gradients: nothing is left behind on the model.
        gradients = torch.autograd.grad(total, list(guide.parameters()))
    return [torch.nan_to_num(gradient) for gradient in gradients]


class _Descent:
    """Adam on the free parameters of one guide, in rounds with a look at the objective after each."""

    def __init__(
        self, opened: Program, args: tuple[Any, ...], guide: nn.Module, beta: float, settings: RefitSettings, seed: int
    ) -> None:
        self.opened, self.args, self.guide, self.beta = opened, args, guide, beta
        self.settings, self.seed = settings, seed
        self.rounds = 0
        self.bounds: list[Tensor] = []  # the ELBO of each datum after each round, of the same noise

    def look(self, at: Function) -> Tensor:
        """Return draws of the objective, ``(K, B)``, of the same noise at every look: differences are the guides'."""
        with seeded(self.seed, 1), torch.no_grad():
            _, densities = self.opened.draw(self.settings.check_particles, self.args, at)
        if at is self.guide:
            self.bounds.append(densities.log_weights.double().mean(0))
        return (densities.observed + self.beta * (densities.latent - densities.guide)).double()

    def run(self, say: Callable[[str], Any]) -> None:
        """Go down in smaller and smaller steps until the data no longer gain in the mean."""
        settings = self.settings
        adam = torch.optim.Adam(self.guide.parameters(), lr=settings.learning_rate)
        value, plateaus = self.look(self.guide), 0
        with seeded(self.seed, 0):
            while plateaus < settings.num_plateaus and self.rounds < settings.max_rounds:
                self._round(adam)
                improved = self.look(self.guide)
                plateaus += int(not float((improved - value).mean()) >= settings.tolerance)
                value = improved
                self.rounds += 1
                say(f"refit at β = {self.beta:g}, round {self.rounds}")
                for group in adam.param_groups:
                    group["lr"] = settings.learning_rate * settings.decay**plateaus

    def _round(self, adam: torch.optim.Adam) -> None:
        for _ in range(self.settings.steps_per_round):
            gradients = gradients_of(self.opened, self.args, self.guide, self.beta, self.settings.num_particles)
            for parameter, gradient in zip(self.guide.parameters(), gradients, strict=True):
                parameter.grad = -gradient
            adam.step()

    @property
    def noise(self) -> Tensor:
        """How much the ELBO of each datum still wavers with the optimiser's noise, ``(B,)``.

        At β ≠ 1 the refit is no optimum of the ELBO, which then moves with the parameters to first order.
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
        return self.steps * self.settings.num_particles + (self.rounds + 1) * self.settings.check_particles


def refit(
    opened: Program,
    args: tuple[Any, ...],
    beta: float,
    settings: RefitSettings,
    seed: int,
    local_guide: LocalGuideFactory | None = None,
    candidates: tuple[Function, ...] = (),
    say: Callable[[str], Any] = str,
) -> Refit:
    """Fit free parameters for each datum of a block under the β-objective.

    After the descent comes the certificate: what another gradient step, with far less noise, would gain. Data that gain
    take it, and are certified again.

    Args:
        opened: The program.
        args: The arguments of the block.
        beta: Weight of the KL in the objective.
        settings: How to run.
        seed: Seed of the block's noise.
        local_guide: Called with ``args``, returns a guide module to fit instead of the program's own family.
        candidates: Other local guides of the same kind and data; a datum takes over the one of highest objective.
        say: Told where the refit stands, after every round.
    """

    def make() -> Any:
        return local_guide(*args) if local_guide is not None else local_guide_of(opened, args)

    guide = make()
    check_reparametrised(opened, args, guide)
    check_differentiable(opened)
    descent = _Descent(opened, args, guide, beta, settings, seed)
    start = descent.look(guide)
    descent.run(say)
    noise = descent.noise
    keeps = callable(getattr(guide, "keep", None))
    if keeps:
        guide.keep(is_better(start, descent.look(guide)), make(), opened.plate.dim)
        for other in candidates:
            guide.keep(is_better(descent.look(other), descent.look(guide)), other, opened.plate.dim)
    particles = descent.particles
    for attempt in range(_POLISHES + 1):
        say(f"refit at β = {beta:g}, certificate")
        found = certify(opened, args, guide, beta, settings, stream_seed(seed, 3, attempt), looks=_LOOKS * 2**attempt)
        particles += found.particles
        certified = found.gain + 2 * found.error <= settings.certified_gain * beta
        if bool(certified.all()) or attempt == _POLISHES or not keeps:
            break
        for place, stepped in enumerate(found.stepped):
            guide.keep((found.best == place) & (found.gain > found.error), stepped, opened.plate.dim)
    return Refit(guide, certified.cpu(), descent.steps, opened.count(args) * particles, noise, found.gain.clamp(min=0))


# Rounds behind the optimiser's noise.
_LAST_ROUNDS = 4
# How often the data that a certificate's own step improves take that step, and looks behind the first certificate.
_POLISHES, _LOOKS = 3, 4
# Gradients that are averaged for the step of a certificate, and the lengths that are tried: near an optimum, in units
# of the guide's scales, the second derivatives are of order β.
_GRADIENTS, _LENGTHS = 64, (0.5, 0.1)


class _Certificate(NamedTuple):
    """What another step would gain.

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
    opened: Program,
    args: tuple[Any, ...],
    guide: nn.Module,
    beta: float,
    settings: RefitSettings,
    seed: int,
    looks: int,
) -> _Certificate:
    """Try another gradient step, and measure what it gains.

    The gradient is a mean over many particles and the gain is measured on others, so that the optimiser's own noise,
    step size and plateaus have no part in it.
    """

    def look(at: Function) -> Tensor:
        with seeded(seed, 1), torch.no_grad():
            each = (objective_samples(opened, args, at, beta, settings.check_particles) for _ in range(looks))
            return torch.cat(list(each)).double()

    with seeded(seed, 0):
        draws = [gradients_of(opened, args, guide, beta, settings.num_particles) for _ in range(_GRADIENTS)]
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
    particles = _GRADIENTS * settings.num_particles + (1 + len(_LENGTHS)) * looks * settings.check_particles
    return _Certificate(gain, errors.gather(0, best[None])[0], best, stepped, particles)


def check_reparametrised(opened: Program, args: tuple[Any, ...], guide: Function) -> None:
    """Raise if a guide draws a site without a reparametrised gradient."""
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(*args)
    for name, site in samples(trace).items():
        if not getattr(site["fn"], "has_rsample", False):
            raise InputError(
                f"guide site '{name}' of family {type(site['fn']).__name__} has no reparametrised draw (rsample); a"
                " local refit needs a gradient through it"
            )


def says_its_density(opened: Program, args: tuple[Any, ...], guide: Function) -> bool:
    """Whether the density of a guide at another's draws can be had, as :meth:`Program.log_guide` takes it."""
    if callable(getattr(guide, "log_density", None)):
        return True
    with torch.no_grad(), seeded(0, PROBE_STREAM):
        drawn = samples(poutine.trace(guide).get_trace(*args))
    return set(drawn) == set(opened.latents) and not any(is_delta(site["fn"]) for site in drawn.values())


# A guide that is worse by so many nats in the mean is so, whatever the noise.
_LOST = 10.0


def is_better(one: Tensor, other: Tensor) -> Tensor:
    """Whether the mean of paired samples is higher for each datum by more than two of its errors, or the other is lost.

    Without the margin, the noise of the samples would bring back guides that are worse. It ends where a guide is lost:
    a few draws that are off by any number of nats make the error as large as the mean.
    """
    difference = one - other
    error = difference.std(0) / math.sqrt(len(difference))
    return (difference.mean(0) > (2 * error).clamp(max=_LOST)) | ~torch.isfinite(other.mean(0))
