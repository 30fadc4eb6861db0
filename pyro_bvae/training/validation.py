"""Validation data, and their measurements in training."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_bvae.core.context import arguments
from pyro_bvae.core.inputs.programs import program_arguments
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.seeds import VALIDATION_STREAM, seeded, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.marginal.bounds import ElboParts, bound_block, join_bound
from pyro_bvae.evaluation.marginal.importance import data_bar, stream_blocks
from pyro_bvae.evaluation.weights import sample_weights
from pyro_bvae.program.program import Program, open_program, reopen_program
from pyro_bvae.training.checks.nonfinite import TrainingError, describe_nonfinite, find_nonfinite
from pyro_bvae.training.distributed import Ranks
from pyro_bvae.training.history import Row
from pyro_bvae.training.objectives.loss import Loss

_COLUMNS = tuple(f"validation_{name}" for name in ("objective", "distortion", "rate", "elbo"))


class Validation:
    """Validation data of a training, measured with the same noise after every epoch.

    Args:
        vae: The module in training.
        data: The data, on its device.
        loss: The loss.
        batch_size: Data that the loss takes at a time.
        ranks: The processes that train together: each measures its share, and all get the same
            numbers.
    """

    def __init__(
        self, vae: Any, data: Dataset, loss: Loss, batch_size: int, ranks: Ranks | None = None
    ) -> None:
        self.vae, self.data, self.loss, self.batch_size = vae, data, loss, batch_size
        self.ranks = ranks or Ranks()
        rows = self.ranks.share(len(data))
        self._share = data[rows] if rows.stop > rows.start else None
        self._program: Program | None = None
        self._seed = VALIDATION_STREAM
        if self.ranks.size > 1:
            self._seed = stream_seed(VALIDATION_STREAM, self.ranks.rank)

    def dry_run(self) -> None:
        """Measure two data, which shows their faults."""
        self._measure(self.data[:2], 1.0)

    def measure(self, epoch: int, beta: float) -> Row:
        """Return the columns of the metrics that are about validation data.

        Args:
            epoch: Number of the epoch, for the error.
            beta: The β of the objective.

        Raises:
            TrainingError: if a number is not finite. It comes before the weights are written: the
                checkpoint before them stays the last.
        """
        cause, row = None, dict.fromkeys(_COLUMNS, 0.0)
        try:
            if self._share is not None:
                row = self._measure(self._share, beta)
        except ValueError as error:  # of a check, perhaps one that is not about finite values
            row, cause = dict.fromkeys(_COLUMNS, math.nan), error
        if self.ranks.size > 1:  # the means over the data of all processes
            count = 0 if self._share is None else len(self._share)
            values = torch.tensor([*row.values()], dtype=torch.double, device=self.data.x.device)
            means = self.ranks.sum(values * count) / len(self.data)
            row = dict(zip(row, means.tolist(), strict=True))
        if all(map(math.isfinite, row.values())):
            return row
        share = self.data[:0] if self._share is None else self._share
        args = (share.x, share.context, beta)
        with evaluating(self.vae):
            if cause is not None and find_nonfinite(self.vae, *args) is None:
                raise cause
            text = describe_nonfinite(self.vae, *args, gather=self.ranks.gather)
            raise TrainingError(f"epoch {epoch}, validation: {text}") from cause

    @torch.no_grad()
    def _measure(self, data: Dataset, beta: float) -> Row:
        measured = self._bound(data)
        if self.loss.has_own_objective:
            batches = data.batches(self.batch_size, seed=0, epoch=0, shuffle=False)
            with evaluating(self.vae), seeded(self._seed):
                total = sum(float(self.loss(*batch, beta).loss) for batch in batches)
            own = total / len(data)
        else:
            own = measured.objective(beta).value
        values = (own, measured.distortion.value, measured.rate.value, measured.elbo.value)
        return dict(zip(_COLUMNS, values, strict=True))

    def _bound(self, data: Dataset) -> ElboParts:
        """Return the bound by one draw; a program is looked over once for data that stay."""
        if data is self._share and self._program is not None:
            opened = reopen_program(self._program, seed=self._seed)
        else:
            model, guide, *args = program_arguments(
                self.vae.model, self.vae.guide, *arguments(data.x, data.context)
            )
            opened = open_program(model, guide, tuple(args), seed=self._seed, in_training=True)
        with opened as program, data_bar(program, False, "bound") as bar:
            blocks = [
                bound_block(program, block, sample_weights(program, block, 1))
                for block in stream_blocks(program, 1, bar)
            ]
        if data is self._share:
            self._program = program
        return join_bound(blocks, 1)
