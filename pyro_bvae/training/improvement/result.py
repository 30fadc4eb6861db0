"""A guide before and after it was trained on, with the model fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyro_bvae.evaluation import elbo
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps import InferenceGaps
from pyro_bvae.evaluation.gaps.result import verdict
from pyro_bvae.posteriors import refined
from pyro_bvae.training.history import History

if TYPE_CHECKING:
    import pandas

#: The parts of a gap and the numbers it is made of, by name, each with its label in a table.
PARTS = {
    "variational": "variational gap",
    "approximation": "  approximation",
    "beta": "  β gap",
    "amortization": "  amortization",
    "elbo": "ELBO",
    "evidence": "evidence",
}


def parts_of(gaps: InferenceGaps) -> dict[str, Estimate]:
    """Return the gaps, the bound and the evidence by their names in :data:`PARTS`."""
    return {name: getattr(gaps, name) for name in PARTS}


@dataclass(frozen=True, eq=False)
class ImprovedGuide:
    """A model whose guide was trained on, and its gaps before and after.

    Attributes:
        vae: The improved model; None where a pair of functions was given.
        model: The Pyro model, which is as it was to the bit.
        guide: The improved guide.
        before: The gaps of the guide that was given.
        after: The gaps of the improved guide, on the same data, at ``training_beta=1``.
        history: The metrics of each epoch.
        kept: Whether the guide that was given was kept, since no epoch had a better bound on the
            held-out data.
        run: The run directory of the improved model, if it has one.
        args: The arguments of model and guide that the gaps were measured on.
    """

    vae: Any
    model: Callable[..., Any]
    guide: Callable[..., Any]
    before: InferenceGaps
    after: InferenceGaps
    history: History
    kept: bool = False
    run: str | None = None
    args: tuple[Any, ...] = ()

    def refined_gap(self, num_steps: int = 20, *, num_samples: int = 500) -> Estimate:
        r"""Return the variational gap that is left after local steps for each datum.

        .. math:: \log p(x) - \text{ELBO}(q^{(K)})

        with :math:`q^{(K)}` of :func:`~pyro_bvae.posteriors.refined`, which starts at the improved
        guide; in nats. An encoder that has seen too few data leaves an amortization gap that
        training does not close, and local steps do (Kim et al. 2018).

        Args:
            num_steps: K.
            num_samples: Draws for each datum behind the bound.

        Raises:
            InputError: for a guide that cannot be refined.
        """
        guide, evidence = refined(self.guide, self.model, num_steps), self.after.evidence
        bound = elbo(self.model, guide, *self.args, num_samples=num_samples)
        left = evidence.per_datum - bound.per_datum
        error = math.hypot(evidence.monte_carlo_error, bound.monte_carlo_error)
        gap = Estimate.over_data(left, num_samples=num_samples)
        return replace(gap, monte_carlo_error=error)

    @property
    def closed(self) -> float:
        """The share of the variational gap that is closed, at most 1; negative if it grew."""
        before, after = self.before.variational.value, self.after.variational.value
        return 1 - after / before if before else math.nan

    @property
    def evidence_change(self) -> tuple[float, float]:
        """The evidence after less that before, and the Monte Carlo error of the difference.

        The model is the same, so nothing but the error of the two estimates is left in it.
        """
        one, other = self.before.evidence, self.after.evidence
        error = math.hypot(one.monte_carlo_error, other.monte_carlo_error)
        return other.value - one.value, error

    @property
    def verdict(self) -> str:
        """Sentences on how far the gap has fallen, and on the part that is left."""
        before, after = self.before.variational.value, self.after.variational.value
        change, error = self.evidence_change
        fell = "fell" if after <= before else "rose"
        if self.kept:
            head = "No epoch had a better bound on the held-out data, so the guide is as it was"
        else:
            head = f"The variational gap {fell} from {before:.2f} to {after:.2f} nats"
        return (
            f"{head}; the two estimates of the evidence differ by {change:.3f} ± {error:.3f} nats"
            f" (Monte Carlo). Now: {verdict(self.after, self.run)}"
        )

    def table(self) -> pandas.DataFrame:
        """Return the numbers before and after, in nats, indexed by their names."""
        import pandas

        before, after = parts_of(self.before), parts_of(self.after)
        rows = {
            name: {
                "before": before[name].value,
                "before_monte_carlo_error": before[name].monte_carlo_error,
                "after": after[name].value,
                "after_monte_carlo_error": after[name].monte_carlo_error,
                "change": after[name].value - before[name].value,
            }
            for name in PARTS
        }
        return pandas.DataFrame.from_dict(rows, orient="index")

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a JSON file: those that are not finite are None."""

        def numbers(gaps: InferenceGaps) -> dict[str, Any]:
            estimates = {
                name: {
                    key: value if math.isfinite(value) else None
                    for key, value in estimate.to_dict().items()
                }
                for name, estimate in parts_of(gaps).items()
            }
            return {**estimates, "training_beta": gaps.training_beta, "verdict": gaps.verdict}

        return {
            "num_data": len(self.before.certified),
            "before": numbers(self.before),
            "after": numbers(self.after),
            "epochs": len(self.history.rows),
            "kept": self.kept,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        before, after = parts_of(self.before), parts_of(self.after)
        lines = [f"{'nats per datum':<18}{'before':>18}{'after':>18}{'change':>10}"]
        for name, label in PARTS.items():
            pair = before[name], after[name]
            cells = [f"{each.value:.3f} ± {each.monte_carlo_error:.3f}" for each in pair]
            change = f"{pair[1].value - pair[0].value:+.3f}"
            lines.append(f"{label:<18}{cells[0]:>18}{cells[1]:>18}{change:>10}")
        return "\n".join([*lines, self.verdict])
