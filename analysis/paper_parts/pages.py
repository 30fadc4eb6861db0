"""The tables of `docs/results.md`, from the csv files alone."""

from __future__ import annotations

import re
from pathlib import Path

from paper_parts.machinery import NOT_RUN, Line, Row, read

HEADS = ("", "published", "ours", "data", "seeds", "note")


def mark(name: str, end: bool = False) -> str:
    """Return the comment before, or after, the table of a row."""
    return f"<!-- {'end of ' if end else ''}paper table: {name} -->"


def ours_of(line: Line) -> str:
    """Return our figure with its errors."""
    said = line["ours"]
    if line["standard_error"]:
        said += f" ± {line['standard_error']}"
    if line["monte_carlo_error"]:
        said += f" (Monte Carlo {line['monte_carlo_error']})"
    if line["spread"]:
        said += f", seeds ± {line['spread']}"
    return said


def table(row: Row, results: Path) -> str:
    """Return the table of a row in Markdown: all its lines, those that were not run too."""
    done = {line["line"]: line for line in read(results / f"{row.name}.csv")}
    said = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for entry in row.entries:
        published = f"{entry.published} ({entry.certainty})" if entry.published else "none"
        if entry.line in done:
            line = done[entry.line]
            note = f"{line['note']}; {line['cpu_seconds']} CPU seconds".removeprefix("; ")
            cells = [entry.line, published, ours_of(line), line["images"], line["seeds"], note]
        else:
            note = f"`--only '{entry.line}'`, about {entry.cost}"
            cells = [entry.line, published, NOT_RUN, "", "", note]
        said.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(said)


def settings(row: Row) -> str:
    """Return the settings of a row's lines, and where they differ from the published ones."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for entry in row.entries:
        found.setdefault((entry.quantity, entry.setting, entry.differs), []).append(entry.line)
    said = []
    for (quantity, setting, differs), lines in found.items():
        other = f" Other than the published setting: {differs}." if differs else ""
        said.append(f"- {', '.join(f'*{line}*' for line in lines)}: {quantity}; {setting}.{other}")
    return "\n".join(said)


def section(row: Row, results: Path) -> str:
    """Return all that stands between the two marks of a row."""
    parts = [mark(row.name), f"`{row.command}`", table(row, results), settings(row)]
    if row.figure is not None and (results / f"{row.name}.png").exists():
        parts.append(f"![{row.title}](../analysis/results/paper_tables/{row.name}.png)")
    return "\n\n".join([*parts, mark(row.name, end=True)])


def peers_section(table_of_peers: Path) -> str:
    """Return the table of `peers.py`, a line for each package that was measured."""
    heads = {
        "package": lambda line: f"{line['package']} {line['version']}",
        "own evidence": lambda line: line["own_evidence"],
        "evidence by `pyro_bvae`": lambda line: (
            f"{line['evidence']} ± {line['standard_error']} (Monte Carlo {line['monte_carlo_error']})"
        ),
        "training, CPU s": lambda line: line["train_cpu_seconds"],
        "own evidence, CPU s": lambda line: line["own_evidence_cpu_seconds"],
        "`pyro_bvae` evidence, CPU s": lambda line: line["evidence_cpu_seconds"],
        "peak MiB": lambda line: line["peak_mib"],
        "lines": lambda line: line["lines_of_code"],
    }
    said = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in read(table_of_peers):
        said.append("| " + " | ".join(cell(line) for cell in heads.values()) + " |")
    return "\n\n".join([mark("peers"), "\n".join(said), mark("peers", end=True)])


def with_tables(page: str, rows: list[Row], results: Path) -> str:
    """Return a page whose tables are those of the csv files.

    Raises:
        ValueError: if the page lacks the marks of a row.
    """
    sections = {row.name: section(row, results) for row in rows}
    sections["peers"] = peers_section(results.parent / "peers" / "table.csv")
    for name, text in sections.items():
        pattern = re.escape(mark(name)) + ".*?" + re.escape(mark(name, end=True))
        if len(re.findall(pattern, page, flags=re.DOTALL)) != 1:
            raise ValueError(f"the page has no two comments around a table of {name}")
        page = re.sub(pattern, lambda _, text=text: text, page, flags=re.DOTALL)
    return page
