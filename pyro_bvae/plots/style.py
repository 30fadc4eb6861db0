"""Drawing: the strokes that the figures of :mod:`pyro_bvae.plots` are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import Values

Array = NDArray[Any]
# A name, a colour and an estimate: its value and errors by name.
GapRow = tuple[str, str, Mapping[str, Any]]

# Okabe and Ito (2008): distinct to any colour vision.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#A8A8A8", "#222222"
# Classes: Tol's muted colours and three more; markers and names on the plot say the same again.
TOL = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDAA33",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
)
CLASSES = (*TOL, "#EE7733", "#777777", "#000000")
TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold", "loc": "left", "color": INK}
TEXT: dict[str, Any] = {"fontsize": 10, "color": INK}
HALO = [withStroke(linewidth=3, foreground="white")]


def as_array(values: Values) -> Array:
    """Return values as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def shaped(name: str, values: Values, dims: int, width: int | None = None) -> Array:
    """Return values as an array of so many dimensions, none of them empty.

    Args:
        name: The argument, for the error.
        values: The values.
        dims: The number of dimensions.
        width: The size of the last one, if it is known.

    Raises:
        InputError: for another shape.
    """
    array = as_array(values)
    if array.ndim != dims or 0 in array.shape or width not in (None, array.shape[-1]):
        last = "..." if width is None else width
        wanted = f"{dims} dimensions" if dims > 1 else "one dimension"
        raise InputError(
            f"'{name}' must have {wanted}, the last of size {last}, got shape {array.shape}"
        )
    return array.astype(float) if array.dtype == bool else array


def plain(text: object) -> str:
    """Return a user's text with nothing in it that matplotlib would typeset as mathematics."""
    return str(text).replace("$", r"\$")


def number(value: float) -> str:
    """Return a number with two decimals and a minus sign."""
    return f"{value:.2f}".replace("-", "−")


def title_of(text: str, width: int = 74) -> tuple[str, list[str]]:
    """Return the first sentence of a text as a title, and the lines of the others as notes."""
    first, *others = re.split(r"(?<=[.!?]) +", plain(text).strip())
    title = "\n".join(wrap(first[:1].upper() + first[1:], width)).removesuffix(".")
    return title, wrap(" ".join(others), width + 16)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that belongs to no backend."""
    return Figure(
        (width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1), facecolor="white"
    )


def tidy(
    axes: Axes, title: str, xlabel: str, ylabel: str, grid: Literal["x", "y", "both"] = "y"
) -> None:
    """Give axes their title, labels and light grid."""
    axes.set_title(title, **TITLE)
    axes.set_xlabel(xlabel, **TEXT)
    axes.set_ylabel(ylabel, **TEXT)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=0)


def draw_line(axes: Axes, epoch: Array, values: Values, **style: Any) -> None:
    """Draw the values that there are; one alone is a point."""
    heights = as_array(values).astype(float)
    if heights.size and (known := np.isfinite(heights)).any():
        marker = "o" if known.sum() == 1 else ""
        axes.plot(epoch[known], heights[known], linewidth=2, marker=marker, **style)


def lowest(epoch: Array, values: Array) -> float | None:
    """Return the epoch of the lowest known value, or None."""
    known = np.isfinite(values.astype(float))
    return float(epoch[known][np.argmin(values[known])]) if known.any() else None


def mosaic(
    images: Array,
    image_shape: Sequence[int],
    title: str,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    xlabel: str = "",
) -> Figure:
    """Draw images ``(R, S, D)`` as one picture; NaN is left blank. All share one grey scale."""
    channels, height, width = check_image_shape(image_shape, images.shape[-1])
    pad = max(1, round(width / 14))
    down, across = height + pad, width + pad
    low, high = grey_scale(images[np.isfinite(images)])
    canvas = np.full((len(images) * down - pad, images.shape[1] * across - pad, channels), np.nan)
    for r, row in enumerate(images):
        for s, image in enumerate(row):
            tile = np.moveaxis(image.reshape(channels, height, width), 0, -1)
            canvas[r * down : r * down + height, s * across : s * across + width] = np.clip(
                (tile - low) / (high - low), 0, 1
            )
    cell = min(0.85, 10 / images.shape[1])
    size = (
        max(4.5, cell * images.shape[1] + 1.5),
        cell * len(images) * down / across + 0.6 + 0.5 * bool(columns),
    )
    figure = new_figure(*size)
    axes = figure.subplots()
    shown = (
        np.where(np.isnan(canvas), 1.0, canvas)
        if channels == 3
        else np.ma.masked_invalid(canvas[..., 0])
    )
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    tidy(axes, title, xlabel, "")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([r * down + (height - 1) / 2 for r in range(len(rows))], rows)
    axes.set_xticks([s * across + (width - 1) / 2 for s in range(len(columns))], columns)
    return figure


def check_image_shape(image_shape: Sequence[int], num_features: int) -> tuple[int, int, int]:
    """Return channels, height and width.

    Raises:
        InputError: if this is no picture of that many features.
    """
    shape = tuple(int(size) for size in image_shape)
    channels, height, width = (
        (1, *shape) if len(shape) == 2 else shape if len(shape) == 3 else (0, 0, 0)
    )
    if channels not in (1, 3) or channels * height * width != num_features:
        raise InputError(
            f"'image_shape' must be (H, W), (1, H, W) or (3, H, W) with product {num_features}, "
            f"got {shape}"
        )
    return channels, height, width


def grey_scale(known: Array) -> tuple[float, float]:
    """Return the values drawn black and white: 0 and 1 if most values lie there, or the extremes.

    Means of a normal likelihood stray a little beyond the pixels they model; that should not grey
    the rest.
    """
    if not known.size or np.mean((known > -0.25) & (known < 1.25)) >= 0.9:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return low, high if high > low else low + 1


def draw_prior(axes: Axes, circles: bool) -> None:
    """Mark one and two standard deviations of a standard normal."""
    style: dict[str, Any] = {"color": INK, "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 3}
    for radius in (1, 2):
        words = f"prior, {radius} sd"
        if circles:
            axes.add_patch(Circle((0, 0), radius, fill=False, **style))
            axes.text(
                0,
                radius,
                words,
                ha="center",
                va="center",
                path_effects=HALO,
                zorder=5,
                fontsize=9,
                color=INK,
            )
        else:
            axes.axvline(-radius, **style)
            axes.axvline(radius, **style)
            place: dict[str, Any] = {
                "ha": "center",
                "va": "top",
                "transform": axes.get_xaxis_transform(),
            }
            axes.text(
                radius, 0.98, words, path_effects=HALO, zorder=7, fontsize=9, color=INK, **place
            )


def draw_points(
    axes: Axes, x: Array, y: Array, classes: Array | None, label_names: Sequence[str]
) -> None:
    """Draw points in one colour, in those of their classes with their names, or along a scale."""
    style: dict[str, Any] = {
        "s": 18 if len(x) < 2000 else 7,
        "alpha": 0.75,
        "linewidths": 0,
        "rasterized": True,
    }
    known = np.unique(classes) if classes is not None else np.array([])
    if classes is None:
        axes.scatter(x, y, color=BLUE, **style)
    elif len(known) > len(CLASSES) or (known % 1 != 0).any():
        points = axes.scatter(x, y, c=classes, cmap="viridis", **style)
        axes.figure.colorbar(points, ax=axes, label="label", shrink=0.8)
    else:
        for i, code in enumerate(known.astype(int)):
            mine = classes == code
            name = plain(label_names[code]) if 0 <= code < len(label_names) else str(code)
            axes.scatter(
                x[mine], y[mine], color=CLASSES[i], marker="os^D"[i % 4], label=name, **style
            )
            box = {
                "boxstyle": "round,pad=0.2",
                "facecolor": "white",
                "edgecolor": CLASSES[i],
                "alpha": 0.85,
            }
            at = np.median(x[mine]), np.median(y[mine])
            axes.text(*at, name, ha="center", va="center", bbox=box, zorder=6, **TEXT)
        axes.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=10, title="label"
        )


def draw_gap_rows(
    axes: Axes, rows: Sequence[GapRow], error: str, below: Sequence[GapRow] = ()
) -> None:
    """Draw a bar and its error for each row; the first is stacked from the others, if any.

    Args:
        axes: Where to draw.
        rows: Name, colour and estimate: the whole, then its parts.
        error: Key of the error, whose lines are twice as long to either side.
        below: Rows of their own, set apart, each on a pale bar as long as the first part: the rest
            of it.
    """
    parts = rows[1:]
    ends = {True: 0.0, False: 0.0}
    for _, part_colour, part in parts:
        value, up = float(part["value"]), part["value"] >= 0
        axes.barh(0, value, left=ends[up], color=part_colour, height=0.6)
        ends[up] += value
    places = [*range(len(rows)), *(len(rows) + 0.4 + i for i in range(len(below)))]
    for place, (_, colour, estimate) in zip(places, (*rows, *below), strict=True):
        value, length = float(estimate["value"]), 2 * float(estimate.get(error) or 0.0)
        stacked, apart = place == 0 and bool(parts), place >= len(rows)
        whole = float(parts[0][2]["value"]) if apart and parts else 0.0
        if whole > 0:
            axes.barh(place, whole, color=colour, height=0.6, alpha=0.2)
        if not stacked:
            axes.barh(place, value, color=colour, height=0.6)
        mark = "D" if stacked else "none"
        axes.errorbar(value, place, xerr=length, color=INK, fmt=mark, markersize=5, capsize=4)
        right = max(value + length, ends[True] if stacked else whole)
        words = (
            f"◆ {number(value)}" if stacked else f"{number(value)} left" if apart else number(value)
        )
        axes.annotate(
            words, (right, place), (8, 0), textcoords="offset points", va="center", **TEXT
        )
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(places, [name for name, _, _ in (*rows, *below)])
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.margins(x=0.15)


def draw_spread(axes: Axes, place: float, values: Array, colour: str) -> None:
    """Draw values in a row: a dot for each, a box for the middle half, a line at the mean."""
    known = values[np.isfinite(values)]
    # Dots side by side, in an order that has nothing to do with their values.
    beside = place + 0.32 * (2 * np.random.default_rng(0).random(len(known)) - 1)
    size = 18 if len(known) < 200 else 7
    axes.scatter(known, beside, s=size, color=colour, alpha=0.45, linewidths=0, rasterized=True)
    if len(known):
        low, high = np.quantile(known, [0.25, 0.75])
        axes.barh(
            place, high - low, left=low, height=0.72, facecolor="none", edgecolor=INK, linewidth=1.2
        )
        axes.plot([known.mean()] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2.5)


def draw_features(axes: Axes, data: Array, fit: Array | None, feature_names: Sequence[str]) -> None:
    """Draw one datum over its features, with its reconstruction."""
    at, few = np.arange(len(data)), len(data) <= 20
    tidy(axes, "", "" if few and len(feature_names) else "feature", "value")
    style: dict[str, Any] = {"linestyle": "none", "marker": "o"} if few else {"linewidth": 2.5}
    axes.plot(at, data, color=GREY, label="data", **style)
    if fit is not None:
        style = (
            {"linestyle": "none", "marker": "x", "markeredgewidth": 2}
            if few
            else {"linewidth": 1.2}
        )
        axes.plot(at, fit, color=BLUE, label="reconstruction", **style)
    if few and len(feature_names):
        axes.set_xticks(at, [plain(name) for name in feature_names], rotation=60, ha="right")
