"""Randomness that is a function of a seed and leaves the caller's generators alone."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.turns import turn

# Streams below a seed, one for each use, so that no two uses share their draws: data sets count
# from 0.
NOISE_STREAM, VALIDATION_STREAM, REFIT_STREAM, PROGRAM_STREAM, PROBE_STREAM = range(101, 106)
SAMPLE_STREAM, GENERATE_STREAM, WEIGHTS_STREAM, CHOICE_STREAM = range(111, 115)
PROPOSAL_STREAM, ANNEALING_STREAM, SIMULATION_STREAM, BLOCK_STREAM = range(121, 125)
PREDICTIVE_STREAM = 131
BOOTSTRAP_STREAM, GROUP_STREAM, NULL_STREAM, FIT_STREAM = range(141, 145)
VALUE_STREAM = 151


def stream_seed(seed: int, *path: int) -> int:
    """Return the seed of the stream at ``path`` below ``seed``; other paths are independent.

    Args:
        seed: A non-negative integer.
        path: Non-negative integers, such as an epoch and the number of a use of randomness.

    Raises:
        InputError: for a negative seed.
    """
    try:
        first, *others = (operator.index(number) for number in (seed, *path))
    except TypeError:
        raise InputError(
            f"'seed' must be a non-negative integer, got {(seed, *path)!r:.200}"
        ) from None
    if min(first, *others, 0) < 0:
        raise InputError(f"'seed' must be a non-negative integer, got {seed}")
    return int(
        np.random.SeedSequence([first, *others]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def seed_generators(seed: int) -> None:
    """Seed torch's generators of every device.

    Where there is no accelerator, ``torch.manual_seed`` formats a stack trace for each kind of
    device that is missing, which takes about as long as a step of a small model.

    Args:
        seed: A non-negative integer.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int, *path: int) -> Iterator[None]:
    """Run the body with torch's generators seeded, on every device, and restore them afterwards.

    The generators are those of the process, so other threads of the package wait meanwhile, see
    :func:`~pyro_bvae.core.inputs.turns.turn`.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with turn(), torch.random.fork_rng(devices=devices):
        seed_generators(stream_seed(seed, *path))
        yield
