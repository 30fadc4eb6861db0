"""Files or seeds -> ``Splits(train, validation, test)`` of ``Dataset(x, context, labels, factors)``."""

from pyro_bvae.datasets.base import Dataset, Splits
from pyro_bvae.datasets.cells import CellFormat, CellSplits, from_anndata, h5ad
from pyro_bvae.datasets.counts import check_counts, with_size_factor
from pyro_bvae.datasets.digits import digits
from pyro_bvae.datasets.files import from_path
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.negative_binomial import CountTruth, negative_binomial_factors, negative_binomial_truth
from pyro_bvae.datasets.registry import available, load
from pyro_bvae.datasets.splitting import split
from pyro_bvae.datasets.sprites import render_sprites, sprites
from pyro_bvae.datasets.streams import stream_generator
from pyro_bvae.datasets.synthetic import linear_gaussian, linear_gaussian_weight
from pyro_bvae.datasets.torchvision_images import fashion_mnist, kmnist, mnist
from pyro_bvae.randomness import stream_seed

__all__ = [
    "CellFormat",
    "CellSplits",
    "CountTruth",
    "Dataset",
    "LazyDataset",
    "Splits",
    "available",
    "check_counts",
    "digits",
    "fashion_mnist",
    "from_anndata",
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
    "sprites",
    "stream_generator",
    "stream_seed",
    "with_size_factor",
]
