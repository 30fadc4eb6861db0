"""Cells: from an .h5ad file to latents, to the evidence of every cell, and to a choice of likelihood.

    python examples/cells.py

The counts are simulated from three cell types with negative binomial noise, so that the right answers
are known. With counts of your own, ``path`` is your file and ``label_column`` a column of its ``obs``.
"""

import argparse
import tempfile
from pathlib import Path

import anndata

from pyro_bvae import compare, datasets, runs
from pyro_bvae.runs import TrainConfig


def simulate(path: Path, seed: int) -> None:
    """Write cells of three types, as an experiment would have given them."""
    truth = datasets.negative_binomial_truth(num_features=40, num_types=3, dispersion=2.0)
    splits = datasets.negative_binomial_factors(900, truth=truth, seed=seed)
    cells = anndata.AnnData(splits.train.dense().x.numpy())
    cells.obs["type"] = [f"type {label}" for label in splits.train.labels.tolist()]
    cells.write_h5ad(path)


def main(folder: Path, epochs: int) -> None:
    """Train two models, choose one, and write what it says beside cells that it has not seen."""
    simulate(folder / "cells.h5ad", seed=0)

    # The library size is the size factor of each cell; the encoder sees log(1 + count).
    config = TrainConfig(
        dataset="h5ad", path=str(folder / "cells.h5ad"), label_column="type", latent_dim=3,
        hidden=(64,), epochs=epochs, learning_rate=0.01,
    )  # fmt: skip
    for name in ("poisson", "negative-binomial"):
        runs.train(config.with_options(likelihood=name), folder / name, progress=False)

    models = {name: folder / name for name in ("poisson", "negative-binomial")}
    print(compare(models, num_data=40, num_samples=200, method="importance"))

    chosen = folder / "negative-binomial"
    print(runs.evaluate_run(chosen, num_samples=200, num_data=10, progress=False).verdict)

    simulate(folder / "new.h5ad", seed=1)
    cells = anndata.read_h5ad(folder / "new.h5ad")
    runs.annotate(cells, chosen, num_samples=50)
    print("latents of the new cells, for scanpy:", cells.obsm["X_pyro_bvae"].shape)
    print(cells.obs.groupby("type", observed=True)["pyro_bvae_evidence"].describe().round(1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    with tempfile.TemporaryDirectory() as made:
        main(Path(made), parser.parse_args().epochs)
