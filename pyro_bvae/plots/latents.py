"""Figures and animations of traversals and interpolations, from results alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

from pyro_bvae import plots
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.latent_results import Interpolation, Traversal
from pyro_bvae.plots.style import (
    CLASSES,
    INK,
    Array,
    as_array,
    grey_scale,
    mosaic,
    new_figure,
    number,
    plain,
    tidy,
)

# Latents drawn at most, and features in a panel.
_MOST_LATENTS, _MOST_FEATURES = 12, 6
_FRAME_DPI = 150


@public
def traversal_grid(
    traversal: Traversal, image_shape: Sequence[int], around: str = "a datum's code"
) -> Figure:
    """Draw a traversal as images: a row for each latent, a column for each of its values.

    Args:
        traversal: Result of :func:`pyro_bvae.latents.traverse`; its first twelve latents are
            drawn.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
        around: Where all other latents are held, in words.
    """
    images, values = (
        as_array(traversal.x)[:_MOST_LATENTS],
        as_array(traversal.values)[:_MOST_LATENTS],
    )
    if (values == values[0]).all():
        kl = None if traversal.kl is None else as_array(traversal.kl)[:_MOST_LATENTS]
        return plots.traversals(
            images, values[0], kl, image_shape, traversal.latents[:_MOST_LATENTS], around=around
        )
    rows = [
        f"{name}\n{number(own.min())} to {number(own.max())}"
        for name, own in zip(_names(traversal), values, strict=True)
    ]
    columns = ["lowest", *[""] * (values.shape[1] - 2), "highest"][: values.shape[1]]
    title = f"Moving one latent per row, the others held at {around}"
    xlabel = "value of the row's latent, in equal steps over the range at the left"
    xlabel += "" if traversal.kl is None else " (its KL in nats)"
    return mosaic(images, image_shape, title, rows=rows, columns=columns, xlabel=xlabel)


@public
def traversal_lines(traversal: Traversal, feature_names: Sequence[str] = ()) -> Figure:
    """Draw a traversal of data that are no images: a panel for each latent, with its main features.

    Args:
        traversal: Result of :func:`pyro_bvae.latents.traverse`; its first twelve latents are
            drawn.
        feature_names: Names of the D features.
    """
    names, values, x = _names(traversal), as_array(traversal.values), as_array(traversal.x)
    figure, panels = _panels(
        len(names), "What each latent moves alone (its KL in nats): the features that change most"
    )
    for axes, name, across, heights in zip(panels, names, values, x, strict=False):
        tidy(axes, name, "value of the latent", "decoded mean")
        _draw_most(axes, across, heights, np.ptp(heights, axis=0), feature_names)
    return figure


@public
def interpolation_strips(
    results: Mapping[str, Interpolation], image_shape: Sequence[int]
) -> Figure:
    """Draw interpolations as images: the two data, and the paths between them, decoded.

    Args:
        results: Result of :func:`pyro_bvae.latents.interpolate` for the same pairs, by the name
            of the path.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
    """
    titled = list(_ways(results))
    rows = [np.concatenate([start[None], between, end[None]]) for _, start, between, end in titled]
    steps = len(rows[0]) - 2
    shares = [f"{100 * step / max(1, steps - 1):.0f}%" for step in range(steps)]
    names = [name for name, *_ in titled]
    title = "From one datum's code to another's, decoded"
    if len(results) == 1:
        title += f": {next(iter(results))} path"
    xlabel = "share of the way, between the two data"
    return mosaic(
        np.stack(rows),
        image_shape,
        title,
        rows=names,
        columns=["datum", *shares, "datum"],
        xlabel=xlabel,
    )


@public
def interpolation_lines(
    results: Mapping[str, Interpolation], feature_names: Sequence[str] = ()
) -> Figure:
    """Draw interpolations of data that are no images, a panel for each path.

    Args:
        results: Result of :func:`pyro_bvae.latents.interpolate` for the same pairs, by the name
            of the path.
        feature_names: Names of the D features.
    """
    titled, several = list(_ways(results)), len(results) > 1
    title = "From one datum's code to another's, decoded (dots: the two data)"
    # The paths of a pair beside each other, on one scale.
    figure, panels = _panels(
        len(titled), title, len(results) if several else 3, sharey="row" if several else "none"
    )
    for axes, (name, start, between, end) in zip(panels, titled, strict=False):
        tidy(
            axes,
            name if several else f"{name}, {next(iter(results))} path",
            "share of the way",
            "decoded mean",
        )
        share = np.linspace(0, 1, len(between))
        # By the ends, so that they are the same on all paths of a pair.
        chosen = _draw_most(axes, share, between, np.abs(between[-1] - between[0]), feature_names)
        for colour, feature in enumerate(chosen):
            axes.plot(
                [0, 1], [start[feature], end[feature]], "o", color=CLASSES[colour], clip_on=False
            )
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


@public
def traversal_frames(traversal: Traversal, image_shape: Sequence[int]) -> list[Image.Image]:
    """Return the frames of an animation: the latents of a traversal move side by side, and back.

    Args:
        traversal: Result of :func:`pyro_bvae.latents.traverse`; its first twelve latents are
            drawn.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
    """
    images, values = as_array(traversal.x)[:_MOST_LATENTS], as_array(traversal.values)
    low, high = grey_scale(images)  # one for all frames
    images = np.clip((images - low) / (high - low), 0, 1)
    labels = [
        [
            f"{name}\n{number(value)}"
            for name, value in zip(_names(traversal, "\n"), step, strict=False)
        ]
        for step in values.T
    ]
    title = "Each latent moved alone" + ("" if traversal.kl is None else " (its KL in nats)")
    steps = [
        mosaic(images[None, :, i], image_shape, title, columns=named)
        for i, named in enumerate(labels)
    ]
    figure = steps[0]
    figure.set_dpi(_FRAME_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # so that nothing jumps from frame to frame
    frames = []
    for step, named in zip(steps, labels, strict=True):
        figure.axes[0].images[0].set_data(step.axes[0].images[0].get_array())
        figure.axes[0].set_xticklabels(named)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return frames + frames[-2:0:-1]


@public
def write_gif(frames: Sequence[Image.Image], path: Path, milliseconds: int = 90) -> None:
    """Write frames as an endless GIF, whole or not at all.

    Args:
        frames: Images of one size.
        path: Where to, in a directory that is made if it is not there.
        milliseconds: How long each frame is shown.
    """
    first, *others = (frame.quantize(256, dither=Image.Dither.NONE) for frame in frames)
    with making(path.parent), atomic_write(path, "wb") as stream:
        first.save(
            stream, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0
        )


def _names(traversal: Traversal, between: str = "  ") -> list[str]:
    """Return the title of each latent: its number, and its KL where that is known."""
    kl = [""] * len(traversal.latents)
    if traversal.kl is not None:
        kl = [f"{between}KL {number(value)}" for value in as_array(traversal.kl)]
    return [f"z{latent}{nats}" for latent, nats in zip(traversal.latents, kl, strict=True)][
        :_MOST_LATENTS
    ]


def _ways(results: Mapping[str, Interpolation]) -> Iterator[tuple[str, Array, Array, Array]]:
    """Yield name, datum, decoded data and datum of each path: those of a pair, then of the next."""
    for one in results.values():
        if not isinstance(getattr(one, "start", None), Tensor):
            raise InputError(f"'results' must hold interpolations by name, got {shown(one)}")
    if not results:
        raise InputError("'results' must hold an interpolation at least, got none")
    pairs = len(next(iter(results.values())).start)
    for pair in range(pairs):
        for name, one in results.items():
            parts = [f"pair {pair + 1}"] if pairs > 1 or len(results) == 1 else []
            parts += [plain(name)] if len(results) > 1 else []
            yield (
                ", ".join(parts),
                as_array(one.start)[pair],
                as_array(one.x)[pair],
                as_array(one.end)[pair],
            )


def _panels(
    count: int, title: str, columns: int = 3, sharey: Literal["none", "row"] = "none"
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels under a title."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(max(6.5, 4.6 * columns), 0.6 + 3 * rows)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def _draw_most(
    axes: Axes, across: Array, heights: Array, weight: Array, feature_names: Sequence[str]
) -> list[int]:
    """Draw the features of ``(S, D)`` of largest weight ``(D,)``, and return their indices."""
    chosen = np.argsort(-weight, kind="stable")[:_MOST_FEATURES]
    for colour, feature in enumerate(chosen):
        name = feature_names[feature] if len(feature_names) else f"x{feature}"
        style: dict[str, Any] = {"marker": "o"} if len(across) == 1 else {"linewidth": 2}
        axes.plot(across, heights[:, feature], color=CLASSES[colour], label=plain(name), **style)
    axes.legend(
        frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1), handlelength=1.2
    )
    return [int(feature) for feature in chosen]
