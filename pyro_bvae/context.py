"""What is observed about a datum and not modelled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Context(NamedTuple):
    """What is observed and not modelled, one row per datum.

    Encoder, decoder and likelihood see the same context; ``None`` in its place is the unconditional model.

    Attributes:
        size_factor: Exposure of each datum, positive, shape ``(N, 1)``. If it was computed from ``x``, evidence
            is conditional on it.
        covariates: Conditions or batch indicators, shape ``(N, C)``.
    """

    size_factor: Tensor | None = None
    covariates: Tensor | None = None


def with_covariates(inputs: Tensor, context: Context | None) -> Tensor:
    """Append the covariates, if there are any, to the features of ``inputs``.

    Args:
        inputs: Shape ``(*, N, D)``.
        context: The context of the N data, or None.

    Returns:
        Shape ``(*, N, D + C)``, or ``inputs`` itself without covariates.
    """
    if context is None or context.covariates is None:
        return inputs
    covariates = context.covariates.to(inputs)
    covariates = covariates.expand(*inputs.shape[:-1], covariates.shape[-1])
    return torch.cat([inputs, covariates], dim=-1)
