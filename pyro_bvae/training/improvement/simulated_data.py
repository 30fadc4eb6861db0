"""Training data with as many drawn from the model itself, which never run out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pyro_bvae.core.context import Context
from pyro_bvae.core.protocols import Batch, Batches
from pyro_bvae.core.seeds import SIMULATION_STREAM, stream_seed
from pyro_bvae.vae import BetaVAE


class WithSimulated:
    """Batches of data, each with as many data again that a fixed model draws.

    An encoder that sees few data learns their codes by heart, and is far from the posterior of new
    ones. Of data that the model draws there is no end, and the posterior of each is as well defined
    (Zhang, Hayes and Barber 2022). They have the contexts, and the missing entries, of the data
    beside them, and are other ones at each step: a function of seed, epoch and batch.

    Args:
        data: The data.
        vae: The model.
    """

    def __init__(self, data: Batches, vae: BetaVAE) -> None:
        self.data, self.vae = data, vae

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        return self.data.num_batches(batch_size)

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        own: Any = next(self.vae.parameters())
        for index, (x, context) in enumerate(self.data.batches(batch_size, seed=seed, epoch=epoch)):
            given = None if context is None else context.to(own.device, own.dtype)
            number = stream_seed(seed, epoch, index, SIMULATION_STREAM)
            drawn = self.vae.generate(len(x), given, noise=True, seed=number).to(x)
            if self.vae.missing:
                drawn = drawn.masked_fill(torch.isnan(x), torch.nan)
            yield torch.cat([x, drawn]), context and _twice(context)


def _twice(context: Context) -> Context:
    return context.map(lambda part: torch.cat([part, part]))
