"""Guides with free parameters for each datum of a block: each site's own family, or a joint family of all latents."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.posteriors import LocalFlowPosterior, LocalFullRankPosterior, local_posterior
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Function, Program
from pyro_bvae.program.sites import Site, Sites

# From means (B, d) and Cholesky factors (B, d, d) to a family with free parameters that starts
# there.
Family = Callable[[Tensor, Tensor], nn.Module]

#: Families of a joint refit of all latents, by name; each contains the one before it.
FAMILIES: dict[str, Family] = {"full-rank": LocalFullRankPosterior, "flow": LocalFlowPosterior}

# Draws behind the moments of a guide that is not normal, and draws times data that are held at a
# time.
_MOMENT_DRAWS, _MOST_ROWS = 1000, 8192
# Draws behind the scales of a family without closed ones, and the least factor by which a scale is
# moved.
_SCALE_DRAWS, _LEAST_SCALE = 256, 1e-30


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
        """Take over another guide's parameters for the data where ``better`` is true, shape ``(B,)``."""
        for local, source in zip(self.locals, other.locals, strict=True):
            copy_rows(better, local, source, len(local().batch_shape) + data_dim)

    def restart(self) -> None:
        """Count all parameters in units of the present member; families of the caller's own may have none."""
        for local in self.locals:
            if callable(restart := getattr(local, "restart", None)):
                restart()

    def placed(self, values: LatentValues, conditional: LatentValues) -> LocalGuide:
        """Return a copy whose sites have the means and scales of given draws, ``(K, ...)`` each.

        Args:
            values: Draws with the scales that families with correlations take.
            conditional: Draws with those of independent normals.
        """
        guide = copy.deepcopy(self)
        for name, local in zip(self.names, guide.locals, strict=True):
            if callable(restart := getattr(local, "restart", None)):
                independent = isinstance(_base(local()), torch.distributions.Normal)
                restart(*_move(local, (conditional if independent else values)[name]))
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
    """Return what a distribution is behind wrappers and transforms."""
    inner = stripped(distribution)
    while isinstance(inner, torch.distributions.TransformedDistribution):
        inner = stripped(inner.base_dist)
    return inner


def _move(local: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and factor that take a local posterior to the means and scales of draws, ``(K, ...)``."""
    if callable(untransformed := getattr(local, "untransformed", None)):
        return _move(local.base, untransformed(values))
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
    """Copy parameters and starts of some data, ``chosen`` of shape ``(B,)``, which lie at ``batch_dim`` of each."""

    def own(one: nn.Module) -> list[Tensor]:
        starts = [
            part
            for name, part in one.named_buffers()
            if name.rpartition(".")[2].startswith("start_")
        ]
        return [*one.parameters(), *starts]

    with torch.no_grad():
        for mine, theirs in zip(own(module), own(source), strict=True):
            mine.copy_(
                torch.where(chosen.reshape(-1, *[1] * (mine.dim() - batch_dim - 1)), theirs, mine)
            )


def _local(name: str, site: Site) -> nn.Module:
    base, event_dim = stripped(site["fn"]), site["fn"].event_dim
    if local_posterior.dispatch(type(base)) is local_posterior.dispatch(object):
        raise InputError(
            f"guide site '{name}' of family {type(base).__name__} needs 'local_guide' for a local refit"
        )
    try:
        return local_posterior(base, event_dim)
    except InputError as error:
        raise InputError(f"guide site '{name}' of family {type(base).__name__}: {error}") from error


def local_guide_of(program: Program, args: tuple[Any, ...]) -> LocalGuide:
    """Return the local version of a program's guide for a block of data, started at the guide's answer.

    Raises:
        InputError: if the guide has auxiliary sites, a family without a local version, or sites
            that depend on the
            draws of others: then the best member of its family is not found by freeing each site.
    """
    extra = set(program.guide_sites) - set(program.latents)
    if extra:
        raise InputError(
            f"the guide has auxiliary sites {sorted(extra)}; pass 'local_guide' for its local refit"
        )
    with torch.no_grad():
        first, second = (
            LocalGuide({name: program.trace(args)[0].nodes[name] for name in program.guide_sites})
            for _ in range(2)
        )
    for (name, a), b in zip(first.named_buffers(), second.buffers(), strict=True):
        if not torch.allclose(a, b, rtol=1e-3):
            site = first.names[int(name.split(".")[1])]
            raise InputError(
                f"guide site '{site}' depends on other draws; pass 'local_guide' for its local refit"
            )
    return first


def family_of(name: str) -> Family:
    """Return a joint family by its name.

    Raises:
        InputError: for a name that is none, with those that are.
    """
    if name not in FAMILIES:
        raise unknown_name("families", name, FAMILIES)
    return FAMILIES[name]


class _Joint(dist.TorchDistribution):
    """A distribution over vectors of each datum as that of a site: with batch dimensions where the program has them."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(
        self, attached: Any, detached: Any, coordinates: Coordinates, batch_shape: torch.Size
    ) -> None:
        self.attached, self.detached, self.coordinates = attached, detached, coordinates
        super().__init__(batch_shape, attached.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Joint:
        return _Joint(self.attached, self.detached, self.coordinates, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        draws = self.attached.rsample(torch.Size([shape.numel() // self.attached.batch_shape[0]]))
        return draws.reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density of the latents that a vector stands for."""
        vectors = value.reshape(-1, *self.attached.batch_shape, *self.event_shape)
        _, log_jacobian = self.coordinates.unflatten(vectors)
        return (self.detached.log_prob(vectors) - log_jacobian).reshape(value.shape[:-1])


class JointLocalGuide(nn.Module):
    """A guide for one block of data that draws all latents of a datum together, from a family of their own.

    The site of the vector is an auxiliary one; the latents follow from it.

    Args:
        program: The program.
        args: The arguments of the block.
        family: What makes the family from means and Cholesky factors.
        start: The guide at whose mean and covariance it starts: exactly where its sites are normal.
            Or those of the vectors, the latter as a factor.
    """

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        family: Family,
        start: Function | tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.coordinates = Coordinates(program, args)
        moments = (
            start if isinstance(start, tuple) else _moments(program, args, start, self.coordinates)
        )
        self.posterior = family(*moments)
        sites: Sites = dict(program.trace(args)[1].nodes)
        self.plate_dim, self.num_data = program.plate.dim, program.count(args)
        self.plates = {
            name: [frame for frame in sites[name]["cond_indep_stack"] if frame.vectorized]
            for name in program.latents
        }
        self.event_dims = {name: sites[name]["fn"].event_dim for name in program.latents}
        self.name = "_".join(("joint", *program.latents))
        self.frame = program.plate

    def distribution(self) -> _Joint:
        """Return the distribution of the vectors, whose log density passes gradients through the draw only."""
        detached = {key: value.detach() for key, value in self.posterior.named_parameters()}
        frozen = torch.func.functional_call(self.posterior, detached, ())
        batch_shape = torch.Size([self.num_data, *[1] * (-self.plate_dim - 1)])
        return _Joint(self.posterior(), frozen, self.coordinates, batch_shape)

    def forward(self, *args: Any) -> None:
        """Sample the vectors, and the latents that they stand for."""
        plates = {self.frame.name: pyro.plate(self.frame.name, self.num_data, dim=self.frame.dim)}
        with plates[self.frame.name]:
            vectors = pyro.sample(self.name, self.distribution(), infer={"is_auxiliary": True})
        with_particles = vectors.dim() - 1 > -self.plate_dim
        values, _ = self.coordinates.unflatten(
            vectors.reshape(-1, self.num_data, vectors.shape[-1])
        )
        for name, value in values.items():
            with ExitStack() as stack:
                for frame in self.plates[name]:
                    if frame.name not in plates:
                        plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                    stack.enter_context(plates[frame.name])
                drawn = value if with_particles else value[0]
                pyro.sample(name, dist.Delta(drawn, event_dim=self.event_dims[name]))

    def log_density(self, values: LatentValues) -> Tensor:
        """Return the log density of given latents, shape ``(K, B)``."""
        vectors = self.coordinates.flatten({name: values[name] for name in self.plates})
        _, log_jacobian = self.coordinates.unflatten(vectors)
        return self.posterior().log_prob(vectors) - log_jacobian

    def restart(self) -> None:
        """Count all parameters in units of the present member; families of the caller's own may have none."""
        if callable(restart := getattr(self.posterior, "restart", None)):
            restart()

    def keep(self, better: Tensor, other: JointLocalGuide, data_dim: int) -> None:
        """Take over another guide's parameters for the data where ``better`` is true, shape ``(B,)``."""
        copy_rows(better, self, other, 0)


def _moments(
    program: Program, args: tuple[Any, ...], start: Function, coordinates: Coordinates
) -> tuple[Tensor, Tensor]:
    """Return mean and Cholesky factor of a guide's vectors, ``(B, d)`` and ``(B, d, d)``."""
    with torch.no_grad():
        if isinstance(start, LocalGuide) and (exact := start.normal_parameters()) is not None:
            parts = ({name: part[i].unsqueeze(0) for name, part in exact.items()} for i in range(2))
            loc, scale = (coordinates.flatten(part)[0] for part in parts)
            return loc, torch.diag_embed(scale)
        if isinstance(start, JointLocalGuide) and isinstance(
            start.posterior, LocalFullRankPosterior
        ):
            member = start.posterior()
            return member.mean, member.scale_tril
        # A few draws at a time: each decodes the data of the block.
        size = max(1, _MOST_ROWS // program.count(args))
        sizes = [min(size, _MOMENT_DRAWS - done) for done in range(0, _MOMENT_DRAWS, size)]
        drawn = torch.cat(
            [coordinates.flatten(program.draw(count, args, start).values) for count in sizes]
        )
    vectors = drawn.double()
    loc = vectors.mean(0)
    deviations = (vectors - loc).movedim(0, 1)
    covariance = deviations.mT @ deviations / (len(vectors) - 1)
    ridge = 1e-6 * torch.diagonal(covariance, dim1=-2, dim2=-1).mean(-1)[:, None, None]
    tril = torch.linalg.cholesky(
        covariance + ridge * torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
    )
    return loc.to(drawn.dtype), tril.to(drawn.dtype)
