"""What the priors ask of their arguments, and the link by which their scales stay positive."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus

from pyro_bvae.errors import InputError

# The least scale of a learned prior: an encoder that collapses cannot drag the density to infinity.
_SCALE_FLOOR = 1e-3


def check_count(name: str, value: int) -> None:
    """Raise unless a number of something is a positive integer.

    Raises:
        InputError: with the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"'{name}' must be a positive integer, got {value!r}")


def positive(raw: Tensor) -> Tensor:
    """Return the scale of an unconstrained parameter, softplus and a floor of 1e-3."""
    return _SCALE_FLOOR + softplus(raw)


def raw_of(scale: float) -> float:
    """Return the unconstrained parameter of a scale above the floor."""
    return math.log(math.expm1(scale - _SCALE_FLOOR))
