"""The figures of rate-distortion curves: of a sweep, and of one decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.information.curve import RateDistortion
from pyro_bvae.evaluation.information.decoder_result import DecoderCurve

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#8a8a8a"


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


@public
def decoder_curve(
    curve: DecoderCurve, trained: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Draw the decoder's curve, the guide's own point, and points of other models.

    Args:
        curve: Result of :func:`pyro_bvae.evaluation.rate_distortion_curve`.
        trained: Points of models trained at each β, by name: distortion and rate.
    """
    figure = Figure((7.5, 5), layout="constrained")
    axes = figure.subplots()
    distortions = [point.distortion.value for point in curve.points]
    rates = [point.rate.value for point in curve.points]
    axes.plot(distortions, rates, "o-", color=_BLUE, label="this decoder, best code at each β")
    for point, distortion, rate in zip(curve.points, distortions, rates, strict=True):
        axes.annotate(
            f"{point.beta:g}",
            (distortion, rate),
            (5, 4),
            textcoords="offset points",
            color=_BLUE,
            fontsize=8,
        )
    guide = (curve.guide_distortion.value, curve.guide_rate.value)
    axes.plot(*guide, "*", color=_ORANGE, markersize=13, label="its own guide")
    if trained:
        axes.plot(
            [point[0] for point in trained.values()],
            [point[1] for point in trained.values()],
            "D",
            color=_GREEN,
            label="models trained at each β, guide and all",
        )
        for name, place in trained.items():
            axes.annotate(
                name, place, (6, -13), textcoords="offset points", color=_GREEN, fontsize=8
            )
    axes.set_xlabel("distortion, nats a datum: what is lost")
    axes.set_ylabel("rate, nats a datum: what the code carries")
    axes.set_title("What one decoder can do, from one annealing run", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    axes.legend(frameon=False)
    return figure
