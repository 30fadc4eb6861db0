"""Draws with their log density, for distributions whose density is cheapest by the noise."""

from __future__ import annotations

from typing import Any

from pyro.distributions.score_parts import ScoreParts
from pyro.poutine.messenger import Messenger


class ScoredDraws(Messenger):  # type: ignore[misc]
    r"""An effect handler under which sites of such distributions are drawn and scored in one pass.

    A distribution takes part by a method ``rsample_and_log_prob(sample_shape=())``, which returns
    draws :math:`z = T(\epsilon)` and their log density, that of the noise less :math:`\log |\det dT
    / d\epsilon|`. It is the density of :math:`T(\epsilon)` as a function of the parameters, with
    its whole gradient in them and none in z. It takes no inverse, which may be sequential, or lose
    digits. The trace then holds the density as Pyro's own ``compute_log_prob`` leaves it. The
    handler goes around all others, so that plates have expanded the distribution.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        draw = getattr(msg["fn"], "rsample_and_log_prob", None)
        if draw is not None and msg["value"] is None and not msg["is_observed"]:
            msg["value"], msg["unscaled_log_prob"] = draw()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if "unscaled_log_prob" in msg and "score_parts" not in msg:
            log_prob = msg["unscaled_log_prob"]
            parts: Any = ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
            parts = parts.scale_and_mask(msg["scale"], msg["mask"])
            msg["score_parts"], msg["log_prob"], msg["log_prob_sum"] = (
                parts,
                parts.log_prob,
                parts.log_prob.sum(),
            )
