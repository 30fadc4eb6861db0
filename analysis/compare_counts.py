"""Does `compare` say of two real count sets what `count_likelihoods.py` measured of them?

The same cells, parts, training and draws as there: Poisson, negative binomial and zero-inflated
negative binomial on smFISH and on 10k UMI cells. `importance` repeats its estimator on all test
cells; `auto` measures a subset, and again those cells whose importance weights cannot be trusted.
Each line has the paired difference from the negative binomial beside that of the committed table,
and their distance in standard errors: on the same cells only the training differs, by rounding.

    python analysis/compare_counts.py --data FOLDER_WITH_H5AD_FILES --models FOLDER_FOR_WEIGHTS

Lines that the table has are not computed again, and models that the folder has are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import torch
from count_likelihoods import FAMILIES, NUM_SAMPLES, make_vae, read, train

from pyro_bvae import BetaVAE, compare, plots
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.comparison import Comparison

RESULTS = Path(__file__).parent / "results" / "compare_counts"
COMMITTED = RESULTS.parent / "count_likelihoods" / "table.csv"
REFERENCE = "negative binomial"
# Test cells of each data set that a method measures; None for all.
METHODS: dict[str, dict[str, int | None]] = {
    "importance": {"smfish": None, "umi10k": None},
    "auto": {"smfish": 100, "umi10k": 30},
}

Row = dict[str, str]


def trained(name: str, family: str, data: Dataset, models: Path) -> BetaVAE:
    """Return a model of `count_likelihoods.py`, read back where it was trained before."""
    vae, path = make_vae(family, data.num_features), models / f"{name}-{family}.pt"
    if path.exists():
        vae.load_state_dict(torch.load(path))
    else:
        train(vae, data)
        models.mkdir(parents=True, exist_ok=True)
        torch.save(vae.state_dict(), path)
    return vae


def committed() -> dict[tuple[str, str], Row]:
    """Return the lines of the earlier table by data and likelihood."""
    with COMMITTED.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["truth"]]
    return {(row["data"], row["likelihood"]): row for row in rows}


def rows_of(name: str, method: str, result: Comparison) -> list[Row]:
    """Return a line for each likelihood."""
    rows, earlier = [], committed()
    for family in FAMILIES:
        there, own = earlier[name, family], result.models[family][0]
        row = {
            "data": name,
            "method": method,
            "cells": f"{result.num_data}",
            "likelihood": family,
            "evidence": f"{own.value:.3f}",
            "untrusted": f"{own.untrusted}",
            "weight": f"{result.weights[family]:.3f}",
            "difference": "0.000",
            "difference_error": "0.000",
            "low": "0.000",
            "high": "0.000",
            "committed": there["gain"],
            "committed_error": there["gain_error"],
            "errors_apart": "0.00",
            "verdict": result.verdict,
        }
        if family != REFERENCE:
            pair = result.difference(family, REFERENCE)
            apart = pair.value - float(there["gain"])
            error = math.hypot(pair.standard_error, float(there["gain_error"]))
            row |= {
                "difference": f"{pair.value:.3f}",
                "difference_error": f"{pair.standard_error:.3f}",
                "low": f"{pair.interval[0]:.3f}",
                "high": f"{pair.interval[1]:.3f}",
                "errors_apart": f"{apart / error:.2f}",
            }
        rows.append(row)
        print(row, flush=True)
    return rows


def main(folder: Path, models: Path) -> None:
    """Write the table, and a figure for each data set."""
    path, rows = RESULTS / "table.csv", []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    done = {(row["data"], row["method"]) for row in rows}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for method, sizes in METHODS.items():
        for name, num_data in sizes.items():
            if (name, method) in done:
                continue
            data, test = read(folder, name)
            vaes: dict[str, Any] = {
                family: trained(name, family, data, models) for family in FAMILIES
            }
            result = compare(
                vaes, test, num_data=num_data, num_samples=NUM_SAMPLES, method=method,
            )  # fmt: skip
            print(result, flush=True)
            rows += rows_of(name, method, result)
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            if method == "auto":
                plots.comparison(result).savefig(
                    RESULTS / f"{name}.png", dpi=150, bbox_inches="tight"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the .h5ad files")
    parser.add_argument("--models", type=Path, required=True, help="folder for trained weights")
    options = parser.parse_args()
    main(options.data, options.models)
