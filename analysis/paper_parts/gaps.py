"""Row 2: the inference gaps of the model of Cremer, Li and Duvenaud (2018), before and after `improve_guide`."""

from __future__ import annotations

from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from paper_parts import iwae
from paper_parts.machinery import Entry, Line, Place, Row, Work, columns_of, in_blocks
from pyro_bvae import BetaVAE, elbo, inference_gaps
from pyro_bvae.datasets import Splits, mnist
from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.training import improve_guide

NUM_IMAGES, BLOCK, MORE_EPOCHS = 100, 20, 5
REFIT = RefitSettings(num_starts=2)


def model_of(work: Work) -> tuple[BetaVAE, Splits, Work]:
    """Return the VAE of row `iwae` and its folder; it is trained here where it is not yet."""
    place = work.place
    splits = mnist(place.data_root, validation=0, download=False).binarized("dynamic", 0)
    vae = iwae.new_vae()
    theirs = Work(place, place.runs / "iwae" / "vae", work.clock)
    iwae.trained(theirs, splits, vae, None, iwae.EPOCHS[1])
    return vae, splits, theirs


def gaps_of(
    vae: BetaVAE, x: Tensor, annealed: Estimate, work: Work, block: int
) -> dict[str, Estimate]:
    """Return the gaps of each image, given its evidence."""

    def measure(some: Tensor, seed: int) -> dict[str, Estimate]:
        own = annealed.take(slice(seed * block, seed * block + len(some)))
        found = inference_gaps(vae.model, vae.guide, some, evidence=own, settings=REFIT, seed=seed)
        names = ("evidence", "elbo", "variational", "approximation", "amortization")
        return {name: getattr(found, name) for name in names}

    return in_blocks(work.folder / "gaps", x, measure, work.clock, block)


def improved(
    vae: BetaVAE, data: Any, x: Tensor, best: Tensor, work: Work, epochs: int, block: int
) -> Estimate:
    """Return what is left of the amortization gap once the guide was trained on."""
    folder = work.folder / "improved"
    last = folder / f"{(len(x) - 1) // block:04d}.pt"
    guide, model = vae.guide, vae.model
    if not last.exists():
        few: dict[str, Any] = {"test": x[:2], "num_samples": 10, "settings": REFIT}
        better = improve_guide(vae, data, epochs=epochs, progress=False, **few)
        guide, model = better.guide, better.model
        work.clock.tick()

    def measure(some: Tensor, seed: int) -> dict[str, Estimate]:
        return {"elbo": elbo(model, guide, some, num_samples=500, seed=seed)}

    bound = in_blocks(folder, x, measure, work.clock, block)["elbo"]
    return Estimate.over_data(best - bound.per_datum, bound.errors, reliable=bound.reliable)


def measure(work: Work, *, part: str) -> Line:
    """Return one part of the gap; all lines share one folder, and so one measurement."""
    work = work._replace(folder=work.folder.parent / "shared")
    vae, splits, theirs = model_of(work)
    x = splits.test.dense().x
    x = x[iwae.chosen(len(x), NUM_IMAGES)]
    gaps = gaps_of(vae, x, iwae.annealed(theirs, vae, x, iwae.ANNEALING), work, BLOCK)
    if part == "amortization after":
        best = gaps["elbo"].per_datum + gaps["amortization"].per_datum
        result = improved(vae, splits.train, x, best, work, MORE_EPOCHS, BLOCK)
    else:
        result = gaps[part]
    note = f"{result.untrusted} images untrusted"
    if part == "evidence":
        note += (
            f"; -ELBO {-gaps['elbo'].value:.2f}, the whole gap {gaps['variational'].value:.2f}; the "
            "time is of both parts too"
        )
    return {**columns_of(result), "seeds": "1", "note": note}


def entry(line: str, part: str, published: str, quantity: str) -> Entry:
    """Return a line."""
    return Entry(
        line,
        quantity,
        published,
        "B" if published else "",
        f"the VAE of row `iwae` ({iwae.EPOCHS[1]} epochs), random test images; evidence by annealing "
        f"from the guide, {iwae.ANNEALING.num_temperatures} temperatures, {iwae.ANNEALING.num_chains} chains",
        f"{NUM_IMAGES} images for 1,000, temperatures for 10,000, epochs; the published figures are "
        "quoted at second hand",
        "10 CPU minutes, with the VAE 25",
        partial(measure, part=part),
    )


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw our parts of the gap over the published ones."""
    by_name = {line["line"]: line for line in lines}
    names = [name for name in ("approximation", "amortization", "amortization after improve_guide")
             if name in by_name]  # fmt: skip
    picture = Figure((8, 3), layout="constrained")
    axes = picture.subplots()
    for at, name in enumerate(names):
        line = by_name[name]
        axes.barh(
            at, float(line["ours"]), height=0.35, xerr=float(line["standard_error"]),
            color="#0072B2", ecolor="black", label="ours, ± one standard error" if at == 0 else None,
        )  # fmt: skip
        if line["published"]:
            label = "Cremer et al. 2018 (second hand)" if at == 0 else None
            axes.barh(
                at + 0.38, float(line["published"]), height=0.35, color="#A8A8A8", label=label
            )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("nats an image")
    axes.set_title("Inference gaps on binarised MNIST, 50 latents", loc="left", weight="bold")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


ROW = Row(
    "gaps",
    "Inference gaps",
    ("data_root",),
    (
        entry("evidence", "evidence", "-89.80", "log p(x), nats an image"),
        entry("approximation", "approximation", "1.43", "gap, nats an image"),
        entry("amortization", "amortization", "1.34", "gap, nats an image"),
        entry(
            "amortization after improve_guide",
            "amortization after",
            "",
            f"gap after {MORE_EPOCHS} more epochs of the guide, nats an image",
        ),
    ),
    figure,
)
