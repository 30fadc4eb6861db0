"""A program as an audit sees it: its sites, whether or not it runs to its end."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.internals import tree_leaves
from pyro_bvae.core.module_modes import modules_of
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.program.sites import Site, Sites, samples

Function = Callable[..., Any]

# A β that nobody would write down as a constant by chance.
_PROBE = 2.537


class View(NamedTuple):
    """A program run once: the traces of both functions, as far as each came, and its errors.

    Attributes:
        model: Trace of the model, with the guide's latents where they fit.
        guide: Trace of the guide.
        failures: The error of each function that did not run to its end, by name.
        num_data: First size of the first tensor among the arguments; None without one.
        sizes: Every size of every tensor among the arguments.
    """

    model: poutine.Trace
    guide: poutine.Trace
    failures: dict[str, Exception]
    num_data: int | None
    sizes: frozenset[int]

    @property
    def observed(self) -> Sites:
        """The model's observed sites."""
        return {name: site for name, site in samples(self.model).items() if site["is_observed"]}

    @property
    def latents(self) -> Sites:
        """The model's unobserved sites."""
        return {name: site for name, site in samples(self.model).items() if not site["is_observed"]}

    @property
    def pairs(self) -> dict[str, tuple[Site, Site]]:
        """The latents that both functions have: the model's site and the guide's."""
        guide = samples(self.guide)
        return {name: (site, guide[name]) for name, site in self.latents.items() if name in guide}

    @property
    def sites(self) -> Iterator[tuple[str, str, Site]]:
        """Function, name and site of every sample site of both functions."""
        for program, trace in (("guide", self.guide), ("model", self.model)):
            for name, site in samples(trace).items():
                yield program, name, site


def _run(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[poutine.Trace, Exception | None]:
    tracer = poutine.trace(function)
    try:
        return tracer.get_trace(*args, **kwargs), None
    except Exception as error:  # whatever a user's program raises is something to report
        return tracer.trace, error


@torch.no_grad()
def look(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
    guide_kwargs: dict[str, Any],
    *,
    stream: int = 0,
) -> View:
    """Run a program once, without Pyro's validation, which would stop at the first mistake.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        args: Positional arguments of both.
        model_kwargs: The model's keyword arguments.
        guide_kwargs: The guide's keyword arguments.
        stream: Another number is another draw.
    """
    failures: dict[str, Exception] = {}
    with warnings.catch_warnings(), pyro.validation_enabled(False), seeded(0, PROBE_STREAM, stream):
        warnings.simplefilter("ignore")
        guide_trace, error = _run(guide, args, guide_kwargs)
        if error is not None:
            failures["guide"] = error
        model_trace, error = _run(poutine.replay(model, trace=guide_trace), args, model_kwargs)
        if error is not None:
            failures["model"] = error
            alone, other = _run(model, args, model_kwargs)  # the guide's latents may not fit
            if other is None:
                model_trace = alone
    leaves = [
        leaf
        for leaf in tree_leaves((args, model_kwargs))
        if isinstance(leaf, Tensor) and leaf.dim() > 0
    ]
    sizes = frozenset(size for leaf in leaves for size in leaf.shape)
    return View(model_trace, guide_trace, failures, leaves[0].shape[0] if leaves else None, sizes)


class Settings(NamedTuple):
    """The keyword arguments of both functions at one value of β."""

    model: dict[str, Any]
    guide: dict[str, Any]


class Betas(NamedTuple):
    """The arguments of a program without β, and with each β to try.

    Attributes:
        args: Positional arguments before β.
        plain: Without β; a function whose β has no default is given 1, or the user's value if
            that is no number.
        given: With the β that the user gave; None without one.
        probe: With a β of our own; None where no function takes a β that is a number.
    """

    args: tuple[Any, ...]
    plain: Settings
    given: Settings | None = None
    probe: Settings | None = None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.dim() == 0)


def find_betas(
    model: Function, guide: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Betas:
    """Return the arguments at each β, for the functions that take one by the name ``beta``."""
    parameters = [_parameters(function) for function in (model, guide)]
    named = [p for p in parameters if "beta" in p]
    if not named:
        return Betas(args, Settings(kwargs, kwargs))
    names = list(named[0])
    place = names.index("beta")
    after = dict(zip(names[place + 1 :], args[place + 1 :], strict=False))
    rest = {**after, **{name: value for name, value in kwargs.items() if name != "beta"}}
    values = [kwargs["beta"]] if "beta" in kwargs else list(args[place : place + 1])
    neutral = next((value for value in values if not _is_number(value)), 1.0)
    plain = Settings(*({**rest, **_required(p, neutral)} for p in parameters))
    given = [Settings(*({**rest, **_accepted(p, value)} for p in parameters)) for value in values]
    defaults = [p["beta"].default for p in named]
    numbers = all(
        _is_number(neutral if default is inspect.Parameter.empty else default)
        for default in defaults
    )
    probe = Settings(*({**rest, **_accepted(p, _PROBE)} for p in parameters)) if numbers else None
    return Betas(args[:place], plain, given[0] if given else None, probe)


def _parameters(function: Function) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # no signature: a callable written in C
        return {}


def _required(parameters: dict[str, inspect.Parameter], value: Any) -> dict[str, Any]:
    return (
        {"beta": value}
        if "beta" in parameters and parameters["beta"].default is inspect.Parameter.empty
        else {}
    )


def _accepted(parameters: dict[str, inspect.Parameter], value: Any) -> dict[str, Any]:
    anything = any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    return {"beta": value} if "beta" in parameters or anything else {}


@contextmanager
def restored(*functions: Function) -> Iterator[None]:
    """Restore the modules behind ``functions``: a guide may build itself on its first call."""
    modules = {
        part
        for function in functions
        for module in modules_of(function)
        for part in module.modules()
    }
    held = {
        module: {
            key: value.copy() if isinstance(value, (dict, list, set)) else value
            for key, value in vars(module).items()
        }
        for module in modules
    }
    try:
        yield
    finally:
        for module, attributes in held.items():
            vars(module).clear()
            vars(module).update(attributes)
