"""The training run of one replica, whose steps are taken together with those of others."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.param_store import private_store
from pyro_bvae.training.checks.checklist import Remark
from pyro_bvae.training.checks.nonfinite import describe_nonfinite
from pyro_bvae.training.history import Row
from pyro_bvae.training.settings import Settings
from pyro_bvae.training.trainer import Trainer


class ReplicaTrainer(Trainer):
    """The training run of one replica: its steps are taken together with those of others, all else is its own.

    Args:
        vae: The model.
        data: Its training data.
        settings: What the run is made of.
        validation: Its held-out data.
        device: Where to train.
        output: Its run directory.
    """

    def __init__(
        self,
        vae: Any,
        data: Any,
        settings: Settings,
        validation: Any,
        device: str | None,
        output: Path | None,
    ) -> None:
        super().__init__(
            vae,
            data,
            settings,
            validation,
            objective=None,
            device=device,
            output=output,
            together=False,
        )

    def __str__(self) -> str:
        return f"β = {self.final_beta:g}, seed {self.settings.seed}"

    def check(self) -> None:
        """See that the model can be trained on the data, as ``fit`` does before its first epoch."""
        with self._surroundings():
            pass

    def open(self) -> None:
        """Look over model and data, as ``fit`` does before its first epoch."""
        self._note(self._before())

    def close_epoch(self, row: Row, begun: float, share: float) -> None:
        """Measure what an epoch has made of the model, and write it down.

        Args:
            row: The metrics of the steps.
            begun: When the measurement began.
            share: Seconds of the steps that are this replica's.
        """
        with private_store(self.vae.model), pyro.validation_enabled(False):
            row |= (
                {}
                if self.held_out is None
                else self.held_out.measure(int(row["epoch"]), self.final_beta)
            )
            row |= self._active_units()
        self._record(row | {"seconds": share + time.perf_counter() - begun})

    def close(self) -> None:
        """Look over the metrics, as ``fit`` does after its last epoch."""
        self._note(self._after())

    def _note(self, remarks: list[Remark]) -> None:
        self.history.remarks += remarks
        for remark in remarks:
            if remark.grave:
                warnings.warn(f"{remark} ({self})", stacklevel=4)

    def describe(self, x: Tensor, context: Context | None, beta: Tensor, stats: Tensor) -> str:
        """Return what stopped being finite in a step of this replica, and what to do."""
        with private_store(self.vae.model):
            return f"{self}: {describe_nonfinite(self.vae, x, context, beta, stats)}"
