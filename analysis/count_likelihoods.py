"""Which likelihood do counts ask for: Poisson, negative binomial, or zero-inflated negative binomial?

``real``: cells of .h5ad files (at least 10 counts, genes with any; the first 80% of a seeded
permutation train) with their observed library size; 10 latents, one hidden layer of 128, batches of
128, 100 epochs: held-out evidence a cell given its library size, and what the bound loses. Learning
rate and activation were chosen on a fifth of the training cells, by ``select``.

``simulated``: 6,000 cells of 50 genes drawn from each family in turn, the others fitted to it: no
family may beat the true one, and the dispersions are compared with the planted ones. A full-rank
guide, a larger encoder and 400 epochs, so that what is compared are the families and not how well
each is inferred.

``speed``: an epoch of ours beside one of scvi-tools, in turns, where ``pip install scvi-tools`` has
put it.

    python analysis/count_likelihoods.py --data FOLDER_WITH_H5AD_FILES

Lines that the table has are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit, inference_gaps
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import (
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    SoftmaxRate,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import LinearWarmup

RESULTS = Path(__file__).parent / "results" / "count_likelihoods"
FILES = ("smfish", "umi10k")
LATENTS, HIDDEN, EPOCHS, LONG, WARMUP, BATCH = 10, (128,), 100, 400, 20, 128
LEARNING_RATE, ACTIVATION = 1e-2, nn.ReLU
NUM_SAMPLES, NUM_GAPS = 1000, 128
FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "poisson": lambda num_genes: PoissonLikelihood(SoftmaxRate()),
    "negative binomial": lambda num_genes: NegativeBinomialLikelihood(
        num_genes, rate=SoftmaxRate()
    ),
    "zero-inflated": lambda num_genes: ZeroInflatedNegativeBinomialLikelihood(
        num_genes, rate=SoftmaxRate()
    ),
}
# scvi-tools 1.4 on the same cells, tuned (warm-up of 20 epochs, learning rate 5e-3).
SCVI = {
    ("smfish", "negative binomial"): -70.79,
    ("smfish", "zero-inflated"): -70.72,
    ("smfish", "poisson"): -75.52,
    ("umi10k", "negative binomial"): -192.96,
    ("umi10k", "zero-inflated"): -192.95,
    ("umi10k", "poisson"): -193.21,
}
NUM_CELLS, NUM_GENES, TRUE_LATENTS = 6000, 50, 3

Row = dict[str, str]


def make_vae(
    family: str,
    num_genes: int,
    latents: int = LATENTS,
    hidden: tuple[int, ...] = HIDDEN,
    decoder_hidden: tuple[int, ...] = HIDDEN,
    activation: Callable[[], nn.Module] = ACTIVATION,
    guide: type[NormalPosterior | FullRankPosterior] = NormalPosterior,
) -> BetaVAE:
    """Return an untrained model of counts."""
    torch.manual_seed(0)
    likelihood = FAMILIES[family](num_genes)
    outputs = int(likelihood.parameters_per_feature) * num_genes  # type: ignore[arg-type]
    encoder = MLP(num_genes, guide.num_outputs(latents), hidden, activation)
    return BetaVAE(
        NormalPrior(latents),
        Decoder(MLP(latents, outputs, decoder_hidden, activation), likelihood),
        guide(encoder, inputs=torch.log1p),
    )


def train(
    vae: BetaVAE, data: Dataset, epochs: int = EPOCHS, learning_rate: float = LEARNING_RATE
) -> float:
    """Train a model and return its seconds an epoch."""
    beta = LinearWarmup(1.0, WARMUP)
    history = fit(
        vae,
        data,
        beta=beta,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=learning_rate,
        progress=False,
    )
    return statistics.median(float(row["seconds"]) for row in history.rows)


# -- real cells
# --------------------------------------------------------------------------------------------------


def read(folder: Path, name: str) -> tuple[Dataset, Dataset]:
    """Return training and test cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of AnnData, about its own future
        splits = datasets.h5ad(folder / f"{name}.h5ad", min_counts=10)
    print(splits, flush=True)
    return splits.train.dense(), splits.test.dense()


def real_row(name: str, family: str, data: Dataset, test: Dataset) -> tuple[Row, Tensor]:
    """Train on real cells and measure held-out ones."""
    vae = make_vae(family, data.num_features)
    seconds = train(vae, data)
    result = evidence(vae.model, vae.guide, test.x, test.context, num_samples=NUM_SAMPLES)
    some = test[:NUM_GAPS]
    gaps = inference_gaps(vae.model, vae.guide, some.x, some.context, num_samples=NUM_SAMPLES)
    row = {
        "data": name,
        "truth": "",
        "likelihood": family,
        "evidence": f"{result.value:.3f}",
        "evidence_error": f"{result.standard_error:.3f}",
        "monte_carlo_error": f"{result.monte_carlo_error:.3f}",
        "untrusted": f"{result.untrusted} of {len(test)}",
        "scvi_tools": f"{SCVI[name, family]:.2f}",
        "approximation": f"{gaps.approximation.value:.3f}",
        "amortization": f"{gaps.amortization.value:.3f}",
        "amortization_error": f"{gaps.amortization.standard_error:.3f}",
        "dispersion_error": "",
        "seconds_an_epoch": f"{seconds:.3f}",
    }
    return row, result.per_datum


def select(folder: Path) -> None:
    """Print the evidence on a fifth of the training cells of smFISH, for the choice of two settings."""
    data, _ = read(folder, "smfish")
    fifth = len(data) // 5
    held_out, rest = data[:fifth], data[fifth:]
    for activation in (nn.SiLU, nn.ReLU):
        for rate in (3e-3, 1e-2, 2e-2):
            vae = make_vae("negative binomial", data.num_features, activation=activation)
            train(vae, rest, learning_rate=rate)
            result = evidence(
                vae.model, vae.guide, held_out.x, held_out.context, num_samples=NUM_SAMPLES
            )
            print(
                f"{activation.__name__} {rate:g}: {result.value:.3f} ± {result.standard_error:.3f}",
                flush=True,
            )


# -- simulated cells
# --------------------------------------------------------------------------------------------------


def simulated(truth: str) -> tuple[Dataset, Dataset, datasets.CountTruth]:
    """Return training and test cells of a known family, and what is true of them."""
    infinite = math.inf if truth == "poisson" else None
    lost = 0.3 if truth == "zero-inflated" else 0.0
    planted = datasets.negative_binomial_truth(
        NUM_GENES, TRUE_LATENTS, dispersion=infinite, zero_inflation=lost
    )
    splits = datasets.negative_binomial_factors(
        NUM_CELLS, truth=planted, library_size=400.0, validation=0
    )
    return splits.train.dense(), splits.test.dense(), planted


def simulated_row(truth: str, family: str) -> tuple[Row, Tensor]:
    """Fit a family to cells of another, or of its own, and measure held-out ones."""
    data, test, planted = simulated(truth)
    vae = make_vae(family, NUM_GENES, TRUE_LATENTS, (128, 128), (), nn.SiLU, FullRankPosterior)
    seconds = train(vae, data, epochs=LONG)
    result = evidence(vae.model, vae.guide, test.x, test.context, num_samples=NUM_SAMPLES)
    row = {
        "data": "simulated",
        "truth": truth,
        "likelihood": family,
        "evidence": f"{result.value:.3f}",
        "evidence_error": f"{result.standard_error:.3f}",
        "monte_carlo_error": f"{result.monte_carlo_error:.3f}",
        "untrusted": f"{result.untrusted} of {len(test)}",
        "scvi_tools": "",
        "approximation": "",
        "amortization": "",
        "amortization_error": "",
        "dispersion_error": "",
        "seconds_an_epoch": f"{seconds:.3f}",
    }
    if truth == family != "poisson":
        estimated = vae.decoder.likelihood.dispersion.dispersion.detach()  # type: ignore[union-attr]
        frequent = data.x.mean(0) >= 1
        errors = (estimated / planted.dispersion - 1).abs()[frequent]
        row["dispersion_error"] = f"{float(errors.median()):.4f} ({int(frequent.sum())} genes)"
    return row, result.per_datum


def compare(rows: list[Row], values: dict[str, Tensor], truth: str) -> None:
    """Add to each line the paired difference from the true family, or from the negative binomial."""
    base = values[truth or "negative binomial"]
    for row in rows:
        gain = values[row["likelihood"]] - base
        row["gain"] = f"{float(gain.mean()):.3f}"
        row["gain_error"] = f"{float(gain.std() / math.sqrt(len(gain))):.3f}"


# -- speed
# --------------------------------------------------------------------------------------------------


def scvi_epoch(data: Dataset, family: str, epochs: int) -> float:
    """Return the seconds an epoch that scvi-tools takes on the same cells."""
    import anndata
    import scvi

    scvi.settings.verbosity = logging.ERROR
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = anndata.AnnData(data.x.numpy())
    scvi.model.SCVI.setup_anndata(adata)
    short = {"poisson": "poisson", "negative binomial": "nb", "zero-inflated": "zinb"}[family]
    model = scvi.model.SCVI(
        adata,
        n_latent=LATENTS,
        n_hidden=HIDDEN[0],
        n_layers=1,
        dropout_rate=0.0,
        gene_likelihood=short,
        use_observed_lib_size=True,
    )
    options = {
        "train_size": 1.0,
        "batch_size": BATCH,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }
    model.train(max_epochs=1, **options)
    start = time.perf_counter()
    model.train(max_epochs=epochs, **options)
    return (time.perf_counter() - start) / epochs


def speed(folder: Path, repeats: int = 3, epochs: int = 10) -> list[Row]:
    """Time epochs of ours and of scvi-tools in turns."""
    if importlib.util.find_spec("scvi") is None:
        print("scvi-tools cannot be imported here, so it is not timed")
        return []
    rows = []
    for name in FILES:
        data, _ = read(folder, name)
        for family in FAMILIES:
            turns = []
            for _ in range(repeats):
                mine = train(make_vae(family, data.num_features), data, epochs=epochs)
                turns.append((mine, scvi_epoch(data, family, epochs)))
            ours, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
            ratio = statistics.median(mine / other for mine, other in turns)
            line = {
                "data": name,
                "likelihood": family,
                "ours": f"{ours:.3f}",
                "scvi_tools": f"{theirs:.3f}",
            }
            rows.append(line | {"ratio": f"{ratio:.3f}", "threads": f"{torch.get_num_threads()}"})
            print(rows[-1], flush=True)
    return rows


# -- all of it
# --------------------------------------------------------------------------------------------------


def figure_of(rows: list[Row]) -> Figure:
    """Draw what each family loses beside the negative binomial, or beside the truth, for each data set."""
    groups = list(dict.fromkeys((row["data"], row["truth"]) for row in rows))
    figure = Figure((11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    short = {"poisson": "Poisson", "negative binomial": "NB", "zero-inflated": "ZINB"}
    for axes, (name, truth) in zip(panels, groups, strict=True):
        shown = [row for row in rows if (row["data"], row["truth"]) == (name, truth)]
        reference = truth or "negative binomial"
        losses, errors = (
            [-float(row["gain"]) for row in shown],
            [2 * float(row["gain_error"]) for row in shown],
        )
        colours = ["#0072B2" if row["likelihood"] == reference else "#A8A8A8" for row in shown]
        axes.bar([short[row["likelihood"]] for row in shown], losses, color=colours)
        axes.errorbar(range(len(shown)), losses, errors, fmt="none", ecolor="black")
        top = max(loss + error for loss, error in zip(losses, errors, strict=True))
        for place, (loss, error) in enumerate(zip(losses, errors, strict=True)):
            text = "reference" if colours[place] == "#0072B2" else f"{loss:.3g}"
            axes.text(place, max(0.0, loss + error) + 0.03 * top, text, ha="center", fontsize=9)
        axes.axhline(0, color="black", linewidth=1)
        axes.set_ylim(min(0.0, *losses) - 0.02 * top, 1.2 * top)
        axes.set_title(f"simulated, truth: {short[truth]}" if truth else name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("nats of evidence lost a cell")
    figure.suptitle(
        "Which likelihood do the counts ask for? Lower is better (lines: two paired standard "
        "errors)",
        fontweight="bold",
    )
    return figure


def write(rows: list[Row], name: str) -> None:
    """Write a table."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def evidence_table(folder: Path) -> None:
    """Write the table and the figure."""
    path = RESULTS / "table.csv"
    rows: list[Row] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    done = {(row["data"], row["truth"]) for row in rows}
    groups = [(name, "") for name in FILES] + [("simulated", family) for family in FAMILIES]
    for name, truth in groups:
        if (name, truth) in done:
            continue
        group, values = [], {}
        parts = None if truth else read(folder, name)
        for family in FAMILIES:
            row, values[family] = (
                simulated_row(truth, family) if parts is None else real_row(name, family, *parts)
            )
            group.append(row)
            print(row, flush=True)
        compare(group, values, truth)
        rows += group
        write(rows, "table.csv")
    figure_of(rows).savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds smfish.h5ad and umi10k.h5ad"
    )
    parser.add_argument(
        "--only", choices=("evidence", "speed", "select"), nargs="+", default=("evidence", "speed")
    )
    options = parser.parse_args()
    if "select" in options.only:
        select(options.data)
    if "evidence" in options.only:
        evidence_table(options.data)
    if "speed" in options.only and (timed := speed(options.data)):
        write(timed, "speed.csv")
