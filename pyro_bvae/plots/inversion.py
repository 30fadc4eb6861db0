"""The figure of inversions: observation, posterior mean and draws, spread, and truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.inversion import Inversion
from pyro_bvae.plots.style import Values, as_array, mosaic, shaped


@public
def inversions(
    results: Sequence[Inversion],
    observations: Values,
    truths: Values,
    image_shape: Sequence[int],
    *,
    rows: Sequence[str] = (),
    num_draws: int = 4,
    title: str = "What was hidden, and how sure the posterior is of it",
) -> Figure:
    """Draw a row for each inversion: observation, posterior mean, draws, deviation, truth.

    Mean and deviation are left blank where the chains did not mix. All share one grey scale.

    Args:
        results: Result of :func:`pyro_bvae.invert`, R of them.
        observations: The observations, as images, ``(R, D)``; NaN where nothing was seen.
        truths: The true images, ``(R, D)``.
        image_shape: ``(C, H, W)``.
        rows: A name for each row.
        num_draws: How many draws are shown, spread over the chains.
        title: Title of the figure.

    Raises:
        InputError: if there is not one observation and one truth for each inversion.
    """
    seen = shaped("observations", observations, 2)
    real = shaped("truths", truths, 2, seen.shape[1])
    check_count("num_draws", num_draws)
    if not len(results) or len(seen) != len(results) or len(real) != len(results):
        raise InputError(
            f"'results' must hold an inversion a row, got {len(results)} for {len(seen)} and "
            f"{len(real)} rows"
        )
    pictures = []
    for one, shown, truth in zip(results, seen, real, strict=True):
        draws = as_array(one.x.flatten(0, 1))
        blank = np.full_like(truth, np.nan, dtype=float)
        mixed = one.problem is None
        mean, deviation = (
            (as_array(one.mean), as_array(one.standard_deviation)) if mixed else (blank, blank)
        )
        places = np.linspace(0, len(draws) - 1, num_draws).round().astype(int)
        pictures.append(np.stack([shown, mean, *draws[places], deviation, truth]))
    columns = ["seen", "mean", *[f"draw {index + 1}" for index in range(num_draws)], "sd", "truth"]
    return mosaic(np.stack(pictures), image_shape, title, rows=rows, columns=columns)
