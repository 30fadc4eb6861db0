r"""The latents of a program as one unconstrained vector for each particle and datum.

Whatever the latents' supports, plates and shapes, a move in :math:`\mathbb{R}^d` is a move of all
of them: :math:`z = T(u)` with Pyro's bijection for each support, and the density of u is that of z
times the Jacobian.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    IndependentTransform,
    Transform,
    identity_transform,
)

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import Site
from pyro_bvae.program.supports import bijection_of, support_of


class _Place(NamedTuple):
    """The place of a site in the vector: ``width`` numbers, of ``shape`` with data first."""

    transform: Transform
    data_dim: int  # of the unconstrained values, counted from the right
    shape: torch.Size
    width: int

    @property
    def is_identity(self) -> bool:
        return self.transform is identity_transform

    def constrain(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Return free and constrained values of a part of the vectors, ``(K, B, width)``."""
        free = part.reshape(*part.shape[:2], *self.shape).movedim(1, self.data_dim)
        return free, self.transform(free)


class Coordinates:
    """The map between the latents of a block of data and vectors ``u`` of shape ``(K, B, d)``.

    Args:
        program: The program.
        args: The arguments of the block.

    Raises:
        InputError: for a latent whose support has no bijection from the real numbers, or depends on
            other latents.
    """

    def __init__(self, program: Program, args: tuple[Any, ...]) -> None:
        with torch.no_grad():
            _, model_trace = program.trace(args)
        self.places = {
            name: _place(program, name, model_trace.nodes[name]) for name in program.latents
        }
        self.size = sum(place.width for place in self.places.values())
        if not all(place.is_identity for place in self.places.values()):
            self._check_supports(program, args)

    def _check_supports(self, program: Program, args: tuple[Any, ...]) -> None:
        with torch.no_grad(), seeded(0, PROBE_STREAM):
            _, model_trace = program.trace(args)
        for name, place in self.places.items():
            site: Site = model_trace.nodes[name]
            origin = site["value"].new_zeros(1, program.count(args), place.width)
            (_, here), (_, there) = (
                part.constrain(origin) for part in (place, _place(program, name, site))
            )
            if not torch.equal(here, there):
                raise InputError(
                    f"the support of latent '{name}' depends on other latents, so no one map leads"
                    " to it"
                )

    def flatten(self, values: LatentValues) -> Tensor:
        """Return the vectors of given latents, ``(K, ...)`` each, shape ``(K, B, d)``."""
        parts = []
        for name, place in self.places.items():
            free = place.transform.inv(values[name]).movedim(place.data_dim, 1)
            parts.append(free.reshape(*free.shape[:2], place.width))
        return torch.cat(parts, -1)

    def unflatten(self, vectors: Tensor) -> tuple[LatentValues, Tensor]:
        r"""Return the latents of vectors and :math:`\log |dz / du|`, ``(K, B)``."""
        values: LatentValues = {}
        log_jacobian = vectors.new_zeros(vectors.shape[:2])
        widths = [place.width for place in self.places.values()]
        for (name, place), part in zip(self.places.items(), vectors.split(widths, -1), strict=True):
            free, values[name] = place.constrain(part)
            if not place.is_identity:
                terms = place.transform.log_abs_det_jacobian(free, values[name])
                terms = terms.movedim(place.data_dim + place.transform.domain.event_dim, 1)
                log_jacobian = (
                    log_jacobian + terms.flatten(2).sum(-1)
                    if terms.dim() > 2
                    else log_jacobian + terms
                )
        return values, log_jacobian


def _place(program: Program, name: str, site: Site) -> _Place:
    try:
        transform = bijection_of(site["fn"])
    except NotImplementedError as error:
        support = support_of(site["fn"])
        raise InputError(
            f"latent '{name}' has the support {support}, which no bijection maps to the reals:"
            f" {error}"
        ) from error
    inner = transform
    while isinstance(inner, IndependentTransform):
        inner = inner.base_transform
    if isinstance(inner, ComposeTransform) and not inner.parts:
        transform = identity_transform
    # As the values are under a plate of particles: with every batch dimension to the right of it.
    missing = -program.particle_dim - 1 - (site["value"].dim() - site["fn"].event_dim)
    shape = torch.Size([*[1] * missing, *transform.inverse_shape(site["value"].shape)])
    data_dim = program.plate.dim - (
        site["fn"].event_dim + transform.domain.event_dim - transform.codomain.event_dim
    )
    rest = torch.Size(size for dim, size in enumerate(shape) if dim != len(shape) + data_dim)
    return _Place(transform, data_dim, rest, math.prod(rest))
