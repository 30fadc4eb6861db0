"""``--ablation``: the time that each trick saves, alone, beside the whole, in alternated turns."""

from __future__ import annotations

import contextlib
import importlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.common import Row, Setting, images, make_vae, processor, seconds, write
from benchmarks.contenders import COMPILED, Task, contenders_for
from benchmarks.evidence import ours as evidence_of
from benchmarks.turns import in_turns

TABLE = "ablation.csv"


class Trick(NamedTuple):
    """A trick: the attribute of a module that it stands in, and the plain way in its place."""

    module: str
    attribute: str
    plain: Any

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Run the body without the trick."""
        owner: Any = importlib.import_module(f"pyro_bvae.{self.module}")
        *classes, name = self.attribute.split(".")
        for part in classes:
            owner = getattr(owner, part)
        with mock.patch.object(owner, name, self.plain):
            yield


def _nothing(*_: object) -> None:
    """Leave a graph as it is."""


_PASSES = "compilation.graph_passes"
STEP: dict[str, Trick] = {
    "Adam without optimizer.step": Trick(
        "training.steps.step", "Step._update", lambda step: step.optimizer.step()
    ),
    "biases apart from products": Trick(_PASSES, "take_biases_apart", _nothing),
    "products turned": Trick(_PASSES, "turn_products", _nothing),
    "constants folded": Trick(_PASSES, "fold_constants", _nothing),
}
EVIDENCE: dict[str, Trick] = {
    "affine maps by oneDNN": Trick("networks.linear", "Linear.can_fuse", lambda *_: False),
    "four passes of draws at once": Trick("evaluation.marginal.importance", "_PASSES_AHEAD", 1),
}


def without(name: str) -> Callable[[Task], None]:
    """Return the contender that trains by the compiled step without a trick."""

    def run(task: Task) -> None:
        with STEP[name].left_out():
            contenders_for("MLP", task.x.device.type)[COMPILED](task)

    return run


def row(trick: str, call: str, whole: list[float], less: list[float], setting: Setting) -> Row:
    """Return a line of the table; times of one index are of one round."""
    ratios = [b / a for a, b in zip(whole, less, strict=True)]
    return {
        "trick": trick,
        "call": call,
        "milliseconds": f"{1e3 * statistics.median(whole):.3f}",
        "least": f"{1e3 * min(whole):.3f}",
        "without": f"{1e3 * statistics.median(less):.3f}",
        "least_without": f"{1e3 * min(less):.3f}",
        "ratio_of_least": f"{min(less) / min(whole):.3f}",
        "median_ratio": f"{statistics.median(ratios):.3f}",
        "turns": setting.repeats,
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }


def step_rows(setting: Setting) -> list[Row]:
    """Time the compiled step of the MLP, whole and without each trick, each in a process of its own."""
    whole = f"MLP/{COMPILED}"
    names = [whole, *(f"MLP/without {name}" for name in STEP)]
    with tempfile.TemporaryDirectory() as cache:
        _, rounds = in_turns(names, setting, Path(cache))
    each = {name: [r[name] / setting.steps for r in rounds] for name in names if name in rounds[0]}
    return [
        row(name, "compiled step", each[whole], each[f"MLP/without {name}"], setting)
        for name in STEP
        if f"MLP/without {name}" in each
    ]


def rows_in_turns(
    tricks: dict[str, Trick], call: str, run: Callable[[], object], setting: Setting
) -> list[Row]:
    """Time a call with and without each trick by turns in this process."""
    rows = []
    for name, trick in tricks.items():
        whole: list[float] = []
        less: list[float] = []
        for turn in range(setting.repeats + 1):
            order = (whole, less) if turn % 2 == 0 else (less, whole)
            for taken in order:
                with contextlib.nullcontext() if taken is whole else trick.left_out():
                    taken.append(seconds(run, setting.device))
        rows.append(row(name, call, whole[1:], less[1:], setting))
    return rows


def benchmark_ablation(setting: Setting) -> None:
    """Write the table of the tricks."""
    vae, x = make_vae(setting.device), images(setting, setting.num_data)
    evidence = evidence_of(vae, x)
    rows = step_rows(setting)
    rows += rows_in_turns(EVIDENCE, f"evidence of {len(x)} data", evidence.run, setting)
    write(setting, rows, TABLE)
