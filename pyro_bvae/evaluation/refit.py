r"""Local refits: the best member of the guide's family for each datum, without an encoder.

The β-objective of a datum,

.. math:: \mathbb{E}_q[\log p(x|z)] + \beta \, \mathbb{E}_q[\log p(z) - \log q(z)],

is maximised over free parameters for each datum, from the encoder's own answer, for many data at once. A datum keeps
the encoder's answer where the refit was worse; a guide of the caller's own (``local_guide``) is taken as it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.errors import InputError
from pyro_bvae.evaluation.program import Function, Program
from pyro_bvae.evaluation.sites import Site
from pyro_bvae.posteriors import local_posterior
from pyro_bvae.randomness import seeded

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
    """

    num_particles: int = 16
    steps_per_round: int = 50
    max_rounds: int = 40
    learning_rate: float = 0.1
    tolerance: float = 2e-3
    decay: float = 0.4
    num_plateaus: int = 5
    check_particles: int = 128


@dataclass(frozen=True)
class Refit:
    """A refitted guide for one block of data, and how it came about."""

    guide: Function
    converged: bool
    steps: int


class _PathGradient(dist.TorchDistribution):
    """A distribution whose log density passes gradients through the draw only (Roeder et al. 2017).

    The estimator stays unbiased and loses its noise where the guide is the target.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, attached: Any, detached: Any) -> None:
        self.attached, self.detached = attached, detached
        super().__init__(attached.batch_shape, attached.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _PathGradient:
        return _PathGradient(self.attached.expand(batch_shape), self.detached.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.attached.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.detached.log_prob(value)


class LocalGuide(nn.Module):
    """The guide of a program for one block of data, with free parameters of each site's own family.

    Args:
        sites: The guide's sample sites for that block, each independent of the others given the data.
    """

    def __init__(self, sites: dict[str, Site]) -> None:
        super().__init__()
        self.names = tuple(sites)
        self.locals = nn.ModuleList(_local(name, site) for name, site in sites.items())
        self.plates = [[frame for frame in site["cond_indep_stack"] if frame.vectorized] for site in sites.values()]

    def forward(self, *args: Any) -> None:
        """Sample every site under the plates that it had in the program's guide."""
        plates: dict[str, pyro.plate] = {}  # one object for all sites that share a plate
        for name, local, frames in zip(self.names, self.locals, self.plates, strict=True):
            detached = {key: value.detach() for key, value in local.named_parameters()}
            fn = _PathGradient(local(), torch.func.functional_call(local, detached, ()))
            with ExitStack() as stack:
                for frame in frames:
                    if frame.name not in plates:
                        plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                    stack.enter_context(plates[frame.name])
                pyro.sample(name, fn)

    def keep(self, better: Tensor, other: LocalGuide, data_dim: int) -> None:
        """Take over another guide's parameters for the data where ``better`` is true, shape ``(B,)``."""
        with torch.no_grad():
            for local, source in zip(self.locals, other.locals, strict=True):
                event_dim = len(local().event_shape)
                for mine, theirs in zip(local.parameters(), source.parameters(), strict=True):
                    mask = better.reshape(-1, *[1] * (event_dim - data_dim - 1))
                    mine.copy_(torch.where(mask, theirs, mine))


def _local(name: str, site: Site) -> nn.Module:
    base, event_dim = site["fn"], site["fn"].event_dim
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if base.event_shape:
        raise InputError(f"guide site '{name}' of family {type(base).__name__} needs 'local_guide' for a local refit")
    return local_posterior(base, event_dim)


def local_guide_of(opened: Program, args: tuple[Any, ...]) -> LocalGuide:
    """Return the local version of a program's guide for a block of data, started at the guide's answer.

    Raises:
        InputError: if the guide has auxiliary sites, a family without a local version, or sites that depend on the
            draws of others: then the best member of its family is not found by freeing each site.
    """
    extra = set(opened.guide_sites) - set(opened.latents)
    if extra:
        raise InputError(f"the guide has auxiliary sites {sorted(extra)}; pass 'local_guide' for its local refit")
    with torch.no_grad():
        first, second = (
            LocalGuide({name: opened.trace(args)[0].nodes[name] for name in opened.guide_sites}) for _ in range(2)
        )
    for (name, a), b in zip(first.named_buffers(), second.buffers(), strict=True):
        if not torch.allclose(a, b, rtol=1e-3):
            site = first.names[int(name.split(".")[1])]
            raise InputError(f"guide site '{site}' depends on other draws; pass 'local_guide' for its local refit")
    return first


def objective_samples(
    opened: Program, args: tuple[Any, ...], guide: Function, beta: float, num_particles: int
) -> Tensor:
    """Return draws of the β-objective of each datum, shape ``(K, B)``."""
    _, densities = opened.draw(num_particles, args, guide)
    return densities.observed + beta * (densities.latent - densities.guide)


def _round(
    opened: Program, args: tuple[Any, ...], guide: nn.Module, beta: float, adam: Any, settings: RefitSettings
) -> None:
    parameters = list(guide.parameters())
    for _ in range(settings.steps_per_round):
        loss = -objective_samples(opened, args, guide, beta, settings.num_particles).mean(0).sum()
        # Only the guide's own gradients: nothing is left behind on the model.
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.nan_to_num(gradient)
        adam.step()


def refit(
    opened: Program,
    args: tuple[Any, ...],
    beta: float,
    settings: RefitSettings,
    seed: int,
    local_guide: LocalGuideFactory | None = None,
    candidates: tuple[LocalGuide, ...] = (),
    say: Callable[[str], Any] = str,
) -> Refit:
    """Fit free parameters for each datum of a block under the β-objective.

    Args:
        opened: The program.
        args: The arguments of the block.
        beta: Weight of the KL in the objective.
        settings: How to run.
        seed: Seed of the block's noise.
        local_guide: Called with ``args``, returns a guide module to fit instead of the program's own family.
        candidates: Other local guides for the same data; a datum takes over the one of highest objective.
        say: Told where the refit stands, after every round.
    """

    def look(at: Function) -> Tensor:
        # The same noise at every look, so that differences between guides are their own.
        with seeded(seed, 1), torch.no_grad():
            return objective_samples(opened, args, at, beta, settings.check_particles).double()

    guide = local_guide(*args) if local_guide is not None else local_guide_of(opened, args)
    start = look(guide)
    adam = torch.optim.Adam(guide.parameters(), lr=settings.learning_rate)
    value, plateaus, rounds = start, 0, 0
    with seeded(seed, 0):
        while plateaus < settings.num_plateaus and rounds < settings.max_rounds:
            _round(opened, args, guide, beta, adam, settings)
            improved = look(guide)
            plateaus += int(not float((improved - value).mean()) >= settings.tolerance)
            value, rounds = improved, rounds + 1
            say(f"refit at β = {beta:g}, round {rounds}")
            for group in adam.param_groups:
                group["lr"] = settings.learning_rate * settings.decay**plateaus
    if isinstance(guide, LocalGuide):
        guide.keep(_is_better(start, look(guide)), local_guide_of(opened, args), opened.plate.dim)
        for other in candidates:
            guide.keep(_is_better(look(other), look(guide)), other, opened.plate.dim)
    return Refit(guide, plateaus >= settings.num_plateaus, rounds * settings.steps_per_round)


def _is_better(one: Tensor, other: Tensor) -> Tensor:
    """Whether the mean of paired samples is higher for each datum by more than two of its errors, or the other is lost.

    Without the margin, the noise of the samples would bring back guides that are worse.
    """
    difference = one - other
    error = difference.std(0) / math.sqrt(len(difference))
    return (difference.mean(0) > 2 * error) | ~torch.isfinite(other.mean(0))
