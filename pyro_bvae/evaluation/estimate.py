"""An estimate and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Above this Pareto k an importance-sampling estimate is not to be trusted (Vehtari et al. 2024).
PARETO_K_LIMIT = 0.7


@dataclass(frozen=True, eq=False)
class Estimate:
    r"""A mean over data with its two errors, in nats unless its name says otherwise.

    Attributes:
        value: Mean over the data.
        standard_error: Standard deviation over the data divided by :math:`\sqrt{N}`: how far the mean of another N
            data would lie. NaN for a single datum.
        monte_carlo_error: Standard error of ``value`` given the data: how far another seed would move it.
        per_datum: The estimate for each datum, shape ``(N,)``, float64.
        effective_sample_size: For weighted estimates, :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of each datum, ``(N,)``.
        pareto_k: For weighted estimates, the shape of the weights' upper tail, ``(N,)``.
        num_samples: Samples behind each datum's estimate; 0 for a closed form.
    """

    value: float
    standard_error: float
    monte_carlo_error: float
    per_datum: Tensor
    effective_sample_size: Tensor | None = None
    pareto_k: Tensor | None = None
    num_samples: int = 0

    @classmethod
    def over_data(cls, per_datum: Tensor, monte_carlo_errors: Tensor | None = None, **details: Any) -> Estimate:
        """Summarise per-datum values and their Monte Carlo errors, each of shape ``(N,)``.

        The errors of different data are taken as independent: each datum has draws of its own.
        """
        values = per_datum.detach().double().cpu()
        errors = torch.zeros(()) if monte_carlo_errors is None else monte_carlo_errors.detach().double().cpu()
        standard_error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
        monte_carlo_error = float(errors.square().sum().sqrt()) / len(values)
        return cls(float(values.mean()), standard_error, monte_carlo_error, values, **details)

    @property
    def untrusted(self) -> int:
        """Number of data whose Pareto k is above 0.7."""
        return 0 if self.pareto_k is None else int((~(self.pareto_k <= PARETO_K_LIMIT)).sum())

    def to_dict(self) -> dict[str, float]:
        """Return value and errors for a JSON file."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "monte_carlo_error": self.monte_carlo_error,
        }

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __str__(self) -> str:
        text = (
            f"{self.value:.3f} ± {self.standard_error:.3f} (standard error over {len(self.per_datum)} data)"
            f" ± {self.monte_carlo_error:.3f} (Monte Carlo)"
        )
        if self.untrusted:
            text += f"; UNTRUSTED for {self.untrusted} data with Pareto k > {PARETO_K_LIMIT}"
        return text
