"""Figures of a decoder's geometry: spectrum and angles of its Jacobians, and geodesics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.geometry.axes import RotationTest
from pyro_bvae.evaluation.geometry.geodesics import Geodesic
from pyro_bvae.evaluation.geometry.jacobian import DecoderGeometry
from pyro_bvae.plots.style import (
    BLUE,
    GREY,
    INK,
    TEXT,
    Array,
    as_array,
    draw_spread,
    mosaic,
    new_figure,
    number,
    tidy,
)

# Latents up to which the cosines are written into their squares.
_WRITTEN = 12


@public
def decoder_geometry(result: DecoderGeometry) -> Figure:
    """Draw the Jacobians' spectrum, the angles of their columns, and scores of axes and rotations.

    Args:
        result: Result of :func:`pyro_bvae.evaluation.decoder_geometry`.
    """
    figure = new_figure(13, 4.2)
    spectrum, angles, scores = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.3))
    _draw_spectrum(spectrum, as_array(result.singular_values))
    _draw_angles(angles, as_array(result.cosines), np.flatnonzero(as_array(result.active)))
    tests = {"orthogonality": result.orthogonality, "alignment": result.alignment}
    _draw_scores(scores, {name: test for name, test in tests.items() if test is not None})
    return figure


@public
def geodesic(result: Geodesic, image_shape: Sequence[int], num: int = 10) -> Figure:
    """Draw the decoded data along the straight line and the geodesic, at equal steps of each.

    Args:
        result: Result of :func:`pyro_bvae.evaluation.geodesic`.
        image_shape: ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)``.
        num: Number of images in a row.

    Raises:
        InputError: if this is no picture of that many features, or there are fewer points than
            images.
    """
    check_count("num", num)
    if num > len(result.path):
        raise InputError(
            f"'num' must be at most the {len(result.path)} points of the path, got {num}"
        )
    steps = np.linspace(0, len(result.path) - 1, num).round().astype(int)
    images = np.stack([as_array(part)[steps] for part in (result.straight_decoded, result.decoded)])
    saved = (
        100 * (1 - result.length / result.straight_length) if result.straight_length > 0 else 0.0
    )
    title = f"The geodesic changes the picture by {saved:.1f}% less on its way"
    rows = (
        f"straight line, {number(result.straight_length)}",
        f"geodesic, {number(result.length)}",
    )
    return mosaic(
        images, image_shape, title, rows=rows, xlabel="from the start to the end, in equal steps"
    )


def _draw_spectrum(axes: Axes, values: Array) -> None:
    """Draw each singular value's median and its range over the data, of those above zero."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    at = np.flatnonzero(median > 0)
    axes.vlines(
        at + 1, np.maximum(low[at], median[at] * 1e-3), high[at], color=BLUE, linewidth=5, alpha=0.3
    )
    axes.plot(at + 1, median[at], "o", color=BLUE)
    if len(at):
        axes.set_yscale("log")
    axes.set_xticks(np.arange(len(median)) + 1)
    tidy(axes, "Singular values", "of the Jacobian, largest first", "change of x for a unit of z")
    axes.text(
        0.98, 0.97, "median, 90% of data", ha="right", va="top", transform=axes.transAxes, **TEXT
    )


def _draw_angles(axes: Axes, cosines: Array, active: Array) -> None:
    """Draw the mean size of the cosines between the columns of active latents."""
    tidy(axes, "Mean |cos| between columns", "0: orthogonal; 1: the same direction", "")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if not len(active):
        axes.text(
            0.5,
            0.5,
            "no latent is active",
            ha="center",
            va="center",
            transform=axes.transAxes,
            **TEXT,
        )
        return
    sizes = np.abs(cosines[:, active][:, :, active]).mean(0)
    axes.imshow(sizes, vmin=0, vmax=1, cmap="Blues")
    names = [f"z{index}" for index in active]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(
        sizes if len(names) <= _WRITTEN else np.empty((0, 0))
    ):
        if row != column:
            colour = "white" if value > 0.6 else INK
            axes.text(
                column,
                row,
                f"{value:.2f}"[1:] if value < 1 else "1",
                ha="center",
                va="center",
                color=colour,
            )


def _draw_scores(axes: Axes, tests: dict[str, RotationTest]) -> None:
    """Draw each score with two standard errors, and above it the same in rotated axes."""
    for place, test in enumerate(tests.values()):
        draw_spread(axes, place, as_array(test.null), GREY)
        value = test.estimate
        error = 2 * value.standard_error if np.isfinite(value.standard_error) else 0.0
        axes.errorbar(
            value.value, place, xerr=error, fmt="D", color=BLUE, markersize=9, capsize=4, zorder=6
        )
        axes.annotate(
            number(value.value), (value.value, place - 0.47), ha="center", zorder=6, **TEXT
        )
    tidy(
        axes, "The model's axes (◆) beside rotated ones", "1: every column by itself", "", grid="x"
    )
    axes.set_yticks(range(len(tests)), list(tests))
    axes.set_ylim(max(len(tests), 1) - 0.4, -0.6)
    if not tests:
        axes.text(
            0.5,
            0.5,
            "fewer than two latents\nare active",
            ha="center",
            transform=axes.transAxes,
            **TEXT,
        )
