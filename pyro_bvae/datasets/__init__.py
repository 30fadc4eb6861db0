"""Files or seeds -> ``Splits(train, validation, test)`` of ``Dataset(x, context, labels, factors)``."""

from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets.counts.anndata import CellFormat, CellSplits, from_anndata, h5ad
from pyro_bvae.datasets.counts.checks import check_counts, with_size_factor
from pyro_bvae.datasets.counts.simulated import (
    CountTruth,
    negative_binomial_factors,
    negative_binomial_truth,
)
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.factors.factor_arrays import dsprites, factor_classes, from_factors
from pyro_bvae.datasets.factors.space import FactorSpace
from pyro_bvae.datasets.images import sprite_styles as sprite_looks
from pyro_bvae.datasets.images.handwritten import digits
from pyro_bvae.datasets.images.sprite_renderer import (
    ORIENTATION_PERIODS,
    SPRITE_FACTORS,
    SpriteTable,
    render_sprites,
    sprites,
)
from pyro_bvae.datasets.images.torchvision import fashion_mnist, kmnist, mnist
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.readers.path import from_path
from pyro_bvae.datasets.registry import available, load
from pyro_bvae.datasets.seeds import stream_generator
from pyro_bvae.datasets.splits import Splits, split
from pyro_bvae.datasets.synthetic import linear_gaussian, linear_gaussian_weight

__all__ = [
    "ORIENTATION_PERIODS",
    "SPRITE_FACTORS",
    "CellFormat",
    "CellSplits",
    "CountTruth",
    "Dataset",
    "FactorSpace",
    "LazyDataset",
    "Splits",
    "SpriteTable",
    "available",
    "check_counts",
    "digits",
    "dsprites",
    "factor_classes",
    "fashion_mnist",
    "from_anndata",
    "from_factors",
    "from_path",
    "h5ad",
    "kmnist",
    "linear_gaussian",
    "linear_gaussian_weight",
    "load",
    "mnist",
    "negative_binomial_factors",
    "negative_binomial_truth",
    "render_sprites",
    "split",
    "sprite_looks",
    "sprites",
    "stream_generator",
    "stream_seed",
    "with_size_factor",
]
