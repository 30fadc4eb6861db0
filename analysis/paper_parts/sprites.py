"""Row 6: β and disentanglement on sprites, at the number of steps of the field."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import disentanglement as study
from matplotlib.figure import Figure

from paper_parts.machinery import Entry, Line, Place, Row, Work, kept
from pyro_bvae import elbo, fit

BATCH, NUM_NULLS = 64, 2
#: Medians over fifty seeds of β-VAEs on dSprites, percent.
PUBLISHED = {"β-VAE score": 82.3, "FactorVAE score": 66.0, "MIG": 10.2, "DCI": 18.6, "SAP": 4.9}
LONG, SHORT = 300_000, 10_000
BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)


def measure(work: Work, *, beta: float, steps: int, seeds: tuple[int, ...], size: int = 32) -> Line:
    """Train perceptrons, or go on, and score them beside their nulls."""
    setting = study.Setting(size=size)
    train, test = (setting.data(study.PERCEPTRON, train=part) for part in (True, False))
    epochs = round(steps / train.num_batches(BATCH))

    def one(seed: int) -> dict[str, Any]:
        import torch

        torch.manual_seed(seed)
        vae, output = setting.make(study.PERCEPTRON)(seed), work.folder / f"seed-{seed}"
        fit(
            vae, train, beta=beta, epochs=epochs, batch_size=BATCH, learning_rate=1e-3, seed=seed,
            progress=False, output=output, callbacks=[work.clock.tick],
            resume=(output / "checkpoints" / "last.pt").exists(),
        )  # fmt: skip
        measured = study.measure(vae, test)
        work.clock.tick()
        bound = elbo(vae.model, vae.guide, test.x[: study.NUM_BOUND], num_samples=4)
        return {"scores": measured["scores"], "elbo": bound.value}

    found = [kept(work.folder / f"seed-{seed}.json", partial(one, seed)) for seed in seeds]
    scores = {
        name: [100 * each["scores"][name]["value"] for each in found]
        for name in found[0]["scores"]
        if found[0]["scores"][name].get("nulls")
    }
    mig = found[0]["scores"]["MIG"]
    nulls = 100 * max(mig["nulls"].values())
    values = scores["MIG"]
    return {
        "ours": f"{statistics.median(values):.1f}",
        "standard_error": f"{100 * mig['standard_error']:.1f}",
        "spread": f"{statistics.stdev(values):.1f}" if len(values) > 1 else "",
        "images": f"{len(test)}",
        "seeds": f"{len(seeds)}",
        "note": "; ".join(
            f"{name} {statistics.median(each):.1f}" for name, each in scores.items() if name != "MIG"
        )
        + f"; highest null of MIG {nulls:.1f}",
    }  # fmt: skip


def entry(beta: float, steps: int, seeds: tuple[int, ...], cost: str) -> Entry:
    """Return a line."""
    others = "; ".join(f"{name} {value}" for name, value in PUBLISHED.items() if name != "MIG")
    return Entry(
        f"β = {beta:g}, {steps:,} steps",
        "MIG, percent",
        f"{PUBLISHED['MIG']}",
        "B",
        f"sprites of 32 pixels, five factors, 10 latents, perceptrons of two layers of 180, batch {BATCH}",
        f"sprites for dSprites, perceptrons for convolutions, {steps:,} steps for 300,000, the "
        f"published medians are over all β and 50 seeds ({others}); DCI by small forests",
        cost,
        partial(measure, beta=beta, steps=steps, seeds=seeds),
    )


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw MIG over β."""
    picture = Figure((8, 3), layout="constrained")
    axes = picture.subplots()
    places = range(len(lines))
    values, errors = ([float(line[name]) for line in lines] for name in ("ours", "standard_error"))
    axes.errorbar(
        values,
        places,
        xerr=errors,
        fmt="o",
        color="#0072B2",
        label="ours, ± one standard error over images",
    )
    axes.axvline(
        PUBLISHED["MIG"],
        color="#777777",
        linestyle="--",
        label="published median on dSprites (second hand)",
    )
    axes.set_yticks(places, [line["line"] for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel("MIG, percent")
    axes.set_title("Sprites: MIG over β", loc="left", weight="bold")
    picture.legend(frameon=False, loc="outside lower center", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


ROW = Row(
    "sprites",
    "β and disentanglement",
    (),
    (
        *(entry(beta, SHORT, (0,), "2 CPU minutes") for beta in (1.0, 4.0)),
        *(entry(beta, LONG, (0, 1, 2, 3, 4), "60 CPU minutes for five seeds") for beta in BETAS),
    ),
    figure,
)
