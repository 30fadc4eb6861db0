"""All measurements of a trained model on held-out data, in one pass where one will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import check_beta
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.evaluation.estimate import METHODS, PARETO_K_LIMIT, Estimate, both_reliable
from pyro_bvae.evaluation.gaps.by_value import gaps_refusal
from pyro_bvae.evaluation.gaps.measure import AT_ZERO, gaps_and_refits, with_evidence
from pyro_bvae.evaluation.gaps.result import InferenceGaps, verdict
from pyro_bvae.evaluation.marginal.bounds import (
    ElboParts,
    KLPerDimension,
    elbo_parts,
    kl_per_dimension,
)
from pyro_bvae.evaluation.marginal.escalation import Escalation, escalate, escalation_of
from pyro_bvae.evaluation.marginal.importance import evidence
from pyro_bvae.evaluation.plan import Plan
from pyro_bvae.evaluation.refit.joint_guides import family_of
from pyro_bvae.evaluation.refit.settings import RefitSettings
from pyro_bvae.evaluation.rows import Row, rows_of
from pyro_bvae.evaluation.samples.predictive_checks import CountChecks
from pyro_bvae.program.program import Function, Program, open_program

# The run in the verdict of ``evaluation.json``, which may be moved with its directory.
_RUN = "RUN"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The worth of a model on N data; all in nats at β = 1, but for the objective.

    Attributes:
        training_beta: The β that the model was trained with.
        evidence: ``log p(x)`` of each datum, by the estimators that ``method`` allows.
        bound: ELBO, distortion and rate.
        gaps: The variational gap and its parts; None where they cannot be had.
        gaps_note: Why not, or None.
        kl: KL per dimension and active units; None for guides whose dimensions depend on draws.
        given: The condition of all densities, in words, such as size factors that were
            computed from the data; None for unconditional ones.
        run: The run directory of the model, which the verdict's command names.
        plan: The counts of an evaluation within a budget; its gaps are those of the first data that
            it drew, not of all.
        drawn: The numbers of the measured data among those that were given, where they were drawn
            from them, ``(N,)``.
        counts: The predictive checks of counts; None for other data, and where nobody asked.
    """

    training_beta: float
    evidence: Estimate
    bound: ElboParts
    gaps: InferenceGaps | None
    gaps_note: str | None
    kl: KLPerDimension | None
    given: str | None = None
    run: str | None = None
    plan: Plan | None = None
    drawn: Tensor | None = None
    counts: CountChecks | None = None

    @property
    def variational_gap(self) -> Estimate:
        """``log p(x) - ELBO``; without gaps, its Monte Carlo error is an upper bound."""
        if self.gaps is not None:
            return replace(self.gaps.variational, cost=self.gaps.cost)
        values = self.evidence.per_datum - self.bound.elbo.per_datum
        error = self.evidence.monte_carlo_error + self.bound.elbo.monte_carlo_error
        reliable = both_reliable(self.evidence, self.bound.elbo)
        gap = Estimate.over_data(values, num_samples=self.evidence.num_samples, reliable=reliable)
        return replace(gap, monte_carlo_error=error)

    @property
    def verdict(self) -> str | None:
        """The part to fix, in words; None where there are no gaps."""
        if self.gaps is None:
            return None
        of_gaps = verdict(self.gaps, self.run)
        if self.kl is None or bool(self.kl.active.any()):
            return of_gaps
        return (
            f"no latent is active, at a rate of {self.bound.rate.value:.2f} nats:"
            " pyro_bvae.diagnose(vae, data) names"
            f" the cause. A small gap says nothing of the guide then: {of_gaps}"
        )

    @property
    def estimates(self) -> dict[str, Estimate | None]:
        """The numbers by their keys in ``evaluation.json``; None for gaps that cannot be had."""
        gaps = self.gaps
        return {
            "evidence": self.evidence,
            "elbo": self.bound.elbo,
            "distortion": self.bound.distortion,
            "rate": self.bound.rate,
            "objective": self.bound.objective(self.training_beta),
            "variational_gap": self.variational_gap,
            "approximation_gap": None if gaps is None else gaps.approximation,
            "beta_gap": None if gaps is None else gaps.beta,
            "amortization_gap": None if gaps is None else gaps.amortization,
        }

    def rows(self) -> list[Row[Estimate]]:
        """Return label, meaning and estimate of every number, in the order of a table."""
        return rows_of(self.estimates, {} if self.gaps is None else self.gaps.families)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``evaluation.json``: numbers, lists and None."""
        gaps, k = self.gaps, self.evidence.pareto_k
        assert k is not None
        if self.evidence.methods is not None:  # chains are too few to show a tail
            k = k[self.evidence.methods != METHODS.index("annealing")]
        finite, refits = k[torch.isfinite(k)], None
        if gaps is not None:
            certified = int(gaps.certified.sum())
            refits = {"converged": gaps.converged, "certified": certified, "steps": gaps.steps}
            refits["num_data"] = len(gaps.certified)
        return {
            "beta": self.training_beta,
            "num_data": len(self.evidence.per_datum),
            "num_samples": self.evidence.num_samples,
            **{
                name: None if value is None else _describe(value)
                for name, value in self.estimates.items()
            },
            "given": self.given,
            "verdict": self.verdict if self.run is None else replace(self, run=_RUN).verdict,
            "families": {
                name: _describe(gap) for name, gap in (gaps.families if gaps else {}).items()
            },
            "refits": refits,
            "gaps_note": self.gaps_note,
            **_kl_dict(self.kl),
            "pareto_k": {
                f"share_above_{PARETO_K_LIMIT}": int((k > PARETO_K_LIMIT).sum())
                / len(self.evidence.per_datum),
                "untrusted": self.evidence.untrusted,
                "max": float(finite.max()) if len(finite) else None,
            },
            "estimators": _estimators(self.evidence),
            **({} if self.plan is None else {"plan": self.plan.to_dict()}),
            "counts": None if self.counts is None else self.counts.to_dict(),
        }


def _estimators(evidence: Estimate) -> dict[str, Any] | None:
    """Return which estimators answered, at which cost, and the data that none can be trusted of."""
    if evidence.methods is None:
        return None
    return {
        "data": evidence.by_method,
        "untrusted_rows": evidence.untrusted_rows,
        "budget": evidence.budget,
        "cost": evidence.cost,
    }


def _describe(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate for a file: undefined numbers are null, an unknown cost is left out."""
    numbers = {
        name: value if math.isfinite(value) else None for name, value in estimate.to_dict().items()
    }
    trust = (
        {}
        if estimate.reliable is None
        else {"trusted": estimate.trusted, "untrusted_data": estimate.untrusted}
    )
    return {**numbers, **trust, **({"cost": estimate.cost} if estimate.cost else {})}


def _kl_dict(kl: KLPerDimension | None) -> dict[str, Any]:
    if kl is None:
        reason = (
            "there is more than one latent site, or an auxiliary one, so that the dimensions"
            " depend on draws"
        )
        return {"kl_per_dimension": None, "kl_note": reason, "active_units": None}
    columns = {
        name: getattr(kl, name) for name in ("values", "standard_errors", "monte_carlo_errors")
    }
    values = None
    if kl.values is not None:
        values = {
            name: column.flatten().tolist()
            for name, column in columns.items()
            if column is not None
        }
        values["exact"] = kl.exact
    active = kl.active.flatten()
    units = {
        "count": int(active.sum()),
        "active": active.tolist(),
        "variances": kl.mean_variances.flatten().tolist(),
    }
    return {"kl_per_dimension": values, "kl_note": kl.reason, "active_units": units}


@exclusive
def evaluate(
    model: Function,
    guide: Function,
    *args: Any,
    training_beta: float = 1.0,
    num_samples: int = 5000,
    families: Sequence[str] = (),
    method: Literal["auto", "importance"] | Escalation = "auto",
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Measure evidence, bound, gaps, KL per dimension and active units.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        training_beta: The β that the guide was trained with; at 0 the gaps have no finite parts and
            are left out.
        num_samples: Particles for each datum.
        families: Richer families to fit to each datum too, as
            :class:`~pyro_bvae.evaluation.RefitSettings` takes them.
        method: Estimator of the evidence. ``"importance"`` samples, from the refits of the gaps
            too where there are gaps; ``"auto"``, which also anneals where their weights cannot be
            trusted; or an :class:`~pyro_bvae.evaluation.marginal.Escalation` with a budget for it,
            the refits of the gaps not counted.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of all draws.
        progress: Show progress bars.

    Raises:
        InputError: for a family that is none, and for data or a program that cannot be measured.
    """
    for name in families:
        family_of(name)
    options: dict[str, Any] = {"data_plate": data_plate, "seed": seed, "progress": progress}
    numbers: dict[str, Any] = {"num_samples": num_samples, **options}
    check_beta(training_beta)
    escalation = escalation_of(method)
    gaps = None
    with open_program(
        model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True
    ) as program:
        note = gaps_note(program, training_beta)
    if note is None:
        settings = RefitSettings() if escalation is None else escalation.refit
        settings = replace(settings, families=tuple(families))
        gaps, refits = gaps_and_refits(
            model, guide, args, training_beta=training_beta, settings=settings, **numbers
        )
        if escalation is not None:
            likelihood = escalate(
                model, guide, args, gaps.evidence, None, escalation, refits=refits, **options
            )
            gaps = annealed(gaps, likelihood)
        likelihood, parts = gaps.evidence, gaps.bound
    else:
        likelihood = evidence(model, guide, *args, method=method, **numbers)
        parts = elbo_parts(model, guide, *args, **numbers)
    kl = kl_per_dimension(model, guide, *args, data_plate=data_plate, seed=seed)
    return Evaluation(training_beta, likelihood, parts, gaps, note, kl, given_of(args))


def gaps_note(program: Program, training_beta: float) -> str | None:
    """Return why a program has no gaps, or None if it has."""
    return AT_ZERO if training_beta == 0 else gaps_refusal(program, training_beta)


def annealed(gaps: InferenceGaps, evidence: Estimate) -> InferenceGaps:
    """Return gaps from an evidence that is their own but where it was annealed."""
    assert evidence.methods is not None
    return with_evidence(gaps, evidence, evidence.methods == METHODS.index("annealing"))


def given_of(args: tuple[Any, ...]) -> str | None:
    """Return the arguments that are observed and not modelled, in words."""
    contexts = [arg for arg in args if isinstance(arg, Context)]
    parts = {"size factors": "size_factor", "covariates": "covariates"}
    names = [
        name
        for name, part in parts.items()
        if any(getattr(each, part) is not None for each in contexts)
    ]
    return " and ".join(names) or None
