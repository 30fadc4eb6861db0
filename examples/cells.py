"""Cells: from an .h5ad file to latents, to the evidence of every cell, and to a choice of likelihood.

    python examples/cells.py

The counts are simulated from three cell types with negative binomial noise, so that the right answers
are known. With counts of your own, ``path`` is your file and ``label_column`` a column of its ``obs``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anndata

from pyro_bvae import compare, datasets, load, runs
from pyro_bvae.runs import TrainConfig


def simulate(path: Path) -> None:
    """Write cells of three types, as an experiment would have given them."""
    truth = datasets.negative_binomial_truth(num_features=40, num_types=3, dispersion=0.5)
    made = datasets.negative_binomial_factors(900, truth=truth, validation=0).train.dense()
    cells = anndata.AnnData(made.x.numpy())
    cells.obs["type"] = [f"type {label}" for label in made.labels.tolist()]
    cells.write_h5ad(path)


def main(folder: Path, epochs: int) -> None:
    """Train two models, choose one, look at what it found, and write that beside the cells."""
    path = folder / "cells.h5ad"
    simulate(path)

    # The library size is the size factor of each cell; the encoder sees log(1 + count).
    options = {"latent_dim": 3, "hidden": (64,), "epochs": epochs, "learning_rate": 0.01}
    for likelihood in ("poisson", "negative-binomial"):
        config = TrainConfig(
            dataset="h5ad", path=str(path), label_column="type", likelihood=likelihood, **options
        )
        runs.train(config, folder / likelihood, progress=False)

    names = {likelihood: folder / likelihood for likelihood in ("poisson", "negative-binomial")}
    comparison = compare(names, num_data=40, num_samples=200, method="importance")
    print(comparison)

    best = folder / comparison.best
    print(runs.evaluate_run(best, num_samples=200, num_data=20, progress=False).verdict)

    run, cells = load(best), anndata.read_h5ad(path)
    runs.annotate(cells, run.vae, run.splits.format, num_samples=100)
    print("latents of each cell:", cells.obsm["X_pyro_bvae"].shape)
    print(cells.obs.groupby("type", observed=True)["pyro_bvae_evidence"].describe())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    with tempfile.TemporaryDirectory() as made:
        main(Path(made), parser.parse_args().epochs)
