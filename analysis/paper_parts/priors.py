"""Row 4: priors of several modes over the normal prior, image by image, on all test images of MNIST."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from paper_parts.machinery import Entry, Line, Place, Row, Work, columns_of, in_blocks, paired
from pyro_bvae import evidence, fit
from pyro_bvae.datasets import mnist
from pyro_bvae.evaluation import Estimate
from pyro_bvae.runs import Shape, TrainConfig, build_vae

EPOCHS, NUM_SAMPLES, BLOCK = 20, 500, 500
PLAIN = "normal prior"
PRIORS = {PLAIN: "normal", "mixture prior": "mixture", "VampPrior": "vamp", "flow prior": "flow"}


def config_of(prior: str) -> TrainConfig:
    """Return the options of a model."""
    return TrainConfig(
        dataset="mnist", hidden=(200,), latent_dim=20, epochs=EPOCHS, prior=prior, start_at_mean=True,
        prior_components=200 if prior in {"mixture", "vamp"} else None,
    ).resolved()  # fmt: skip


def evidences(work: Work, folder: Path, splits: Any, config: TrainConfig, x: Tensor) -> Estimate:
    """Train, or go on, and measure the evidence of each image."""
    torch.manual_seed(0)
    vae = build_vae(config, Shape.of(splits.train))
    output = folder / "run"
    fit(
        vae, splits.train, **config.training.settings(), output=output, progress=False,
        resume=(output / "checkpoints" / "last.pt").exists(), callbacks=[work.clock.tick],
    )  # fmt: skip

    def measure(some: Tensor, seed: int) -> dict[str, Estimate]:
        options: dict[str, Any] = {"num_samples": NUM_SAMPLES, "progress": False, "seed": seed}
        return {"evidence": evidence(vae.model, vae.guide, some, **options)}

    return in_blocks(folder / "evidence", x, measure, work.clock, BLOCK)["evidence"]


def measure(work: Work, *, name: str) -> Line:
    """Return the evidence of the normal prior, or the gain of another one over it."""
    splits = mnist(work.place.data_root, validation=0, download=False).binarized("dynamic", 0)
    x = splits.test.dense().x
    found = evidences(work, work.folder, splits, config_of(PRIORS[name]), x)
    note = f"K = {NUM_SAMPLES}, {found.untrusted} images untrusted"
    if name == PLAIN:
        return {**columns_of(found), "seeds": "1", "note": note}
    plain_folder = work.folder.parent / "normal-prior"
    plain = evidences(work, plain_folder, splits, config_of("normal"), x)
    gain, error = paired(found.per_datum, plain.per_datum)
    both = (found.monte_carlo_error**2 + plain.monte_carlo_error**2) ** 0.5
    return {
        "ours": f"{gain:.2f}",
        "standard_error": f"{error:.2f}",
        "monte_carlo_error": f"{both:.3f}",
        "images": f"{len(x)}",
        "seeds": "1",
        "note": f"{note}; evidence {found.value:.2f} ± {found.standard_error:.2f}",
    }


def entry(name: str, published: str, cost: str) -> Entry:
    """Return a line."""
    quantity = "evidence" if name == PLAIN else "paired gain in evidence over the normal prior"
    return Entry(
        name,
        f"{quantity}, nats an image",
        published,
        "A2" if published else "",
        f"dynamically binarised MNIST, 20 latents, one layer of 200, {EPOCHS} epochs, start at the mean",
        f"{EPOCHS} epochs are not convergence; the published gain is of static binarisation and "
        "another network"
        if published
        else f"{EPOCHS} epochs are not convergence",
        cost,
        partial(measure, name=name),
    )


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw the gains."""
    shown = [line for line in lines if line["line"] != PLAIN]
    picture = Figure((8, 1.5 + 0.5 * max(1, len(shown))), layout="constrained")
    axes = picture.subplots()
    for at, line in enumerate(shown):
        axes.barh(at, float(line["ours"]), xerr=2 * float(line["standard_error"]), color="#0072B2")
    axes.set_yticks(range(len(shown)), [line["line"] for line in shown])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("paired gain in evidence, nats an image (bars: two standard errors)")
    axes.set_title("Priors over the normal prior on binarised MNIST", loc="left", weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    return picture


ROW = Row(
    "priors",
    "Priors",
    ("data_root",),
    (
        entry(PLAIN, "", "4 CPU minutes"),
        entry("flow prior", "2.96", "10 CPU minutes"),
        entry("mixture prior", "", "8 CPU minutes"),
        entry("VampPrior", "", "10 CPU minutes"),
    ),
    figure,
)
