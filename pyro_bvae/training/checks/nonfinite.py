"""The parameter, site or gradient in which training leaves the finite numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.context import Context

_ADVICE = "lower the learning rate, clip gradients, or look at the data"


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the cause, and the checkpoint if there is one."""


def find_nonfinite(
    vae: Any, x: Tensor, context: Context | None, beta: float | Tensor
) -> str | None:
    """Return which parameter or site is not finite on a batch, or None if all are.

    Args:
        vae: The module in training.
        x: The batch.
        context: Its context.
        beta: The β of the step.
    """
    for name, parameter in vae.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter '{name}' is not finite"
    with torch.no_grad(), pyro.validation_enabled(False):
        guide_trace = poutine.trace(vae.guide).get_trace(x, context, beta)
        model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(
            x, context, beta
        )
        for program, trace in (("guide", guide_trace), ("model", model_trace)):
            sites: dict[str, Any] = dict(trace.nodes)
            for name, site in sites.items():
                if site["type"] != "sample" or not isinstance(site["value"], Tensor):
                    continue
                # An observed NaN is a missing entry, which the site has a density without.
                if not site["is_observed"] and not bool(torch.isfinite(site["value"]).all()):
                    return f"site '{name}' of the {program} has a value that is not finite"
                if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
                    return f"site '{name}' of the {program} has a log density that is not finite"
    return None


def describe_nonfinite(
    vae: Any,
    x: Tensor,
    context: Context | None,
    beta: float | Tensor,
    stats: Tensor | None = None,
    gather: Callable[[str | None], list[str | None]] = lambda result: [result],
) -> str:
    """Return the cause of a number that is not finite, and advice.

    Args:
        vae: The module in training.
        x: The batch on which it was seen.
        context: Its context.
        beta: The β of the step.
        stats: Loss, distortion, rate and gradient norm of the step.
        gather: Collects the causes of the processes that train together, each on its share of the
            batch.
    """
    each = gather(find_nonfinite(vae, x, context, beta) if x.shape[0] else None)
    result = next((text for text in each if text is not None), None)
    if result is None and stats is not None and not bool(torch.isfinite(stats[3])):
        pairs = [(n, p.grad) for n, p in vae.named_parameters() if p.grad is not None]
        bad = [name for name, gradient in pairs if not bool(torch.isfinite(gradient).all())]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        known = bad and not len(bad) == len(pairs) > 1  # all of them name no cause
        owner = f" of parameter '{bad[0]}'{more}" if known else ""
        result = f"the gradient{owner} is not finite"
    return f"{result or 'the loss is not finite'}; {_ADVICE}"
