"""The dry run of an objective: its program runs, and all that it trains is the module's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_finite, listed
from pyro_bvae.core.module_modes import evaluating, leaves, names_in
from pyro_bvae.training.objectives.loss import Loss
from pyro_bvae.training.objectives.sleep import SleepPhase
from pyro_bvae.training.objectives.terms import TraceTerms

_REMEDY = (
    "make the part that uses them an nn.Module that holds them, or assign their module to it"
    " (vae.extra = module); requires_grad_(False) keeps them as they are"
)


def dry_run(
    loss: Loss, trained: Sequence[Tensor], x: Tensor, context: Context | None, beta: float
) -> None:
    """Run an objective once under Pyro's checks, and check that each leaf of it is trained.

    Args:
        loss: The objective of a module.
        trained: The parameters that steps will change.
        x: A few data.
        context: Their context.
        beta: Weight of the KL.

    Raises:
        InputError: for a parameter that is not finite, for a ``pyro.param`` outside the module, and
            for any other tensor that requires a gradient and would not be trained, such as weights
            that a plain function closes over.
    """
    for name, parameter in loss.vae.named_parameters():
        check_finite(f"vae.{name}", parameter.detach())
    context = context and context.map(Tensor.detach)
    # In eval mode, so that no batch-norm statistic moves.
    with (
        evaluating(loss.vae),
        poutine.trace(param_only=True) as capture,
        pyro.validation_enabled(),
        torch.enable_grad(),
    ):
        terms = loss(x.detach(), context, beta)
    own = {id(parameter) for parameter in loss.vae.parameters()}
    nodes: dict[str, Any] = dict(capture.trace.nodes)
    for name, site in nodes.items():
        if site["type"] == "param" and id(site["value"].unconstrained()) not in own:
            raise InputError(
                f"'{name}' is a pyro.param outside the module, which fit would not train: make it"
                " an nn.Parameter or a PyroParam of the module, or train with pyro.infer.SVI"
            )
    # An objective may have a network, and a way to train it, of its own.
    check_owned(terms.loss, trained, loss.objective, vae=loss.vae)
    if beta != 0 and not isinstance(loss.objective, SleepPhase):  # they leave prior or model
        _warn_unreached(terms.loss, trained, loss.vae)


def _warn_unreached(value: Tensor, trained: Sequence[Tensor], vae: nn.Module) -> None:
    """Warn of parameters that the gradient of a loss does not reach, so that steps leave them."""
    reached = {id(leaf) for leaf in leaves(value)}
    chosen = {id(tensor) for tensor in trained}
    own = {name: part for name, part in vae.named_parameters() if id(part) in chosen}
    left = [name for name, part in own.items() if id(part) not in reached]
    if left:
        warnings.warn(
            f"no gradient of the objective reaches {len(left)} of {len(own)} parameters, which keep"
            f" their first values: {listed(left)}; look for .detach(), no_grad, .sample() for"
            " .rsample() or an unused layer; requires_grad_(False) says that it is meant",
            stacklevel=2,
        )


def check_owned(
    value: Tensor, trained: Sequence[Tensor], other: object = None, **holder: nn.Module
) -> None:
    """Raise unless all leaves of a value are known: one that nobody owns is never trained.

    Args:
        value: A loss, with its graph.
        trained: The tensors that steps will change.
        other: An object whose tensors may be in the graph too.
        **holder: The module in training, by the name that a message gives it.

    Raises:
        InputError: naming the tensors.
    """
    ((name, module),) = holder.items()
    if not value.requires_grad:
        raise InputError(
            f"'{name}' has no parameter that the objective has a gradient for, so none would be"
            " trained"
        )
    known = {id(tensor) for tensor in trained}
    loose = [leaf for leaf in leaves(value) if id(leaf) not in known]
    if loose:
        exempt = names_in(other=other)
        loose = [leaf for leaf in loose if id(leaf) not in exempt]
    if not loose:
        return
    names = names_in(**holder)
    named = listed(
        sorted(names.get(id(leaf), f"a tensor of shape {tuple(leaf.shape)}") for leaf in loose)
    )
    if {id(leaf) for leaf in loose} <= {id(parameter) for parameter in module.parameters()}:
        raise InputError(
            f"'{name}' makes parameters when it is first run: run it once before it is trained;"
            f" got {named}"
        )
    count = f"{len(loose)} tensor{'s' * (len(loose) > 1)}"
    raise InputError(
        f"'{name}' uses {count} that it does not own, so training would never change them:"
        f" {named}; {_REMEDY}"
    )


def takes_one(vae: Any, x: Tensor, context: Context | None) -> bool:
    """Whether a module in train mode can be run on one datum; batch norm, for one, cannot.

    A failure on two data as well is another fault. Its buffers are left as they were.

    Args:
        vae: A module with ``model`` and ``guide``.
        x: Some data.
        context: Their context.
    """
    before = {name: buffer.clone() for name, buffer in vae.named_buffers()}
    try:
        return _runs(vae, x, context, 1) or not _runs(vae, x, context, 2)
    finally:
        for name, buffer in vae.named_buffers():
            buffer.copy_(before.get(name, buffer))


@torch.no_grad()
def _runs(vae: Any, x: Tensor, context: Context | None, count: int) -> bool:
    # Copies of one datum, since there may be one alone.
    rows = torch.zeros(count, dtype=torch.long, device=x.device)
    try:
        TraceTerms().terms(vae.model, vae.guide, x[rows], context and context.take(rows))
    except (ValueError, RuntimeError):
        return False
    return True
