"""Is a number right when it calls itself trusted? Coverage of the estimates that say so, against exact values.

``guides``: evidence from guides that are too narrow, too wide or misplaced, for every proposal and average.
``annealing``: annealed evidence with few and with many temperatures and chains.
``bounds``: the ELBO where log weights have heavy tails.
``gaps`` and ``inversions``: posteriors of two modes, of which a guide knows one, and of one mode.

A run goes on where it stopped: a setting that is in a table is not measured again. Parts can run at once.

    python analysis/trust.py                      # all, with 1,000 repetitions a setting: hours of one core
    python analysis/trust.py --only guides        # one part
    python analysis/trust.py --quick              # coarser settings and fewer repetitions, in under five minutes
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from trust_parts import annealing, bounds, guides, invert_modes, modes, report

RESULTS = Path(__file__).parent / "results" / "trust"
Row = dict[str, Any]


def measure_guides(path: Path, quick: bool, repetitions: int) -> None:
    """Add the settings of importance sampling that are not there yet."""
    done = {(*(row[name] for name in guides.Cell._fields),) for row in read(path)}
    for cell in guides.cells(quick):
        if tuple(map(str, cell)) not in done:
            # Draws of fifty latents take ten times as long: fewer repetitions, which the table says.
            append(path, guides.rows(cell, repetitions if cell.latents <= 10 else max(1, 3 * repetitions // 10)))


def measure_bounds(path: Path, quick: bool, repetitions: int) -> None:
    """Add the settings of the ELBO that are not there yet."""
    done = {(*(row[name] for name in bounds.Cell._fields),) for row in read(path)}
    for cell in bounds.cells(quick):
        if tuple(map(str, cell)) not in done:
            append(path, [bounds.row(cell, repetitions)])


def measure_rest(rows: Callable[[bool, int], Iterator[Row]]) -> Callable[[Path, bool, int], None]:
    """Return what measures a part whole, if it is not there yet."""

    def measure(path: Path, quick: bool, repetitions: int) -> None:
        if not path.exists():
            append(path, list(rows(quick, repetitions)))

    return measure


PARTS: dict[str, Callable[[Path, bool, int], None]] = {
    "guides": measure_guides,
    "annealing": measure_rest(annealing.all_rows),
    "bounds": measure_bounds,
    "gaps": measure_rest(lambda quick, _: modes.gaps_rows(10 if quick else 50)),
    "inversions": measure_rest(lambda quick, _: invert_modes.all_rows(10 if quick else 50)),
}


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
        PARTS[part](folder / f"{part}.csv", quick, repetitions)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int, help="of each setting: 1,000, or 200 with --quick")
    given = parser.parse_args()
    main(given.only, given.quick, given.repetitions or (200 if given.quick else 1000))
