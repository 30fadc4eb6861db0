"""Random streams of the data sets: a generator of its own for each use of randomness."""

from __future__ import annotations

import operator

import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import stream_seed

# Of the data sets; training takes numbers from 16.
(
    ORDER_STREAM,
    PIXEL_STREAM,
    FIXED_PIXEL_STREAM,
    SPLIT_STREAM,
    SYNTHESIS_STREAM,
    WEIGHT_STREAM,
    LOOK_STREAM,
) = range(7)


def stream_generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    """Return a CPU generator at the start of a random stream: a function of the three numbers.

    Args:
        seed: The seed of the run.
        epoch: The epoch (or any other counter) within the run.
        stream: Which use of randomness this is.

    Raises:
        InputError: if one of the three is not an integer in [0, 2**32).
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("stream", stream)):
        # Above 32 bits a number would spill into its neighbour's word, and two streams could
        # coincide.
        try:
            fits = 0 <= operator.index(value) < 2**32
        except TypeError:
            fits = False
        if not fits:
            raise InputError(f"'{name}' must be an integer from 0 to 4294967295, got {value!r}")
    return torch.Generator().manual_seed(stream_seed(seed, epoch, stream))
