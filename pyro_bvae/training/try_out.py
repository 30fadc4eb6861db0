"""A first look at an objective, before training: that the program runs, and that all it trains is the module's."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.context import Context
from pyro_bvae.errors import InputError, check_finite
from pyro_bvae.modules import evaluating
from pyro_bvae.training.loss import Loss


def try_out(loss: Loss, x: Tensor, context: Context | None, beta: float) -> None:
    """Run an objective once under Pyro's checks, and see that the module owns every parameter.

    Args:
        loss: The objective of a module.
        x: A few data.
        context: Their context.
        beta: Weight of the KL.

    Raises:
        InputError: for a parameter that is not finite, or that is a ``pyro.param`` outside the module.
    """
    for name, parameter in loss.vae.named_parameters():
        check_finite(f"vae.{name}", parameter.detach())
    # In eval mode, so that no batch-norm statistic moves.
    with evaluating(loss.vae), poutine.trace(param_only=True) as capture, pyro.validation_enabled(), torch.no_grad():
        loss(x, context, beta)
    own = {id(parameter) for parameter in loss.vae.parameters()}
    nodes: dict[str, Any] = dict(capture.trace.nodes)
    for name, site in nodes.items():
        if site["type"] == "param" and id(site["value"].unconstrained()) not in own:
            raise InputError(
                f"'{name}' is a pyro.param outside the module, which fit would not train: make it an "
                "nn.Parameter or a PyroParam of the module, or train with pyro.infer.SVI"
            )
