r"""The sources of importance samples: guide, local refit, or heavier tails around either.

A proposal is a mixture of components. Each draws its share of the samples, and every draw is
weighed by the density of the whole mixture, :math:`w = p(x, z) / \sum_i \alpha_i q_i(z)`: the
balance heuristic of Veach and Guibas (1995), whose weights are at most :math:`1 / \alpha_i` times
those of component i alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.marginal.tails import (
    HeavierTails,
    StudentTails,
    robust_guide,
    scores_prior_draws,
)
from pyro_bvae.evaluation.refit.optimisation import (
    LocalGuideFactory,
    Refit,
    RefitSettings,
    has_density,
    refit,
)
from pyro_bvae.program.program import Function, Program

#: Part of a guide's draws that its tails make, by default.
TAIL_SHARE = 0.3


class Component(NamedTuple):
    """One part of a mixture.

    Attributes:
        function: Draws the latents, as a guide does.
        share: Its part of the samples.
        is_prior: Whether it is the model itself, whose density of the latents is known with that of
            the data.
        cost: Decoder evaluations that it took to find it.
        has_tails: Whether it reaches further than the guide in every latent, so that weights show
            their tail.
    """

    function: Function
    share: float
    is_prior: bool = False
    cost: int = 0
    has_tails: bool = False


class Proposal(Protocol):
    """The maker of a proposal's components for one block of data."""

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return the components, whose shares add up to 1."""


@public
@dataclass(frozen=True)
class RobustProposal:
    """The guide with wider tails around it and a share of prior draws: the default.

    Weights show how heavy their tail is only where draws reach it. Draws of a guide that is too
    narrow do not: their weights look even, whatever is missing. Here a part of them comes from
    stretched versions of the guide, a Student-t and the prior, and all are weighed by the density
    of the whole. Guide sites of a family without a wider version stay as they are; the prior takes
    part where the guide can score its draws at little cost.

    Attributes:
        tail_share: Part of the guide's draws that its tails make.
        prior_share: Part of all draws that the prior makes.
    """

    tail_share: float = TAIL_SHARE
    prior_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("tail_share", "prior_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"'{name}' must be at least 0 and below 1, got {getattr(self, name)}"
                )

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return the guide with tails, and the prior."""
        guide, has_tails = robust_guide(program, self.tail_share, program.guide, program.probe)
        prior_share = self.prior_share if scores_prior_draws(program, guide) else 0.0
        own = Component(guide, 1 - prior_share, has_tails=has_tails)
        return (
            (own, Component(program.model, prior_share, is_prior=True)) if prior_share else (own,)
        )


@dataclass(frozen=True)
class GuideProposal:
    """The guide alone."""

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return the guide."""
        return (Component(program.guide, 1.0),)


@public
@dataclass(frozen=True)
class RefitProposal:
    """The guide and its local refit under the ELBO, in equal parts; the refit has tails.

    Only the proposal is fitted to the data that it measures, and the weights account for it: the
    estimate stays a lower bound of the model's evidence. It lies where the better of the two puts
    it.

    Attributes:
        settings: How the refits run.
        local_guide: That of the settings, in its place.
    """

    settings: RefitSettings = field(default_factory=RefitSettings)
    local_guide: LocalGuideFactory | None = None

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return guide and refit."""
        return self.components_of(program, args, self.fit(program, args, seed))

    def fit(self, program: Program, args: tuple[Any, ...], seed: int) -> Refit:
        """Return the refitted guide of a block."""
        with torch.enable_grad():
            return refit(
                program,
                args,
                1.0,
                self.settings,
                seed,
                self.local_guide or self.settings.local_guide,
            )

    def components_of(
        self, program: Program, args: tuple[Any, ...], fitted: Refit
    ) -> tuple[Component, ...]:
        """Return guide and refit as components."""
        local_guide = self.local_guide or self.settings.local_guide
        if local_guide is not None and not has_density(program, args, fitted.guide):
            raise InputError(
                f"'local_guide' must draw the latents {sorted(program.latents)} themselves and"
                " nothing beside them, or say what its 'log_density(values)' is: its draws are"
                " mixed with those of the guide"
            )
        refitted, has_tails = robust_guide(program, TAIL_SHARE, fitted.guide, args)
        return Component(program.guide, 0.5), Component(
            refitted, 0.5, cost=fitted.cost, has_tails=has_tails
        )


@public
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

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return the surrounded components and their heavier versions."""
        inner = self.around.components(program, args, seed)
        surrounded = sum(part.share for part in inner if not part.is_prior)
        if not surrounded:
            raise InputError("'around' must be more than the prior to have heavier tails around it")
        heavy = [
            part._replace(
                function=HeavierTails(StudentTails(self.degrees), summed=program.summed)(
                    part.function
                ),
                has_tails=True,
                share=self.share * part.share / surrounded,
                cost=part.cost if self.share == 1 else 0,  # once, whichever components are kept
            )
            for part in inner
            if not part.is_prior
        ]
        light = [part._replace(share=(1 - self.share) * part.share) for part in inner]
        return _whole([*light, *heavy])


@public
@dataclass(frozen=True)
class DefensiveProposal:
    """A proposal mixed with the prior (Hesterberg 1995), which bounds the weights.

    Attributes:
        share: Part of the samples that the prior draws, above 0 and at most 1.
        around: The proposal that it defends; by default the guide with tails.
    """

    share: float = 0.1
    around: Proposal = field(default_factory=lambda: RobustProposal(prior_share=0.0))

    def __post_init__(self) -> None:
        check_share(self.share)

    def components(
        self, program: Program, args: tuple[Any, ...], seed: int
    ) -> tuple[Component, ...]:
        """Return the defended components and the prior."""
        inner = self.around.components(program, args, seed)
        kept = [part._replace(share=(1 - self.share) * part.share) for part in inner]
        return _whole([*kept, Component(program.model, self.share, is_prior=True)])


def check_share(share: float) -> None:
    """Raise unless a share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise InputError(f"'share' must be above 0 and at most 1, got {share}")


def _whole(components: list[Component]) -> tuple[Component, ...]:
    total = sum(part.share for part in components)
    return tuple(part._replace(share=part.share / total) for part in components if part.share > 0)
