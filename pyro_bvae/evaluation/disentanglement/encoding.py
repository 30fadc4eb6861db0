"""Codes of a model, trained or not."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from torch import nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import NULL_STREAM, seeded
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.disentanglement.score import Array
from pyro_bvae.vae import BetaVAE

# Data that are encoded together.
_BLOCK = 512


def encode(vae: BetaVAE, data: Dataset) -> Array:
    """Return the posterior means of all data, shape ``(N, L)``."""
    parts = (data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK))
    return np.concatenate([vae.encode(part.x, part.context).cpu().numpy() for part in parts])


def untrained_copy(vae: BetaVAE, seed: int) -> BetaVAE:
    """Return a copy of a model whose encoder was never trained: torch's own initial weights.

    Raises:
        InputError: if a parameter of the encoder belongs to a module that has no
            ``reset_parameters``.
    """
    copy = deepcopy(vae)
    encoder = copy.encoder
    modules = encoder.named_modules() if isinstance(encoder, nn.Module) else ()
    with seeded(seed, NULL_STREAM):
        for name, module in modules:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif own := next((key for key, _ in module.named_parameters(recurse=False)), None):
                full = ".".join(part for part in ("encoder", name, own) if part)
                raise InputError(
                    f"'{full}' cannot be set to its initial value; give the untrained model's"
                    " codes as 'untrained'"
                )
    return copy
