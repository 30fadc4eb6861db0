"""The figure of a rate-distortion curve."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.information.curve import RateDistortion

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#8a8a8a"


@public
def rate_distortion(
    curve: RateDistortion,
    analytic: tuple[Sequence[float], Sequence[float]] | None = None,
    published: Sequence[tuple[str, float, float]] = (),
) -> Figure:
    """Draw rate against distortion, with two standard errors, each point marked by its β.

    Args:
        curve: The measured curve.
        analytic: Distortions and rates of the exact curve, where there is one.
        published: Points of others: name, distortion, rate.
    """
    figure = Figure((7.5, 5), layout="constrained")
    axes = figure.subplots()
    if analytic is not None:
        axes.plot(*analytic, color=_GREY, linewidth=4, alpha=0.5, label="closed form")
    distortions = [point.distortion.value for point in curve.points]
    rates = [point.rate.value for point in curve.points]
    axes.errorbar(
        distortions,
        rates,
        xerr=[2 * point.distortion.standard_error for point in curve.points],
        yerr=[2 * point.rate.standard_error for point in curve.points],
        fmt="o-",
        color=_BLUE,
        label="measured, ± two standard errors",
    )
    for point, distortion, rate in zip(curve.points, distortions, rates, strict=True):
        knee = point.beta == curve.knee
        name = f"β = {point.beta:g}" + (" (knee)" if knee else "")
        axes.annotate(
            name,
            (distortion, rate),
            (7, 5),
            textcoords="offset points",
            fontweight="bold" if knee else "normal",
        )
    for name, distortion, rate in published:
        axes.plot(distortion, rate, "D", color=_ORANGE)
        axes.annotate(name, (distortion, rate), (7, -12), textcoords="offset points", color=_ORANGE)
    axes.set_xlabel("distortion, nats a datum: what is lost")
    axes.set_ylabel("rate, nats a datum: what the code carries")
    axes.set_title(
        "Each β is a point of the rate-distortion curve, where its slope is -1/β",
        loc="left",
        fontsize=11,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.legend(frameon=False)
    return figure
