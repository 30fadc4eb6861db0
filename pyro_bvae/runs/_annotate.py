"""Results back into an ``AnnData``: latents and evidence of every cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.protocols import VAE
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets.counts.anndata import CellFormat
from pyro_bvae.evaluation import evidence

if TYPE_CHECKING:
    from anndata import AnnData

# Numbers of cells that are dense at a time, 200 MB in float32.
_MOST_NUMBERS = 50_000_000


@exclusive
def annotate(
    adata: AnnData,
    vae: VAE,
    cell_format: CellFormat,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    key: str = "pyro_bvae",
    progress: bool = False,
) -> None:
    r"""Write the latents and the evidence of every cell into an ``AnnData``, in place.

    The cells are read as those that the model was trained on, a block at a time, so that sparse and
    backed counts stay as they are. The evidence is :math:`\log p(x_n \mid l_n)`, conditional on
    the library size :math:`l_n` where that is the size factor, and on the batch where there are
    covariates: it compares models of the same counts, not cells of different library size. Cells
    with fewer than ``cell_format.min_counts`` counts get NaN, and no trust.

    The results:

    - ``obsm["X_pyro_bvae"]``: posterior means of the latents, ``(N, L)``.
    - ``obs["pyro_bvae_evidence"]``: evidence by importance sampling from the guide, in nats.
    - ``obs["pyro_bvae_evidence_error"]``: its Monte Carlo standard error.
    - ``obs["pyro_bvae_evidence_trusted"]``: whether its weights can be trusted, by Pareto k.
    - ``uns["pyro_bvae"]``: the seed, the number of samples, the number of genes and the layer
      (``X`` for none).

    A backed ``AnnData`` is annotated in memory: ``adata.write_h5ad(path)`` writes a copy with the
    results.

    Args:
        adata: The cells, those of the training or others with the same genes.
        vae: A :class:`~pyro_bvae.BetaVAE` trained on cells of this format.
        cell_format: How the cells are seen, ``splits.format`` of
            :class:`~pyro_bvae.datasets.CellSplits`.
        num_samples: Importance samples for each cell.
        seed: Seed of the draws.
        key: The beginning of the names of all results.
        progress: Show a progress bar.

    Raises:
        InputError: if ``adata`` is a view, a gene, layer or column is not there, a count is none,
            or a batch is new.
    """
    if adata.is_view:
        raise InputError(
            "'adata' must not be a view of another AnnData: take adata = adata.copy() first"
        )
    data, kept = replace(cell_format, label_column=None).read(adata)  # which has no part in it
    own = next(vae.parameters())
    rows = np.flatnonzero(kept)
    size = max(1, _MOST_NUMBERS // data.num_features)
    results: dict[str, np.ndarray] = {}
    batches = data.to(own.device, own.dtype).batches(size, seed=0, epoch=0, shuffle=False)
    for index, (x, context) in enumerate(
        tqdm(batches, total=data.num_batches(size), disable=not progress)
    ):
        args = arguments(x, context)
        vae.check_data(*args)
        estimate = evidence(
            vae.model,
            vae.guide,
            *args,
            num_samples=num_samples,
            seed=stream_seed(seed, index),
            progress=False,
        )
        block: dict[str, Any] = {
            "latents": vae.encode(*args).double().cpu(),
            "evidence": estimate.per_datum,
            "evidence_error": estimate.errors,
            "evidence_trusted": torch.as_tensor(estimate.reliable),
        }
        for name, values in block.items():
            # Cells that are left out have NaN, and no trust.
            missing = False if values.dtype == torch.bool else np.nan
            shape = (adata.n_obs, *values.shape[1:])
            whole = results.setdefault(name, np.full(shape, missing))
            whole[rows[index * size : index * size + len(x)]] = values
    adata.obsm[f"X_{key}"] = results.pop("latents").astype(np.float32)
    for name, whole in results.items():
        adata.obs[f"{key}_{name}"] = whole
    adata.uns[key] = {
        "seed": seed,
        "num_samples": num_samples,
        "num_genes": data.num_features,
        "layer": cell_format.layer or "X",
    }
