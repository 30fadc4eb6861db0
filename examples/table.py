"""A table: missing entries, columns of other units, and new rows that are scored and filled in.

    python examples/table.py

The table is made here: body measurements that follow one hidden size, some of them not taken. With
a .csv of your own, ``path`` is your file; its columns are numbers, and empty fields are missing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_bvae import evidence, load, runs
from pyro_bvae.runs import TrainConfig


def measure(count: int, seed: int) -> pd.DataFrame:
    """Return people's measurements in cm, kg and mm, a tenth of them missing."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=count)
    columns = {
        "height": 170 + 10 * size + rng.normal(0, 3, count),
        "weight": 70 + 12 * size + rng.normal(0, 5, count),
        "foot": 260 + 15 * size + rng.normal(0, 5, count),
    }
    return pd.DataFrame(columns).mask(rng.random((count, 3)) < 0.1)


def main(folder: Path, epochs: int) -> None:
    """Train on a table with gaps, then score and complete rows that the model has not seen."""
    measure(800, seed=0).to_csv(folder / "people.csv", index=False)
    config = TrainConfig(
        dataset="file", path=str(folder / "people.csv"), missing="nan", likelihood="normal-per-feature",
        latent_dim=1, hidden=(32,), epochs=epochs, learning_rate=0.01,
    )  # fmt: skip
    runs.train(config, folder / "run", progress=False)
    print(runs.evaluate_run(folder / "run", num_samples=500, num_data=20, progress=False).verdict)

    new = measure(6, seed=1)
    new.loc[5, "foot"] = 150  # an error of measurement
    x = torch.tensor(new.to_numpy(), dtype=torch.float32)
    vae = load(folder / "run").vae
    new["evidence"] = evidence(vae.model, vae.guide, x, num_samples=1000).per_datum
    print(new.round(1))
    print("The least likely row:", int(new["evidence"].idxmin()))
    filled = pd.DataFrame(vae.impute(x).numpy(), columns=new.columns[:3])
    print(filled.round(1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    with tempfile.TemporaryDirectory() as made:
        main(Path(made), parser.parse_args().epochs)
