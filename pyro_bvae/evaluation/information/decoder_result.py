"""The rate-distortion curve of one decoder, and what it says of decoder and guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyro_bvae.evaluation.estimate import Estimate

# Nats by which a guide may lie off before it is said to.
_NEAR = 0.1


class DecoderPoint(NamedTuple):
    """The best code of a decoder at one β.

    Attributes:
        beta: The β.
        rate: Mean KL from the best code to the prior, nats per datum.
        distortion: Minus its mean reconstruction log-likelihood, likewise.
    """

    beta: float
    rate: Estimate
    distortion: Estimate


class Bounds(NamedTuple):
    """The point of one β for data that the decoder drew, from both sides.

    Attributes:
        lower: From chains that start at the latents of the data: a lower bound of the rate.
        upper: From chains that start at the prior.
    """

    lower: DecoderPoint
    upper: DecoderPoint

    @property
    def gap(self) -> float:
        r"""How far the two lie apart in :math:`R + D / \beta`, nats per datum."""
        sides = (self.upper, self.lower)
        high, low = (side.rate.value + side.distortion.value / side.beta for side in sides)
        return high - low


@dataclass(frozen=True, eq=False)
class DecoderCurve:
    """The rate-distortion curve of one decoder; it prints itself.

    Attributes:
        points: The best code at each β, β rising: rate falling, distortion rising.
        guide_rate: Rate of the guide on the same data.
        guide_distortion: Its distortion.
        bounds: The same for data drawn from the decoder, bounded from both sides, a pair for each
            β; None where nobody asked.
    """

    points: tuple[DecoderPoint, ...]
    guide_rate: Estimate
    guide_distortion: Estimate
    bounds: tuple[Bounds, ...] | None = None

    @property
    def betas(self) -> list[float]:
        """The β of the points."""
        return [point.beta for point in self.points]

    @property
    def excess(self) -> list[float]:
        r"""KL from the guide to the best code at each β, nats per datum.

        :math:`R_q + D_q / \beta - (R_\beta + D_\beta / \beta)`; at β = 1 the variational gap.
        """
        return [
            self.guide_rate.value
            - point.rate.value
            + (self.guide_distortion.value - point.distortion.value) / point.beta
            for point in self.points
        ]

    @property
    def nearest_beta(self) -> float:
        """The β whose best code is nearest to the guide."""
        return self.betas[int(np.argmin(self.excess))]

    @property
    def needed_rate(self) -> float | None:
        """The rate that the decoder needs for the guide's distortion; None beyond the curve.

        Read off between the points by straight lines, which lie above a convex curve.
        """
        distortions = [point.distortion.value for point in self.points]
        rates = [point.rate.value for point in self.points]
        order = np.argsort(distortions)
        where, values = np.asarray(distortions)[order], np.asarray(rates)[order]
        seen = self.guide_distortion.value
        return float(np.interp(seen, where, values)) if where[0] <= seen <= where[-1] else None

    @property
    def trusted(self) -> bool:
        """Whether the chains of each point agree."""
        return all(point.rate.untrusted <= len(point.rate.per_datum) / 10 for point in self.points)

    @property
    def verdict(self) -> str:
        """What the curve says of the decoder and of the guide, in words."""
        first, last = self.points[0], self.points[-1]
        lines = [
            f"the decoder: from {last.rate.value:.2f} nats of rate at a distortion of"
            f" {last.distortion.value:.2f} (β = {last.beta:g}) to {first.rate.value:.2f} at"
            f" {first.distortion.value:.2f} (β = {first.beta:g})"
        ]
        rate = f"{self.guide_rate.value:.2f}"
        if self.needed_rate is None:
            lines.append(
                f"the guide: rate {rate}, and a distortion of {self.guide_distortion.value:.2f},"
                " which no β of these reaches"
            )
        else:
            more = self.guide_rate.value - self.needed_rate
            lines.append(
                f"the guide: rate {rate} for a distortion of {self.guide_distortion.value:.2f}, for"
                f" which the decoder needs {self.needed_rate:.2f}: {max(more, 0.0):.2f} nats are"
                f" wasted{', next to nothing' if more < _NEAR else ''}"
            )
        nearest = self.nearest_beta
        lines.append(
            f"it is nearest to the best code at β = {nearest:g}, {min(self.excess):.2f} nats off"
        )
        if self.bounds is not None:
            widest = max(abs(pair.gap) for pair in self.bounds)
            lines.append(f"on data of its own the curve is known to {widest:.2f} nats")
        if not self.trusted:
            lines.append("UNTRUSTED: the chains disagree; take more temperatures")
        return "; ".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each β, for a table."""
        pairs = self.bounds or (None,) * len(self.points)
        return [
            {
                "beta": point.beta,
                "rate": point.rate.value,
                "rate_error": point.rate.standard_error,
                "distortion": point.distortion.value,
                "distortion_error": point.distortion.standard_error,
                "monte_carlo_error": point.rate.monte_carlo_error,
                "guide_excess": excess,
                "bounds_gap": None if pair is None else pair.gap,
            }
            for point, excess, pair in zip(self.points, self.excess, pairs, strict=True)
        ]

    def table(self) -> Any:
        """Return the rows as a DataFrame, one a β."""
        import pandas as pd

        return pd.DataFrame(self.rows()).set_index("beta")

    def __str__(self) -> str:
        lines = [
            f"{'β':>8}{'rate':>10}{'± error':>9}{'distortion':>12}{'± error':>9}{'guide, KL':>11}"
            f"{'bounds':>9}"
        ]
        for row in self.rows():
            gap = "-" if row["bounds_gap"] is None else f"{row['bounds_gap']:.3f}"
            lines.append(
                f"{row['beta']:>8g}{row['rate']:>10.3f}{row['rate_error']:>9.3f}"
                f"{row['distortion']:>12.3f}{row['distortion_error']:>9.3f}"
                f"{row['guide_excess']:>11.3f}{gap:>9}"
            )
        return "\n".join([*lines, self.verdict])
