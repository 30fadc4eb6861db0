"""Write three tutorials as notebooks, with their outputs: ``python docs/notebooks.py``.

The notebooks are made of the pages in ``docs/tutorials`` and lie in ``docs/_build/notebooks``. Commands become cells
of the shell. An error in a cell ends the run.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
PAGES = ("first", "gap", "own-program")
_BLOCK = re.compile(r"```(python|bash)\n(.*?)```\n", re.DOTALL)


def notebook(text: str) -> nbformat.NotebookNode:
    """Return a page as cells of text and of code."""
    cells, place = [], 0
    for block in _BLOCK.finditer(text):
        cells.append(nbformat.v4.new_markdown_cell(text[place : block.start()].strip()))
        kind, code = block.groups()
        lines = code.rstrip().splitlines()
        shown = lines if kind == "python" else [f"!{line}" for line in lines]
        cells.append(nbformat.v4.new_code_cell("\n".join(shown)))
        place = block.end()
    cells.append(nbformat.v4.new_markdown_cell(text[place:].strip()))
    return nbformat.v4.new_notebook(cells=[cell for cell in cells if cell.source])


def main() -> None:
    """Write and execute the notebooks."""
    folder = DOCS / "_build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        made = notebook((DOCS / "tutorials" / f"{page}.md").read_text(encoding="utf-8"))
        NotebookClient(made, timeout=600, resources={"metadata": {"path": folder}}).execute()
        nbformat.write(made, folder / f"{page}.ipynb")
        print(folder / f"{page}.ipynb")


if __name__ == "__main__":
    main()
