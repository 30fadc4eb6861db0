"""Public names of 0.1.0 that moved: for one release they work where they were, with a warning.

``MOVED`` says for each old place which doors show its names today. It is read by the doors, for a
name that they no longer show, and by the last finder of ``sys.meta_path``, for an import of a
module that is gone.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

_EVALUATION = (
    "collapse",
    "gaps",
    "geometry",
    "information",
    "inversion",
    "marginal",
    "program_audit",
    "refit",
    "samples",
    "verification",
)
#: Old module, and the modules where its names are now, all below ``pyro_bvae``.
MOVED: dict[str, tuple[str, ...]] = {
    "annotate": ("runs",),
    "catalogue": ("runs",),
    "configs": ("runs",),
    "context": ("core.context",),
    "count_plots": ("plots",),
    "coverage_plots": ("plots",),
    "curve_plots": ("plots",),
    "disentanglement_plots": ("plots",),
    "drawing": ("plots.style",),
    "errors": ("core.errors",),
    "files": ("core.atomic_files",),
    "geometry_plots": ("plots",),
    "information_plots": ("plots",),
    "inversion_plots": ("plots",),
    "latent_parts": ("latents",),
    "latent_plots": ("plots",),
    "latent_results": ("latents",),
    "modulated": ("networks.modulated",),
    "randomness": ("core.seeds",),
    "snapshots": ("runs",),
    "sweeps": ("runs",),
    "datasets.base": ("datasets",),
    "datasets.cells": ("datasets",),
    "datasets.digits": ("datasets",),
    "datasets.factor_arrays": ("datasets",),
    "datasets.files": ("datasets",),
    "datasets.negative_binomial": ("datasets",),
    "datasets.splitting": ("datasets",),
    "datasets.sprites": ("datasets",),
    "datasets.streams": ("datasets", "datasets.seeds"),
    "datasets.torchvision_images": ("datasets",),
    "evaluation": tuple(f"evaluation.{folder}" for folder in _EVALUATION),
    "evaluation.annealing": ("evaluation.marginal",),
    "evaluation.audit": ("evaluation.program_audit",),
    "evaluation.averages": ("evaluation.marginal.averages",),
    "evaluation.bounds": ("evaluation.marginal",),
    "evaluation.collapse_causes": ("evaluation.collapse",),
    "evaluation.collapse_words": ("evaluation.collapse",),
    "evaluation.coverage": ("evaluation.information",),
    "evaluation.coverage_tests": ("evaluation.information",),
    "evaluation.disentanglement.battery": ("evaluation.disentanglement",),
    "evaluation.disentanglement.groups": ("evaluation.disentanglement",),
    "evaluation.disentanglement.importances": ("evaluation.disentanglement",),
    "evaluation.disentanglement.mutual_information": ("evaluation.disentanglement",),
    "evaluation.disentanglement.ranking": ("evaluation.disentanglement",),
    "evaluation.disentanglement.separated": ("evaluation.disentanglement",),
    "evaluation.export": ("evaluation",),
    "evaluation.geodesics": ("evaluation.geometry",),
    "evaluation.importance": ("evaluation.marginal",),
    "evaluation.information_latents": ("evaluation.information",),
    "evaluation.inversion.invert": ("evaluation.inversion",),
    "evaluation.joined": ("evaluation",),
    "evaluation.predictive_checks": ("evaluation.samples",),
    "evaluation.proposals": ("evaluation.marginal",),
    "evaluation.rate_distortion": ("evaluation.information",),
    "evaluation.refit_settings": ("evaluation.refit",),
    "evaluation.sample_features": ("evaluation.samples",),
    "evaluation.sample_quality": ("evaluation.samples",),
    "evaluation.sample_scores": ("evaluation.samples",),
    "evaluation.schedule": ("evaluation.marginal",),
    "evaluation.summary": ("evaluation",),
    "report.build": ("report",),
    "training.beta_conditioned": ("training",),
    "training.checklist": ("training",),
    "training.controlled_capacity": ("training",),
    "training.fit": ("training",),
    "training.free_bits": ("training",),
    "training.health": ("training",),
    "training.importance_weighted": ("training",),
    "training.loss": ("training",),
    "training.start": ("training",),
    "training.sweep": ("training",),
    "training.total_correlation": ("training",),
}
#: Old name, and the new one.
RENAMED = {
    "evaluation.Bound": "ElboParts",
    "evaluation.bound": "elbo_parts",
    "evaluation.bounds.Bound": "ElboParts",
    "evaluation.bounds.bound": "elbo_parts",
    "evaluation.Coverage": "HoleMass",
    "evaluation.coverage": "hole_mass",
    "evaluation.coverage.Coverage": "HoleMass",
    "evaluation.coverage.coverage": "hole_mass",
    "evaluation.collapse_causes.Evidence": "Measurements",
}


def new_place(old: str, name: str) -> tuple[ModuleType, str] | None:
    """Return the module, and the name there, of a name that an old module had; None for no such."""
    root, _, place = old.partition(".")
    new = RENAMED.get(f"{place}.{name}", name)
    modules = () if new.startswith("_") else MOVED.get(place, ())
    for path in modules:
        module = import_module(f"{root}.{path}")
        if new in dir(module):
            return module, new
    return None


def load_moved(old: str, name: str) -> Any:
    """Return the object that a name of an old module stands for, and warn of its new path.

    Args:
        old: Full name of the module or package where the name was in 0.1.0.
        name: The name there.

    Raises:
        AttributeError: if there was no such name, or there is none today.
    """
    place = new_place(old, name)
    if place is None:
        raise AttributeError(f"module {old!r} has no attribute {name!r}")
    module, new = place
    path = f"{module.__name__}.{new}"
    warnings.warn(
        f"{old}.{name} is now {path}; the old path goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(module, new)


P = ParamSpec("P")
T = TypeVar("T")


def grouped(
    argument: str, record: type[Any], **fields: str
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take for one release, with a warning, keywords that a record holds today.

    Args:
        argument: The function's argument that takes the record; None stands for its defaults.
        record: A frozen data class.
        **fields: The old keywords, each with its field of the record.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> T:
            old = [name for name in fields if name in given]
            if old:
                values = {fields[name]: given.pop(name) for name in old}
                today = ", ".join(f"{name}=..." for name in values)
                warnings.warn(
                    f"{', '.join(map(repr, old))} of {function.__name__} is now"
                    f" {argument}={record.__name__}({today}); the old spelling goes with the next"
                    " release",
                    DeprecationWarning,
                    stacklevel=2,
                )
                current: Any = given.get(argument) or record()
                given[argument] = replace(current, **values)
            return function(*args, **given)

        return call

    return decorate


class _OldModule(ModuleType):
    """A module of 0.1.0, whose names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        # The import hid the object of this name today, such as the function `training.fit`.
        package, _, own = self.__name__.rpartition(".")
        vars(sys.modules[package]).pop(own, None)
        return load_moved(self.__name__, name)


class _OldModules(MetaPathFinder, Loader):
    """Finds the modules of 0.1.0 that no file holds any more."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, place = fullname.partition(".")
        return spec_from_loader(fullname, self) if root == _ROOT and place in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OldModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the names are looked up on first use."""


_ROOT = __name__.partition(".")[0]
sys.meta_path.append(_OldModules())
