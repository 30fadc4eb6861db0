"""Guides with free parameters for each datum of a block, of each site's own family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.refit.curvature import rows_of
from pyro_bvae.posteriors import local_posterior
from pyro_bvae.posteriors.local_transformed import LocalTransformedPosterior, why_not_local
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import Site

# Draws behind the scales of a family without closed ones, and the least factor by which a scale is
# moved.
_SCALE_DRAWS, _LEAST_SCALE = 256, 1e-30


@runtime_checkable
class Restarts(Protocol):
    """A local posterior that can count its parameters in units of its present member."""

    def restart(self, shift: Tensor | float = 0.0, factor: Tensor | float = 1.0) -> None:
        """Start anew at the present member moved by ``z -> shift + factor * z``."""


class PathGradient(dist.TorchDistribution):
    """A distribution whose log density passes gradients through the draw only (Roeder et al. 2017).

    The estimator stays unbiased and loses its noise where the guide is the target.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, attached: Any, detached: Any) -> None:
        self.attached, self.detached = attached, detached
        super().__init__(attached.batch_shape, attached.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PathGradient:
        """Return it with another batch shape."""
        return PathGradient(self.attached.expand(batch_shape), self.detached.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with a gradient."""
        return self.attached.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density, without a gradient in the parameters."""
        return self.detached.log_prob(value)


class LocalGuide(nn.Module):
    """The guide of a program for one block of data, with free parameters of each site's own family.

    Args:
        sites: The guide's sample sites for that block, each independent of the others given the
            data.
    """

    def __init__(self, sites: dict[str, Site]) -> None:
        super().__init__()
        self.names = tuple(sites)
        self.locals = nn.ModuleList(_local(name, site) for name, site in sites.items())
        self.plates = [
            [frame for frame in site["cond_indep_stack"] if frame.vectorized]
            for site in sites.values()
        ]

    def forward(self, *args: Any) -> None:
        """Sample every site under the plates that it had in the program's guide."""
        plates: dict[str, pyro.plate] = {}  # one object for all sites that share a plate
        for name, local, frames in zip(self.names, self.locals, self.plates, strict=True):
            detached = {key: value.detach() for key, value in local.named_parameters()}
            fn = PathGradient(local(), torch.func.functional_call(local, detached, ()))
            with ExitStack() as stack:
                for frame in frames:
                    if frame.name not in plates:
                        plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                    stack.enter_context(plates[frame.name])
                pyro.sample(name, fn)

    def keep(self, better: Tensor, other: LocalGuide, data_dim: int) -> None:
        """Take over another guide's parameters for the data in ``better``, shape ``(B,)``."""
        for local, source in zip(self.locals, other.locals, strict=True):
            copy_rows(better, local, source, len(local().batch_shape) + data_dim)

    def rows(self, program: Program, args: tuple[Any, ...], index: Tensor) -> LocalGuide:
        """Return the guide of some of the data, by their arguments and their places."""
        part = local_guide_of(program, args)
        for local, source in zip(part.locals, self.locals, strict=True):
            dim = len(source().batch_shape) + program.plate.dim
            with torch.no_grad():
                for mine, theirs in zip(_state(local), _state(source), strict=True):
                    mine.copy_(theirs.index_select(dim, index))
        return part

    def put(self, index: Tensor, other: LocalGuide, data_dim: int) -> None:
        """Take over the parameters of a guide of some of the data, by their places."""
        for local, source in zip(self.locals, other.locals, strict=True):
            dim = len(local().batch_shape) + data_dim
            with torch.no_grad():
                for mine, theirs in zip(_state(local), _state(source), strict=True):
                    mine.index_copy_(dim, index, theirs)

    def restart(self) -> None:
        """Count parameters in units of the present member, where the family can."""
        for local in self.locals:
            if isinstance(local, Restarts):
                local.restart()

    def placed(self, values: LatentValues, conditional: LatentValues) -> LocalGuide:
        """Return a copy whose sites have the means and scales of given draws, ``(K, ...)`` each.

        Args:
            values: Draws with the scales that families with correlations take.
            conditional: Draws with those of independent normals.
        """
        guide = copy.deepcopy(self)
        for name, local in zip(self.names, guide.locals, strict=True):
            if isinstance(local, Restarts):
                independent = isinstance(_base(local()), torch.distributions.Normal)
                local.restart(*_move(local, (conditional if independent else values)[name]))
        return guide

    def normal_parameters(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Return location and scale of each site, or None where one is not normal."""
        results = {}
        for name, local in zip(self.names, self.locals, strict=True):
            base = stripped(local())
            if not isinstance(base, torch.distributions.Normal):
                return None
            results[name] = (base.loc, base.scale)
        return results


def stripped(distribution: Any) -> Any:
    """Return a distribution without its :class:`~torch.distributions.Independent` wrappers."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return distribution


def _base(distribution: Any) -> Any:
    """Return a distribution without wrappers and transforms."""
    inner = stripped(distribution)
    while isinstance(inner, torch.distributions.TransformedDistribution):
        inner = stripped(inner.base_dist)
    return inner


def _move(local: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and factor from a local posterior to means and scales of draws, ``(K, ...)``."""
    if isinstance(local, LocalTransformedPosterior):
        return _move(local.base, local.untransformed(values))
    with torch.no_grad():
        own = local()
        draws = own.sample(torch.Size([_SCALE_DRAWS]))
        exact = isinstance(stripped(own), torch.distributions.Normal)
        loc, scale = (own.mean, own.stddev) if exact else (draws.mean(0), draws.std(0))
        drawn = values.to(loc)
        factor = (drawn.std(0, correction=0) / scale.reshape(drawn.shape[1:])).clamp(
            min=_LEAST_SCALE
        )
        shift = drawn.mean(0) - factor * loc.reshape(drawn.shape[1:])
    return shift.reshape(loc.shape), factor.reshape(loc.shape)


def copy_rows(chosen: Tensor, module: nn.Module, source: nn.Module, batch_dim: int) -> None:
    """Copy parameters and starts of the ``chosen`` data, ``(B,)``, along ``batch_dim``."""
    with torch.no_grad():
        for mine, theirs in zip(_state(module), _state(source), strict=True):
            mine.copy_(
                torch.where(chosen.reshape(-1, *[1] * (mine.dim() - batch_dim - 1)), theirs, mine)
            )


def _state(module: nn.Module) -> list[Tensor]:
    """Return the parameters and their starts, which have a row for each datum."""
    starts = [
        part
        for name, part in module.named_buffers()
        if name.rpartition(".")[2].startswith("start_")
    ]
    return [*module.parameters(), *starts]


def _local(name: str, site: Site) -> nn.Module:
    base, event_dim = stripped(site["fn"]), site["fn"].event_dim
    try:
        return local_posterior(base, event_dim)
    except InputError as error:
        raise InputError(f"guide site '{name}' of family {type(base).__name__}: {error}") from error


def _unfit(program: Program) -> str | None:
    """Return why the latents of a program have no local refit, or None."""
    if not program.latents:
        return (
            "every latent is discrete and summed out, so there is no local refit: evidence(...) is"
            " exact, and elbo(...) less it is minus the whole gap"
        )
    if program.masked:
        return (
            f"latent '{min(program.masked)}' is masked out for some data, where a local refit"
            " has nothing to fit; measure elbo(...) and evidence(...)"
        )
    if program.summation is not None and (names := program.summation.sites.guide):
        return (
            f"guide site '{next(iter(names))}' is discrete and has no local refit: leave it out of"
            " the guide, so that it is summed out"
        )
    if extra := set(program.guide_sites) - set(program.latents):
        return (
            f"the guide has auxiliary sites {sorted(extra)}; pass 'local_guide' for its local refit"
        )
    return None


@torch.no_grad()
def _free_sites(program: Program, args: tuple[Any, ...]) -> LocalGuide | str:
    """Return the local version of a program's guide for a block of data, or why there is none.

    Freeing each site finds the best member of the guide's family only if the sites are the latents
    and none depends on the draws of others.
    """
    if reason := _unfit(program):
        return reason
    for name, site in program.guide_sites.items():
        base = stripped(site["fn"])
        if reason := why_not_local(base):
            return f"guide site '{name}' of family {type(base).__name__} {reason}"
    first, second = (
        LocalGuide({name: program.trace(args)[0].nodes[name] for name in program.guide_sites})
        for _ in range(2)
    )
    for (name, a), b in zip(first.named_buffers(), second.buffers(), strict=True):
        if not torch.allclose(a, b, rtol=1e-3):
            site_name = first.names[int(name.split(".")[1])]
            return (
                f"guide site '{site_name}' depends on other draws; pass 'local_guide' for its local"
                " refit"
            )
    return first


def local_refusal(program: Program, args: tuple[Any, ...]) -> str | None:
    """Return why a program's guide has no local version, or None if it has one."""
    guide = _free_sites(program, args)
    return guide if isinstance(guide, str) else None


def local_guide_of(program: Program, args: tuple[Any, ...]) -> LocalGuide:
    """Return the local version of a program's guide for a block, started at its answer.

    Raises:
        InputError: for the reason that :func:`local_refusal` gives.
    """
    guide = _free_sites(program, args)
    if isinstance(guide, str):
        raise InputError(guide)
    return guide


def guide_of_rows(
    program: Program,
    args: tuple[Any, ...],
    rows: Tensor,
    parts: Sequence[tuple[Tensor, LocalGuide]],
) -> LocalGuide:
    """Return the guide of some data, put together from those of several blocks.

    Args:
        program: The program.
        args: The arguments of these data.
        rows: Their numbers among all data, ``(B,)``.
        parts: The numbers of the data of each block, in rising order, and the block's guide.
    """
    guide = local_guide_of(program, args)
    device = next(guide.parameters()).device
    for known, part in parts:
        places = torch.isin(rows, known).nonzero().flatten()
        if len(places):
            index = torch.searchsorted(known, rows[places]).to(device)
            places = places.to(device)
            own = part.rows(program, rows_of(program, args, places), index)
            guide.put(places, own, program.plate.dim)
    return guide
