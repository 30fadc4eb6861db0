"""Evaluations of parts of the data, made on several processes, as the one of all the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation._evaluate import Evaluation
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps.result import InferenceGaps
from pyro_bvae.evaluation.marginal.bounds import ElboParts, KLPerDimension


@public
def join_estimates(parts: Sequence[Estimate]) -> Estimate:
    """Return the estimate over the data of several, one after the other.

    Each datum's values and errors stay as they are; the errors of the mean are made anew, as those
    of independent data.

    Args:
        parts: Estimates of the same quantity with the same number of samples.
    """

    def column(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return (
            None
            if any(value is None for value in values)
            else torch.cat([value.cpu() for value in values])
        )

    names = ("effective_sample_size", "pareto_k", "reliable", "methods")
    return Estimate.over_data(
        torch.cat([part.per_datum for part in parts]),
        column("errors"),
        column("biases"),
        num_samples=parts[0].num_samples,
        cost=sum(part.cost for part in parts),
        budget=sum(part.budget for part in parts),
        **{name: column(name) for name in names},
    )


@public
def join_evaluations(parts: Sequence[Evaluation], kl: KLPerDimension | None) -> Evaluation:
    """Return the evaluation of all data from those of their parts.

    Args:
        parts: Evaluations of the same model, in the order of the data.
        kl: The KL per dimension over all data: of a variance over data the parts do not tell.

    Raises:
        InputError: if there is none.
    """
    if not parts:
        raise InputError("'parts' must hold at least one evaluation, got none")
    first = parts[0]
    evidence = join_estimates([part.evidence for part in parts])
    bound = _join_bounds([part.bound for part in parts])
    gaps = [part.gaps for part in parts if part.gaps is not None]
    note = next((part.gaps_note for part in parts if part.gaps_note is not None), None)
    if note is not None:
        return Evaluation(first.training_beta, evidence, bound, None, note, kl, first.given)
    return Evaluation(first.training_beta, evidence, bound, join_gaps(gaps), None, kl, first.given)


def _join_bounds(parts: Sequence[ElboParts]) -> ElboParts:
    return ElboParts(*(join_estimates(estimates) for estimates in zip(*parts, strict=True)))


def join_gaps(parts: Sequence[InferenceGaps]) -> InferenceGaps:
    """Return the gaps of all data from those of their parts."""

    def joined(name: str) -> Estimate:
        return join_estimates([getattr(part, name) for part in parts])

    def by_name(field: str) -> dict[str, Estimate]:
        return {
            name: join_estimates([getattr(part, field)[name] for part in parts])
            for name in getattr(parts[0], field)
        }

    modes = [part.modes for part in parts if part.modes is not None]
    return replace(
        parts[0],
        variational=joined("variational"),
        approximation=joined("approximation"),
        beta=joined("beta"),
        amortization=joined("amortization"),
        evidence=joined("evidence"),
        bound=_join_bounds([part.bound for part in parts]),
        certified=torch.cat([part.certified.cpu() for part in parts]),
        steps=max(part.steps for part in parts),
        families=by_name("families"),
        elbos=by_name("elbos"),
        cost=sum(part.cost for part in parts),
        modes=None if len(modes) < len(parts) else torch.cat(modes),
    )
