"""An estimate and how sure it is."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: Above this Pareto k an importance-sampling estimate is not to be trusted (Vehtari et al. 2024).
PARETO_K_LIMIT = 0.7
#: The estimators of an evidence that escalates, from cheap to dear.
METHODS = ("guide", "refit", "annealing")
#: A mean is trusted with up to this share of untrusted data, whose allowance is then part of its
#: error.
UNTRUSTED_SHARE = 0.1


def pareto_k_limit(num_samples: int) -> float:
    r"""Return the largest trusted Pareto k of K weights, :math:`\min(1 - 1 / \log_{10} K, 0.7)`.

    0.7 from 2,155 samples on; fewer weights must have a lighter tail (Vehtari et al. 2024, section
    3.2.4).
    """
    return min(1 - 1 / math.log10(num_samples), PARETO_K_LIMIT) if num_samples > 1 else -math.inf


@dataclass(frozen=True, eq=False)
class Estimate:
    r"""A mean over data with its two errors, in nats unless its name says otherwise.

    Attributes:
        value: Mean over the data.
        standard_error: Standard deviation over the data divided by :math:`\sqrt{N}`: how far the
            mean of another N data would lie. NaN for a single datum.
        monte_carlo_error: Error of ``value`` given the data: the standard error that another seed
            would show and the mean of ``biases``, in quadrature.
        per_datum: The estimate for each datum, shape ``(N,)``, float64.
        effective_sample_size: For weighted estimates, :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of each
            datum, ``(N,)``.
        pareto_k: For weighted estimates, the shape of the weights' upper tail, ``(N,)``.
        num_samples: Samples behind each datum's estimate; 0 for a closed form.
        reliable: Which data's values and errors can be trusted, ``(N,)``; None where nothing was
            looked at.
        cost: Decoder evaluations behind the whole estimate: data times samples, gradients counted
            as evaluations.
        errors: Monte Carlo standard error of each datum's estimate, ``(N,)``; None where it is not
            known.
        biases: How far each datum's estimate may be off beside its error, ``(N,)``, such as the
            bias of the log of a mean; None for nothing.
        methods: For an evidence that escalates, the number in ``METHODS`` of the estimator that
            each datum's value is of, ``(N,)``: 0 the guide, 1 the refit, 2 annealing.
        budget: For an evidence that escalates, the decoder evaluations that ``cost`` was allowed;
            the same budget and seed give the same numbers. 0 for other estimates.
    """

    value: float
    standard_error: float
    monte_carlo_error: float
    per_datum: Tensor
    effective_sample_size: Tensor | None = None
    pareto_k: Tensor | None = None
    num_samples: int = 0
    reliable: Tensor | None = None
    cost: int = 0
    errors: Tensor | None = None
    biases: Tensor | None = None
    methods: Tensor | None = None
    budget: int = 0

    @classmethod
    def over_data(
        cls,
        per_datum: Tensor,
        monte_carlo_errors: Tensor | None = None,
        biases: Tensor | None = None,
        **details: Any,
    ) -> Estimate:
        """Summarise per-datum values, their Monte Carlo errors and biases, ``(N,)`` each.

        The errors of different data are taken as independent, since each datum has draws of its
        own, and shrink with their number; biases do not.
        """
        values = per_datum.detach().double().cpu()
        errors, bias = (
            None if part is None else part.detach().double().cpu()
            for part in (monte_carlo_errors, biases)
        )
        standard_error = (
            float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
        )
        noise = 0.0 if errors is None else float(errors.square().sum().sqrt()) / len(values)
        monte_carlo_error = math.hypot(noise, 0.0 if bias is None else float(bias.mean()))
        value = float(values.mean())
        return cls(
            value, standard_error, monte_carlo_error, values, **details, errors=errors, biases=bias
        )

    def take(self, index: Any) -> Estimate:
        """Return the estimate over some of the data.

        Args:
            index: A slice, a mask or indices of a tensor ``(N,)``.
        """
        per_datum = self.per_datum[index]
        names = ("effective_sample_size", "pareto_k", "reliable", "methods")
        parts = {
            name: None if (part := getattr(self, name)) is None else part[index] for name in names
        }
        errors, biases = (
            None if part is None else part[index] for part in (self.errors, self.biases)
        )
        cost, budget = (
            whole * len(per_datum) // len(self.per_datum) for whole in (self.cost, self.budget)
        )
        return Estimate.over_data(
            per_datum, errors, biases, num_samples=self.num_samples, cost=cost, budget=budget,
            **parts,
        )  # fmt: skip

    @property
    def untrusted(self) -> int:
        """Number of data whose value and error cannot be trusted."""
        return 0 if self.reliable is None else int((~self.reliable).sum())

    @property
    def untrusted_rows(self) -> list[int]:
        """The numbers of the data whose value and error cannot be trusted, from 0."""
        return [] if self.reliable is None else (~self.reliable.cpu()).nonzero().flatten().tolist()

    @property
    def by_method(self) -> dict[str, int]:
        """How many data each estimator answered for; empty for an estimate of one estimator."""
        if self.methods is None:
            return {}
        return {name: int((self.methods == i).sum()) for i, name in enumerate(METHODS)}

    @property
    def trusted(self) -> bool:
        """Whether the mean lies in its interval as often as that says.

        Of a large number of data some always fail. The possible error of each, its bias, is part of
        the Monte Carlo error. So the mean of all data is trusted while they are at most one in ten,
        and while they may move it by less than its standard error over data.
        """
        if not (math.isfinite(self.value) and math.isfinite(self.monte_carlo_error)):
            return False
        if not self.untrusted:
            return True
        if self.biases is None or self.untrusted > UNTRUSTED_SHARE * len(self.per_datum):
            return False
        assert self.reliable is not None
        allowance = float(self.biases[~self.reliable.cpu()].abs().sum()) / len(self.per_datum)
        return allowance <= self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Monte Carlo interval of the value of infinitely many samples, if trusted."""
        return (
            self.value - 1.96 * self.monte_carlo_error,
            self.value + 1.96 * self.monte_carlo_error,
        )

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
            f"{self.value:.3f} ± {self.standard_error:.3f} (standard error over"
            f" {len(self.per_datum)} data) ± {self.monte_carlo_error:.3f} (Monte Carlo)"
        )
        if self.methods is not None and bool(self.methods.any()):
            shown = [f"{name} {count}" for name, count in self.by_method.items() if count]
            text += f"; by estimator: {', '.join(shown)}"
        if self.untrusted:
            whose = f"for {self.untrusted} of {len(self.per_datum)} data"
            text += f"; in the error: untrusted {whose}" if self.trusted else f"; UNTRUSTED {whose}"
        return text


def both_reliable(*estimates: Estimate) -> Tensor | None:
    """Return the data whose value is reliable in all of several estimates, ``(N,)``.

    A number made of them is as reliable; None where none of them was looked at.
    """
    known = [estimate.reliable for estimate in estimates if estimate.reliable is not None]
    return None if not known else functools.reduce(operator.and_, (part.cpu() for part in known))
