"""The house: rooms on floors, no circles, private names at home, doors that list and no more, short
files."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyro_bvae
from tests.house import FLOORS, ROOT_FILES, House

ROOT = Path(pyro_bvae.__file__).parent
HOUSE = House(ROOT)
FILES = sorted(ROOT.rglob("*.py"))
DOORS = sorted(name for name, path in HOUSE.files.items() if path.name == "__init__.py")
# Breaches that are known: a list that only shrinks.
MANY_ARGUMENTS = {"fit", "sweep"}


def test_every_room_has_a_floor_and_the_root_four_files() -> None:
    assert HOUSE.rooms <= {room for floor in FLOORS for room in floor}
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_FILES


def test_imports_go_strictly_down() -> None:
    assert not HOUSE.arrows_up()


def test_no_circle_of_imports() -> None:
    assert not HOUSE.circles()


def test_private_names_stay_in_their_files() -> None:
    assert not HOUSE.private_imports()


def test_no_module_bears_the_name_of_a_function_above_it() -> None:
    assert not HOUSE.shadowed()


def test_private_names_of_libraries_are_in_two_rooms() -> None:
    rooms = ("core", "compilation")
    assert not [place for place in HOUSE.foreign_private() if place.split(".")[0] not in rooms]


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_short_and_without_logic(door: str) -> None:
    assert len(HOUSE.files[door].read_text(encoding="utf-8").splitlines()) < 40
    logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try)
    assert not [node for node in ast.walk(HOUSE.trees[door]) if isinstance(node, logic)]


def test_folders_and_argument_lists_are_short() -> None:
    assert max(HOUSE.folder_sizes().values()) <= 14
    counts = HOUSE.argument_counts()
    assert {name.split(".")[-1] for name, n in counts.items() if n > 10} <= MANY_ARGUMENTS


def test_lines_are_narrow_and_say_no_what() -> None:
    assert not HOUSE.wide_lines()
    assert HOUSE.whats() < 1


def test_evaluation_never_trains_and_a_part_knows_no_other() -> None:
    assert ("evaluation", "training") not in HOUSE.arrows
    parts = ("priors", "likelihoods", "posteriors")
    assert not [pair for pair in HOUSE.arrows if pair[0] in parts and pair[1] in parts]


def test_measurements_see_what_is_wrong(tmp_path: Path) -> None:
    """A house with one of each mistake."""
    package = tmp_path / "wrong"
    for folder in ("core", "training", "evaluation"):
        (package / folder).mkdir(parents=True)
    texts = {
        "__init__": "from wrong.training.loop import fit",
        "core/__init__": "",
        "core/a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wrong.core.b "
        "import B",
        "core/b": "from wrong.core.a import _a\nclass B: ...",
        "training/__init__": "",
        "training/fit": "from wrong.core import b\nb.other._hidden",
        "training/loop": "def fit(): ...",
        "evaluation/__init__": "",
        "evaluation/c": "from wrong.training.loop import fit\ndef g():\n    'What a what.'",
    }
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    house = House(package)
    assert house.circles() == [{"core.a", "core.b"}]
    assert house.arrows_up() == {("evaluation", "training")}
    assert [each.names for each in house.private_imports()] == [("_a",)]
    assert house.shadowed() == ["training.fit"]
    assert house.foreign_private() == ["training.fit:2 _hidden"]
    assert house.whats() == pytest.approx(2000 / 3)


def public_objects() -> list[tuple[str, object]]:
    results = {f"pyro_bvae.{name}": getattr(pyro_bvae, name) for name in pyro_bvae.__all__}
    for info in pkgutil.walk_packages([str(ROOT)], "pyro_bvae."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        results[info.name] = module
        for name, value in vars(module).items():
            if (
                not name.startswith("_")
                and getattr(value, "__module__", None) == info.name
                and callable(value)
            ):
                results[f"{info.name}.{name}"] = value
    return sorted(results.items())


@pytest.mark.parametrize(
    ("name", "value"), public_objects(), ids=[name for name, _ in public_objects()]
)
def test_public_names_are_documented_and_annotated(name: str, value: object) -> None:
    assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        bare = [
            p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty
        ]
        assert not bare and signature.return_annotation is not inspect.Signature.empty, (
            f"{name}: {bare}"
        )


def test_the_promised_names_are_there() -> None:
    promised = {
        "BetaVAE",
        "Decoder",
        "Context",
        "fit",
        "sweep",
        "elbo",
        "evidence",
        "inference_gaps",
        "load",
    }
    promised |= {"decompose_kl", "rate_distortion", "diagnose", "audit"}
    spaces = {
        "priors",
        "likelihoods",
        "posteriors",
        "networks",
        "datasets",
        "training",
        "evaluation",
        "oracle",
        "plots",
    }
    assert promised | spaces <= set(pyro_bvae.__all__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 54, f"{node.name} has {lines} lines"


def test_no_file_speaks_of_a_machine() -> None:
    repository = ROOT.parent
    sources = [
        p
        for folder in ("pyro_bvae", "examples", "analysis", "tests")
        for p in (repository / folder).rglob("*.py")
    ]
    texts = [
        *sources,
        *repository.glob("*.md"),
        repository / "Makefile",
        repository / "pyproject.toml",
    ]
    home = re.compile(r"/(?:work|root|home|Users)/\w")
    for path in texts:
        if path.exists() and path.name != "test_house.py":
            assert not home.search(path.read_text(encoding="utf-8")), path
