"""``estimators``: what ``method="auto"`` adds to plain evidence, and evidence at K = 5000 beside its matrix products.

Both are CPU seconds of one process, taken in turns, so that what else the machine does falls on
both sides of a ratio; a ratio is the median over pairs. The model behind the first is trained on
the handwritten digits, with a guide that all weights can be trusted of: nothing is measured again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import Row, Setting, images, make_vae, networks, read, write
from benchmarks.floors import products, sizes_of
from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

TABLE = "estimators.csv"
SAMPLES, PAIRS, BLOCK = 5000, 9, 1024


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_pairs(one: Callable[[], object], other: Callable[[], object], pairs: int) -> list[float]:
    """Return the ratios of the second's CPU time to the first's, each the first in its turn."""
    one(), other()
    results = []
    for number in range(pairs):
        if number % 2:
            above, below = cpu_seconds(other), cpu_seconds(one)
        else:
            below, above = cpu_seconds(one), cpu_seconds(other)
        results.append(above / below)
    return results


def trained_digits() -> tuple[BetaVAE, torch.Tensor]:
    """Return a model of the digits with few latents and much noise, and test images."""
    torch.manual_seed(0)
    splits = datasets.digits()
    features = splits.train.dense().x.shape[1]
    vae = BetaVAE(
        NormalPrior(3),
        Decoder(MLP(3, features, hidden=(128,)), NormalLikelihood(1.0)),
        NormalPosterior(MLP(features, 6, hidden=(128,))),
    )
    fit(vae, splits.train, epochs=60, batch_size=64, progress=False)
    return vae, splits.test.dense().x[:32]


def benchmark_estimators(setting: Setting) -> None:
    """Write the table."""
    vae, x = trained_digits()
    plain = evidence(vae.model, vae.guide, x, num_samples=SAMPLES)
    ratios = in_pairs(
        lambda: evidence(vae.model, vae.guide, x, num_samples=SAMPLES),
        lambda: evidence(vae.model, vae.guide, x, num_samples=SAMPLES, method="auto"),
        PAIRS,
    )
    rows = [row_of("auto over plain evidence, digits", ratios, len(x), plain.untrusted)]
    wide, few = make_vae(), images(setting, 16)
    multiply = products(sizes_of(networks(wide)[1]), BLOCK, "cpu", False)
    blocks = len(few) * SAMPLES // BLOCK

    def floor() -> None:
        for _ in range(blocks):
            multiply()

    ratios = in_pairs(
        floor,
        lambda: evidence(wide.model, wide.guide, few, num_samples=SAMPLES, compile=False),
        PAIRS,
    )
    rows.append(row_of("evidence, K = 5000, over its matrix products", ratios, len(few), None))
    write(setting, rows, TABLE)


def row_of(name: str, ratios: list[float], num_data: int, untrusted: int | None) -> Row:
    """Return one line of the table."""
    return {
        "ratio": name,
        "median": f"{statistics.median(ratios):.3f}",
        "least": f"{min(ratios):.3f}",
        "most": f"{max(ratios):.3f}",
        "pairs": len(ratios),
        "data": num_data,
        "untrusted": "" if untrusted is None else untrusted,
        "threads": torch.get_num_threads(),
    }


def verdict(folder: Path) -> list[str]:
    """Return the ratios in words."""
    return [
        f"{row['ratio']}: {row['median']} times its CPU time, median of {row['pairs']} pairs"
        for row in read(folder / TABLE)
    ]
