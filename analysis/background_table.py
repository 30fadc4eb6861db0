"""The β table of the background README, beaten by the default model on the same setting.

Grey MNIST, Bernoulli likelihood, batch 128, 30 epochs, all 60,000 training images and the weights
of the last epoch, so that nothing is chosen on the test set. The table's objective is test
distortion + β rate, in nats.

    python analysis/background_table.py --data-root FOLDER_THAT_HOLDS_MNIST

An interrupted run is continued by the same command.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

from pyro_bvae.evaluation import elbo_parts, kl_per_dimension
from pyro_bvae.runs import TrainConfig, load, train

RESULTS = Path(__file__).parent / "results" / "background_table"
# β -> test distortion, test rate and the bar that this model is to pass.
BACKGROUND = {
    0.1: (64.4485, 52.7590, 68.2),
    2.0: (92.7549, 13.1315, 115.5),
    4.0: (109.8983, 8.2419, 140.0),
}


def row_of(beta: float, data_root: str, runs: Path) -> dict[str, object]:
    """Train at one β and measure on the test images."""
    directory = runs / f"mnist-beta{beta:g}"
    config = TrainConfig(dataset="mnist", data_root=data_root, validation=0, beta=beta)
    train(config, directory, resume=(directory / "config.json").exists())
    run = load(directory, checkpoint="last")
    x = run.splits.test.x
    measured = elbo_parts(run.vae.model, run.vae.guide, x, num_samples=16, progress=True)
    objective = measured.objective(beta)
    distortion, rate, bar = BACKGROUND[beta]
    return {
        "beta": beta,
        "distortion": f"{measured.distortion.value:.2f}",
        "rate": f"{measured.rate.value:.2f}",
        "objective": f"{objective.value:.2f}",
        "standard_error": f"{objective.standard_error:.2f}",
        "monte_carlo_error": f"{objective.monte_carlo_error:.3f}",
        "bar": bar,
        "background_objective": f"{distortion + beta * rate:.2f}",
        "active_units": int(kl_per_dimension(run.vae.model, run.vae.guide, x).active.sum()),
        "training_seconds": f"{sum(run.history['seconds']):.0f}",
    }


def figure_of(rows: list[dict[str, object]]) -> Figure:
    """Draw the objective beside the background README's."""
    figure = Figure((8, 4), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        ours, theirs = float(str(row["objective"])), float(str(row["background_objective"]))
        axes.barh(
            place - 0.2,
            theirs,
            height=0.36,
            color="#A8A8A8",
            label="background README" if place == 0 else None,
        )
        axes.barh(
            place + 0.2,
            ours,
            height=0.36,
            color="#0072B2",
            label="this package" if place == 0 else None,
        )
        axes.text(theirs + 1, place - 0.2, f"{theirs:.2f}", va="center")
        axes.text(ours + 1, place + 0.2, f"{ours:.2f} ± {row['standard_error']}", va="center")
    axes.set_yticks(range(len(rows)), [f"β = {row['beta']:g}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 175)
    axes.set_xlabel(
        "test distortion + β rate, nats (lower is better; ± one standard error over 10,000 images)"
    )
    axes.set_title("Grey MNIST, 30 epochs: the objective at three β", loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    return figure


def main(data_root: str, runs: Path) -> None:
    """Write the table and the figure."""
    rows = [row_of(beta, data_root, runs) for beta in BACKGROUND]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure_of(rows).savefig(RESULTS / "figure.png", dpi=150)
    for row in rows:
        print(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/background_table"))
    arguments = parser.parse_args()
    main(arguments.data_root, arguments.runs)
