"""``training``: milliseconds a step, beside everybody else's and beside the matrix products of the step alone."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common import FLOOR_COLOUR, OTHERS_COLOUR, OURS_COLOUR, Row, Setting, read, write
from benchmarks.contenders import (
    ADAM,
    BATCH,
    COMPILED,
    FLOOR,
    HAND,
    MODELS,
    NUMPYRO,
    OURS,
    PYTHAE,
    STOCK,
    STOCK_ON_OURS,
    contenders_for,
)
from benchmarks.turns import in_turns

TABLE = "training.csv"
REFERENCES = {
    "to_hand_written": HAND,
    "to_stock_pyro": STOCK,
    "to_pythae": PYTHAE,
    "to_numpyro": NUMPYRO,
    "to_products": FLOOR,
}
GOALS = {HAND: 0.75, STOCK: 0.45, PYTHAE: 0.4, NUMPYRO: 1.0}
CUDA_GOALS = {STOCK: 0.1}
# Of the models whose step takes longer, fewer steps say as much.
SHARE = 4


def ratio(rounds: list[dict[str, float]], one: str, other: str) -> str:
    """Return the median over rounds of the ratio of two times of one round, or nothing."""
    if other not in rounds[0]:
        return ""
    return f"{statistics.median(round_[one] / round_[other] for round_ in rounds):.3f}"


def rows_of(model: str, setting: Setting) -> list[Row]:
    """Time everybody who trains a model."""
    names = [f"{model}/{contender}" for contender in contenders_for(model, setting.device)]
    with tempfile.TemporaryDirectory() as cache:
        first, rounds = in_turns(names, setting, Path(cache))
        ours = f"{model}/{COMPILED}"
        # Once more with what the compiler kept on disk.
        again = (
            in_turns([ours], setting._replace(repeats=0), Path(cache))[0] if ours in first else {}
        )
    rows = []
    for name, until in first.items():
        taken = statistics.median(round_[name] for round_ in rounds)
        milliseconds = [1e3 * round_[name] / setting.steps for round_ in rounds]
        row: Row = {"model": model, "contender": name.removeprefix(f"{model}/")}
        row |= {"milliseconds_a_step": f"{statistics.median(milliseconds):.3f}"}
        row |= {"least": f"{min(milliseconds):.3f}", "most": f"{max(milliseconds):.3f}"}
        references = REFERENCES if model == "MLP" else REFERENCES | {"to_stock_pyro": STOCK_ON_OURS}
        row |= {
            column: ratio(rounds, name, f"{model}/{other}") for column, other in references.items()
        }
        row |= {"seconds_before_first_turn": f"{max(0.0, until - taken):.2f}"}
        row |= {
            "the_same_from_cache": f"{max(0.0, again[name] - taken):.2f}" if name in again else ""
        }
        row |= {"batch": BATCH, "steps_a_turn": setting.steps, "turns": setting.repeats}
        rows.append(row | {"device": setting.device, "threads": torch.get_num_threads()})
    return rows


def benchmark_training(setting: Setting) -> None:
    """Write the table and the figure of the training step."""
    rows: list[Row] = []
    for model in setting.models or MODELS:
        steps = setting.steps if model == "MLP" else max(1, setting.steps // SHARE)
        rows += rows_of(model, setting._replace(steps=steps))
    write(setting, rows, TABLE)
    training_figure(rows).savefig(setting.output / "training.png", dpi=150)


# -- figure
# --------------------------------------------------------------------------------------------------


def training_figure(rows: list[Any]) -> Figure:
    """Draw the milliseconds of a step, a panel for each model."""
    models = [model for model in MODELS if any(row["model"] == model for row in rows)]
    shown = {model: [row for row in rows if row["model"] == model] for model in models}
    figure = Figure((9, 1.6 + 0.3 * len(rows) + 0.5 * len(models)), layout="constrained")
    panels = figure.subplots(
        len(models),
        1,
        squeeze=False,
        gridspec_kw={"height_ratios": [len(part) + 0.6 for part in shown.values()]},
    )
    for axes, (model, part) in zip(panels[:, 0], shown.items(), strict=True):
        part.sort(key=lambda row: float(row["milliseconds_a_step"]))
        times = [float(row["milliseconds_a_step"]) for row in part]
        axes.barh(
            [row["contender"] for row in part],
            times,
            color=[colour(row["contender"]) for row in part],
        )
        for place, milliseconds in enumerate(times):
            axes.text(milliseconds, place, f" {milliseconds:.2f} ms", va="center", fontsize=9)
        axes.set_xlim(0, 1.15 * max(times))
        axes.invert_yaxis()
        axes.set_title(model, loc="left", fontsize=10, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("milliseconds a step; black: what no way of training can do without")
    figure.suptitle(f"One training step of {BATCH} data: shorter is faster", fontweight="bold")
    return figure


def colour(contender: str) -> str:
    """Return the colour of a contender's bar."""
    if contender in (FLOOR, ADAM):
        return FLOOR_COLOUR
    if contender == COMPILED:
        return OURS_COLOUR
    return "#56B4E9" if contender in OURS else OTHERS_COLOUR


# -- words
# --------------------------------------------------------------------------------------------------


def verdict(folder: Path, goals: dict[str, float]) -> list[str]:
    """Return what the table says of the goals, and what limits those that are not reached."""
    rows = {row["contender"]: row for row in read(folder / TABLE) if row["model"] == "MLP"}
    if COMPILED not in rows:
        return ["the compiled step was not measured"]
    columns = {other: column for column, other in REFERENCES.items()}
    lines = []
    for other, goal in goals.items():
        result = rows[COMPILED][columns[other]]
        if not result:
            lines.append(f"compiled step / {other}: not measured (goal {goal:g})")
            continue
        reached = "reached" if float(result) <= goal else "not reached, see what limits it below"
        lines.append(f"compiled step / {other}: {result} (goal {goal:g}): {reached}")
    epochs = 30 * 469 * float(rows[COMPILED]["milliseconds_a_step"]) / 1e3
    return [
        *lines,
        limits(rows),
        f"30 epochs of MNIST take the compiled step {epochs:.1f} s, the compiler apart",
    ]


def limits(rows: dict[str, dict[str, str]]) -> str:
    """Return where the time of the compiled step goes."""
    whole, floor, adam = (
        float(rows[name]["milliseconds_a_step"]) if name in rows else float("nan")
        for name in (COMPILED, FLOOR, ADAM)
    )
    return (
        f"of the step's {whole:.2f} ms the matrix products alone are {floor:.2f} and Adam's pass "
        f"over weights and "
        f"moments {adam:.2f}; the {whole - floor - adam:.2f} between are the rest of the "
        f"arithmetic (activations, "
        "densities, noise, norm of the gradient), reading the batch, and the loop"
    )
