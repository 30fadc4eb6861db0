"""Row 7: counts of two data sets by scvi-tools and by ours, each measured by both estimators."""

from __future__ import annotations

from functools import partial

import torch
from count_presets import cells
from matplotlib.figure import Figure

from paper_parts import scvi_model
from paper_parts.machinery import (
    Entry,
    Line,
    Place,
    Row,
    Work,
    columns_of,
    in_blocks,
    name_of_folder,
    paired,
)
from pyro_bvae import evidence, fit
from pyro_bvae.evaluation import Estimate
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.training import sleep_phase

NUM_SAMPLES, BLOCK, VALUES = 1000, 250, "cells.pt"
#: Held-out evidence of scvi-tools 1.4 with a negative binomial, by an earlier run.
EARLIER = {
    ("smfish", "defaults"): "-73.51", ("smfish", "tuned"): "-70.79",
    ("umi10k", "defaults"): "-197.85", ("umi10k", "tuned"): "-192.96",
}  # fmt: skip


class NotInstalledError(RuntimeError):
    """A peer that is not there."""


def measure_scvi(work: Work, *, name: str, tuning: str) -> Line:
    """Train scvi-tools; measure the test cells by our estimator and by its own."""
    if not scvi_model.is_here():
        raise NotInstalledError(f"scvi-tools cannot be imported here: {scvi_model.INSTALL}")
    assert work.place.counts is not None
    data, held_out = cells(work.place.counts, name)
    model = scvi_model.trained(data, tuning)
    work.clock.tick()
    program = scvi_model.Program(model.module)
    theirs = scvi_model.own_evidence(model, held_out, NUM_SAMPLES)
    with torch.no_grad():
        ours = evidence(
            program.model, program.guide, held_out.x, num_samples=NUM_SAMPLES, progress=False
        )
    work.clock.tick()
    torch.save(ours.per_datum, work.folder / VALUES)
    difference, error = paired(ours.per_datum, theirs)
    return {
        **columns_of(ours),
        "seeds": "1",
        "note": f"scvi-tools {scvi_model.version()}; its own estimate {float(theirs.mean()):.2f}, "
        f"ours of the same model is {difference:+.3f} ± {error:.3f} from it; "
        f"{ours.untrusted} cells untrusted",
    }


def measure_ours(work: Work, *, name: str) -> Line:
    """Train the preset, or go on, and measure the test cells after its sleep phase."""
    assert work.place.counts is not None
    data, held_out = cells(work.place.counts, name)
    config = TrainConfig.preset("counts-nb").resolved()
    config = config.in_epochs(data.num_batches(config.training.batch_size))
    vae, output = build_vae(config, Shape.of(data)), work.folder / "run"
    fit(
        vae, data, **config.training.settings(), output=output, progress=False,
        resume=(output / "checkpoints" / "last.pt").exists(), callbacks=[work.clock.tick],
    )  # fmt: skip
    sleep_phase(vae, data, **config.training.sleep_settings(), progress=False)
    work.clock.tick()
    context = held_out.context
    assert context is not None

    def measure(some: torch.Tensor, seed: int) -> dict[str, Estimate]:
        rows = slice(seed * BLOCK, seed * BLOCK + len(some))
        return {
            "evidence": evidence(
                vae.model, vae.guide, some, held_out[rows].context, num_samples=NUM_SAMPLES,
                seed=seed, progress=False,
            )
        }  # fmt: skip

    found = in_blocks(work.folder / "evidence", held_out.x, measure, work.clock, BLOCK)["evidence"]
    note = f"{found.untrusted} cells untrusted"
    theirs = work.folder.parent / name_of_folder(line_of(name, "tuned")) / VALUES
    if theirs.exists():
        gain, error = paired(found.per_datum, torch.load(theirs))
        note += f"; {gain:+.3f} ± {error:.3f} from scvi-tools, tuned, cell by cell"
    return {**columns_of(found), "seeds": "1", "note": note}


def line_of(name: str, tuning: str) -> str:
    """Return the line of scvi-tools."""
    return f"{name}, scvi-tools, {tuning}"


SETTING = (
    "cells with at least 10 counts, 80/20 split, given the cell's total; negative binomial, 10 "
    f"latents, K = {NUM_SAMPLES}"
)


def entries(name: str) -> tuple[Entry, ...]:
    """Return the lines of a data set."""
    quantity = "held-out evidence, nats a cell"
    theirs = tuple(
        Entry(
            line_of(name, tuning), quantity, EARLIER[name, tuning], "A",
            f"{SETTING}; scvi-tools, one layer of 128, no dropout, batch 128, 100 epochs", "",
            "3 CPU minutes", partial(measure_scvi, name=name, tuning=tuning),
        )
        for tuning in scvi_model.OPTIONS
    )  # fmt: skip
    ours = Entry(
        f"{name}, this package, counts-nb", quantity, EARLIER[name, "tuned"], "A",
        f"{SETTING}; preset counts-nb, 4,000 steps and sleep", "the published figure is that of "
        "scvi-tools, tuned", "3 CPU minutes", partial(measure_ours, name=name),
    )  # fmt: skip
    return (*theirs, ours)


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw the evidence of each model, a panel for each data set."""
    picture = Figure((9, 3), layout="constrained")
    names = list(dict.fromkeys(line["line"].split(",")[0] for line in lines))
    panels = picture.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        shown = [line for line in lines if line["line"].startswith(name)]
        for at, line in enumerate(shown):
            own = "this package" in line["line"]
            axes.plot(float(line["ours"]), at, "o", color="#0072B2" if own else "#777777")
            axes.annotate(
                line["ours"], (float(line["ours"]), at), (0, 7), textcoords="offset points",
                ha="center",
            )  # fmt: skip
        axes.set_yticks(
            range(len(shown)), [line["line"].removeprefix(f"{name}, ") for line in shown]
        )
        axes.set_ylim(len(shown) - 0.5, -0.7)
        axes.margins(x=0.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("held-out evidence, nats a cell")
        axes.spines[["top", "right"]].set_visible(False)
    return picture


ROW = Row(
    "counts",
    "Counts beside scvi-tools",
    ("counts",),
    (*entries("smfish"), *entries("umi10k")),
    figure,
)
