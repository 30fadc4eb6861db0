"""Doors: a name is imported when it is first used, and no library before a function needs it."""

import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_bvae
from pyro_bvae.core.lazy import door, exports

ROOT = Path(pyro_bvae.__file__).parent
STUBS = sorted(ROOT.rglob("__init__.pyi"))
HEAVY = {
    "PIL",
    "anndata",
    "arviz",
    "h5py",
    "jinja2",
    "matplotlib",
    "pandas",
    "scipy.stats",
    "sklearn",
    "torchvision",
    "tyro",
    "xarray",
    "zuko",
}
FIT = """
import torch
from pyro_bvae import BetaVAE, Decoder, evidence, fit
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
decoder = Decoder(MLP(2, 4, hidden=(3,)), BernoulliLikelihood())
vae = BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(4, 4, hidden=(3,))))
fit(vae, torch.eye(4), beta=1.0, epochs=1, progress=False)
"""


def package(stub: Path) -> str:
    return ".".join(stub.parent.relative_to(ROOT.parent).parts)


def modules_after(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has imported after some code."""
    code = f"{code}\nimport sys\nprint('modules', *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(run.stdout.rpartition("modules ")[2].split())


def test_the_package_imports_neither_torch_nor_its_own_rooms() -> None:
    modules = modules_after("import pyro_bvae")
    assert not modules & (HEAVY | {"torch", "pyro", "numpy"})
    assert {name for name in modules if name.startswith("pyro_bvae")} == {
        "pyro_bvae",
        "pyro_bvae.core",
        "pyro_bvae.core.lazy",
        "pyro_bvae.core.moved",
    }


def test_a_fit_imports_no_library_of_figures_tables_or_statistics() -> None:
    assert not modules_after(FIT) & HEAVY


def test_a_submodule_imports_the_rooms_it_needs_and_no_other() -> None:
    modules = modules_after("import pyro_bvae.vae, pyro_bvae.training.settings")
    assert not modules & HEAVY
    rooms = {name.split(".")[1] for name in modules if name.startswith("pyro_bvae.")}
    assert not rooms & {"evaluation", "latents", "plots", "runs", "report", "cli"}


@pytest.mark.parametrize("stub", STUBS, ids=package)
def test_a_door_shows_the_names_of_its_stub(stub: Path) -> None:
    module = importlib.import_module(package(stub))
    assert module.__all__ == sorted(exports(stub)) == dir(module)
    for name, (origin, original) in exports(stub).items():
        value = getattr(module, name)
        if origin == package(stub):
            assert inspect.ismodule(value) and value.__name__ == f"{origin}.{original}"
        else:
            assert value is getattr(importlib.import_module(origin), original)
        assert vars(module)[name] is value, "the second use does not pass the door again"


def test_star_imports_take_the_names_of_the_door() -> None:
    namespace: dict[str, object] = {}
    exec("from pyro_bvae import *", namespace)
    assert set(pyro_bvae.__all__) == set(namespace) - {"__builtins__"}


def test_a_class_behind_a_door_pickles() -> None:
    assert pickle.loads(pickle.dumps(pyro_bvae.BetaVAE)) is pyro_bvae.BetaVAE


def test_help_shows_the_names_behind_a_door() -> None:
    import pydoc

    text = pydoc.render_doc(pyro_bvae, renderer=pydoc.plaintext)
    assert "class BetaVAE" in text and "inference_gaps(" in text


def test_a_name_that_is_none_is_a_missing_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'pyro_bvae' has no attribute 'BetaVAF'"):
        _ = pyro_bvae.BetaVAF
    with pytest.raises(ImportError, match="cannot import name 'BetaVAF'"):
        exec("from pyro_bvae import BetaVAF")


def test_a_library_that_a_submodule_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "__init__.pyi").touch()
    (folder / "room.py").write_text("import library_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    find, _, names = door("house", str(folder / "__init__.py"))
    assert names == []
    with pytest.raises(ModuleNotFoundError, match="library_that_nobody_has"):
        find("room")
