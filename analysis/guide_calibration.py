"""How often the calibration of a guide rejects a right guide and finds a wrong one, 200 seeds each.

The model is linear and Gaussian with orthogonal directions, so that the best diagonal guide is the
exact posterior; its scales and means are then spoilt by a factor, and in the last rows the data.

    python analysis/guide_calibration.py
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from pyro_bvae.evaluation import calibrate_guide
from pyro_bvae.oracle import LinearGaussian

RESULTS = Path(__file__).parent / "results" / "guide_calibration"
NOISE, LEVEL, NUM_DATA = 0.7, 0.05, 1000
# Name, factor of the guide's scales, factor of its means, factor of the data.
CASES = (
    ("exact", 1.0, 1.0, 1.0),
    ("5% too narrow", 0.95, 1.0, 1.0),
    ("10% too narrow", 0.9, 1.0, 1.0),
    ("20% too narrow", 0.8, 1.0, 1.0),
    ("20% too wide", 1.2, 1.0, 1.0),
    ("means 10% too small", 1.0, 0.9, 1.0),
    ("exact, data 20% too wide", 1.0, 1.0, 1.2),
)


def linear() -> LinearGaussian:
    """Return the model: orthogonal directions of two lengths in four dimensions."""
    drawn = torch.randn(4, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    return LinearGaussian(torch.linalg.qr(drawn)[0] * torch.tensor([2.0, 1.0]), NOISE)


def row_of(case: tuple[str, float, float, float], num_seeds: int) -> dict[str, object]:
    """Return how often each test rejects at 5%."""
    name, scale, mean, data = case
    model, guide, around, observed = linear(), 0, 0, 0
    vae = model.amortized_vae(scale_factor=scale, mean_factor=mean)
    for seed in range(num_seeds):
        x = data * model.sample(NUM_DATA, seed)
        found = calibrate_guide(vae.model, vae.guide, x, seed=seed)
        guide += found.p_value < LEVEL
        observed += found.data_p_value < LEVEL
    few = num_seeds // 5
    for seed in range(few):
        x = data * model.sample(NUM_DATA, seed)
        found = calibrate_guide(vae.model, vae.guide, x, seed=seed, around_data=True)
        assert found.around_data is not None
        around += found.around_data.p_value < LEVEL
    return {
        "guide": name,
        "seeds": num_seeds,
        "guide rejected": guide,
        "model rejected by the data": observed,
        "seeds around data": few,
        "rejected around data": around,
    }


def main(num_seeds: int) -> None:
    """Write the table."""
    rows = []
    for case in CASES:
        rows.append(row_of(case, num_seeds))
        print("  ".join(f"{value!s:>14}" for value in rows[-1].values()), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-seeds", type=int, default=200)
    main(parser.parse_args().num_seeds)
