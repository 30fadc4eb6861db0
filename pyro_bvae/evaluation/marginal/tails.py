r"""Wider versions of a guide, which draw where the guide hardly does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.distributions import IndependentTransform

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.internals import mask_of
from pyro_bvae.core.protocols import HasLogDensity
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.distributions import AutoregressiveNormal, LowRankNormal, NormalMixture
from pyro_bvae.distributions.tailed_normal import TailedNormal
from pyro_bvae.evaluation.refit.local_guides import PathGradient
from pyro_bvae.program.program import Function, Program
from pyro_bvae.program.sites import is_delta, samples, unwrapped

# From a normal (``Normal``, one with ``to_event``, or a multivariate one) to a wider distribution.
Tails = Callable[[Any], Any]


@dataclass(frozen=True)
class StudentTails:
    """A Student-t of the normal's location and scale in its place.

    Attributes:
        degrees: Degrees of freedom; fewer are heavier.
    """

    degrees: float

    def __call__(self, normal: Any) -> Any:
        """Return the Student-t, independent in each dimension of a product of normals."""
        if isinstance(normal, torch.distributions.Independent):
            return dist.Independent(self(normal.base_dist), normal.reinterpreted_batch_ndims)
        if isinstance(normal, torch.distributions.Normal):
            return dist.StudentT(self.degrees, normal.loc, normal.scale)
        df = torch.as_tensor(self.degrees, dtype=normal.mean.dtype, device=normal.mean.device)
        return dist.MultivariateStudentT(df, normal.mean, normal.scale_tril)


@dataclass(frozen=True)
class MixedTails:
    """The normal itself with a share of wider draws around it.

    Attributes:
        share: Part of the draws that the tails make.
    """

    share: float

    def __call__(self, normal: Any) -> Any:
        """Return the :class:`~pyro_bvae.distributions.tailed_normal.TailedNormal`."""
        return TailedNormal(normal, self.share)


class HeavierTails(Messenger):  # type: ignore[misc]
    """An effect handler that replaces the distributions of a guide by wider ones.

    Args:
        tails: The replacement of a normal.
        skip_unknown: Leave sites of families without a wider version as they are, and name them in
            ``unknown``, instead of raising.
        summed: Discrete sites, all of whose values are summed out.
    """

    def __init__(
        self, tails: Tails, skip_unknown: bool = False, summed: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.tails, self.skip_unknown, self.summed = tails, skip_unknown, summed
        self.unknown: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["name"] in self.summed:
            return
        if self.skip_unknown and (msg["is_observed"] or is_delta(msg["fn"])):
            return
        try:
            msg["fn"] = heavier(msg["fn"], self.tails)
        except InputError as error:
            if not self.skip_unknown:
                raise InputError(f"guide site '{msg['name']}': {error}") from None
            self.unknown.add(msg["name"])


@functools.singledispatch
def heavier(distribution: Any, tails: Tails) -> Any:
    """Return a distribution with wider tails.

    Raises:
        InputError: for a family that has none; a :class:`DefensiveProposal` takes any family.
    """
    return _unknown(distribution)


def _unknown(distribution: Any) -> NoReturn:
    family = type(distribution).__name__
    raise InputError(
        f"no heavier version of the family {family} is known; DefensiveProposal takes any family"
    )


@heavier.register(torch.distributions.Normal)
@heavier.register(torch.distributions.MultivariateNormal)
@heavier.register(LowRankNormal)
def _(distribution: Any, tails: Tails) -> Any:
    return tails(distribution)


@heavier.register
def _(distribution: AutoregressiveNormal, tails: Tails) -> Any:
    zeros = distribution.loc.new_zeros(distribution.event_shape)
    return distribution.with_noise(tails(dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)))


@heavier.register
def _(distribution: NormalMixture, tails: Tails) -> Any:
    parts = tails(dist.Normal(distribution.locs, distribution.scales).to_event(1))
    return dist.MixtureSameFamily(dist.Categorical(logits=distribution.logits), parts).expand(
        distribution.batch_shape
    )


@heavier.register
def _(distribution: torch.distributions.Independent, tails: Tails) -> Any:
    base, count = distribution.base_dist, distribution.reinterpreted_batch_ndims
    if isinstance(base, torch.distributions.Normal):
        return tails(distribution)
    if isinstance(base, torch.distributions.TransformedDistribution) and not base.event_shape:
        # The dimensions of one event share their tails, so that a draw strays in all of them or in
        # none.
        _check_bijective(base)
        transforms = [IndependentTransform(transform, count) for transform in base.transforms]
        inner = heavier(dist.Independent(base.base_dist, count), tails)
        return dist.TransformedDistribution(inner, transforms)
    return dist.Independent(heavier(base, tails), count)


@heavier.register
def _(distribution: torch.distributions.TransformedDistribution, tails: Tails) -> Any:
    _check_bijective(distribution)
    return dist.TransformedDistribution(
        heavier(distribution.base_dist, tails), distribution.transforms
    )


def _check_bijective(distribution: torch.distributions.TransformedDistribution) -> None:
    """Refuse a half-normal: its map from the normal has no inverse."""
    if not all(transform.bijective for transform in distribution.transforms):
        _unknown(distribution)


@heavier.register
def _(distribution: dist.MaskedDistribution, tails: Tails) -> Any:
    return dist.MaskedDistribution(heavier(distribution.base_dist, tails), mask_of(distribution))


@heavier.register
def _(distribution: PathGradient, tails: Tails) -> Any:
    return heavier(distribution.attached, tails)


@heavier.register
def _(distribution: TailedNormal, tails: Tails) -> Any:
    return heavier(distribution.normal, tails)


def robust_guide(
    program: Program, share: float, guide: Function, args: tuple[Any, ...]
) -> tuple[Function, bool]:
    """Return a guide with tails, and whether every one of its sites with noise has them.

    The share is divided among the independent events of a datum: the draws of a datum that stray
    nowhere stay about ``1 - share`` of all, however many sites it has.

    Args:
        program: The program.
        share: Part of the draws that the tails make.
        guide: The program's guide, or one of some of its data.
        args: Arguments that the guide takes.
    """
    if not share or isinstance(guide, HasLogDensity):
        return guide, False
    summed = program.summed
    with torch.no_grad(), seeded(0, PROBE_STREAM):
        drawn = samples(poutine.trace(guide).get_trace(*args))
        noisy = [
            site["fn"]
            for name, site in drawn.items()
            if not (site["is_observed"] or is_delta(site["fn"]) or name in summed)
        ]
        events = sum(max(1, fn.batch_shape.numel() // program.count(args)) for fn in noisy)
        handler = HeavierTails(MixedTails(share / max(1, events)), True, summed)
        wider = handler(guide)
        try:
            wider(*args)
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
            AttributeError,
        ):  # it asks its distributions for more
            return guide, False
    return wider, bool(noisy) and not handler.unknown


def scores_prior_draws(program: Program, guide: Function) -> bool:
    """Whether the guide's density at the prior's draws costs about as much as at its own."""
    if not program.proposes_latents_alone or any(
        _is_sequential(site["fn"]) for site in program.guide_sites.values()
    ):
        return False
    with torch.no_grad(), seeded(0, PROBE_STREAM):
        try:
            drawn = program.draw_prior(1, program.probe)
            scored = program.log_guide(drawn.values, program.probe, guide)
        except (NotImplementedError, LookupError, RuntimeError, ValueError):
            return False
    return not bool(torch.isnan(scored).any())


def _is_sequential(distribution: Any) -> bool:
    """Whether a distribution is a flow, whose inverse is slow or missing."""
    base = unwrapped(distribution)
    transforms = getattr(base, "transforms", ())
    return isinstance(base, AutoregressiveNormal) or any(
        isinstance(each, torch.nn.Module) for each in transforms
    )
