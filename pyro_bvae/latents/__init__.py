"""Looking at the latents of a model: traverse, interpolate, embed, reconstruct, generate."""

from pyro_bvae.evaluation.latent_results import Embedding, Interpolation, Traversal
from pyro_bvae.latents.explore import embed, generate, interpolate, reconstruct, traverse
from pyro_bvae.latents.paths import (
    AggregateRange,
    GeodesicPath,
    LatentPath,
    LinearPath,
    PriorRange,
    SphericalPath,
    ValueRange,
)

__all__ = [
    "AggregateRange",
    "Embedding",
    "GeodesicPath",
    "Interpolation",
    "LatentPath",
    "LinearPath",
    "PriorRange",
    "SphericalPath",
    "Traversal",
    "ValueRange",
    "embed",
    "generate",
    "interpolate",
    "reconstruct",
    "traverse",
]
