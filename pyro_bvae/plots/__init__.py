"""Results in, matplotlib figures out; nothing here computes an estimate or knows a model.

Every function returns a :class:`matplotlib.figure.Figure` made without pyplot, so nothing has to be
closed, no backend is chosen and no global style is changed. Arrays may be NumPy's or torch's.
"""

from pyro_bvae.plots.counts import count_checks
from pyro_bvae.plots.curve import rate_distortion
from pyro_bvae.plots.disentanglement import disentanglement_scores
from pyro_bvae.plots.gaps import gap_bar, inference_gaps, per_datum_gaps
from pyro_bvae.plots.geometry import decoder_geometry, geodesic
from pyro_bvae.plots.holes import hole_samples, log_densities
from pyro_bvae.plots.information import kl_parts, latent_reading
from pyro_bvae.plots.inversion import inversions
from pyro_bvae.plots.latents import (
    interpolation_lines,
    interpolation_strips,
    traversal_frames,
    traversal_grid,
    traversal_lines,
    write_gif,
)
from pyro_bvae.plots.model import (
    features,
    image_grid,
    interpolation,
    kl_bars,
    latent_scatter,
    reconstructions,
    traversals,
)
from pyro_bvae.plots.training import training_curves

__all__ = [
    "count_checks",
    "decoder_geometry",
    "disentanglement_scores",
    "features",
    "gap_bar",
    "geodesic",
    "hole_samples",
    "image_grid",
    "inference_gaps",
    "interpolation",
    "interpolation_lines",
    "interpolation_strips",
    "inversions",
    "kl_bars",
    "kl_parts",
    "latent_reading",
    "latent_scatter",
    "log_densities",
    "per_datum_gaps",
    "rate_distortion",
    "reconstructions",
    "training_curves",
    "traversal_frames",
    "traversal_grid",
    "traversal_lines",
    "traversals",
    "write_gif",
]
