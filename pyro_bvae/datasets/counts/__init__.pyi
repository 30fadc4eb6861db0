from pyro_bvae.datasets.counts.anndata import CellFormat as CellFormat
from pyro_bvae.datasets.counts.anndata import CellSplits as CellSplits
from pyro_bvae.datasets.counts.anndata import ObsColumns as ObsColumns
from pyro_bvae.datasets.counts.anndata import from_anndata as from_anndata
from pyro_bvae.datasets.counts.anndata import h5ad as h5ad
from pyro_bvae.datasets.counts.checks import check_counts as check_counts
from pyro_bvae.datasets.counts.checks import with_size_factor as with_size_factor
from pyro_bvae.datasets.counts.simulated import CountTruth as CountTruth
from pyro_bvae.datasets.counts.simulated import (
    negative_binomial_factors as negative_binomial_factors,
)
from pyro_bvae.datasets.counts.simulated import negative_binomial_truth as negative_binomial_truth
