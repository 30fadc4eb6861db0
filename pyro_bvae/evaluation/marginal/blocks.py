"""The evidence of a block of data from its log weights, and that of all blocks together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.averages import (
    Averaging,
    degrees_of_freedom,
    effective_sample_size,
    normalized_weights,
    plain,
    variance_limit,
)
from pyro_bvae.evaluation.marginal.psis import has_reliable_weights

# Level of the upper limit of the weights' variance that errors are taken from.
_ERROR_LEVEL = 0.1
# Weights that are averaged at a time: an average takes many times their memory.
_MOST_AVERAGED = 256_000


class EvidenceBlock(NamedTuple):
    """The evidence of a block of data, every entry of shape ``(B,)``."""

    value: Tensor
    error: Tensor
    bias: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    reliable: Tensor

    @classmethod
    def from_log_weights(
        cls,
        log_weights: Tensor,
        average: Averaging = plain,
        has_tails: bool = False,
        rounding: float = 0.0,
    ) -> EvidenceBlock:
        """Summarise log weights ``(K, B)``, few data at a time to save memory.

        The error of a reliable datum is that of the 90% upper limit of its weights' variance. A few
        large weights make most of it; where they were not drawn by chance, it is too small, the
        value is low, and the datum passes for reliable.

        A datum that is not reliable may lie as far above its estimate as that lies above most of
        its log weights, which is counted as a bias: for log-normal weights the rest of the gap is
        at most about as large.

        Args:
            log_weights: Log weights.
            average: The average of the weights.
            has_tails: Whether the draws come from a proposal that reaches further than the guide.
            rounding: Relative rounding of the densities, which counts in the error.
        """
        columns = log_weights.split(max(1, _MOST_AVERAGED // len(log_weights)), dim=1)
        parts = [_evidence_of(part, average, has_tails, rounding) for part in columns]
        return cls(*(torch.cat(entries) for entries in zip(*parts, strict=True)))


def _evidence_of(
    log_weights: Tensor, average: Averaging, has_tails: bool, rounding: float
) -> EvidenceBlock:
    value, error, bias, k = average(log_weights)
    ess = effective_sample_size(log_weights)
    reliable = has_reliable_weights(log_weights, k, ess, has_tails)
    spread = variance_limit(degrees_of_freedom(normalized_weights(log_weights)), _ERROR_LEVEL)
    error = torch.where(reliable, error * spread.sqrt(), error)
    if not bool(reliable.all()):
        beyond = value[~reliable] - log_weights[:, ~reliable].double().median(0).values
        bias = bias.masked_scatter(~reliable, torch.maximum(bias[~reliable], beyond))
    return EvidenceBlock(value, torch.hypot(error, rounding * value.abs()), bias, ess, k, reliable)


def join_evidence(blocks: list[EvidenceBlock], num_samples: int, cost: int = 0) -> Estimate:
    """Put the evidence of all blocks together."""
    value, error, bias, ess, k, reliable = (
        torch.cat([entry.cpu() for entry in entries]) for entries in zip(*blocks, strict=True)
    )
    return Estimate.over_data(
        value,
        error,
        bias,
        effective_sample_size=ess,
        pareto_k=k,
        num_samples=num_samples,
        reliable=reliable,
        cost=cost or num_samples * len(value),
    )
