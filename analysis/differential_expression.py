"""Are the genes that differential expression calls changed, and are its intervals right?

``cells``: two groups of 300 cells, 100 genes, of which a fifth follow the group, 300 counts a cell.
``donors``: the same with 6 donors of 50 cells in each group, whose own shifts are as large as the
spread of their cells. A negative binomial VAE is trained on all cells without their groups; the
change of each gene is held to that of the populations. Of the calls (more than 0.25 in log2, at a
false discovery rate of 5%), the share that is wrong and the share of true changes that is found; of
the 95% intervals, the share that holds the truth.

The estimators: ``combined`` is :func:`pyro_bvae.evaluation.differential_expression`; ``posterior``
are importance-weighted posterior means alone, ``guide`` those of the guide without weights,
``counts`` the counts alone, by the same test; ``cells as replicates`` is ``combined`` blind to
donors.

``permuted``: labels permuted 200 times, over the cells of one model and over the donors of another:
how often any gene is called, with and without a threshold.

The samples are those of seed 200 and after: the form of the intervals was settled on samples 0 to 4.

    python analysis/differential_expression.py

Lines that the table has are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.context import Context
from pyro_bvae.datasets import CountTruth, Dataset
from pyro_bvae.evaluation.expression import DifferentialExpression
from pyro_bvae.evaluation.expression.differential import compared
from pyro_bvae.evaluation.expression.posterior import expression_blocks
from pyro_bvae.evaluation.expression.sums import ExpressionSums, units_of
from pyro_bvae.likelihoods import NegativeBinomialLikelihood, SoftmaxRate
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "differential_expression"
GENES, LATENTS, CHANGED, CELLS, DONORS, LIBRARY = 100, 4, 20, 300, 6, 300.0
CENTRE, SPREAD, DONOR_SPREAD = 0.7, 0.3, 1.0
EPOCHS, NUM_SAMPLES, FIRST, REPEATS, PERMUTATIONS = 60, 100, 200, 20, 200
THRESHOLD, LEVEL = 0.25, 0.05
COLUMNS = ("study", "method", "repeat", "called", "wrong", "changed", "found", "covered", "any")

Row = dict[str, str]


def make_truth(seed: int) -> CountTruth:
    """Return a model of counts in which a fifth of the genes follow the first latent."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.5 * torch.randn(GENES, LATENTS, generator=generator)
    weight[:, 0] = 0.0
    weight[:CHANGED, 0] = torch.randn(CHANGED, generator=generator)
    return CountTruth(
        weight, torch.randn(GENES, generator=generator), torch.full((GENES,), 2.0),
        torch.zeros(GENES), torch.zeros(0, LATENTS),
    )  # fmt: skip


def draw_latents(groups: Tensor, donors: Tensor, shifts: bool, seed: int) -> Tensor:
    """Return latents of cells, of a donor's own place where there are shifts."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(groups), LATENTS, generator=generator)
    if shifts:
        own = DONOR_SPREAD * torch.randn(int(donors.max()) + 1, LATENTS, generator=generator)
        z = (z + own[donors]) / math.sqrt(1 + DONOR_SPREAD**2)
    z[:, 0] = CENTRE * (2 * groups - 1) + SPREAD * z[:, 0]
    return z


def true_change(truth: CountTruth, shifts: bool) -> np.ndarray:
    """Return the change of each gene's mean share between the populations, of 20,000 donors."""
    cells = torch.arange(20_000)
    means = [
        truth.shares(draw_latents(torch.full_like(cells, group), cells, shifts, 7).double()).mean(0)
        for group in (0, 1)
    ]
    return np.asarray((means[1] / means[0]).log2())


class Sample:
    """Cells of two groups, and their expression by each estimator, ``(N, D)``.

    Args:
        shifts: Whether donors have shifts of their own.
        seed: Of truth, cells and training.
    """

    def __init__(self, shifts: bool, seed: int) -> None:
        truth = make_truth(seed)
        self.groups = torch.arange(2).repeat_interleave(CELLS)
        self.donors = torch.arange(2 * DONORS).repeat_interleave(CELLS // DONORS)
        z = draw_latents(self.groups, self.donors, shifts, 1000 + seed).numpy().astype(float)
        generator = np.random.default_rng(seed)
        size = LIBRARY * np.exp(0.4 * generator.normal(size=(len(z), 1)))
        x = torch.from_numpy(truth.draw(z, size, generator)).float()
        data = Dataset(x, context=Context(torch.from_numpy(size).float()))
        torch.manual_seed(seed)
        likelihood = NegativeBinomialLikelihood(GENES, rate=SoftmaxRate())
        vae = BetaVAE(
            NormalPrior(LATENTS),
            Decoder(MLP(LATENTS, GENES, (64,)), likelihood),
            NormalPosterior(MLP(GENES, 2 * LATENTS, (64,)), inputs=torch.log1p),
        )
        fit(vae, data, epochs=EPOCHS, batch_size=100, learning_rate=1e-2, progress=False, seed=seed)
        blocks = list(expression_blocks(vae, data, None, NUM_SAMPLES, seed, False))
        posterior = torch.cat([block.means for block in blocks])
        observed = torch.cat([block.observed for block in blocks])
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            draws = vae.posterior(x, data.context).sample((NUM_SAMPLES,))
            ones = Context(torch.ones(len(x), 1))
            guide = torch.stack([vae.decode(z, ones) for z in draws]).double().mean(0)
        self.truth = true_change(truth, shifts)
        self.pairs = {
            "combined": (posterior, observed), "posterior": (posterior, posterior),
            "guide": (guide, guide), "counts": (observed, observed),
        }  # fmt: skip

    def compare(
        self, method: str, groups: Tensor, donors: Tensor | None, threshold: float = THRESHOLD
    ) -> DifferentialExpression:
        """Return the comparison of two groups of the cells."""
        units, unit = units_of(groups, donors)
        sums = ExpressionSums(units, GENES, donors is not None)
        sums.add(*self.pairs[method], unit)
        return compared(sums, threshold, LEVEL)


def held_to_truth(study: str, repeat: int) -> list[Row]:
    """Return a line for each estimator on one simulated sample."""
    sample, rows = Sample(study == "donors", repeat), []
    donors = sample.donors if study == "donors" else None
    plans = [(method, method, donors) for method in sample.pairs]
    if donors is not None:
        plans.append(("cells as replicates", "combined", None))
    changed = np.abs(sample.truth) > THRESHOLD
    for name, method, owners in plans:
        found = sample.compare(method, sample.groups, owners)
        covered = (found.lower <= sample.truth) & (sample.truth <= found.upper)
        rows.append(
            row_of(
                study, name, repeat, called=found.called.sum(),
                wrong=(found.called & ~changed).sum(), changed=changed.sum(),
                found=(found.called & changed).sum(), covered=covered.mean(),
            )
        )  # fmt: skip
    return rows


def permuted(kind: str, first: int) -> list[Row]:
    """Return a line for each permutation, estimator and threshold, of one sample."""
    sample, rows = Sample(kind == "donors", 1000 + first), []
    generator = torch.Generator().manual_seed(first)
    for repeat in range(first, first + PERMUTATIONS):
        if kind == "cells":
            groups, owners = sample.groups[torch.randperm(2 * CELLS, generator=generator)], None
        else:
            of_donor = (torch.randperm(2 * DONORS, generator=generator) >= DONORS).long()
            groups, owners = of_donor[sample.donors], sample.donors
        for threshold in (0.0, THRESHOLD):
            for method in ("combined", "counts"):
                calls = int(sample.compare(method, groups, owners, threshold).called.sum())
                name = f"{method}, threshold {threshold:g}"
                row = row_of(f"permuted {kind}", name, repeat, called=calls, any=int(calls > 0))
                rows.append(row)
    return rows


def lines_of(study: str, repeat: int) -> list[Row]:
    """Return the lines of one part of the table."""
    torch.set_num_threads(1)
    kind = study.removeprefix("permuted ")
    return held_to_truth(study, repeat) if kind == study else permuted(kind, repeat)


def row_of(study: str, method: str, repeat: int, **values: float) -> Row:
    """Return a line of the table."""
    texts = {name: f"{float(value):.4g}" for name, value in values.items()}
    return dict.fromkeys(COLUMNS, "") | {
        "study": study, "method": method, "repeat": str(repeat), **texts
    }  # fmt: skip


# -- table and figure -----------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """Return the lines there are."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, rows: list[Row]) -> None:
    """Write lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def summarised(rows: list[Row]) -> list[Row]:
    """Return means over repeats with standard errors, a line for each study and estimator."""
    summary = []
    for study, method in dict.fromkeys((row["study"], row["method"]) for row in rows):
        own = [row for row in rows if (row["study"], row["method"]) == (study, method)]
        values = {
            name: np.array([float(row[name] or "nan") for row in own]) for name in COLUMNS[3:]
        }
        shares = {
            "false_discovery_rate": values["wrong"] / np.maximum(values["called"], 1),
            "power": values["found"] / values["changed"],
            "coverage": values["covered"],
            "any_call": values["any"],
        }
        line = {"study": study, "method": method, "repeats": str(len(own))}
        for name, share in shares.items():
            empty = bool(np.isnan(share).all())
            error = share.std(ddof=1) / math.sqrt(len(own)) if len(own) > 1 else math.nan
            line[name] = "" if empty else f"{share.mean():.3f}"
            line[f"{name}_error"] = "" if empty else f"{error:.3f}"
        summary.append(line)
    return summary


def draw(summary: list[Row]) -> Figure:
    """Draw error rate, power and coverage of each estimator, and the calls of permuted labels."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = (
        ("false_discovery_rate", "False discoveries among the calls", LEVEL),
        ("power", "True changes that are called", None),
        ("coverage", "95% intervals that hold the truth", 0.95),
        ("any_call", "Permuted labels with any call", 0.1),
    )
    for axes, (name, title, line) in zip(figure.subplots(1, 4), panels, strict=True):
        own = [row for row in summary if row[name]]
        places = range(len(own))
        values, errors = ([float(row[column]) for row in own] for column in (name, f"{name}_error"))
        colours = ["#0072B2" if "cells" in row["study"] else "#D55E00" for row in own]
        axes.barh(places, values, xerr=[2 * error for error in errors], color=colours)
        axes.set_yticks(places, [f"{row['study']}: {row['method']}" for row in own], fontsize=6)
        axes.invert_yaxis()
        ends = [value + 2 * error for value, error in zip(values, errors, strict=True)]
        axes.set_xlim(0, max(0.2, 1.02 if name in ("power", "coverage") else 1.05 * max(ends)))
        axes.set_title(title, fontsize=9)
        if line is not None:
            axes.axvline(line, color="black", linestyle=":", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Compute the lines that are missing, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first sample")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.output / "table.csv"
    rows = read(path)
    done = {(row["study"], int(row["repeat"])) for row in rows}
    first, last = options.first, options.first + options.repeats
    plan = [(f"permuted {kind}", first) for kind in ("cells", "donors")]
    plan += [(study, repeat) for repeat in range(first, last) for study in ("cells", "donors")]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        tasks = [pool.submit(lines_of, *task) for task in plan if task not in done]
        for task in as_completed(tasks):
            rows += task.result()
            rows.sort(key=lambda row: (row["study"], int(row["repeat"])))
            write(path, rows)
            print(f"{len(rows)} lines", flush=True)
    summary = summarised(rows)
    write(options.output / "summary.csv", summary)
    draw(summary).savefig(options.output / "figure.png", dpi=130)
    for line in summary:
        print(", ".join(f"{name} {value}" for name, value in line.items() if value))


if __name__ == "__main__":
    main()
