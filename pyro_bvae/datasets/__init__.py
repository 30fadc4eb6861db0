"""Files or seeds -> ``Splits(train, validation, test)`` of ``Dataset(x, context, labels, factors)``."""

from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets import sprite_looks
from pyro_bvae.datasets.base import Dataset, Splits
from pyro_bvae.datasets.cells import CellFormat, CellSplits, from_anndata, h5ad
from pyro_bvae.datasets.counts import check_counts, with_size_factor
from pyro_bvae.datasets.digits import digits
from pyro_bvae.datasets.factor_arrays import dsprites, factor_classes, from_factors
from pyro_bvae.datasets.factors import FactorSpace
from pyro_bvae.datasets.files import from_path
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.negative_binomial import CountTruth, negative_binomial_factors, negative_binomial_truth
from pyro_bvae.datasets.registry import available, load
from pyro_bvae.datasets.splitting import split
from pyro_bvae.datasets.sprites import ORIENTATION_PERIODS, SPRITE_FACTORS, SpriteTable, render_sprites, sprites
from pyro_bvae.datasets.streams import stream_generator
from pyro_bvae.datasets.synthetic import linear_gaussian, linear_gaussian_weight
from pyro_bvae.datasets.torchvision_images import fashion_mnist, kmnist, mnist

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
