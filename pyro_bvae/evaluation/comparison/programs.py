"""The evidences of several Pyro programs on the same data, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.core.inputs.programs import program_arguments
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.seeds import PROBE_STREAM, PROPOSAL_STREAM, REFIT_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.comparison.result import Comparison, Gaps
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps.by_value import gaps_refusal
from pyro_bvae.evaluation.gaps.measure import AT_ZERO, inference_gaps
from pyro_bvae.evaluation.marginal.importance import evidence
from pyro_bvae.program.program import Function, open_program
from pyro_bvae.program.sites import is_delta, samples

Pair = tuple[Function, Function]
Programs = Mapping[str, Pair | Sequence[Pair]]


@exclusive
def compare_programs(
    programs: Programs,
    *args: Any,
    level: float = 0.95,
    gaps: bool = False,
    training_betas: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    r"""Compare models by the evidence that they give to the same data.

    The difference of two models is paired: :math:`\frac1N \sum_n \log p_a(x_n) - \log p_b(x_n)`,
    whose standard error over data is far below those of the two means. Each model has draws of its
    own.

    Args:
        programs: By name, a model and its guide, or those of several training seeds.
        *args: The arguments of all of them.
        level: Level of the intervals, of all pairs together (Bonferroni).
        gaps: Measure the inference gaps of each model too, which costs a refit of the guide to each
            datum: from its evidence where that escalates, or else from that of guide and refits.
        training_betas: By name, the β that each guide was trained with, for the gaps; 1 by default.
        seed: Seed of the draws.
        **options: Further options of :func:`~pyro_bvae.evidence`, such as ``num_samples``,
            ``proposal`` and ``progress``.

    Returns:
        Evidences, paired differences, stacking weights and a verdict.

    Raises:
        InputError: as of :func:`~pyro_bvae.evidence`; for fewer than two models; for models of
            other observed sites, or of probabilities beside densities.
    """
    pairs = {name: _pairs(name, given) for name, given in programs.items()}
    if len(pairs) < 2:
        raise InputError(f"a comparison takes at least two models, got {listed([*pairs])}")
    args = program_arguments(*next(iter(pairs.values()))[0], *args, name="compare_programs")[2:]
    _check_units({name: [_units(model, args) for model, _ in own] for name, own in pairs.items()})
    estimates = {
        name: [
            evidence(
                model, guide, *args,
                seed=stream_seed(seed, place, number, PROPOSAL_STREAM), **options,
            )
            for number, (model, guide) in enumerate(own)
        ]
        for place, (name, own) in enumerate(pairs.items())
    }  # fmt: skip
    measured: dict[str, Gaps] = {}
    if gaps:
        betas = {name: [1.0] * len(own) for name, own in pairs.items()} | dict(training_betas or {})
        asked = {name: options[name] for name in ("num_samples", "progress") if name in options}
        for place, (name, own) in enumerate(pairs.items()):
            measured[name] = _gaps(
                own, args, estimates[name], betas[name], stream_seed(seed, place, REFIT_STREAM),
                **asked,
            )  # fmt: skip
    contexts = [arg for arg in args if isinstance(arg, Context)]
    fields = {
        field.replace("_", " ") for each in contexts for field in each._fields
        if getattr(each, field) is not None
    }  # fmt: skip
    given = " and ".join(sorted(fields)) or None
    return Comparison.of(estimates, level=level, given=given, gaps=measured)


def _gaps(
    own: Sequence[Pair], args: tuple[Any, ...], evidences: Sequence[Estimate],
    betas: Sequence[float], seed: int, **options: Any,
) -> Gaps:  # fmt: skip
    """Return the gaps of a model's training seeds, or why there are none."""
    measured = []
    for number, (model, guide) in enumerate(own):
        if betas[number] == 0:
            return AT_ZERO
        with open_program(model, guide, args, seed=seed, sums_discrete=True) as program:
            if (reason := gaps_refusal(program, betas[number])) is not None:
                return reason
        own_evidence = evidences[number]
        measured.append(
            inference_gaps(
                model, guide, *args, training_beta=betas[number], seed=stream_seed(seed, number),
                evidence=None if own_evidence.methods is None else own_evidence, **options,
            )
        )  # fmt: skip
    return tuple(measured)


def _pairs(name: str, given: Any) -> Sequence[Pair]:
    """Return the models and guides of a name."""
    pairs = [given] if isinstance(given, tuple) and callable(given[0]) else list(given)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair))):
            raise InputError(
                f"'{name}' must be a pair (model, guide), or a list of pairs, got {pair!r:.80}"
            )
    if not pairs:
        raise InputError(f"'{name}' has no model")
    return pairs


def _units(model: Function, args: tuple[Any, ...]) -> dict[str, str]:
    """Return, of each observed site, whether its values have probabilities or densities."""
    with (
        private_store(model),
        torch.no_grad(),
        seeded(0, PROBE_STREAM),
        pyro.validation_enabled(False),
    ):
        trace = poutine.trace(model).get_trace(*args)
    return {
        name: "probabilities" if _has_mass(site["fn"]) else "densities"
        for name, site in samples(trace).items()
        if site["is_observed"] and not is_delta(site["fn"])
    }


def _has_mass(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        if isinstance(distribution, dist.TransformedDistribution):
            return False
        distribution = distribution.base_dist
    support = getattr(distribution, "support", None)
    return isinstance(distribution, torch.distributions.Bernoulli) or bool(
        getattr(support, "is_discrete", False)
    )


def _check_units(units: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Raise unless all models observe the same sites in the same units."""
    first, *others = units
    ours = units[first][0]
    for name in (first, *others):
        for theirs in units[name]:
            if ours.keys() != theirs.keys():
                raise InputError(
                    f"'{first}' observes {listed(sorted(ours))} and '{name}' observes"
                    f" {listed(sorted(theirs))}: their evidences are of different data"
                )
            for site, unit in theirs.items():
                if unit != ours[site]:
                    raise InputError(
                        f"'{first}' gives {ours[site]} to '{site}' and '{name}' gives {unit}: their"
                        " evidences have other units and cannot be compared"
                    )
