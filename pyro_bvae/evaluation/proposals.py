r"""Where importance samples come from: the guide, a local refit, or something with heavier tails around either.

A proposal is a mixture of components. Each draws its share of the samples, and every draw is weighed by the density of
the whole mixture, :math:`w = p(x, z) / \sum_i \alpha_i q_i(z)`: the balance heuristic of Veach and Guibas (1995), whose
weights are at most :math:`1 / \alpha_i` times those of component i alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Protocol

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_bvae.distributions import AutoregressiveNormal, LowRankNormal, NormalMixture
from pyro_bvae.errors import InputError
from pyro_bvae.evaluation.local_guides import PathGradient
from pyro_bvae.evaluation.program import Function, Program
from pyro_bvae.evaluation.refit import LocalGuideFactory, RefitSettings, refit, says_its_density


class Component(NamedTuple):
    """One part of a mixture.

    Attributes:
        function: Draws the latents, as a guide does.
        share: Its part of the samples.
        is_prior: Whether it is the model itself, whose density of the latents is known with that of the data.
        cost: Decoder evaluations that it took to find it.
    """

    function: Function
    share: float
    is_prior: bool = False
    cost: int = 0


class Proposal(Protocol):
    """What gives the components of a proposal for one block of data."""

    def components(self, opened: Program, args: tuple[Any, ...], seed: int) -> tuple[Component, ...]:
        """Return the components, whose shares add up to 1."""


@dataclass(frozen=True)
class GuideProposal:
    """The guide alone."""

    def components(self, opened: Program, args: tuple[Any, ...], seed: int) -> tuple[Component, ...]:
        """Return the guide."""
        return (Component(opened.guide, 1.0),)


@dataclass(frozen=True)
class RefitProposal:
    """The guide and its local refit under the ELBO for each datum, in equal parts.

    Only the proposal is fitted to the data that it measures, and the weights account for it: the estimate stays a
    lower bound of the model's evidence. It lies where the better of the two puts it.

    Attributes:
        settings: How the refits run.
        local_guide: For guides without a local version: called with the arguments of a block of data, returns a guide
            module with free parameters for them.
    """

    settings: RefitSettings = field(default_factory=RefitSettings)
    local_guide: LocalGuideFactory | None = None

    def components(self, opened: Program, args: tuple[Any, ...], seed: int) -> tuple[Component, ...]:
        """Return guide and refit."""
        with torch.enable_grad():
            fitted = refit(opened, args, 1.0, self.settings, seed, self.local_guide)
        if self.local_guide is not None and not says_its_density(opened, args, fitted.guide):
            raise InputError(
                f"'local_guide' must draw the latents {sorted(opened.latents)} themselves and nothing beside them, or"
                " say what its 'log_density(values)' is: its draws are mixed with those of the guide"
            )
        return Component(opened.guide, 0.5), Component(fitted.guide, 0.5, cost=fitted.cost)


@dataclass(frozen=True)
class HeavyTailedProposal:
    """A proposal mixed with Student-t distributions of its own locations and scales.

    Attributes:
        degrees: Degrees of freedom of the Student-t; fewer are heavier.
        share: Part of the samples that the Student-t draws, above 0 and at most 1.
        around: The proposal that it surrounds.
    """

    degrees: float = 5.0
    share: float = 0.5
    around: Proposal = field(default_factory=GuideProposal)

    def __post_init__(self) -> None:
        check_share(self.share)
        if not (self.degrees > 0 and math.isfinite(self.degrees)):
            raise InputError(f"'degrees' must be positive and finite, got {self.degrees}")

    def components(self, opened: Program, args: tuple[Any, ...], seed: int) -> tuple[Component, ...]:
        """Return the surrounded components and their heavier versions."""
        inner = self.around.components(opened, args, seed)
        surrounded = sum(part.share for part in inner if not part.is_prior)
        if not surrounded:
            raise InputError("'around' must be more than the prior to have heavier tails around it")
        heavy = [
            part._replace(
                function=HeavierTails(self.degrees)(part.function),
                share=self.share * part.share / surrounded,
                cost=part.cost if self.share == 1 else 0,  # once, whichever components are kept
            )
            for part in inner
            if not part.is_prior
        ]
        light = [part._replace(share=(1 - self.share) * part.share) for part in inner]
        return _whole([*light, *heavy])


@dataclass(frozen=True)
class DefensiveProposal:
    """A proposal mixed with the prior (Hesterberg 1995): no weight exceeds the likelihood over the share.

    Attributes:
        share: Part of the samples that the prior draws, above 0 and at most 1.
        around: The proposal that it defends.
    """

    share: float = 0.1
    around: Proposal = field(default_factory=GuideProposal)

    def __post_init__(self) -> None:
        check_share(self.share)

    def components(self, opened: Program, args: tuple[Any, ...], seed: int) -> tuple[Component, ...]:
        """Return the defended components and the prior."""
        inner = self.around.components(opened, args, seed)
        kept = [part._replace(share=(1 - self.share) * part.share) for part in inner]
        return _whole([*kept, Component(opened.model, self.share, is_prior=True)])


def check_share(share: float) -> None:
    """Raise unless a share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise InputError(f"'share' must be above 0 and at most 1, got {share}")


def _whole(components: list[Component]) -> tuple[Component, ...]:
    total = sum(part.share for part in components)
    return tuple(part._replace(share=part.share / total) for part in components if part.share > 0)


class HeavierTails(Messenger):  # type: ignore[misc]
    """An effect handler that replaces the distributions of a guide by heavier ones."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        self.degrees = degrees

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        try:
            msg["fn"] = heavier(msg["fn"], self.degrees)
        except InputError as error:
            raise InputError(f"guide site '{msg['name']}': {error}") from None


@functools.singledispatch
def heavier(distribution: Any, degrees: float) -> Any:
    """Return the Student-t of a distribution's location and scale.

    Raises:
        InputError: for a family that has none; a :class:`DefensiveProposal` takes any family.
    """
    return _unknown(distribution)


def _unknown(distribution: Any) -> NoReturn:
    family = type(distribution).__name__
    raise InputError(f"no heavier version of the family {family} is known; DefensiveProposal takes any family")


@heavier.register
def _(distribution: torch.distributions.Normal, degrees: float) -> Any:
    return dist.StudentT(degrees, distribution.loc, distribution.scale)


@heavier.register
def _(distribution: torch.distributions.MultivariateNormal, degrees: float) -> Any:
    df = torch.as_tensor(degrees, dtype=distribution.loc.dtype, device=distribution.loc.device)
    return dist.MultivariateStudentT(df, distribution.loc, distribution.scale_tril)


@heavier.register
def _(distribution: LowRankNormal, degrees: float) -> Any:
    df = torch.as_tensor(degrees, dtype=distribution.loc.dtype, device=distribution.loc.device)
    return dist.MultivariateStudentT(df, distribution.mean, distribution.scale_tril)


@heavier.register
def _(distribution: AutoregressiveNormal, degrees: float) -> Any:
    return distribution.with_noise(heavier(distribution.noise, degrees))


@heavier.register
def _(distribution: NormalMixture, degrees: float) -> Any:
    parts = dist.StudentT(degrees, distribution.locs, distribution.scales).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=distribution.logits), parts).expand(distribution.batch_shape)


@heavier.register
def _(distribution: torch.distributions.Independent, degrees: float) -> Any:
    return dist.Independent(heavier(distribution.base_dist, degrees), distribution.reinterpreted_batch_ndims)


@heavier.register
def _(distribution: torch.distributions.TransformedDistribution, degrees: float) -> Any:
    if not all(transform.bijective for transform in distribution.transforms):
        return _unknown(distribution)
    return dist.TransformedDistribution(heavier(distribution.base_dist, degrees), distribution.transforms)


@heavier.register
def _(distribution: dist.MaskedDistribution, degrees: float) -> Any:
    return dist.MaskedDistribution(heavier(distribution.base_dist, degrees), distribution._mask)


@heavier.register
def _(distribution: PathGradient, degrees: float) -> Any:
    return heavier(distribution.attached, degrees)
