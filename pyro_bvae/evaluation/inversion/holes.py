"""Whether draws lie in holes: where the aggregated posterior of the training data puts hardly any mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.evaluation.information.holes import log_aggregate


@dataclass(frozen=True, eq=False)
class AggregateHoles:
    r"""Holes as :func:`~pyro_bvae.evaluation.information.holes` defines them, :math:`\log q(z) < t`.

    Attributes:
        vae: The model, with the encoder that made the aggregated posterior.
        data: Data that it was trained on, ``(N, D)``.
        threshold: t in nats: the ``threshold`` of a :class:`~pyro_bvae.evaluation.Coverage` of the
            same data.
        context: Their context.
    """

    vae: Any
    data: Tensor
    threshold: float
    context: Context | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return whether each of the latents ``(K, L)`` lies in a hole, bool, ``(K,)``."""
        args = arguments(self.data, self.context)
        return log_aggregate(self.vae.model, self.vae.guide, *args, points=z) < self.threshold
