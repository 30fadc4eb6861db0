from pyro_bvae.core.seeds import stream_seed as stream_seed
from pyro_bvae.datasets.counts.anndata import CellFormat as CellFormat
from pyro_bvae.datasets.counts.anndata import CellSplits as CellSplits
from pyro_bvae.datasets.counts.anndata import from_anndata as from_anndata
from pyro_bvae.datasets.counts.anndata import h5ad as h5ad
from pyro_bvae.datasets.counts.checks import check_counts as check_counts
from pyro_bvae.datasets.counts.checks import with_size_factor as with_size_factor
from pyro_bvae.datasets.counts.simulated import CountTruth as CountTruth
from pyro_bvae.datasets.counts.simulated import (
    negative_binomial_factors as negative_binomial_factors,
)
from pyro_bvae.datasets.counts.simulated import negative_binomial_truth as negative_binomial_truth
from pyro_bvae.datasets.dataset import Dataset as Dataset
from pyro_bvae.datasets.factors.factor_arrays import dsprites as dsprites
from pyro_bvae.datasets.factors.factor_arrays import factor_classes as factor_classes
from pyro_bvae.datasets.factors.factor_arrays import from_factors as from_factors
from pyro_bvae.datasets.factors.space import FactorSpace as FactorSpace
from pyro_bvae.datasets.images.handwritten import digits as digits
from pyro_bvae.datasets.images.sprite_renderer import ORIENTATION_PERIODS as ORIENTATION_PERIODS
from pyro_bvae.datasets.images.sprite_renderer import SPRITE_FACTORS as SPRITE_FACTORS
from pyro_bvae.datasets.images.sprite_renderer import SpriteTable as SpriteTable
from pyro_bvae.datasets.images.sprite_renderer import render_sprites as render_sprites
from pyro_bvae.datasets.images.sprite_renderer import sprites as sprites
from pyro_bvae.datasets.images.torchvision import fashion_mnist as fashion_mnist
from pyro_bvae.datasets.images.torchvision import kmnist as kmnist
from pyro_bvae.datasets.images.torchvision import mnist as mnist
from pyro_bvae.datasets.lazy import LazyDataset as LazyDataset
from pyro_bvae.datasets.readers.path import from_path as from_path
from pyro_bvae.datasets.registry import available as available
from pyro_bvae.datasets.registry import load as load
from pyro_bvae.datasets.seeds import stream_generator as stream_generator
from pyro_bvae.datasets.splits import Splits as Splits
from pyro_bvae.datasets.splits import split as split
from pyro_bvae.datasets.synthetic import linear_gaussian as linear_gaussian
from pyro_bvae.datasets.synthetic import linear_gaussian_weight as linear_gaussian_weight
