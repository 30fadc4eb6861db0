"""Is a number right when it calls itself trusted? Coverage of the estimates that say so, against exact values.

- ``guides``: evidence from guides that are too narrow, too wide or misplaced, for every proposal
  and average.
- ``annealing``: annealed evidence with few and with many temperatures and chains.
- ``bounds``: the ELBO where log weights have heavy tails.
- ``gaps`` and ``inversions``: posteriors of two modes, of which a guide knows one, and of one mode.

A run goes on where it stopped: a setting that is in a table is not measured again. Parts can run at
once.

    python analysis/trust.py                   # all, 1,000 repetitions a setting: hours of one core
    python analysis/trust.py --only guides     # one part
    python analysis/trust.py --quick           # coarser and fewer: under five minutes
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trust_parts import annealing, bounds, guides, invert_modes, modes, report

RESULTS = Path(__file__).parent / "results" / "trust"
Row = dict[str, Any]
# What measures one setting.
Measured = Callable[[], list[Row]]


def guide_cells(quick: bool, repetitions: int) -> Iterator[tuple[Any, Measured]]:
    """Yield settings of importance sampling.

    Those of fifty latents, the dearest, have fewer repetitions.
    """
    for cell in guides.cells(quick):
        count = repetitions if cell.latents <= 10 else max(1, 3 * repetitions // 10)
        yield cell, partial(guides.rows, cell, count)


def bound_cells(quick: bool, repetitions: int) -> Iterator[tuple[Any, Measured]]:
    """Yield settings of the ELBO."""
    for cell in bounds.cells(quick):
        yield cell, lambda cell=cell: [bounds.row(cell, repetitions)]


def annealing_cells(quick: bool, repetitions: int) -> Iterator[tuple[Any, Measured]]:
    """Yield settings of annealing, each with repetitions of its own number."""
    for cell in annealing.annealing_cells(quick):
        yield cell, lambda cell=cell: [annealing.annealing_row(cell)]


def gap_cells(quick: bool, repetitions: int) -> Iterator[tuple[Any, Measured]]:
    """Yield the posteriors of two modes and of one whose gaps are measured."""
    yield {}, lambda: list(modes.gaps_rows(10 if quick else 100))


def inversion_cells(quick: bool, repetitions: int) -> Iterator[tuple[Any, Measured]]:
    """Yield the methods of inversion, NUTS on fewer posteriors."""
    counts = {"variational": 5} if quick else {"variational": 50, "batched": 50, "nuts": 12}
    for method, count in counts.items():
        yield {"method": method}, partial(invert_modes.invert_rows, count, method=method)


PARTS: dict[str, Callable[[bool, int], Iterator[tuple[Any, Measured]]]] = {
    "guides": guide_cells,
    "annealing": annealing_cells,
    "bounds": bound_cells,
    "gaps": gap_cells,
    "inversions": inversion_cells,
}


def measure(path: Path, cells: Iterator[tuple[Any, Measured]]) -> None:
    """Add the settings to a table that are not in it yet."""
    rows = read(path)
    for cell, measured in cells:
        names = (
            cell._asdict()
            if isinstance(cell, tuple)
            else cell
            if isinstance(cell, dict)
            else vars(cell)
        )
        own = {name: str(value) for name, value in names.items()}
        if not any(own.items() <= row.items() for row in rows):
            append(path, measured())


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, none where there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def append(path: Path, rows: list[Row]) -> None:
    """Add rows to a table."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main(parts: list[str], quick: bool, repetitions: int) -> None:
    """Measure, and write the summary and the figure."""
    torch.set_num_threads(1)
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        print(f"measuring {part}", flush=True)
        measure(folder / f"{part}.csv", PARTS[part](quick, repetitions))
    tables = {part: read(folder / f"{part}.csv") for part in PARTS}
    lines = report.summary(tables)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    (folder / "reading.txt").write_text(report.reading(tables), encoding="utf-8")
    report.figure_of(tables).savefig(folder / "figure.png", dpi=150)
    print(report.reading(tables))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--repetitions", type=int, help="of each setting: 1,000, or 200 with --quick"
    )
    given = parser.parse_args()
    main(given.only, given.quick, given.repetitions or (200 if given.quick else 1000))
