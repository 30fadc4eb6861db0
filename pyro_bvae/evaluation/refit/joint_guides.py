"""Guides with free parameters for each datum of a block, of a joint family of all latents."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import unknown_name
from pyro_bvae.evaluation.refit.local_guides import LocalGuide, Restarts, copy_rows
from pyro_bvae.posteriors import LocalFlowPosterior, LocalFullRankPosterior
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Function, Program
from pyro_bvae.program.sites import Sites

# From means (B, d) and Cholesky factors (B, d, d) to a family with free parameters that starts
# there.
Family = Callable[[Tensor, Tensor], nn.Module]

#: Families of a joint refit of all latents, by name; each contains the one before it.
FAMILIES: dict[str, Family] = {"full-rank": LocalFullRankPosterior, "flow": LocalFlowPosterior}

# Draws behind the moments of a guide that is not normal, and draws times data that are held at a
# time.
_MOMENT_DRAWS, _MOST_ROWS = 1000, 8192


def family_of(name: str) -> Family:
    """Return a joint family by its name.

    Raises:
        InputError: for a name that is none, with those that are.
    """
    if name not in FAMILIES:
        raise unknown_name("families", name, FAMILIES)
    return FAMILIES[name]


class _Joint(dist.TorchDistribution):
    """A distribution over vectors of each datum, with the batch dimensions of a site."""

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
    """A guide for one block of data that draws all latents of a datum together.

    The site of the vector is an auxiliary one; the latents follow from it.

    Args:
        program: The program.
        args: The arguments of the block.
        family: Makes the family from means and Cholesky factors.
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
        """Return the distribution of the vectors, with path gradients only."""
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
        """Count parameters in units of the present member, where the family can."""
        if isinstance(self.posterior, Restarts):
            self.posterior.restart()

    def keep(self, better: Tensor, other: JointLocalGuide, data_dim: int) -> None:
        """Take over another guide's parameters for the data in ``better``, shape ``(B,)``."""
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
