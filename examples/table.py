"""A table: units and missing entries of all kinds, new rows that are scored, ranked and filled in.

    python examples/table.py

The table is made here: measurements of people that follow one size, some of them not taken. With a
.csv of your own, ``path`` is your file; empty fields are missing, and a column ``label`` is a class.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_bvae import load, runs
from pyro_bvae.runs import TrainConfig


def measure(count: int, seed: int) -> pd.DataFrame:
    """Return measurements in metres, kilograms and millimetres, a tenth of them missing."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=count)
    table = {
        "height": 1.7 + 0.1 * size + rng.normal(0, 0.04, count),
        "weight": 70 + 12 * size + rng.normal(0, 5, count),
        "foot": 260 + 15 * size + rng.normal(0, 6, count),
    }
    return pd.DataFrame(table).mask(rng.random((count, 3)) < 0.1)


def main(folder: Path, epochs: int) -> None:
    """Train on a table with gaps, then score and complete rows that the model has not seen."""
    measure(800, seed=0).to_csv(folder / "people.csv", index=False)
    config = TrainConfig(
        dataset="file", path=str(folder / "people.csv"), missing="nan", standardize=True,
        likelihood="normal-per-feature", latent_dim=1, hidden=(32,), epochs=epochs,
    )  # fmt: skip
    runs.train(config, folder / "run", progress=False)
    print(runs.evaluate_run(folder / "run", num_samples=200, num_data=10, progress=False).verdict)

    # New rows, the columns in another order; in the last one a foot was measured in centimetres.
    new = measure(6, seed=1)
    new.loc[5, "foot"] /= 10
    new[["foot", "height", "weight"]].to_csv(folder / "new.csv", index=False)
    run = load(folder / "run")
    scores = runs.score(run, folder / "new.csv", num_samples=500, method="importance").table()
    print(scores[["evidence", "monte_carlo_error", "trusted", "rank"]].round(2))
    print("the strangest row:", scores["evidence"].idxmin())
    filled = run.vae.impute(run.read(folder / "new.csv").x)
    print(pd.DataFrame(filled.double().numpy(), columns=run.feature_names).round(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    with tempfile.TemporaryDirectory() as made:
        main(Path(made), parser.parse_args().epochs)
