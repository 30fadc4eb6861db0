"""Scores of the latents' axes beside axes rotated at random."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_bvae.core.seeds import CHOICE_STREAM, seeded
from pyro_bvae.evaluation.estimate import Estimate


@dataclass(frozen=True, eq=False)
class RotationTest:
    """A score of the latents' axes, beside its values in axes rotated at random.

    Attributes:
        estimate: The score, mean over the data, with its standard error over them.
        null: The same mean after each random rotation of the active latents, shape ``(M,)``.
    """

    estimate: Estimate
    null: Tensor

    @property
    def share(self) -> float:
        """The share of the rotations, the model's own axes among them, that score as high."""
        return (1 + int((self.null >= self.estimate.value).sum())) / (1 + len(self.null))

    def __str__(self) -> str:
        spread = f"{float(self.null.mean()):.3f} ± {float(self.null.std(correction=0)):.3f}"
        return (
            f"{self.estimate.value:.3f} ± {self.estimate.standard_error:.3f}; in rotated axes"
            f" {spread} (standard deviation over {len(self.null)} rotations)"
        )


def lengths(metric: Tensor) -> Tensor:
    """Return the lengths of a Jacobian's columns, by the metric ``(*, L, L)``."""
    return metric.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def rotation_tests(
    metric: Tensor, num_rotations: int, seed: int
) -> tuple[RotationTest, RotationTest]:
    """Score axes and rotated axes, by the metric of the active latents ``(N, A, A)``."""
    energies, directions = torch.linalg.eigh(metric)
    own = _orthogonality(metric), _alignment(energies, directions)
    width = metric.shape[-1]
    with seeded(seed, CHOICE_STREAM):
        normal = torch.randn(num_rotations, width, width, dtype=torch.double)
    # Uniform but for the columns' signs and handedness, to which both scores are blind.
    rotations = torch.linalg.qr(normal).Q
    turned = [
        (_orthogonality(r.mT @ metric @ r), _alignment(energies, r.mT @ directions))
        for r in rotations
    ]
    nulls = (torch.stack([scores.mean() for scores in part]) for part in zip(*turned, strict=True))
    first, second = (
        RotationTest(Estimate.over_data(s), null) for s, null in zip(own, nulls, strict=True)
    )
    return first, second


def _orthogonality(metric: Tensor) -> Tensor:
    """Return one minus the weighted mean cosine, ``(N, A, A)`` to ``(N,)``; 1 without length."""
    each = lengths(metric)
    total = each.sum(-1).square() - each.square().sum(-1)
    products = metric.abs().sum((-2, -1)) - each.square().sum(-1)
    return 1 - torch.where(
        total > 0, products / total.clamp_min(math.ulp(0.0)), torch.zeros_like(total)
    )


def _alignment(energies: Tensor, directions: Tensor) -> Tensor:
    """Return the weighted largest squared coordinate of singular directions, ``(N,)``."""
    weights, largest = energies.clamp_min(0), directions.square().amax(-2)
    total = weights.sum(-1)
    aligned = (weights * largest).sum(-1) / total.clamp_min(math.ulp(0.0))
    return torch.where(total > 0, aligned, torch.ones_like(total))
