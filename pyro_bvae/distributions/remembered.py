"""Draws that a distribution remembers with the noise behind them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Remembered(NamedTuple):
    r"""The last draw of a distribution, :math:`z = T(\epsilon)`, and the noise behind it.

    Its log density is that of the noise less :math:`\log |\det dT / d\epsilon|`, without the
    inverse of T: cheap where the inverse is sequential, and exact where it would lose digits.
    """

    value: Tensor
    noise: Tensor

    def noise_of(self, value: Tensor) -> Tensor | None:
        """Return the noise behind a value, or None where it is another one, or the gradient would be.

        Of a draw that carries its own gradient, the density by the noise has the whole gradient in
        the parameters. A draw without one is a constant, whose noise moves with the parameters:
        that takes the inverse.
        """
        whole = value.grad_fn is not None or not torch.is_grad_enabled()
        return self.noise if whole and value is self.value else None
