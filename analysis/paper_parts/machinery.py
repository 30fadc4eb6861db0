"""What all rows of `paper_tables.py` share: lines that are computed once, clocks and measurements that go on."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.common import processor
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae.evaluation import Estimate

Line = dict[str, str]
#: Columns of every table. `ours`, its errors and `spread` are of `quantity`; `spread` is the standard
#: deviation over the training seeds, and empty where there was one.
COLUMNS = (
    "line", "quantity", "published", "certainty", "ours", "standard_error", "monte_carlo_error",
    "spread", "images", "seeds", "setting", "differs", "note", "wall_seconds", "cpu_seconds",
    "processor",
)  # fmt: skip
NOT_RUN = "not run"
FIELDS = ("per_datum", "errors", "biases", "reliable")


class Place(NamedTuple):
    """Where a row finds its data and leaves its files.

    Attributes:
        data_root: Folder that holds MNIST/raw.
        counts: Folder of the .h5ad files.
        runs: Folder of checkpoints and of images that were measured.
        results: Folder of the tables and figures.
    """

    data_root: Path | None
    counts: Path | None
    runs: Path
    results: Path


class Clock:
    """Wall and processor time of a line, over all the commands that it took.

    Args:
        path: File that keeps the seconds between commands.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else [0.0, 0.0]
        self._before = (float(kept[0]), float(kept[1]))
        self._started = (time.perf_counter(), time.process_time())

    def seconds(self) -> tuple[float, float]:
        """Return wall and processor seconds."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = (
            a + b - c for a, b, c in zip(self._before, now, self._started, strict=True)
        )  # fmt: skip
        return wall, cpu

    def tick(self, *_: object) -> None:
        """Keep the seconds; a callback of `fit` too."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.seconds()), encoding="utf-8")


class Work(NamedTuple):
    """A line at work: the place, the folder of its own files, and its clock."""

    place: Place
    folder: Path
    clock: Clock


class Entry(NamedTuple):
    """A line of a table that may be computed.

    Attributes:
        line: Its name.
        quantity: The figure, and its unit.
        published: The figure to compare with; empty where there is none.
        certainty: "A" where it was read at its source, "B" or "A2" at second hand.
        setting: Data, model and training.
        differs: How the setting differs from the published one.
        cost: An estimate of the time, for lines that were not run.
        measure: Computes the columns that are left.
    """

    line: str
    quantity: str
    published: str
    certainty: str
    setting: str
    differs: str
    cost: str
    measure: Callable[[Work], Line]


class Row(NamedTuple):
    """A row of the issue: a table and, where `figure` is given, a picture of its lines."""

    name: str
    title: str
    needs: tuple[str, ...]
    entries: tuple[Entry, ...]
    figure: Callable[[list[Line], Place], Figure] | None = None

    @property
    def command(self) -> str:
        """The command that computes it."""
        options = {"data_root": "--data-root DATA", "counts": "--counts COUNTS"}
        return " ".join(
            ["python analysis/paper_tables.py --row", self.name, *(options[n] for n in self.needs)]
        )


# -- tables
# --------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Line]:
    """Return the lines of a table, none where it is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, lines: list[Line], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def name_of_folder(line: str) -> str:
    """Return the name of a line without what file systems dislike."""
    kept = "".join(letter if letter.isalnum() or letter in ".-" else " " for letter in line)
    return "-".join(kept.lower().split())


def compute(row: Row, place: Place, only: tuple[str, ...] = ()) -> list[Line]:
    """Compute the lines that a table does not have, and draw its figure.

    Each line is written when it is done, so that a command that is stopped loses one line's work at
    most, and of that no epoch or block of images that was finished.
    """
    path = place.results / f"{row.name}.csv"
    for entry in row.entries:
        if (only and entry.line not in only) or any(
            line["line"] == entry.line for line in read(path)
        ):
            continue
        folder = place.runs / row.name / name_of_folder(entry.line)
        clock = Clock(folder / "clock.json")
        measured = entry.measure(Work(place, folder, clock))
        wall, cpu = clock.seconds()
        given = {name: getattr(entry, name) for name in Entry._fields if name in COLUMNS}
        times = {"wall_seconds": f"{wall:.0f}", "cpu_seconds": f"{cpu:.0f}"}
        line = given | times | {"processor": processor()} | measured
        # Another command may have added lines meanwhile.
        names = [entry.line for entry in row.entries]
        lines = [*read(path), line]
        write(path, sorted(lines, key=lambda each: names.index(each["line"])))
        print({key: value for key, value in line.items() if value}, flush=True)
    lines = read(path)
    if row.figure is not None and lines:
        row.figure(lines, place).savefig(path.with_suffix(".png"), dpi=130)
    return lines


# -- measurements that go on where they stopped
# --------------------------------------------------------------------------------------------------


def kept(path: Path, compute_it: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return numbers that a file keeps, or compute them and keep them."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dict(compute_it())), encoding="utf-8")
        part.replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def in_blocks(
    folder: Path,
    x: Tensor,
    measure: Callable[[Tensor, int], Mapping[str, Estimate]],
    clock: Clock,
    block: int,
) -> dict[str, Estimate]:
    """Measure data block by block; a block that the folder has is not measured again.

    Args:
        folder: Where each block's values are kept.
        x: The data, ``(N, D)``.
        measure: Takes the data of a block and its number, a seed, and returns estimates by name.
        clock: Is told when a block is done.
        block: Data in a block.

    Returns:
        Each estimate over all data: value, both errors, the values of each datum, and which of them
        can be trusted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, dict[str, Tensor | None]]] = []
    for number, some in enumerate(x.split(block)):
        path = folder / f"{number:04d}.pt"
        if not path.exists():
            found = measure(some, number)
            values = {
                name: {field: getattr(estimate, field) for field in FIELDS}
                for name, estimate in found.items()
            }
            torch.save(values, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            clock.tick()
        parts.append(torch.load(path))
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: list[dict[str, Tensor | None]]) -> Estimate:
    columns = {
        field: None if parts[0][field] is None else torch.cat([part[field] for part in parts])  # type: ignore[misc]
        for field in FIELDS
    }
    values = columns["per_datum"]
    assert values is not None
    return Estimate.over_data(
        values, columns["errors"], columns["biases"], reliable=columns["reliable"]
    )


def columns_of(estimate: Estimate, sign: float = 1.0) -> Line:
    """Return the columns of one estimate."""
    return {
        "ours": f"{sign * estimate.value:.2f}",
        "standard_error": f"{estimate.standard_error:.2f}",
        "monte_carlo_error": f"{estimate.monte_carlo_error:.3f}",
        "images": f"{len(estimate.per_datum)}",
    }


def paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the mean difference of values of the same data, and its standard error."""
    difference = (one - other).double()
    return float(difference.mean()), float(difference.std()) / len(difference) ** 0.5
