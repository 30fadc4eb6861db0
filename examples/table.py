"""A table: entries that are missing, and new rows that are scored, ranked and filled in.

    python examples/table.py

The table is made here: marks of pupils that follow one ability, some tests not taken. With a .csv
of your own, ``path`` is your file; its columns are numbers, and empty fields are missing.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_bvae import load, runs
from pyro_bvae.runs import TrainConfig

TESTS = ("reading", "arithmetic", "science")


def marks(count: int, seed: int) -> pd.DataFrame:
    """Return marks from about 0 to 10, a tenth of them missing."""
    rng = np.random.default_rng(seed)
    ability = rng.normal(size=(count, 1))
    table = 5 + 1.5 * ability + rng.normal(0, 0.7, (count, len(TESTS)))
    return pd.DataFrame(table, columns=list(TESTS)).mask(rng.random(table.shape) < 0.1)


def main(folder: Path, epochs: int) -> None:
    """Train on a table with gaps, then score and complete rows that the model has not seen."""
    marks(800, seed=0).to_csv(folder / "pupils.csv", index=False)
    config = TrainConfig(
        dataset="file", path=str(folder / "pupils.csv"), missing="nan", epochs=epochs,
        likelihood="normal-per-feature", latent_dim=1, hidden=(32,), learning_rate=0.01,
    )  # fmt: skip
    runs.train(config, folder / "run", progress=False)
    print(runs.evaluate_run(folder / "run", num_samples=200, num_data=10, progress=False).verdict)

    # New rows in a file of their own, its columns in another order; the last one is a slip of a pen.
    new = marks(6, seed=1)
    new.loc[5, list(TESTS)] = (5.0, 50.0, 5.0)
    new[list(reversed(TESTS))].to_csv(folder / "new.csv", index=False)
    run = load(folder / "run")
    scores = runs.score(run, folder / "new.csv", num_samples=500, method="importance").table()
    print(scores[["evidence", "monte_carlo_error", "trusted", "rank"]].round(2))
    print("the strangest row:", scores["evidence"].idxmin())

    filled = run.vae.impute(run.read(folder / "new.csv").x)
    print(pd.DataFrame(filled.numpy(), columns=list(TESTS)).round(1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    with tempfile.TemporaryDirectory() as made:
        main(Path(made), parser.parse_args().epochs)
