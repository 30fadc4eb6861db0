"""The inference gaps with their errors, and a verdict on them in words."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from torch import Tensor

from pyro_bvae.core.findings import Finding
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.marginal.bounds import ElboParts

# Below this many nats, or within two errors of zero, a gap is nothing to fix.
_SMALL = 0.1
# A refit may miss so many nats of its optimum.
_REFIT = 0.01
# A part that is at least this share of the largest is named beside it.
_NEAR = 0.8
_NAMES = {"beta": "the β gap"}
# The posteriors by the names of families.
_CLASSES = {"full-rank": "FullRankPosterior", "flow": "FlowPosterior"}
# A part that closes less than this share of a gap is no remedy for it.
_WORTHWHILE = 0.2


def finding(gaps: InferenceGaps, run: str | None = None) -> Finding:
    """Return the largest part of the variational gap and its remedy.

    Args:
        gaps: The gaps.
        run: The run directory of the model, whose command is named then instead of a call.
    """
    whole = gaps.variational
    more = "take more samples, or give an annealed evidence"
    if not whole.monte_carlo_error <= max(_SMALL, 0.5 * abs(whole.value)):  # a NaN too
        size = f"the gap is {whole.value:.2f} ± {whole.monte_carlo_error:.2f} nats"
        message = f"{size}: the error is too large to tell the part to fix"
        return Finding("uncertain-gap", "warning", ("variational",), message, more)
    if not whole.value > max(_SMALL, 2 * whole.monte_carlo_error):
        size = f"the gap is {whole.value:.2f} nats"
        if whole.trusted and gaps.evidence.trusted:
            message = f"{size}: the guide is as good as it needs to be"
            return Finding("small-gap", "note", ("variational",), message)
        message = f"{size}: too small to tell the part to fix, and the evidence cannot be trusted"
        return Finding("uncertain-gap", "warning", ("variational",), message, more)
    parts = _parts(gaps)
    largest = max(parts, key=lambda name: parts[name])
    part, name = parts[largest], _NAMES.get(largest, largest)
    share = f"{100 * part / whole.value:.0f}%" if part <= whole.value else "more than all"
    remedies = {"amortization": _amortization, "approximation": _approximation, "beta": _beta}
    message = f"{name} is {share} of the gap ({part:.2f} of {whole.value:.2f} nats)"
    advice = remedies[largest](gaps, run)
    return Finding(f"{largest}-gap", "warning", (largest,), message, advice)


def _parts(gaps: InferenceGaps) -> dict[str, float]:
    return {name: getattr(gaps, name).value for name in ("amortization", "approximation", "beta")}


def verdict(gaps: InferenceGaps, run: str | None = None) -> str:
    """Return sentences on the largest part of the gap, its remedy, and their limits.

    Args:
        gaps: The gaps.
        run: The run directory of the model, as of :func:`finding`.
    """
    largest, parts = finding(gaps, run), _parts(gaps)
    sentences = [largest.sentence]
    if (name := largest.subject[0]) in parts:
        others = [other for other in parts if other != name]
        near = [
            f"{_NAMES.get(other, other)} ({parts[other]:.2f})"
            for other in others
            if parts[other] >= _NEAR * parts[name]
        ]
        sentences += [f"Nearly as large: {' and '.join(near)}."] if near else []
    amortization = gaps.amortization
    if amortization.value < -max(_REFIT, 2 * amortization.monte_carlo_error):
        sentences.append(
            f"The encoder lies {-amortization.value:.2f} nats nearer to the posterior than the"
            " optimum of its own objective."
        )
    return " ".join([*sentences, *_limits(gaps)])


def _command(run: str | None, gaps: InferenceGaps, posterior: str = "") -> str:
    """Return the command, or the call, that trains the guide on."""
    if run is not None:
        return f"`pyro-bvae improve {shlex.quote(run)}{posterior and f' --posterior {posterior}'}`"
    options = f", posterior={_CLASSES[posterior]}(...)" if posterior else ""
    if gaps.training_beta != 1:
        options += f", training_beta={gaps.training_beta:g}"
    return f"`training.improve_guide(vae, data{options})`"


def _amortization(gaps: InferenceGaps, run: str | None) -> str:
    part = gaps.generalization
    if part is None:
        return f"enlarge the encoder, or train it longer: {_command(run, gaps)}"
    errors = 2 * (part.standard_error**2 + part.monte_carlo_error**2) ** 0.5
    if part.value > max(0.5 * gaps.amortization.value, errors):
        return (
            f"{part.value:.2f} of it is missing on the training data, so the encoder overfits: more"
            " data, noise on its input, or an earlier stop"
        )
    return (
        f"enlarge the encoder, or train it longer; it generalises ({part.value:.2f} nats lost"
        f" on new data): {_command(run, gaps)}"
    )


def _approximation(gaps: InferenceGaps, run: str | None) -> str:
    if not gaps.families:
        return (
            "use a richer guide; families=('full-rank', 'flow') measures which one would help:"
            f" {_command(run, gaps, 'flow')}"
        )
    left = {name: gap.value for name, gap in gaps.families.items()}
    whole = gaps.approximation.value
    best = min(left.values())
    if whole - best < _WORTHWHILE * whole:
        return (
            f"but the richest family tried would close only {max(whole - best, 0):.2f} nats of it"
        )
    # The first in order, from simple to rich, that closes most of the gap that any closes.
    name = next(name for name in left if whole - left[name] >= 0.8 * (whole - best))
    closed = f"a {name} guide would close {whole - left[name]:.2f} nats of it"
    return f"{closed}: {_command(run, gaps, name)}" if name in _CLASSES else closed


def _beta(gaps: InferenceGaps, run: str | None) -> str:
    return (
        f"the guide was trained at β = {gaps.training_beta:g}; where the evidence matters, train"
        f" the encoder on at β = 1 with the decoder fixed: {_command(run, gaps)}"
    )


def _limits(gaps: InferenceGaps) -> list[str]:
    """Return the limits of the numbers' truth."""
    results = []
    if gaps.evidence.untrusted:
        results.append(
            f"The evidence is untrusted for {gaps.evidence.untrusted} of {len(gaps.certified)}"
            " data: their gap may be larger."
        )
    if uncertified := int((~gaps.certified).sum()):
        results.append(
            f"The refits of {uncertified} of {len(gaps.certified)} data are not certified:"
            " approximation is at most the stated value, amortization at least."
        )
    return [*results, *_modes(gaps)]


def _modes(gaps: InferenceGaps) -> list[str]:
    """Return how many posteriors have several modes, and where they were looked for."""
    if gaps.modes is None:
        return []
    several = int((gaps.modes > 1).sum())
    results = (
        f"The posteriors of {several} of {len(gaps.modes)} data have several modes."
        if several
        else ""
    )
    return [part for part in (results, f"Looked for modes from {gaps.looked}.") if part]


@dataclass(frozen=True, eq=False)
class InferenceGaps:
    """The gaps in nats: ``variational = approximation + beta + amortization``.

    Attributes:
        variational: ``log p(x) - ELBO(q_phi)``, the KL between guide and posterior.
        approximation: ``log p(x) - ELBO(q*)``: the family is too small.
        beta: ``ELBO(q*) - ELBO(q*_beta)``: the guide was fitted to another objective; exactly 0 at
            β = 1.
        amortization: ``ELBO(q*_beta) - ELBO(q_phi)``: one encoder for all data; may be negative at
            β ≠ 1.
        evidence: The evidence that the gaps are measured from.
        bound: The bound of the guide with its distortion and rate.
        training_beta: The β of the objective that the guide was fitted to.
        certified: Which data's local refits are certified to have converged, ``(N,)``; where they
            are not, ``approximation`` is too large by their miss.
        steps: Steps of the longest refit.
        families: ``log p(x) - ELBO(q*)`` of richer families, by name: their part of
            ``approximation``.
        elbos: The bound of the best member of each family: of the guide's, as ``"guide"``, and of
            the richer ones.
        train: The gaps on training data, where they were asked for.
        generalization: The part of ``amortization`` that the encoder does not have on its training
            data.
        cost: Decoder evaluations behind all of it, refits included.
        modes: The modes that were found of each datum's posterior, ``(N,)``, each with at least 1%
            of the mass of its largest; None where none were searched for.
        looked: Where the search for them started, in words.
    """

    variational: Estimate
    approximation: Estimate
    beta: Estimate
    amortization: Estimate
    evidence: Estimate
    bound: ElboParts
    training_beta: float
    certified: Tensor
    steps: int
    families: dict[str, Estimate] = field(default_factory=dict)
    elbos: dict[str, Estimate] = field(default_factory=dict)
    train: InferenceGaps | None = None
    generalization: Estimate | None = None
    cost: int = 0
    modes: Tensor | None = None
    looked: str = ""

    @property
    def elbo(self) -> Estimate:
        """The bound of the guide at β = 1."""
        return self.bound.elbo

    @property
    def converged(self) -> bool:
        """Whether all local refits are certified to have converged."""
        return bool(self.certified.all())

    @property
    def finding(self) -> Finding:
        """The largest part of the gap and its remedy."""
        return finding(self)

    @property
    def verdict(self) -> str:
        """The part to fix, in words."""
        return verdict(self)

    def __str__(self) -> str:
        parts = {
            name: getattr(self, name)
            for name in ("variational", "approximation", "beta", "amortization")
        }
        parts |= {f"  {name}": gap for name, gap in self.families.items()}
        if self.generalization is not None:
            parts["generalization"] = self.generalization
        lines = [f"{name:<16}{part}" for name, part in parts.items()]
        refits = (
            f"local refits: {int(self.certified.sum())} of {len(self.certified)} certified,"
            f" {self.steps} steps at most"
        )
        return "\n".join([*lines, refits, self.verdict])
