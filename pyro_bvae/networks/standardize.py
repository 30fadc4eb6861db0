"""The encoder's view of data in their own units: standardized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public


def check_scaling(mean: Tensor, scale: Tensor) -> None:
    """Raise unless there are a finite mean and a positive scale for each feature.

    Raises:
        InputError: naming both.
    """
    if mean.dim() != 1 or mean.shape != scale.shape:
        raise InputError(
            f"'mean' and 'scale' must have one shape (D,), got {tuple(mean.shape)} and"
            f" {tuple(scale.shape)}"
        )
    if not bool((torch.isfinite(mean) & torch.isfinite(scale) & (scale > 0)).all()):
        raise InputError("'mean' must be finite and 'scale' positive and finite in every feature")


@public
class Standardize(nn.Module):
    r"""Standardized data, :math:`u_d = (x_d - m_d) / s_d`, and 0, the mean, where x is missing.

    As ``inputs`` of an amortized posterior it shows the network data of mean 0 and scale 1 while
    the model stays one of x itself. Mean and scale are buffers, which checkpoints hold.

    Args:
        mean: m, shape ``(D,)``.
        scale: s, positive, shape ``(D,)``.

    Shape:
        ``(*, D)`` to ``(*, D)``.

    Raises:
        InputError: for a mean and a scale that cannot be used.
    """

    #: The model leaves NaN in the data that it shows to an encoder with these inputs.
    fills_missing = True
    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        check_scaling(mean, scale)
        self.register_buffer("mean", mean.detach().double().clone())
        self.register_buffer("scale", scale.detach().double().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return standardized data."""
        mean = self.mean.to(x)
        return (torch.where(torch.isnan(x), mean, x) - mean) / self.scale.to(x)

    def undo(self, u: Tensor) -> Tensor:
        """Return standardized data in the units of x."""
        return self.mean.to(u) + self.scale.to(u) * u
