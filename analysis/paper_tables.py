"""Published figures of the field beside ours: one row a command, resumable.

    python analysis/paper_tables.py --list
    python analysis/paper_tables.py --row background --data-root FOLDER_THAT_HOLDS_MNIST
    python analysis/paper_tables.py --row counts --counts FOLDER_WITH_H5AD_FILES
    python analysis/paper_tables.py --pages          # the tables of docs/results.md, from the csv files

Lines that `results/paper_tables/ROW.csv` has are not computed again; `--only LINE ...` computes some of a
row. A command that was stopped goes on: training from its last epoch, an evaluation from its last
block of images. Sizes are those of an hour of one core for all rows together, and stand in each line.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch
from paper_parts import pages
from paper_parts.machinery import Place, Row, compute, read

ANALYSIS = Path(__file__).parent
RESULTS = ANALYSIS / "results" / "paper_tables"
PAGE = ANALYSIS.parent / "docs" / "results.md"
NAMES = ("iwae", "gaps", "background", "priors", "rate_distortion", "sprites", "counts")


def row_of(name: str) -> Row:
    """Return a row by its name."""
    row: Row = importlib.import_module(f"paper_parts.{name}").ROW
    return row


def listing(results: Path = RESULTS) -> str:
    """Return the lines of all rows, and which of them have been computed."""
    said = []
    for name in NAMES:
        row = row_of(name)
        done = {line["line"] for line in read(results / f"{name}.csv")}
        said.append(f"{name}: {row.title}\n  {row.command}")
        for entry in row.entries:
            state = "computed" if entry.line in done else f"not run, about {entry.cost}"
            said.append(f"  - {entry.line} ({state})")
    return "\n".join(said)


def main() -> None:
    """Compute a row, list them, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print all lines and their state")
    parser.add_argument(
        "--pages", action="store_true", help="write the tables into docs/results.md"
    )
    parser.add_argument("--row", choices=NAMES, help="the row to compute")
    parser.add_argument("--only", nargs="+", default=(), metavar="LINE", help="lines of the row")
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--counts", type=Path, help="folder of smfish.h5ad and umi10k.h5ad")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper_tables"))
    given = parser.parse_args()
    if given.list:
        print(listing())
    if given.row:
        row = row_of(given.row)
        for need in row.needs:
            if getattr(given, need) is None:
                parser.error(f"row {given.row} needs --{need.replace('_', '-')}")
        unknown = set(given.only) - {entry.line for entry in row.entries}
        if unknown:
            parser.error(f"row {given.row} has no line {', '.join(sorted(unknown))}; see --list")
        compute(row, Place(given.data_root, given.counts, given.runs, RESULTS), tuple(given.only))
    if given.pages:
        rows = [row_of(name) for name in NAMES]
        PAGE.write_text(pages.with_tables(PAGE.read_text("utf-8"), rows, RESULTS), "utf-8")
    if not (given.list or given.row or given.pages):
        parser.error("one of --list, --row and --pages is needed")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
