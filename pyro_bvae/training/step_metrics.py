"""What is watched while a module trains: the numbers of its steps, and how many latents are active."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.evaluation.marginal.bounds import ACTIVE_VARIANCE
from pyro_bvae.program.sites import samples
from pyro_bvae.training.checks.nonfinite import TrainingError, describe_nonfinite
from pyro_bvae.training.distributed import Ranks

# Steps between two looks at the losses on an accelerator, where each look waits for the device.
LOOK_EVERY = 20


def count_active(guide: Callable[..., Any], *args: Any) -> float | None:
    """Return how many latents of a guide are active on some data, or None where it does not know its means.

    A mean of one datum alone does not vary, which says nothing of the latents: None, too.

    Args:
        guide: A Pyro guide.
        *args: Its arguments.
    """
    sites = samples(poutine.trace(guide).get_trace(*args)).values()
    try:
        means = [site["fn"].mean for site in sites if not site["is_observed"]]
    except NotImplementedError:
        return None
    if any(mean.dim() == 0 or len(mean) < 2 for mean in means):
        return None
    return float(sum((mean.var(0) > ACTIVE_VARIANCE).sum() for mean in means))


class Watch:
    """Sums of a step's numbers over an epoch, looked at as often as looking is cheap.

    Args:
        vae: The module in training.
        device: Where it is trained.
        epoch: Number of the epoch, from 1.
        ranks: The processes that train together: the numbers are those of all, and so is what is
            raised.
    """

    def __init__(self, vae: Any, device: torch.device, epoch: int, ranks: Ranks) -> None:
        self.vae, self.epoch, self.ranks = vae, epoch, ranks
        self.sums = (
            [0.0] * 4 if device.type == "cpu" else torch.zeros(4, dtype=torch.double, device=device)
        )
        self.look_every = 1 if device.type == "cpu" else LOOK_EVERY
        self.steps = self.count = 0
        self.last: tuple[Tensor, int] | None = None

    def add(
        self, stats: Tensor, size: int, x: Tensor, context: Context | None, beta: float | Tensor
    ) -> None:
        """Add loss, distortion, rate and gradient norm of a step, shape ``(4,)``, on so many data of all processes.

        Raises:
            TrainingError: if one of them is not finite, naming epoch, step, batch and what it was.
        """
        if isinstance(self.sums, Tensor):
            self.sums += stats
        else:  # numbers are added sooner than tensors
            self.sums = list(map(operator.add, self.sums, stats.tolist()))
        self.steps += 1
        self.count += size
        self.last = (stats, size)
        if self.steps % self.look_every == 0 and not self._is_finite():
            where = f"epoch {self.epoch}, step {self.steps} (batch {self.steps - 1})"
            raise TrainingError(
                f"{where}: {describe_nonfinite(self.vae, x, context, beta, stats, self.ranks.gather)}"
            )

    def recent(self) -> tuple[float, float]:
        """Return distortion and rate per datum of the last batch."""
        assert self.last is not None
        stats, size = self.last
        return float(stats[1]) / size, float(stats[2]) / size

    def finish(self) -> list[float]:
        """Return the sums of loss, distortion, rate and gradient norm."""
        if not self._is_finite():
            raise TrainingError(
                f"epoch {self.epoch}: the loss or its gradient stopped being finite"
            )
        return [float(value) for value in self.sums]

    def _is_finite(self) -> bool:
        # What is not finite leaves no finite total, and one number is looked at sooner than four.
        return math.isfinite(
            self.sums.sum().item() if isinstance(self.sums, Tensor) else sum(self.sums)
        )
