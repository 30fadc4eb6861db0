"""Held-out data, and what a module in training makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import bound
from pyro_bvae.modules import evaluating
from pyro_bvae.randomness import VALIDATION_STREAM, seeded
from pyro_bvae.training.health import TrainingError, describe_nonfinite, find_nonfinite
from pyro_bvae.training.history import Row
from pyro_bvae.training.loss import Loss


class HeldOut:
    """Held-out data of a training run, measured with the same noise every time: curves move with the weights alone.

    Args:
        vae: The module in training.
        data: The data, on its device.
        loss: The loss that is made small.
        batch_size: Data that the loss takes at a time.
    """

    def __init__(self, vae: Any, data: Dataset, loss: Loss, batch_size: int) -> None:
        self.vae, self.data, self.loss, self.batch_size = vae, data, loss, batch_size

    def try_out(self) -> None:
        """Measure two data, to hear what is wrong with them."""
        self._measure(self.data[:2], 1.0)

    def measure(self, epoch: int, beta: float) -> Row:
        """Return the columns of the metrics that are about held-out data.

        Args:
            epoch: Number of the epoch, for the error.
            beta: The β of the objective.

        Raises:
            TrainingError: if a number is not finite. It comes before the weights are written: the checkpoint before
                them stays the last.
        """
        cause = None
        try:
            row = self._measure(self.data, beta)
        except ValueError as error:  # a check that values which are not finite do not pass, or one of something else
            row, cause = {"validation_objective": math.nan}, error
        if all(map(math.isfinite, row.values())):
            return row
        args = (self.data.x, self.data.context, beta)
        with evaluating(self.vae):
            if cause is not None and find_nonfinite(self.vae, *args) is None:
                raise cause
            raise TrainingError(f"epoch {epoch}, validation: {describe_nonfinite(self.vae, *args)}") from cause

    @torch.no_grad()
    def _measure(self, data: Dataset, beta: float) -> Row:
        args = (data.x, *(() if data.context is None else (data.context,)))
        measured = bound(self.vae.model, self.vae.guide, *args, num_samples=1, seed=VALIDATION_STREAM)
        own = self._own_objective(data, beta) if self.loss.has_own_objective else measured.objective(beta).value
        return {
            "validation_objective": own,
            "validation_distortion": measured.distortion.value,
            "validation_rate": measured.rate.value,
            "validation_elbo": measured.elbo.value,
        }

    def _own_objective(self, data: Dataset, beta: float) -> float:
        """Return the mean of an objective that is not the β-bound."""
        batches = data.batches(self.batch_size, seed=0, epoch=0, shuffle=False)
        with evaluating(self.vae), seeded(VALIDATION_STREAM):
            return sum(float(self.loss(*batch, beta).loss) for batch in batches) / len(data)
