"""Numbers in, matplotlib figures out; nothing here computes an estimate or knows a model.

Every function returns a :class:`matplotlib.figure.Figure` made without pyplot, so nothing has to be
closed, no backend is chosen and no global style is changed. Arrays may be NumPy's or torch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.plots.style import (
    BLUE,
    GREY,
    INK,
    TEXT,
    Values,
    as_array,
    draw_features,
    draw_points,
    draw_prior,
    mosaic,
    new_figure,
    shaped,
    tidy,
)

if TYPE_CHECKING:
    pass


@public
def reconstructions(x: Values, means: Values, image_shape: Sequence[int], num: int = 10) -> Figure:
    """Draw images above their reconstructions.

    Args:
        x: Data, shape ``(N, D)``.
        means: Their reconstructions, shape ``(N, D)``.
        image_shape: ``(H, W)`` or ``(C, H, W)`` with one or three channels; D is its product.
        num: How many to draw, the first ones.
    """
    data = shaped("x", x, 2)
    fits = shaped("means", means, 2, data.shape[1])
    check_count("num", num)
    count = min(num, len(data), len(fits))
    pairs = np.stack([data[:count], fits[:count]])
    return mosaic(
        pairs, image_shape, "Data and their reconstructions", rows=("data", "reconstruction")
    )


@public
def image_grid(x: Values, image_shape: Sequence[int], title: str, num: int = 40) -> Figure:
    """Draw images in rows of ten.

    Args:
        x: Images, shape ``(N, D)``.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
        title: The title of the figure.
        num: How many to draw, the first ones.
    """
    check_count("num", num)
    images = shaped("x", x, 2)[:num]
    columns = max(1, min(10, len(images)))
    blank = np.full((-len(images) % columns, images.shape[1]), np.nan)
    return mosaic(
        np.concatenate([images, blank]).reshape(-1, columns, images.shape[1]), image_shape, title
    )


@public
def traversals(
    images: Values,
    values: Values,
    kl: Values | None,
    image_shape: Sequence[int],
    latents: Sequence[int],
    *,
    around: str = "0",
) -> Figure:
    """Draw decoded images as one latent after another is moved.

    Args:
        images: Decoded means, shape ``(L, S, D)``: a row per latent, a column per value.
        values: The S values each latent is given.
        kl: KL of each row's latent in nats, shape ``(L,)``, or None if it is not known.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
        latents: Index of each row's latent.
        around: Where all other latents are held, in words.
    """
    pictures, steps = shaped("images", images, 3), shaped("values", values, 1)
    known = None if kl is None else shaped("kl", kl, 1, len(latents))
    nats = [""] * len(latents) if known is None else [f"  KL {value:.2f}" for value in known]
    rows = [f"z{latent}{suffix}" for latent, suffix in zip(latents, nats, strict=True)]
    title = f"Moving one latent per row, the others held at {around}"
    columns = [f"{value:.3g}".replace("-", "−") for value in steps]
    xlabel = "value of the row's latent" + ("" if kl is None else " (its KL in nats)")
    return mosaic(pictures, image_shape, title, rows=rows, columns=columns, xlabel=xlabel)


@public
def interpolation(images: Values, image_shape: Sequence[int]) -> Figure:
    """Draw the decoded path from one datum's code to another's.

    Args:
        images: Decoded means, shape ``(P, S, D)``: a row per pair, S steps from the one to the
            other.
        image_shape: ``(H, W)`` or ``(C, H, W)``.
    """
    rows = shaped("images", images, 3)
    columns = [f"{100 * step / max(1, rows.shape[1] - 1):.0f}%" for step in range(rows.shape[1])]
    pairs = [f"pair {i + 1}" for i in range(len(rows))]
    title = "From one datum's code to another's, in a straight line"
    return mosaic(rows, image_shape, title, rows=pairs, columns=columns, xlabel="share of the way")


@public
def latent_scatter(
    means: Values,
    labels: Values | None,
    kl: Values | None,
    label_names: Sequence[str] = (),
    normal_prior: bool = True,
) -> Figure:
    """Draw the data in the two latents of highest KL; a single latent is drawn against the label.

    Args:
        means: Posterior means, shape ``(N, L)``.
        labels: One number per datum, shape ``(N,)``: up to 12 distinct whole numbers are classes,
            else a scale.
        kl: KL per latent in nats, shape ``(L,)``; if it is not known, None takes the two whose
            means vary most.
        label_names: Names of the classes, by number.
        normal_prior: Mark one and two standard deviations of a standard normal prior.
    """
    codes = shaped("means", means, 2)
    classes = (
        None if labels is None else shaped("labels", as_array(labels).reshape(-1), 1, len(codes))
    )
    weight = codes.var(axis=0) if kl is None else shaped("kl", kl, 1, codes.shape[1])
    first, *rest = (int(latent) for latent in np.argsort(-weight, kind="stable")[:2])
    suffixes = {
        latent: "" if kl is None else f"  (KL {weight[latent]:.2f} nats)"
        for latent in (first, *rest)
    }
    names = [f"z{latent}{nats}" for latent, nats in suffixes.items()]
    figure = new_figure(7.6, 6.4 if rest else 4.2)
    axes = figure.subplots()
    tidy(
        axes, "Where the data lie in the latent space (posterior means)", names[0], "", grid="both"
    )
    if normal_prior:
        draw_prior(axes, circles=bool(rest))
    if rest:
        axes.set_ylabel(names[1], **TEXT)
        axes.set_aspect("equal", adjustable="datalim")
        draw_points(axes, codes[:, first], codes[:, rest[0]], classes, label_names)
    elif classes is None:
        axes.set_ylabel("number of data", **TEXT)
        axes.hist(codes[:, first], bins=40, color=BLUE)
    else:
        axes.set_ylabel("label", **TEXT)
        axes.set_yticks([])
        draw_points(axes, codes[:, first], classes, classes, label_names)
    return figure


@public
def kl_bars(kl: Values, active: Values, standard_error: Values | None = None) -> Figure:
    """Draw the KL of every latent in decreasing order.

    Args:
        kl: Mean KL per latent in nats, shape ``(L,)``.
        active: Which latents are active, shape ``(L,)``.
        standard_error: Standard errors over data in nats, shape ``(L,)``; the lines are twice as
            long.
    """
    nats = shaped("kl", kl, 1)
    is_active = shaped("active", active, 1, len(nats)).astype(bool)
    order = np.argsort(-nats, kind="stable")
    figure = new_figure(min(4.5 + 0.35 * len(nats), 12), 3.8)
    axes = figure.subplots()
    error = (
        None
        if standard_error is None
        else 2 * shaped("standard_error", standard_error, 1, len(nats))
    )
    title = (
        f"KL per latent: {nats.sum():.1f} nats in total, {is_active.sum()} of {len(nats)} active"
    )
    note = "" if error is None else " (lines: ± 2 standard errors over data)"
    tidy(axes, title, f"latent, by decreasing KL{note}", "KL, nats per datum")
    for state, colour, name in ((True, BLUE, "active"), (False, GREY, "inactive")):
        at = np.flatnonzero(is_active[order] == state)
        if at.size:
            lines = None if error is None else error[order][at]
            axes.bar(
                at, nats[order][at], color=colour, label=name, yerr=lines, ecolor=INK, width=0.8
            )
    shown = range(0, len(nats), math.ceil(len(nats) / 24))
    axes.set_xticks(shown, [f"z{order[i]}" for i in shown])
    axes.set_ylim(min(0.0, float(nats.min())), max(0.1, axes.get_ylim()[1]))
    axes.legend(frameon=False, fontsize=10, loc="upper right")
    return figure


@public
def features(
    x: Values, means: Values | None, title: str, feature_names: Sequence[str] = (), num: int = 6
) -> Figure:
    """Draw data that are not images, a panel each, with their reconstructions.

    Args:
        x: Data, shape ``(N, D)``; above 100 features they are drawn against their reconstructions.
        means: Their reconstructions, shape ``(N, D)``, or None to draw ``x`` alone.
        title: The title of the figure.
        feature_names: Names of the D features.
        num: How many to draw, the first ones.
    """
    check_count("num", num)
    data = shaped("x", x, 2)[:num]
    fits = None if means is None else shaped("means", means, 2, data.shape[1])[:num]
    if fits is not None and len(fits) < len(data):
        raise InputError(f"'means' must have a row for each of {len(data)} data, got {len(fits)}")
    columns = min(3, len(data))
    figure = new_figure(12 if columns > 1 else 6, 0.6 + 2.6 * math.ceil(len(data) / columns))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    panels = figure.subplots(math.ceil(len(data) / columns), columns, squeeze=False).flatten()
    for i, axes in enumerate(panels):
        if i >= len(data):
            axes.set_axis_off()
        elif fits is not None and data.shape[1] > 100:
            tidy(axes, "", "data", "reconstruction")
            axes.plot(data[i], fits[i], ".", color=BLUE, markersize=4, alpha=0.6, label="a feature")
            axes.axline((0, 0), slope=1, color=INK, linewidth=1, linestyle=":", label="equal")
        else:
            draw_features(axes, data[i], None if fits is None else fits[i], feature_names)
    handles, names = panels[0].get_legend_handles_labels()
    if fits is not None:
        figure.legend(
            handles, names, loc="outside upper right", ncols=2, frameon=False, fontsize=10
        )
    return figure
