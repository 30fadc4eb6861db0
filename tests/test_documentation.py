"""The README is short and its program prints the output beside it; every link of a page leads on."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pyro_bvae.evaluation.collapse.causes import Cause

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "analysis/README.md",
         *(path.relative_to(ROOT).as_posix() for folder in ("docs", "docs/tutorials")
           for path in sorted((ROOT / folder).glob("*.md")))]  # fmt: skip
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_the_readme_fits_on_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 150
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len(prose.split()) <= 700


@pytest.mark.slow
def test_the_program_of_the_readme_prints_the_output_beside_it() -> None:
    program, output = re.search(
        r"```python\n(.*?)```\s+```\n(.*?)```", README, flags=re.DOTALL
    ).groups()
    assert len(program.splitlines()) <= 20
    command = [sys.executable, "-W", "error", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    # Rounding differs between processors, and grows in training: which data are untrusted may, too.
    found, printed = (
        [line for line in text.splitlines() if "±" in line and "nats" not in line]
        for text in (finished.stdout, output)
    )
    assert len(found) == len(printed) == 6
    for one, other in zip(found, printed, strict=True):
        assert _NUMBER.sub("#", one).split() == _NUMBER.sub("#", other).split()
        for a, b in zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True):
            assert abs(float(a) - float(b)) <= 0.3 + 0.1 * abs(float(b))
    assert finished.stdout.split()[0] == output.split()[0] == "amortization"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_or_a_heading(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if ":" in target:
            address = urlsplit(target)  # of which `make linkcheck` follows the link
            assert address.scheme == "https" and "." in (address.hostname or ""), target
            continue
        name, _, heading = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"(?m)^#+ (.*)$", linked.read_text(encoding="utf-8"))
            assert heading in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


def test_every_page_is_in_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    contents = (docs / "index.md").read_text(encoding="utf-8")
    for path in (*docs.glob("*.md"), *docs.glob("tutorials/*.md")):
        name = path.relative_to(docs).as_posix()
        assert name in {"index.md", "gallery.md"} or f"({name})" in contents, name


def test_troubleshooting_has_every_code_of_the_program_and_no_other() -> None:
    """Codes are the first argument of findings, remarks and faults; verdicts end in '-gap'."""
    codes, calls = (
        {"amortization-gap", "approximation-gap", "beta-gap"},
        {"Finding", "Remark", "Fault"},
    )
    for path in (ROOT / "pyro_bvae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in calls and node.args:
                for word in ast.walk(node.args[0]):
                    if isinstance(word, ast.Constant) and word.value != "-gap":
                        codes.add(word.value)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\| `([a-z-]+)` \|", page)) == codes
    for cause in Cause:
        assert cause is Cause.HEALTHY or f"\n| {cause} |" in page


def test_every_claim_has_a_page_and_the_code_of_its_number() -> None:
    rows = [
        line.strip("|").split(" | ") for line in
        (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "the texts say" not in line
    ]  # fmt: skip
    assert rows
    for _, measured, where, script in rows:
        assert measured.strip() and re.search(r"\]\([\w/-]+\.md\)|/results/", where)
        assert (ROOT / script.strip(" |`")).is_file(), script
