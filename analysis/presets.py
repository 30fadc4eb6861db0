"""Which options should images and tables have that nobody chose? On held-out training data, at equal time.

Each candidate is trained for the processor time that the present default takes, on a part of the
training data, and the bound at β = 1 of a held-out part decides. `count_presets.py` does so for cells.

    python analysis/presets.py --data-root FOLDER_WITH_MNIST

Lines that the table has are not computed again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from count_presets import PRESENT, Row, Table
from torch import Tensor

from pyro_bvae import elbo, fit
from pyro_bvae.datasets import Dataset
from pyro_bvae.runs import Shape, TrainConfig, build_vae, load_data
from pyro_bvae.training import start_at_mean

RESULTS = Path(__file__).parent / "results" / "presets"
NUM_TRAIN, NUM_PICTURES, NUM_HELD_OUT, NUM_SAMPLES = 6000, 2000, 500, 16
Options = dict[str, Any]


class Question(NamedTuple):
    """Data, the epochs of the present default, and the candidates.

    Attributes:
        data: Returns training data and held-out ones.
        epochs: Epochs of the present default, which say the time that all have.
        candidates: Options by name; the present default is the first.
    """

    data: Callable[[Path], tuple[Dataset, Dataset]]
    epochs: int
    candidates: dict[str, Options]


def images(dataset: str, count: int) -> Callable[[Path], tuple[Dataset, Dataset]]:
    """Return a reader of some of the images of a data set."""

    def read(root: Path) -> tuple[Dataset, Dataset]:
        options: Options = {"data_root": str(root)} if "mnist" in dataset else {}
        splits = load_data(TrainConfig(dataset=dataset, validation=float(NUM_HELD_OUT), **options))
        assert splits.validation is not None
        held_out = splits.validation.dense()[: count // 10]
        return splits.train.dense()[:count], held_out

    return read


def table(name: str) -> Callable[[Path], tuple[Dataset, Dataset]]:
    """Return a reader of a table of scikit-learn, of which a fifth is held out."""

    def read(root: Path) -> tuple[Dataset, Dataset]:
        from sklearn import datasets as tables

        x = torch.from_numpy(getattr(tables, f"load_{name}")().data).float()
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
        fifth = len(x) // 5
        return Dataset(x[order[fifth:]]), Dataset(x[order[:fifth]])

    return read


REAL: Options = {"likelihood": "normal-per-feature"}
TABLE: Options = {**REAL, "standardize": True, "hidden": (64, 64), "latent_dim": 5}
MEAN: Options = {"start_at_mean": True}
MNIST = {
    PRESENT: {},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "relu": {"activation": "relu"},
    "start at mean": MEAN,
    "start at mean, batch 64": {**MEAN, "batch_size": 64},
    "start at mean, batch 64, no warm-up": {**MEAN, "batch_size": 64, "schedule": "constant"},
}
TABLES = {
    PRESENT: REAL,
    "standardized": {**REAL, "standardize": True},
    "standardized, small": TABLE,
    "standardized, small, batch 64": {**TABLE, "batch_size": 64},
    "standardized, small, batch 64, 1e-2": {**TABLE, "batch_size": 64, "learning_rate": 1e-2},
}
CONVOLUTIONAL: Options = {"network": "convolutional", "start_at_mean": True}
PICTURES = {
    PRESENT: {},
    "start at mean": MEAN,
    "convolutional, start at mean": CONVOLUTIONAL,
    "convolutional, start at mean, batch 32": {**CONVOLUTIONAL, "batch_size": 32},
}
QUESTIONS = {
    "breast_cancer": Question(table("breast_cancer"), 100, TABLES),
    "wine": Question(table("wine"), 100, TABLES),
    "mnist": Question(images("mnist", NUM_TRAIN), 10, MNIST),
    "sprites-32": Question(images("sprites-32", NUM_PICTURES), 60, PICTURES),
}


def trained(options: Options, data: Dataset, epochs: int) -> tuple[Any, float]:
    """Return a trained model, and the processor seconds that it took."""
    config = TrainConfig(**options, epochs=epochs).resolved()
    vae = build_vae(config, Shape.of(data))
    begun = time.process_time()
    if config.training.start_at_mean:
        start_at_mean(vae, data.x)
    fit(vae, data, **config.training.settings(), progress=False)
    return vae, time.process_time() - begun


def measured(
    options: Options, data: Dataset, held_out: Dataset, seconds: float | None, epochs: int
) -> tuple[Row, float, Tensor]:
    """Train for some epochs, or for as many as take some seconds, and measure other data."""
    if seconds is not None:
        _, one = trained(options, data, 1)
        _, three = trained(options, data, 3)
        epoch = (three - one) / 2
        epochs = max(1, int(1 + (seconds - one) / epoch))
    vae, took = trained(options, data, epochs)
    bound = elbo(vae.model, vae.guide, held_out.x, num_samples=NUM_SAMPLES, progress=False)
    row = {
        "epochs": f"{epochs}",
        "cpu_seconds": f"{took:.1f}",
        "elbo": f"{bound.value:.3f}",
        "standard_error": f"{bound.standard_error:.3f}",
    }
    return row, took, bound.per_datum


def main(root: Path, names: list[str]) -> None:
    """Write the table."""
    lines = Table(RESULTS / "table.csv")
    for name in names:
        question = QUESTIONS[name]
        if lines.has(data=name):
            continue
        data, held_out = question.data(root)
        seconds, base, rows = None, None, list[Row]()
        for candidate, options in question.candidates.items():
            row, took, values = measured(options, data, held_out, seconds, question.epochs)
            if seconds is None:
                seconds, base = took, values
            gain = values - base
            error = float(gain.std()) / len(gain) ** 0.5
            row |= {"gain": f"{float(gain.mean()):.3f}", "gain_error": f"{error:.3f}"}
            rows.append({"data": name, "candidate": candidate, **row})
        for row in rows:
            lines.add(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder with MNIST/raw")
    parser.add_argument("--only", choices=list(QUESTIONS), nargs="+", default=list(QUESTIONS))
    given = parser.parse_args()
    main(given.data_root, given.only)
