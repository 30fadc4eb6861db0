"""An audit of parameters: those without a gradient, and those shared by Pyro's store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_bvae.core.errors import listed
from pyro_bvae.core.findings import Finding
from pyro_bvae.core.module_modes import leaves, modules_of, names_in
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.evaluation.program_audit.traces import Settings, View

Function = Callable[..., Any]


def _params(trace: poutine.Trace) -> dict[str, Any]:
    return {name: node for name, node in trace.nodes.items() if node["type"] == "param"}


def _given(node: Any) -> Any:
    return node["args"][1] if len(node["args"]) > 1 else None


def check_store(view: View, stored: dict[str, Tensor]) -> Iterator[Finding]:
    """Find parameters that the store takes for others.

    Args:
        view: The program's first run; a second one already sees the store after the first.
        stored: The user's store before, unconstrained.
    """
    guide, model = _params(view.guide), _params(view.model)
    for name, node in [*guide.items(), *model.items()]:
        given, held = (
            _given(node),
            node["value"].unconstrained() if hasattr(node["value"], "unconstrained") else None,
        )
        if not isinstance(given, nn.Parameter) or not given.requires_grad:
            continue
        if held is not given or stored.get(name, given) is not given:
            results = (
                f"Pyro's store holds another tensor under '{name}' than the module's own parameter"
            )
            do = (
                "the module would never be trained: give each module a name of its own, or"
                " pyro.clear_param_store()"
            )
            yield Finding("shared-parameter", "error", (name,), f"{results}; {do}.")
    for name in guide.keys() & model.keys():
        if not any(isinstance(_given(node), nn.Parameter) for node in (guide[name], model[name])):
            results = f"pyro.param '{name}' is in model and guide alike, and the two are one tensor"
            yield Finding(
                "shared-parameter", "warning", (name,), f"{results}; give one of them another name."
            )
    for program, error in view.failures.items():
        if "parameter store" in str(error):
            yield Finding(
                "shared-parameter",
                "error",
                (program,),
                " ".join(str(error).split("Trace Shapes")[0].split()),
            )


def check_gradients(
    model: Function, guide: Function, args: tuple[Any, ...], settings: Settings
) -> Iterator[Finding]:
    """Find parameters that the ELBO's gradient misses, and those that SVI does not know."""
    known = {
        name: value
        for name, value in _registered(model, guide, args, settings).items()
        if value.requires_grad
    }
    identities = {id(parameter) for parameter in known.values()}
    loose = {
        name: parameter
        for module in {module for function in (model, guide) for module in modules_of(function)}
        for name, parameter in module.named_parameters(prefix=type(module).__name__)
        if parameter.requires_grad and id(parameter) not in identities
    }
    reached = _reached(model, guide, args, settings)
    results = {id(tensor) for tensor in reached}
    unknown = sorted(name for name, parameter in loose.items() if id(parameter) in results)
    others = (
        results
        - identities
        - {id(parameter) for parameter in loose.values()}
        - names_in(args=args).keys()
    )
    if others:  # in a list, or in the closure of a function
        names = names_in(model=model, guide=guide)
        shapes = {id(tensor): f"a tensor of shape {tuple(tensor.shape)}" for tensor in reached}
        unknown += sorted(names.get(one, shapes[one]) for one in others)
    if unknown:
        words = f"{len(unknown)} tensors get a gradient and are not registered: {listed(unknown)}"
        do = (
            "no training would change them: make the part that uses them an nn.Module that holds"
            " them, or call"
            " pyro.module(name, module) in model or guide, or freeze them (requires_grad_)"
        )
        yield Finding("not-registered", "error", tuple(unknown), f"{words}; {do}.")
    unreached = tuple(name for name, parameter in known.items() if id(parameter) not in results)
    if unreached:
        words = (
            f"no gradient of the ELBO reaches {len(unreached)} of {len(known)} parameters:"
            f" {', '.join(unreached[:4])}"
        )
        do = (
            "they keep their first values: look for .detach(), no_grad, .sample() for .rsample(),"
            " an unused layer"
        )
        yield Finding("no-gradient", "error", unreached, f"{words}; {do}.")


def _registered(
    model: Function, guide: Function, args: tuple[Any, ...], settings: Settings
) -> dict[str, Tensor]:
    with warnings.catch_warnings(), seeded(0, PROBE_STREAM), torch.no_grad():
        warnings.simplefilter("ignore")
        trace = poutine.trace(guide).get_trace(*args, **settings.guide)
        replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(
            *args, **settings.model
        )
    nodes = {**_params(trace), **_params(replayed)}
    return {name: node["value"].unconstrained() for name, node in nodes.items()}


def _reached(
    model: Function, guide: Function, args: tuple[Any, ...], settings: Settings
) -> list[Tensor]:
    """Return the tensors that one backward pass of the ELBO reaches; nothing is accumulated."""
    own_model, own_guide = (
        partial(model, *args, **settings.model),
        partial(guide, *args, **settings.guide),
    )
    with (
        warnings.catch_warnings(),
        pyro.validation_enabled(False),
        seeded(0, PROBE_STREAM),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        loss = Trace_ELBO().differentiable_loss(own_model, own_guide)
    return leaves(loss) if isinstance(loss, Tensor) else []
