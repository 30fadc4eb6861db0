"""The house: imports go down, private names stay at home, public names are documented, files stay small."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyro_bvae

ROOT = Path(pyro_bvae.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
STUBS = sorted(ROOT.rglob("__init__.pyi"))
FLOORS = [
    ("core", "compilation", "program", "distributions"),
    ("networks", "priors", "likelihoods", "posteriors", "datasets"),
    ("vae", "oracle"),
    ("training", "evaluation"),
    ("plots", "report", "runs", "latents", "cli", "__main__", "__init__"),
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def unit(path: Path) -> str:
    """Return the module or package directly below ``pyro_bvae`` that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """Return (module below ``pyro_bvae``, names) for every import of the package in a file."""
    results = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyro_bvae":
            assert node.level == 0, f"{path}: relative import"
            names = [alias.name for alias in node.names]
            module = node.module.partition(".")[2]
            results += [(module, names)] if module else [(name, []) for name in names]
        elif isinstance(node, ast.Import):
            results += [
                (a.name.partition(".")[2], []) for a in node.names if a.name.startswith("pyro_bvae")
            ]
    return results


def test_every_module_has_a_floor() -> None:
    assert {unit(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES + STUBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_and_take_no_private_names(path: Path) -> None:
    here = unit(path)
    for module, names in imports(path):
        there = module.split(".")[0]
        assert FLOOR[there] <= FLOOR[here], f"{here} imports {module} from a floor above"
        if there != here:
            assert not [name for name in names if name.startswith("_")], (
                f"{here} imports private names of {module}"
            )
            if FLOOR[here] == 1:
                assert FLOOR[there] == 0, f"the part {here} knows the part {there}"
            if here == "evaluation":
                assert there != "training", "evaluation never trains"
            if FLOOR[here] == 3 and there == "datasets":
                holders = {"Dataset", "LazyDataset", "Splits"}
                assert module == "datasets" and set(names) <= holders, f"{here} imports {module}"


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
    assert text.count("\n") <= 440
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
