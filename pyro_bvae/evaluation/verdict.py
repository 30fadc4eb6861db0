"""What the inference gaps say should be fixed, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_bvae.evaluation.estimate import Estimate

if TYPE_CHECKING:
    from pyro_bvae.evaluation.gaps import InferenceGaps

# Below this many nats, or within two errors of zero, a gap is nothing to fix.
_SMALL = 0.1
# A refit may miss so many nats of its optimum.
_REFIT = 0.01
# A part that is at least this share of the largest is named beside it.
_NEAR = 0.8
_NAMES = {"beta": "the β gap"}
# A part that closes less than this share of a gap is no remedy for it.
_WORTHWHILE = 0.2


def verdict(gaps: InferenceGaps) -> str:
    """Return a sentence on the largest part of the variational gap and its remedy, and what limits its truth."""
    whole = gaps.variational
    if not whole.monte_carlo_error <= max(_SMALL, 0.5 * abs(whole.value)):  # a NaN too
        sentences = [
            f"the gap is {whole.value:.2f} ± {whole.monte_carlo_error:.2f} nats: the error is too large to tell what to"
            " fix; take more samples, or give an annealed evidence."
        ]
    elif not _counts(whole):
        sure = whole.trusted and gaps.evidence.trusted
        found = (
            "the guide is as good as it needs to be"
            if sure
            else "too small to tell what to fix, and the evidence cannot be trusted: take more samples, or give an"
            " annealed evidence"
        )
        sentences = [f"the gap is {whole.value:.2f} nats: {found}."]
    else:
        parts = {name: getattr(gaps, name) for name in ("amortization", "approximation", "beta")}
        largest = max(parts, key=lambda name: parts[name].value)
        part = parts[largest].value
        name = _NAMES.get(largest, largest)
        remedy = {"amortization": _amortization, "approximation": _approximation, "beta": _beta}[largest](gaps)
        sentences = [
            f"{name} is {_share(part, whole.value)} of the gap ({part:.2f} of {whole.value:.2f} nats): {remedy}."
        ]
        near = [other for other in parts if other != largest and parts[other].value >= _NEAR * part]
        if near:
            others = " and ".join(f"{_NAMES.get(other, other)} ({parts[other].value:.2f})" for other in near)
            sentences.append(f"Nearly as large: {others}.")
    if gaps.amortization.value < -max(_REFIT, 2 * gaps.amortization.monte_carlo_error):
        sentences.append(
            f"The encoder lies {-gaps.amortization.value:.2f} nats nearer to the posterior than the optimum of its own"
            " objective."
        )
    return " ".join([*sentences, *_limits(gaps)])


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%" if part <= whole else "more than all"


def _counts(gap: Estimate) -> bool:
    return gap.value > max(_SMALL, 2 * gap.monte_carlo_error)


def _amortization(gaps: InferenceGaps) -> str:
    part = gaps.generalization
    if part is None:
        return "enlarge the encoder, or train it longer"
    errors = 2 * (part.standard_error**2 + part.monte_carlo_error**2) ** 0.5
    if part.value > max(0.5 * gaps.amortization.value, errors):
        return (
            f"{part.value:.2f} of it is missing on the training data, so the encoder overfits: more data, noise on its"
            " input, or an earlier stop"
        )
    return f"enlarge the encoder, or train it longer; it generalises ({part.value:.2f} nats lost on new data)"


def _approximation(gaps: InferenceGaps) -> str:
    if not gaps.families:
        return "use a richer guide; families=('full-rank', 'flow') measures which one would help"
    left = {name: gap.value for name, gap in gaps.families.items()}
    whole = gaps.approximation.value
    best = min(left.values())
    if whole - best < _WORTHWHILE * whole:
        return f"but the richest family tried would close only {max(whole - best, 0):.2f} nats of it"
    # The first in order, from simple to rich, that gets most of what there is to get.
    name = next(name for name in left if whole - left[name] >= 0.8 * (whole - best))
    return f"a {name} guide would close {whole - left[name]:.2f} nats of it"


def _beta(gaps: InferenceGaps) -> str:
    return (
        f"the guide was trained at β = {gaps.training_beta:g}; where the evidence matters, train the encoder on at"
        " β = 1 with the decoder fixed"
    )


def _limits(gaps: InferenceGaps) -> list[str]:
    """Return what keeps the numbers from being the whole truth."""
    found = []
    if gaps.evidence.untrusted:
        found.append(
            f"The evidence is untrusted for {gaps.evidence.untrusted} of {len(gaps.certified)} data: their gap may be"
            " larger."
        )
    if uncertified := int((~gaps.certified).sum()):
        found.append(
            f"The refits of {uncertified} of {len(gaps.certified)} data are not certified: approximation is at most"
            " what is said, amortization at least."
        )
    return [*found, *_modes(gaps)]


def _modes(gaps: InferenceGaps) -> list[str]:
    """Return how many posteriors have several modes, and where they were looked for."""
    if gaps.modes is None:
        return []
    several = int((gaps.modes > 1).sum())
    found = f"The posteriors of {several} of {len(gaps.modes)} data have several modes." if several else ""
    return [part for part in (found, f"Looked for modes from {gaps.looked}.") if part]
