"""Every tutorial does what it says: its code and its commands run in order, in an empty folder.

`make docs` runs three more, as notebooks.
"""

import re
import shlex
from pathlib import Path

import pytest

from pyro_bvae.cli import main

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = {"first", "gap", "own-program"}  # run by docs/notebooks.py
TUTORIALS = sorted({path.stem for path in (DOCS / "tutorials").glob("*.md")} - NOTEBOOKS)
_BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
@pytest.mark.filterwarnings("ignore")
def test_a_tutorial_runs_to_its_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    blocks, names = _BLOCK.findall(text), {"__name__": "tutorial"}
    assert blocks
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, f"{name}.md", "exec"), names)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "pyro-bvae" and main(words) == 0, line


def test_the_other_tutorials_are_notebooks() -> None:
    pages = re.search(r"PAGES = \((.*)\)", (DOCS / "notebooks.py").read_text(encoding="utf-8"))
    assert pages and set(re.findall(r'"([a-z-]+)"', pages[1])) == NOTEBOOKS
