"""Metrics of the steps of a training, and the number of active latents."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.evaluation.marginal.bounds import ACTIVE_VARIANCE
from pyro_bvae.program.sites import samples
from pyro_bvae.training.history import Row

# Steps between two looks at the losses on an accelerator, where each look waits for the device.
LOOK_EVERY = 20


def count_active(guide: Callable[..., Any], *args: Any) -> float | None:
    """Return the number of latents of a guide that are active on some data.

    None stands for a guide whose means are unknown, and for a single datum, whose mean does not
    vary.

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


class StepMetrics:
    """Sums over the steps of an epoch: loss, distortion, rate, gradient norm of each of R models.

    Args:
        num_models: R.
        device: Device of the training.
    """

    def __init__(self, num_models: int, device: torch.device) -> None:
        cpu, size = device.type == "cpu", 4 * num_models
        #: The sums of the first model, then those of the second, and so on.
        self.sums = [0.0] * size if cpu else torch.zeros(size, dtype=torch.double, device=device)
        self.look_every = 1 if cpu else LOOK_EVERY
        self.steps = self.count = self.size = 0
        self.stats = torch.zeros(size)

    def add(self, stats: Tensor, size: int) -> None:
        """Add the numbers of a step, shape ``(4,)`` or ``(R, 4)``, on ``size`` data."""
        self.stats = stats.flatten()
        if isinstance(self.sums, Tensor):
            self.sums += self.stats
        else:  # numbers are added sooner than tensors
            self.sums = list(map(operator.add, self.sums, self.stats.tolist()))
        self.steps, self.count, self.size = self.steps + 1, self.count + size, size

    def recent(self) -> Row:
        """Return distortion and rate per datum of the first model in the last step."""
        values = {"distortion": self.stats[1], "rate": self.stats[2]}
        return {name: float(value) / self.size for name, value in values.items()}

    def is_finite(self) -> bool:
        """Whether all sums are finite; their total is one number to look at."""
        total = self.sums.sum().item() if isinstance(self.sums, Tensor) else sum(self.sums)
        return math.isfinite(total)

    def first_nonfinite(self) -> tuple[int, Tensor]:
        """Return the number of the first model whose sums are not finite, and its last step's."""
        finite = torch.isfinite(torch.as_tensor(self.sums)).view(-1, 4).all(1)
        number = int(finite.int().argmin())
        return number, self.stats.view(-1, 4)[number]

    def means(self) -> list[Row]:
        """Return the metrics of each model: the norm a step, the others per datum."""
        sums = [float(value) for value in self.sums]
        rows = []
        for start in range(0, len(sums), 4):
            *totals, norm = sums[start : start + 4]
            row = {"gradient_norm": norm / self.steps}
            names = ("objective", "distortion", "rate")
            rows.append(row | {n: v / self.count for n, v in zip(names, totals, strict=True)})
        return rows
