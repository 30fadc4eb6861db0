"""Which options should counts have that nobody chose? The preset `counts-nb`, on training cells alone.

``choose``: each candidate is trained on four fifths of the training cells of smFISH and measured on
600 of the others: the evidence a cell at K = 1000, the paired difference from the present defaults,
and the number of cells whose importance weights are untrusted.

``test``: the preset, trained on all training cells and measured once on the test cells, with negative
binomial and with zero-inflated counts, beside tuned scvi-tools.

``known``: how far a guide may be off, on a normal posterior that is known: a guide of its own scale
with a shifted mean, or of its mean and another scale, and the share of data that are untrusted.

    python analysis/count_presets.py --data FOLDER_WITH_H5AD_FILES --values FOLDER

Cells, splits and draws are those of `count_likelihoods.py`. Lines that a table has are not computed
again.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from count_likelihoods import SCVI
from torch import Tensor

from pyro_bvae import BetaVAE, elbo, evidence, fit
from pyro_bvae.datasets import Dataset
from pyro_bvae.runs import Shape, TrainConfig, build_vae, load_data
from pyro_bvae.training import sleep_phase

RESULTS = Path(__file__).parent / "results" / "count_presets"
FILES, CHOSEN_ON = ("smfish", "umi10k"), "smfish"
NUM_SAMPLES, NUM_ELBO, NUM_HELD_OUT = 1000, 16, 600
LATENTS, NUM_KNOWN = 10, 500
# Shift of the guide's mean in deviations of the posterior, and factor on the posterior's scale.
GUIDES = (
    (0.0, 1.0), (0.5, 1.0), (0.77, 1.0), (1.0, 1.0), (1.41, 1.0), (2.0, 1.0), (0.0, 0.8),
    (0.0, 1.25),
)  # fmt: skip
FAMILIES = {
    "negative binomial": "negative-binomial",
    "zero-inflated": "zero-inflated-negative-binomial",
}
COUNTS: dict[str, Any] = {"likelihood": "negative-binomial", "latent_dim": 10, "hidden": (128,)}
PRESENT = "present defaults"
FAST: dict[str, Any] = {**COUNTS, "learning_rate": 1e-2, "steps": 4000}
FULL: dict[str, Any] = {
    **FAST, "activation": "relu", "posterior": "full-rank", "encoder_hidden": (256, 256),
}  # fmt: skip
CANDIDATES: dict[str, dict[str, Any]] = {
    PRESENT: {**COUNTS, "epochs": 100},
    "full-rank, relu, 1e-2": {**FULL, "sleep": 1.0},
    "full-rank, relu, 1e-2, longer": {**FULL, "sleep": 4.0},
    "relu, 1e-2": {**FAST, "activation": "relu"},
    "diagonal, relu, 1e-2": {
        **FAST,
        "activation": "relu",
        "encoder_hidden": (256, 256),
        "sleep": 1.0,
    },
    "1e-2": FAST,
}

PARTS = ("known", "choose", "test")

Row = dict[str, str]


def cells(folder: Path, name: str) -> tuple[Dataset, Dataset]:
    """Return training and test cells."""
    config = TrainConfig(dataset="h5ad", path=str(folder / f"{name}.h5ad"), min_counts=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of AnnData, about its own future
        splits = load_data(config)
    return splits.train.dense(), splits.test.dense()


def measured(
    config: TrainConfig, data: Dataset, held_out: Dataset
) -> Iterator[tuple[str, Row, Tensor]]:
    """Train as the command line does, and measure other cells: before the guide sleeps, and after."""
    config = config.resolved().in_epochs(data.num_batches(config.training.batch_size))
    vae = build_vae(config, Shape.of(data))
    begun = time.process_time()
    fit(vae, data, **config.training.settings(), progress=False)
    trained = time.process_time() - begun
    yield ("", *row_of(vae, held_out, trained))
    if config.training.sleep:
        begun = time.process_time()
        sleep_phase(vae, data, **config.training.sleep_settings(), progress=False)
        yield (", asleep", *row_of(vae, held_out, trained + time.process_time() - begun))


def row_of(vae: BetaVAE, held_out: Dataset, seconds: float) -> tuple[Row, Tensor]:
    """Measure cells, and return their evidences too."""
    args = (held_out.x, held_out.context)
    result = evidence(
        vae.model, vae.guide, *args, num_samples=NUM_SAMPLES, method="importance", progress=False
    )
    bound = elbo(vae.model, vae.guide, *args, num_samples=NUM_ELBO, progress=False)
    row = {
        "cells": f"{len(held_out)}",
        "evidence": f"{result.value:.3f}",
        "standard_error": f"{result.standard_error:.3f}",
        "monte_carlo_error": f"{result.monte_carlo_error:.3f}",
        "elbo": f"{bound.value:.3f}",
        "untrusted": f"{result.untrusted}",
        "share": f"{result.untrusted / len(held_out):.3f}",
        "cpu_seconds": f"{seconds:.0f}",
    }
    return row, result.per_datum


class Table:
    """A table on disk whose lines are computed once.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as stream:
                self.rows = list(csv.DictReader(stream))

    def has(self, **keys: str) -> bool:
        """Return whether a line has some values."""
        return any(all(row[key] == value for key, value in keys.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        """Add a line."""
        print(row, flush=True)
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def choose(folder: Path, values: Path) -> None:
    """Measure each candidate on some of the training cells."""
    values.mkdir(parents=True, exist_ok=True)
    table = Table(RESULTS / "choice.csv")
    data, _ = cells(folder, CHOSEN_ON)
    fifth = len(data) // 5
    for candidate, options in CANDIDATES.items():
        if table.has(candidate=candidate):
            continue
        config = TrainConfig(**options)
        for state, row, per_cell in measured(config, data[fifth:], data[:NUM_HELD_OUT]):
            if candidate == PRESENT:
                torch.save(per_cell, values / "present.pt")
            gain = per_cell - torch.load(values / "present.pt")
            difference = {
                "gain": f"{gain.mean():.3f}",
                "gain_error": f"{gain.std() / math.sqrt(NUM_HELD_OUT):.3f}",
            }
            table.add({"candidate": candidate + state, **row, **difference})


def test(folder: Path, files: Sequence[str], families: Sequence[str]) -> None:
    """Measure the preset on the test cells."""
    for name in files:
        data, held_out = cells(folder, name)
        for family in families:
            table = Table(RESULTS / f"test_{name}_{FAMILIES[family]}.csv")
            if not table.rows:
                config = TrainConfig.preset("counts-nb", likelihood=FAMILIES[family])
                for state, row, _ in measured(config, data, held_out):
                    scvi = f"{SCVI[name, family]:.2f}"
                    table.add({"preset": f"counts-nb{state}", **row, "scvi_tools": scvi})


def known() -> None:
    """Measure guides of a posterior N(x / 2, 1 / 2) in each latent, of z ~ N(0, 1), x ~ N(z, 1)."""
    table = Table(RESULTS / "known.csv")
    x = math.sqrt(2) * torch.randn(NUM_KNOWN, LATENTS, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    for shift, factor in () if table.rows else GUIDES:

        def guide(x: Tensor, shift: float = shift, factor: float = factor) -> None:
            offset = shift * math.sqrt(0.5) * torch.eye(LATENTS)[0]
            matrix = factor * math.sqrt(0.5) * torch.eye(LATENTS)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(x / 2 + offset, scale_tril=matrix))

        result = evidence(model, guide, x, num_samples=NUM_SAMPLES)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(-1)
        gap = shift**2 / 2 + LATENTS * (factor**2 / 2 - 0.5 - math.log(factor))
        table.add(
            {
                "shift": f"{shift:g}", "factor": f"{factor:g}", "gap": f"{gap:.3f}",
                "share": f"{result.untrusted / NUM_KNOWN:.3f}",
                "error": f"{float((result.per_datum - exact).mean()):.4f}",
            }
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the .h5ad files")
    parser.add_argument(
        "--values", type=Path, required=True, help="folder for the values of each cell"
    )
    parser.add_argument("--files", choices=FILES, nargs="+", default=FILES)
    parser.add_argument("--families", choices=list(FAMILIES), nargs="+", default=list(FAMILIES))
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    given = parser.parse_args()
    if "known" in given.only:
        known()
    if "choose" in given.only:
        choose(given.data, given.values)
    if "test" in given.only:
        test(given.data, given.files, given.families)
