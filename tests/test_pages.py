"""Every code block of every page runs, and every command line has a command and options that exist.

A page's Python blocks run in order, in an empty folder, with the names of those before them. So do
its ``bash`` blocks. Command lines of other blocks and of the text are parsed: they need data or time
that a test has not.
"""

import re
import shlex
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from pyro_bvae.cli import _main, main
from pyro_bvae.cli.usage import check_usage, options_of
from pyro_bvae.core.inputs.bounds import check_options

ROOT = Path(__file__).parent.parent
GENERATED = {"gallery.md", "reference", "_build"}  # by docs/conf.py
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    if not GENERATED & set(path.parts)
}
NOTEBOOKS = {f"docs/tutorials/{name}.md" for name in ("first", "gap", "own-program")}
# Pages whose blocks run elsewhere.
ELSEWHERE = {
    "README.md": "test_documentation.py compares the output of its program",
    **dict.fromkeys(NOTEBOOKS, "docs/notebooks.py runs them as notebooks in `make docs`"),
}
# Modules that no dependency installs: their calls are taken, and do nothing.
STAND_INS = ("mlflow", "scanpy", "wandb")
FAST = {
    "docs/calibration.md",
    "docs/data.md",
    "docs/presets.md",
}  # the blocks of the others take seconds
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SCRIPT = re.compile(r"python (?:-m )?((?:analysis|examples|tests)[./]\w[\w./]*)((?: [^\s|&]+)*)")


def blocks(page: str, *kinds: str) -> list[tuple[str, str]]:
    return [(kind, code) for kind, code in _BLOCK.findall(PAGES[page]) if kind in kinds]


def commands(code: str) -> list[list[str]]:
    """Return the words of each call of the command line in a block or a span of code."""
    lines = re.sub(r"\\\n", " ", code).splitlines()
    calls = [call.strip() for line in lines for call in re.split(r"&&|\|", line.split(" #")[0])]
    starts = re.compile(r"(?:torchrun .*)?(?:pyro-bvae|-m pyro_bvae) (?=[a-z])")
    return [shlex.split(starts.sub("", call, count=1)) for call in calls if starts.match(call)]


def run(page: str, kind: str, code: str, names: dict[str, object]) -> None:
    if kind == "python":
        exec(compile(code, page, "exec"), names)
    else:
        assert commands(code), f"{page}: {code}"
        for words in commands(code):
            assert main(words) == 0, words


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page in FAST else [pytest.mark.slow])
        for page in PAGES
        if page not in ELSEWHERE and blocks(page, "python", "bash")
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_a_page_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in STAND_INS:
        monkeypatch.setitem(sys.modules, module, MagicMock())
    names: dict[str, object] = {"__name__": "page"}
    for kind, code in blocks(page, "python", "bash"):
        run(page, kind, code, names)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_of_a_page_is_one(page: str) -> None:
    calls = [words for _, code in blocks(page, "bash", "sh", "") for words in commands(code)]
    for span in _CODE.findall(_BLOCK.sub("", PAGES[page])):
        calls += [[word for word in words if word != "..."] for words in commands(span)]
    for words in calls:
        if len(words) == 1:  # a command named in a sentence
            assert words[0] in _main._COMMANDS
            continue
        given_words = _main.completed(_main._COMMANDS, _main.output_of(words)[0])
        given = check_usage(_main._COMMANDS, given_words)
        if not {"--resume", "--help"} & set(words):  # they read a run, or end the process
            check_options(_main._parse(given_words, given))


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def test_every_option_in_a_text_is_one() -> None:
    known = {"--json", "--quiet", "--help"}  # of all commands
    known |= {"--nproc-per-node", "--check", "--extra"}  # of torchrun, sha256sum and pip
    for kind in _main._COMMANDS.values():
        for option in options_of(kind).values():
            known |= {option.flag, option.flag.replace("--", "--no-", 1)}
    for folder in ("analysis", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            known |= flags(path.read_text(encoding="utf-8"))
    unknown = {page: flags(text) - known for page, text in PAGES.items() if flags(text) - known}
    assert not unknown


@pytest.mark.parametrize("page", PAGES)
def test_every_script_of_a_page_is_there_and_has_its_options(page: str) -> None:
    for script, words in _SCRIPT.findall(PAGES[page]):
        path = ROOT / (script if script.endswith(".py") else f"{script.replace('.', '/')}.py")
        if path.with_suffix("").is_dir():
            path = path.with_suffix("") / "__main__.py"
        assert path.exists(), script
        for flag in flags(words):
            assert re.search(rf"{flag}\b|\b{flag[2:].replace('-', '_')}\b", path.read_text("utf-8"))


def test_the_other_tutorials_are_notebooks() -> None:
    pages = re.search(r"PAGES = \((.*)\)", (ROOT / "docs" / "notebooks.py").read_text("utf-8"))
    assert pages
    assert {f"docs/tutorials/{name}.md" for name in re.findall(r'"([a-z-]+)"', pages[1])} == (
        NOTEBOOKS
    )
