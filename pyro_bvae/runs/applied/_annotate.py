"""Results back into an ``AnnData``: latents and evidence of every cell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.protocols import VAE
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets.counts.anndata import CellFormat
from pyro_bvae.datasets.counts.covariates import combinations
from pyro_bvae.datasets.labels import PARTS
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.evaluation import evidence
from pyro_bvae.evaluation.estimate import METHODS
from pyro_bvae.runs.directory import Run, load

if TYPE_CHECKING:
    from anndata import AnnData

# Numbers of cells that are dense at a time, 200 MB in float32.
_MOST_NUMBERS = 50_000_000


@exclusive
def annotate(
    adata: AnnData,
    vae: VAE | Run | str | Path,
    cell_format: CellFormat | None = None,
    *,
    num_samples: int = 1000,
    method: Literal["auto", "importance"] = "importance",
    unseen: Literal["refuse", "marginalise"] = "refuse",
    seed: int = 0,
    key: str = "pyro_bvae",
    progress: bool = False,
) -> None:
    r"""Write the latents and the evidence of every cell into an ``AnnData``, in place.

    The cells, of the training or new ones, are read as those that the model was trained on: genes
    by name in whatever order, others left aside, a block of cells at a time, so that sparse and
    backed counts stay as they are. The evidence is :math:`\log p(x_n \mid l_n)`, conditional on
    the library size :math:`l_n` where that is the size factor, and on the batch where there are
    covariates: it compares models of the same counts, not cells of different library size. Where
    unseen categories are marginalised, it is :math:`\log \sum_c \pi_c \, p(x_n \mid c)` with
    the shares :math:`\pi_c` of the training cells, and the latents are averaged likewise. Cells
    with fewer than ``cell_format.min_counts`` counts get NaN, and no trust.

    The results lie where scanpy (``use_rep="X_pyro_bvae"``), cellxgene and vitessce look for them:

    - ``obsm["X_pyro_bvae"]``: posterior means of the latents, ``(N, L)``, float32.
    - ``obs["pyro_bvae_evidence"]``: evidence in nats, float32.
    - ``obs["pyro_bvae_evidence_error"]``: its Monte Carlo standard error, float32.
    - ``obs["pyro_bvae_evidence_trusted"]``: whether it can be trusted, bool.
    - ``obs["pyro_bvae_evidence_method"]``: with ``method="auto"``, the estimator that answered:
      guide, refit or annealing, categorical.
    - ``obs["pyro_bvae_split"]``: of a run, the part that it knows a cell of this name in: train,
      validation or test, else new; categorical.
    - ``uns["pyro_bvae"]``: the seed, the number of samples, the number of genes and the layer
      (``X`` for none).

    A backed ``AnnData`` is annotated in memory: ``adata.write_h5ad(path)`` writes a copy with the
    results.

    Args:
        adata: The cells, those of the training or others with the same genes.
        vae: A run of cells, its directory, or a :class:`~pyro_bvae.BetaVAE`.
        cell_format: How the cells are seen, ``splits.format`` of
            :class:`~pyro_bvae.datasets.CellSplits`; that of the run by default.
        num_samples: Importance samples for each cell.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evidence`: ``auto`` measures
            cells that importance sampling cannot be trusted for again.
        unseen: Cells of a batch or another category that no training cell had: ``refuse`` them, or
            ``marginalise`` over those that there were, each combination at the cost of a cell.
        seed: Seed of the draws.
        key: The beginning of the names of all results.
        progress: Show a progress bar.

    Raises:
        InputError: if the run is none of cells, ``adata`` is a view, a gene, layer or column is not
            there, a count is none, or a batch is new and not marginalised.
    """
    if adata.is_view:
        raise InputError(
            "'adata' must not be a view of another AnnData: take adata = adata.copy() first"
        )
    parts = _known_parts(vae)
    vae, cell_format = _opened(vae, cell_format)
    cell_format = replace(cell_format, label_column=None)  # which has no part in it
    data, contexts, log_shares, rows = _read(adata, cell_format, unseen)
    own = next(vae.parameters())
    size = max(1, _MOST_NUMBERS // data.num_features)
    results: dict[str, np.ndarray] = {}
    batches = data.to(own.device, own.dtype).batches(size, seed=0, epoch=0, shuffle=False)
    options = {"num_samples": num_samples, "method": method, "progress": False}
    for index, (x, _) in enumerate(
        ProgressBar(batches, total=data.num_batches(size), disable=not progress)
    ):
        some = slice(index * size, index * size + len(x))
        each = [
            _measured(
                vae, x, context and context.take(some).to(own), stream_seed(seed, index), options
            )
            for context in contexts
        ]
        for name, values in _averaged(each, log_shares).items():
            # Cells that are left out have NaN, and no trust.
            missing = False if values.dtype == torch.bool else np.nan
            shape = (adata.n_obs, *values.shape[1:])
            whole = results.setdefault(name, np.full(shape, missing))
            whole[rows[index * size : index * size + len(x)]] = values
    adata.obsm[f"X_{key}"] = results.pop("latents").astype(np.float32)
    if parts is not None:
        named = [parts.get(name, "new") for name in adata.obs_names.astype(str)]
        adata.obs[f"{key}_split"] = pd.Categorical(named, categories=[*PARTS, "new"])
    for name, whole in results.items():
        column = whole if whole.dtype == bool else whole.astype(np.float32)
        if name == "evidence_method":  # a cell that is left out has none
            codes = np.nan_to_num(whole, nan=-1).astype(int)
            column = pd.Categorical.from_codes(codes, categories=list(METHODS))
        adata.obs[f"{key}_{name}"] = column
    adata.uns[key] = {
        "seed": seed,
        "num_samples": num_samples,
        "num_genes": data.num_features,
        "layer": cell_format.layer or "X",
    }


def _read(
    adata: AnnData, seen: CellFormat, unseen: str
) -> tuple[LazyDataset, list[Context | None], list[float], np.ndarray]:
    """Return the cells, their contexts under each combination of categories, and their rows.

    A single context, of share 1, where no category is unseen or unseen ones are refused.
    """
    matrix, selected = seen.select(adata)
    rows = np.flatnonzero(selected.cells)
    chosen: list[tuple[dict[str, str], float]] = [({}, 1.0)]
    if unseen == "marginalise":
        chosen = combinations(adata, rows, seen.all_categories, seen.shares)
    read = [seen.cells(adata, matrix, selected, assumed) for assumed, _ in chosen]
    contexts = [data.context for data in read]
    return read[0], contexts, [math.log(share) for _, share in chosen], rows


def _measured(
    vae: VAE, x: Tensor, context: Context | None, seed: int, options: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the columns of some cells in one context."""
    args = arguments(x, context)
    vae.check_data(*args)
    estimate = evidence(vae.model, vae.guide, *args, seed=seed, **options)
    assert estimate.errors is not None
    columns = {
        "latents": vae.encode(*args).double().cpu(),
        "evidence": estimate.per_datum,
        "evidence_error": estimate.errors,
        "evidence_trusted": torch.as_tensor(estimate.reliable),
    }
    if estimate.methods is not None:
        columns["evidence_method"] = estimate.methods.double()
    return columns


def _averaged(each: list[dict[str, Tensor]], log_shares: list[float]) -> dict[str, Tensor]:
    """Return the columns of cells over contexts of some shares: a mixture's evidence and mean."""
    if len(each) == 1:
        return each[0]
    joint = torch.stack([columns["evidence"] for columns in each])
    joint = joint + torch.tensor(log_shares, dtype=torch.double)[:, None]
    weights = joint.softmax(0)

    def of(name: str) -> Tensor:
        return torch.stack([columns[name] for columns in each])

    averaged = {
        "latents": torch.einsum("cn,cnl->nl", weights, of("latents")),
        "evidence": joint.logsumexp(0),
        "evidence_error": (weights * of("evidence_error")).square().sum(0).sqrt(),
        "evidence_trusted": of("evidence_trusted").all(0),
    }
    if "evidence_method" in each[0]:
        averaged["evidence_method"] = of("evidence_method").amax(0)
    return averaged


def _known_parts(vae: VAE | Run | str | Path) -> dict[str, str] | None:
    """Return the part of each cell that a run knows by name; None for a model alone."""
    if isinstance(vae, str | Path):
        vae = load(vae)
    record = vae.record if isinstance(vae, Run) else None
    if record is None:
        return None
    return {str(name): part for part, own in record.parts.items() for name in own.index.tolist()}


def _opened(vae: VAE | Run | str | Path, cell_format: CellFormat | None) -> tuple[VAE, CellFormat]:
    """Return the model, and the format of its cells, that a run holds."""
    run = load(vae) if isinstance(vae, str | Path) else vae
    if not isinstance(run, Run):
        model = run
    else:
        own = getattr(run.splits, "format", None) if run.record is None else run.record.cells
        if cell_format is None and own is None:
            raise InputError(f"{run.directory} is no run of cells: it was trained on other data")
        model, cell_format = run.vae, cell_format or own
    if cell_format is None:
        raise InputError("'cell_format' must be given for a model that is no run")
    return model, cell_format
