"""Do the estimators of the evidence keep their word? Two hundred seeds of linear-Gaussian models of 2, 20, 100 latents.

For each seed: the exact evidence, every estimator's value, its Monte Carlo error and whether it
calls itself trusted; the two-sided bounds of bidirectional Monte Carlo on simulated data; and, for
the first seeds, the inference gaps. A run goes on where it stopped: what is measured is kept.
Annealing runs twenty seeds side by side on one model.

    python analysis/oracle_evidence.py                      # all; about two hours on one core
    python analysis/oracle_evidence.py --seeds 20           # the same for the first 20
    python analysis/oracle_evidence.py --only importance    # or annealing, gaps
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_bvae import evidence, inference_gaps
from pyro_bvae.evaluation import Estimate, annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.marginal import (
    AnnealingSettings,
    DefensiveProposal,
    HeavyTailedProposal,
    RefitProposal,
    averages,
)
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.vae import BetaVAE

RESULTS = Path(__file__).parent / "results" / "oracle_evidence"
SIZES = (2, 20, 100)
FIELDS = (
    "latents",
    "seed",
    "estimator",
    "exact",
    "value",
    "monte_carlo_error",
    "trusted",
    "covered",
)
# Gaps are measured for so many seeds of each size, at each of these β.
GAP_SEEDS, BETAS = 10, (1.0, 0.5, 2.0, 4.0)
# Data of each seed, and chains of a datum: errors small enough for the limits that they are held
# to.
NUM_DATA = {2: 8, 20: 8, 100: 4}
NUM_CHAINS = {2: 32, 20: 64, 100: 64}
# Annealing runs so many seeds side by side, in float32: they share a model, and have data and
# chains of their own.
TOGETHER = 20

Row = dict[str, Any]
Rows = Iterator[tuple[str, float, Estimate]]


def model_of(latents: int, seed: int) -> tuple[LinearGaussian, BetaVAE, torch.Tensor]:
    """Return a random model, a guide that is a little off, and data.

    Four features a latent, random directions, a mean signal-to-noise ratio of 3: the posterior is
    correlated, so the best diagonal guide misses about a thirtieth of a nat a latent; the encoder's
    means and scales are off by 5 and 10%.
    """
    generator = torch.Generator().manual_seed(1000 * latents + seed)
    features = 4 * latents
    weight = torch.randn(features, latents, generator=generator, dtype=torch.double) * math.sqrt(
        3 / features
    )
    linear = LinearGaussian(weight, 1.0)
    return (
        linear,
        linear.amortized_vae(mean_factor=0.95, scale_factor=1.1),
        linear.sample(NUM_DATA[latents], seed=seed),
    )


def importance(latents: int, seed: int) -> Rows:
    """Yield the estimators that weigh independent draws, 5,000 a datum."""
    linear, vae, x = model_of(latents, seed)
    exact = float(linear.evidence(x).mean())
    options: dict[str, dict[str, Any]] = {
        "guide": {},
        "refit": {"proposal": RefitProposal()},
        "heavy-tailed": {"proposal": HeavyTailedProposal()},
        "defensive": {"proposal": DefensiveProposal()},
        "pareto-smoothed": {"average": averages.pareto_smoothed},
        "jackknife-1": {"average": averages.jackknife(1)},
        "jackknife-2": {"average": averages.jackknife(2)},
    }
    for name, option in options.items():
        yield name, exact, evidence(vae.model, vae.guide, x, seed=seed, **option)


def annealing(latents: int, seed: int) -> Rows:
    """Yield annealing from prior and guide, 1,000 temperatures, and the sandwich from the prior, of 20 seeds."""
    linear, vae, _ = model_of(latents, seed)
    size = NUM_DATA[latents]
    x = torch.cat([linear.sample(size, seed=each) for each in range(seed, seed + TOGETHER)])
    vae = vae.float()
    settings = AnnealingSettings(num_temperatures=1000, num_chains=NUM_CHAINS[latents])
    sandwich = bidirectional_evidence(vae.model, vae.guide, x.float(), settings=settings, seed=seed)
    short = replace(settings, num_temperatures=100)
    from_guide = annealed_evidence(
        vae.model, vae.guide, x.float(), start="guide", settings=short, seed=seed
    )
    simulated = linear.evidence(sandwich.simulated["x"])
    for place in range(TOGETHER):
        own = slice(place * size, (place + 1) * size)
        exact = float(simulated[own].mean())
        gap = sandwich.gap.take(own)
        gap = replace(gap, monte_carlo_error=gap.standard_error)
        yield "annealed from the prior", exact, sandwich.lower.take(own)
        yield (
            "reverse annealing",
            exact,
            replace(sandwich.upper.take(own), monte_carlo_error=gap.monte_carlo_error),
        )
        yield "sandwich", 0.0, gap
        yield "annealed from the guide", float(linear.evidence(x[own]).mean()), from_guide.take(own)


def gaps(latents: int, seed: int) -> Rows:
    """Yield the gaps at each β.

    At 100 latents from an annealed evidence, as importance sampling fails there.
    """
    if seed >= GAP_SEEDS:
        return
    linear, _, x = model_of(latents, seed)
    for beta in BETAS:
        vae = linear.amortized_vae(beta, mean_factor=0.95, scale_factor=1.1)
        with torch.no_grad():
            guide = vae.encoder(x)
        annealed = None
        if latents == 100:
            settings = AnnealingSettings(num_temperatures=100)
            annealed = annealed_evidence(
                vae.model, vae.guide, x, start="guide", settings=settings, seed=seed
            )
        measured = inference_gaps(
            vae.model, vae.guide, x, training_beta=beta, evidence=annealed, seed=seed
        )
        exact = linear.gaps(x, guide.mean, guide.stddev, beta)
        for name in ("variational", "approximation", "beta", "amortization"):
            if name == "beta" and beta == 1:
                continue  # zero by definition
            yield (
                f"{name} gap at β = {beta:g}",
                float(getattr(exact, name).mean()),
                getattr(measured, name),
            )


PARTS: dict[str, Callable[[int, int], Rows]] = {
    "importance": importance,
    "gaps": gaps,
    "annealing": annealing,
}


def row_of(latents: int, seed: int, name: str, exact: float, estimate: Estimate) -> Row:
    """Return one line of the table."""
    low, high = estimate.interval
    return {
        "latents": latents,
        "seed": seed,
        "estimator": name,
        "exact": f"{exact:.6f}",
        "value": f"{estimate.value:.6f}",
        "monte_carlo_error": f"{estimate.monte_carlo_error:.6f}",
        "trusted": int(estimate.trusted),
        "covered": int(low <= exact <= high),
    }


def run(parts: list[str], sizes: list[int], seeds: int) -> None:
    """Measure what is not in the tables yet.

    One file a part and size, so that several can run at once.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for latents in sizes:
            path = RESULTS / f"{part}-{latents}.csv"
            done = {int(row["seed"]) for row in read(path)}
            together = TOGETHER if part == "annealing" else 1
            for seed in range(0, min(seeds, GAP_SEEDS) if part == "gaps" else seeds, together):
                if seed in done:
                    continue
                results = list(PARTS[part](latents, seed))
                each = len(results) // together
                rows = [
                    row_of(latents, seed + place // each, *measured)
                    for place, measured in enumerate(results)
                ]
                new = not path.exists()
                with path.open("a", newline="", encoding="utf-8") as stream:
                    writer = csv.DictWriter(stream, fieldnames=FIELDS, lineterminator="\n")
                    if new:
                        writer.writeheader()
                    writer.writerows(rows)
            print(
                f"{part}, {latents} latents: {len({row['seed'] for row in read(path)})} seeds",
                flush=True,
            )


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, none where there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def summary() -> list[Row]:
    """Return one line for each estimator and number of latents."""
    groups: dict[tuple[int, str], list[dict[str, str]]] = defaultdict(list)
    for part in PARTS:
        for latents in SIZES:
            for row in read(RESULTS / f"{part}-{latents}.csv"):
                groups[latents, row["estimator"]].append(row)
    lines = []
    for (latents, name), rows in groups.items():
        trusted = [row for row in rows if row["trusted"] == "1"]
        errors = torch.tensor(
            [float(row["value"]) - float(row["exact"]) for row in rows], dtype=torch.double
        )
        scales = torch.tensor([float(row["monte_carlo_error"]) for row in rows], dtype=torch.double)
        covered = sum(row["covered"] == "1" for row in trusted)
        lines.append(
            {
                "latents": latents,
                "estimator": name,
                "seeds": len(rows),
                "trusted": f"{len(trusted) / len(rows):.3f}",
                "covered_of_trusted": f"{covered / len(trusted):.3f}" if trusted else "",
                "mean_error": f"{errors.mean():.4f}",
                "root_mean_square_error": f"{errors.square().mean().sqrt():.4f}",
                "largest_error": f"{errors.abs().max():.4f}",
                "within_3_errors": f"{(errors.abs() <= 3 * scales).double().mean():.3f}",
            }
        )
    return lines


def figure_of(lines: list[Row]) -> Figure:
    """Draw for each estimator how often it is trusted and how often it is then right."""
    names = [
        line["estimator"]
        for line in lines
        if "gap" not in line["estimator"] and line["estimator"] != "sandwich"
    ]
    names = list(dict.fromkeys(names))
    figure = Figure((10, 5.2), layout="constrained")
    panels = figure.subplots(1, len(SIZES), sharey=True)
    for axes, latents in zip(panels, SIZES, strict=True):
        results = {line["estimator"]: line for line in lines if line["latents"] == latents}
        for place, name in enumerate(names):
            if name not in results:
                continue
            trusted = float(results[name]["trusted"])
            covered = trusted * float(results[name]["covered_of_trusted"] or 0)
            axes.barh(place, 1, color="#E6E6E6")
            axes.barh(place, trusted, color="#D55E00")
            axes.barh(place, covered, color="#0072B2")
            share = f"{100 * covered / trusted:.0f}%" if trusted else "never trusted"
            axes.text(
                0.02,
                place,
                share,
                va="center",
                color="white" if covered > 0.3 else "black",
                fontsize=9,
            )
        axes.set_xlim(0, 1)
        axes.set_title(f"{latents} latents", loc="left", fontsize=10)
        axes.set_xlabel("share of the seeds")
        axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    bars = [panels[0].barh(0, 0, color=colour) for colour in ("#0072B2", "#D55E00", "#E6E6E6")]
    labels = [
        "trusted, exact value in its 95% interval",
        "trusted, not in it",
        "calls itself untrusted",
    ]
    figure.legend(bars, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "How often is an estimate right when it says it can be trusted? (number: share of the "
        "trusted)",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    return figure


def main(parts: list[str], sizes: list[int], seeds: int) -> None:
    """Run, and write the summary and the figure."""
    torch.set_num_threads(1)
    run(parts, sizes, seeds)
    lines = summary()
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    figure_of(lines).savefig(RESULTS / "figure.png", dpi=150)
    for line in lines:
        print("  ".join(f"{value!s:>16}" for value in line.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--latents", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    main(options.only, options.latents, options.seeds)
