"""The link by which the scales of learned priors stay positive."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus

# The least scale of a learned prior: an encoder that collapses cannot drag the density to infinity.
_SCALE_FLOOR = 1e-3


def positive(raw: Tensor) -> Tensor:
    """Return the scale of an unconstrained parameter, softplus and a floor of 1e-3."""
    return _SCALE_FLOOR + softplus(raw)


def raw_of(scale: float) -> float:
    """Return the unconstrained parameter of a scale above the floor."""
    return math.log(math.expm1(scale - _SCALE_FLOOR))
