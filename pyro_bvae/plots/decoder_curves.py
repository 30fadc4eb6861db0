"""The figure of one decoder's rate-distortion curve."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.information.decoder_result import DecoderCurve

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"


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
                name,
                place,
                (-6, 6),
                textcoords="offset points",
                color=_GREEN,
                fontsize=8,
                ha="right",
            )
    axes.set_xlabel("distortion, nats a datum: what is lost")
    axes.set_ylabel("rate, nats a datum: what the code carries")
    axes.set_title("What one decoder can do, from one annealing run", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    axes.legend(frameon=False)
    return figure
