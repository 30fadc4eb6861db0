"""The methods and attributes that a VAE, its parts and its data are known by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from pyro_bvae.core.context import Context

Batch: TypeAlias = tuple[Tensor, Context | None]


@runtime_checkable
class Batches(Protocol):
    """Data in batches whose order is a function of seed and epoch."""

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""


@runtime_checkable
class Begins(Protocol):
    """A callback of a training that is called before the first step too, when all is checked."""

    def begin(self, directory: Path) -> None:
        """Write the first files.

        Args:
            directory: Where they belong: the run directory, or a folder in it if the run takes the
                place of another, whose files stay until the first epoch of this one is written.
        """


@runtime_checkable
class ChecksData(Protocol):
    """A model that refuses data which it cannot explain."""

    def check_data(self, x: Tensor, context: Context | None = None) -> None:
        """Raise unless the model can explain the data."""


@runtime_checkable
class HasPosterior(Protocol):
    """A model whose guide gives a distribution of the latents of each datum."""

    def posterior(self, x: Tensor, context: Context | None = None) -> Any:
        """Return :math:`q(z | x)`."""


@runtime_checkable
class HasLogDensity(Protocol):
    """A guide with a density of its own at given latents."""

    def log_density(self, values: dict[str, Tensor]) -> Tensor:
        """Return the log density of given latents, shape ``(K, N)``."""


class VAE(ChecksData, HasPosterior, Protocol):
    """A model and a guide of Pyro, made of a prior, a decoder and an encoder."""

    prior: Callable[[], Any]
    decoder: Callable[..., Any]
    encoder: Callable[..., Any]
    latent_dim: int | None
    num_features: int | None
    missing: bool

    def model(self, x: Tensor, context: Context | None = None, beta: float | Tensor = 1.0) -> Any:
        """Sample the latents and observe the data."""

    def guide(self, x: Tensor, context: Context | None = None, beta: float | Tensor = 1.0) -> Any:
        """Sample the latents."""

    def encode(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Return the posterior means of the latents, ``(N, L)``."""

    def decode(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Return the means of :math:`p(x | z)`, ``(*, D)``."""

    def reconstruct(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Return the decoder's means at the posterior means, ``(N, D)``."""

    def generate(
        self,
        num_samples: int,
        context: Context | None = None,
        *,
        noise: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Draw latents from the prior and decode them, ``(num_samples, D)``."""

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Return the weights."""


def part_of(owner: object, *names: str) -> Any:
    """Return a part of a model by its names from outside in, or None where there is none.

    Args:
        owner: A model of anybody's, or a part of it.
        *names: Such as ``"decoder", "likelihood"``.
    """
    part: Any = owner
    for name in names:
        part = getattr(part, name, None)
    return part


def size_of(part: object, name: str) -> int | None:
    """Return a size that a network, part or model states, such as ``in_features``, or None."""
    size = part_of(part, name)
    return size if isinstance(size, int) else None


def latent_dim_of(part: object) -> int | None:
    """Return the number of latents that a model or part states, or None."""
    return size_of(part, "latent_dim")


def num_features_of(part: object) -> int | None:
    """Return the number of features that a model or part states, or None."""
    return size_of(part, "num_features")


def takes_missing(vae: object) -> bool:
    """Whether a model takes NaN as a missing entry."""
    return bool(part_of(vae, "missing"))
