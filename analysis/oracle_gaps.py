"""Evidence and inference gaps of a linear-Gaussian VAE, estimated and exact.

The decoder makes the latents' posterior correlated, so a diagonal guide has an approximation gap;
the encoder is the best one for its β, then spoilt a little, so that no gap is zero.

    python analysis/oracle_gaps.py
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyro_bvae import inference_gaps
from pyro_bvae.oracle import LinearGaussian

RESULTS = Path(__file__).parent / "results" / "oracle_gaps"
WEIGHT = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]])
NAMES = ("evidence", "variational", "approximation", "beta", "amortization")


def rows_of(beta: float, num_data: int) -> list[dict[str, object]]:
    """Return exact and estimated values at one β."""
    linear = LinearGaussian(WEIGHT, 0.5)
    x = linear.sample(num_data)
    vae = linear.amortized_vae(beta, mean_factor=0.9, scale_factor=1.2)
    with torch.no_grad():
        guide = vae.encoder(x)
    exact = {
        "evidence": linear.evidence(x),
        **linear.gaps(x, guide.mean, guide.stddev, beta)._asdict(),
    }
    measured = inference_gaps(vae.model, vae.guide, x, training_beta=beta, progress=True)
    rows: list[dict[str, object]] = []
    for name in NAMES:
        truth, estimate = float(exact[name].mean()), getattr(measured, name)
        rows.append(
            {
                "beta": beta,
                "quantity": name,
                "exact": f"{truth:.5f}",
                "estimated": f"{estimate.value:.5f}",
                "difference": f"{estimate.value - truth:.5f}",
                "monte_carlo_error": f"{estimate.monte_carlo_error:.5f}",
                "tolerance": f"{0.02 if name == 'evidence' else max(0.01, 3 * estimate.monte_carlo_error):.5f}",
                "converged": measured.converged,
            }
        )
    return rows


def figure_of(rows: list[dict[str, object]]) -> Figure:
    """Draw the difference of each estimate from its closed form, with three Monte Carlo errors."""
    figure = Figure((9, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        error = 3 * float(str(row["monte_carlo_error"]))
        colour = "#0072B2" if row["beta"] == 1.0 else "#E69F00"
        axes.errorbar(
            place, float(str(row["difference"])), yerr=error, fmt="o", color=colour, capsize=4
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.axhspan(-0.01, 0.01, color="#DDDDDD", zorder=0, label="within 0.01 nats")
    axes.set_xticks(
        range(len(rows)), [f"{row['quantity']}\nβ = {row['beta']:g}" for row in rows], fontsize=8
    )
    axes.set_ylabel("estimate - closed form, nats\n(lines: ± 3 Monte Carlo errors)")
    axes.set_title(
        "Estimates against closed forms: linear-Gaussian VAE", loc="left", fontweight="bold"
    )
    axes.legend(frameon=False)
    return figure


def main(num_data: int) -> None:
    """Write the table and the figure."""
    rows = [row for beta in (1.0, 4.0) for row in rows_of(beta, num_data)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure_of(rows).savefig(RESULTS / "figure.png", dpi=150)
    for row in rows:
        print("  ".join(f"{value!s:>14}" for value in row.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-data", type=int, default=500)
    main(parser.parse_args().num_data)
