r"""Paths in latent space: the values of a traversal's latent, and paths between two codes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.bounds import Bounds, check_options
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.seeds import SAMPLE_STREAM, seeded
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import geodesic

# From here on two directions are opposite to rounding in float32: every arc between them is as
# short as the others.
_OPPOSITE = math.pi - 1e-3
# Steps of the path by which a geodesic is searched, at least.
_GEODESIC_POINTS = 128


class ValueRange(Protocol):
    """The values that a traversal gives its latents: any callable like this is one."""

    def __call__(
        self, vae: Any, data: Dataset | None, latents: Sequence[int], num_steps: int
    ) -> Tensor:
        """Return S values for each of the latents, shape ``(len(latents), S)``."""
        ...


@public
@dataclass(frozen=True)
class AggregateRange:
    r"""Equal steps between two quantiles of a latent under the aggregate posterior of the data.

    .. math:: q(z) = \frac1N \sum_n q(z \mid x_n),

    with one draw for each datum: where the decoder has been trained, whatever the prior.

    Attributes:
        share: Share of the draws that lie within, above 0 and at most 1; half of the others lie on
            either side.
        seed: Seed of the draws.

    Raises:
        InputError: if the share lies outside.
    """

    share: float = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"'share' must be above 0 and at most 1, got {self.share}")

    @torch.no_grad()
    def __call__(
        self, vae: Any, data: Dataset | None, latents: Sequence[int], num_steps: int
    ) -> Tensor:
        """Return the values, shape ``(len(latents), S)``; raises without data."""
        if data is None:
            raise InputError(
                "quantiles of the codes need data to encode, got none; give 'data', or other "
                "'values'"
            )
        with seeded(self.seed, SAMPLE_STREAM), evaluating(vae):
            codes = vae.posterior(data.x, data.context).sample()[:, list(latents)]
        tail = (1 - self.share) / 2
        low, high = torch.quantile(codes, codes.new_tensor([tail, 1 - tail]), dim=0)
        return _steps(low, high, num_steps)


@public
@dataclass(frozen=True)
class PriorRange:
    """Equal steps over so many standard deviations of the prior to either side of its mean.

    Attributes:
        deviations: How many, positive.

    Raises:
        InputError: if the number is not positive and finite.
    """

    deviations: Annotated[float, Bounds(0, 1e6, above=True)] = 3.0

    def __post_init__(self) -> None:
        check_options(self)

    @torch.no_grad()
    def __call__(
        self, vae: Any, data: Dataset | None, latents: Sequence[int], num_steps: int
    ) -> Tensor:
        """Return the values, ``(len(latents), S)``; raises for a prior without mean or variance."""
        with evaluating(vae):
            prior = vae.prior()
            try:
                mean, deviation = prior.mean[list(latents)], prior.variance[list(latents)].sqrt()
            except NotImplementedError:
                raise InputError(
                    f"the prior ({type(prior).__name__}) knows no mean and variance; take "
                    "AggregateRange()"
                ) from None
        return _steps(
            mean - self.deviations * deviation, mean + self.deviations * deviation, num_steps
        )


def _steps(low: Tensor, high: Tensor, num_steps: int) -> Tensor:
    """Return equal steps from low to high, each ``(R,)``, as ``(R, S)``; one step is the middle."""
    share = torch.linspace(0, 1, num_steps) if num_steps > 1 else torch.tensor([0.5])
    return torch.lerp(low.unsqueeze(-1), high.unsqueeze(-1), share.to(low))


class LatentPath(Protocol):
    """A path between two codes: any callable like this is one."""

    def __call__(
        self, vae: Any, start: Tensor, end: Tensor, num_steps: int, context: Context | None = None
    ) -> Tensor:
        """Return S codes from ``start`` ``(L,)`` to ``end`` ``(L,)``, both included, ``(S, L)``.

        The context, if there is one, is that of the whole way, one row.
        """
        ...


@dataclass(frozen=True)
class LinearPath:
    r"""The straight line, :math:`z_t = (1 - t) z_0 + t z_1`."""

    def __call__(
        self, vae: Any, start: Tensor, end: Tensor, num_steps: int, context: Context | None = None
    ) -> Tensor:
        """Return S codes in equal steps, shape ``(S, L)``."""
        return _steps(start, end, num_steps).T


@dataclass(frozen=True)
class SphericalPath:
    r"""An arc about the origin, whose direction and length change at constant rates.

    .. math::
        z_t = [(1 - t) \lVert z_0 \rVert + t \lVert z_1 \rVert]
        \frac{\sin((1 - t) \Omega) \, u_0 + \sin(t \Omega) \, u_1}{\sin \Omega}, \qquad u_i = z_i /
        \lVert z_i \rVert,

    with :math:`\Omega` the angle between the codes. Under a normal prior in many dimensions lengths
    are nearly all the same; a straight line leaves them halfway, and an arc does not. References:
    Shoemake 1985; White 2016.
    """

    def __call__(
        self, vae: Any, start: Tensor, end: Tensor, num_steps: int, context: Context | None = None
    ) -> Tensor:
        """Return S codes, shape ``(S, L)``; raises for codes without a single arc between them."""
        ends = torch.stack([start, end]).double()
        if bool((start == end).all()):
            raise InputError(
                "there is no arc between two codes that are the same; give two data that differ"
            )
        lengths = ends.norm(dim=-1)
        if not bool((lengths > 0).all()):
            raise InputError(
                "a code that is zero has no direction, so there is no arc to it; take LinearPath()"
            )
        first, last = ends / lengths.unsqueeze(-1)
        angle = 2 * torch.atan2((first - last).norm(), (first + last).norm())
        if angle > _OPPOSITE:
            raise InputError(
                "no arc between opposite codes is shorter than the others; take LinearPath()"
            )
        share = _steps(torch.zeros(()), torch.ones(()), num_steps).to(ends)
        # sin(s Ω) / sin(Ω), which is s where the directions are the same.
        weights = torch.stack([1 - share, share])
        weights = weights * torch.sinc(weights * angle / math.pi) / torch.sinc(angle / math.pi)
        length = torch.lerp(lengths[0], lengths[1], share)
        directions = weights[0].unsqueeze(-1) * first + weights[1].unsqueeze(-1) * last
        return (length.unsqueeze(-1) * directions).to(start)


@dataclass(frozen=True)
class GeodesicPath:
    r"""The path along which the decoded data change least, in steps that change them equally.

    It is that of :func:`pyro_bvae.evaluation.geodesic`, the shortest under the decoder's pull-back
    metric, and warns where none was found to the tolerance. References: Arvanitidis, Hansen and
    Hauberg 2018; Shao, Kumar and Fletcher 2018.
    """

    def __call__(
        self, vae: Any, start: Tensor, end: Tensor, num_steps: int, context: Context | None = None
    ) -> Tensor:
        """Return S codes, shape ``(S, L)``."""
        # The search needs a fine path, of which the steps are some points.
        stride = math.ceil(_GEODESIC_POINTS / (num_steps - 1))
        result = geodesic(vae, start, end, context, num_points=stride * (num_steps - 1) + 1)
        if not result.converged:
            warnings.warn(
                f"the path between two codes may not be the shortest: {result}", stacklevel=2
            )
        return result.path[::stride].to(start)
