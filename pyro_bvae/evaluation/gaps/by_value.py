r"""Gaps of a guide that draws a discrete latent y, from those at each of its values.

The guide is :math:`q(y, z \mid x) = q(y \mid x)\, q(z \mid y, x)`. The best member of its family
has a free table of y and a free :math:`q(z \mid y, x)` for each datum and value. With the bound at
a value, :math:`L_y = \mathbb{E}_{q(z \mid y, x)}[\log p(x, y, z) - \log q(z \mid y, x)]`,

.. math:: \log p(x) = \log \sum_y p(x, y), \qquad \text{ELBO}(q^*) = \log \sum_y e^{\max L_y}.

Model and guide with y held at a value are a program of the other latents, which has gaps itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import PROBE_STREAM, VALUE_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.estimate import Estimate, both_reliable
from pyro_bvae.evaluation.gaps.blocks import Request
from pyro_bvae.evaluation.gaps.result import InferenceGaps
from pyro_bvae.evaluation.marginal.bounds import ElboParts, elbo_parts
from pyro_bvae.evaluation.marginal.importance import evidence
from pyro_bvae.evaluation.refit.local_guides import stripped
from pyro_bvae.evaluation.refit.optimisation import refit_refusal
from pyro_bvae.program.discrete.factors import AtValues
from pyro_bvae.program.program import Program, open_program
from pyro_bvae.program.sites import Sites, samples

# Values that may be untrusted together have at most this share of a datum's posterior.
_NEGLIGIBLE = 1e-3

Measure = Callable[[Callable[..., Any], Callable[..., Any], int], InferenceGaps]


class _Observed(AtValues):
    """An effect handler that observes discrete sites at the values of given numbers."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.numbers:
            msg["is_observed"] = True


def draws_values(program: Program) -> bool:
    """Whether a program's guide draws discrete latents that are summed out."""
    return program.summation is not None and bool(program.summation.sites.guide)


def gaps_refusal(program: Program, training_beta: float) -> str | None:
    """Return why a program's gaps cannot be measured, or None if they can."""
    if not draws_values(program):
        return refit_refusal(program)
    if reason := _why_not_split(program, training_beta):
        return reason
    if not program.latents:
        return None
    pair, args = _held(program, 0), program.probe
    with open_program(*pair, args, data_plate=program.plate.name, sums_discrete=True) as held:
        return refit_refusal(held)


def gaps_by_value(program: Program, request: Request, seed: int, measure: Measure) -> InferenceGaps:
    """Return the gaps of a program whose guide draws a discrete latent.

    Args:
        program: The program.
        request: The settings of the measurement.
        seed: Seed of the bound.
        measure: Returns the gaps of a model and guide, with a seed.

    Raises:
        InputError: if the gaps are no sum over the values of y.
    """
    if reason := _why_not_split(program, request.training_beta):
        raise InputError(reason)
    if request.local_guide is not None:
        raise InputError(
            "'local_guide' refits a guide of continuous latents alone, and this guide draws the"
            f" discrete {', '.join(map(repr, _drawn(program)))}: leave 'local_guide' out"
        )
    num_samples = request.num_samples
    model, guide, args = program.model, program.guide, program.args
    options: dict[str, Any] = {"data_plate": program.plate.name, "seed": seed}
    bound = elbo_parts(model, guide, *args, num_samples=num_samples, **options)
    if not program.latents:
        exact = evidence(model, guide, *args, num_samples=num_samples, **options)
        return _of_table(exact, bound)
    (count,) = _drawn(program).values()
    parts = [
        measure(*_held(program, number), stream_seed(seed, VALUE_STREAM, number))
        for number in range(count)
    ]
    return _joined(parts, bound, num_samples)


def _drawn(program: Program) -> dict[str, int]:
    assert program.summation is not None
    return program.summation.sites.guide


def _held(program: Program, number: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return model and guide with the guide's discrete latent held at one of its values."""
    numbers = dict.fromkeys(_drawn(program), number)
    guide = poutine.block(AtValues(numbers)(program.guide), hide=list(numbers))
    return _Observed(numbers)(program.model), guide


@torch.no_grad()
def _why_not_split(program: Program, training_beta: float) -> str | None:
    """Return why the best of a guide's family is no sum over the values of y, or None."""
    (name, *others), remedy = _drawn(program), "leave it out of the guide, so that it is summed out"
    if others:
        names = ", ".join(f"'{each}'" for each in (name, *others))
        return f"the guide draws discrete sites {names}; gaps are known for one: leave out others"
    if training_beta != 1:
        return (
            f"gaps of a guide that draws the discrete '{name}' are those of training_beta=1, got"
            f" {training_beta:g}"
        )
    traces = [_trace(program, number) for number in (None, None, *range(_drawn(program)[name]))]
    site = traces[0][name]
    frames = {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    if frames != {program.plate.name}:
        return (
            f"guide site '{name}' is discrete and lies in plates {sorted(frames)}, where it has"
            f" several values a datum: {remedy}"
        )
    if not _same(traces[0], traces[1], name):
        return f"guide site '{name}' is discrete and depends on other draws: {remedy}"
    for latent in program.latents:
        if all(_same(traces[2], trace, latent) for trace in traces[3:]):
            return (
                f"guide site '{latent}' does not depend on the discrete '{name}', so that the best"
                f" of the guide's family is no sum over its values: {remedy}"
            )
    return None


def _trace(program: Program, number: int | None) -> Sites:
    """Return the sites of the guide, with its discrete latent at a value or drawn.

    Traces at a value share their noise; those of draws have noise of their own.
    """
    if number is None:
        return samples(poutine.trace(program.guide).get_trace(*program.probe))
    held = AtValues(dict.fromkeys(_drawn(program), number))(program.guide)
    with seeded(0, PROBE_STREAM), pyro.validation_enabled(False):
        return samples(poutine.trace(held).get_trace(*program.probe))


def _same(one: Sites, other: Sites, name: str) -> bool:
    """Whether a site has the same distribution in two runs."""
    value = one[name]["value"]
    first, second = (stripped(sites[name]["fn"]).log_prob(value) for sites in (one, other))
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-6)


# -- the gaps put together
# --------------------------------------------------------------------------


def _joined(parts: list[InferenceGaps], bound: ElboParts, num_samples: int) -> InferenceGaps:
    whole = _LogSum([part.evidence for part in parts])
    best = _LogSum([part.elbos["guide"] for part in parts])
    families = {name: _LogSum([part.elbos[name] for part in parts]) for name in parts[0].families}
    certified = torch.stack([part.certified for part in parts])
    likelihood = whole.estimate(num_samples)
    star = best.estimate(num_samples)
    left = _table([part.approximation for part in parts], "biases") - whole.biases
    return InferenceGaps(
        variational=_difference(likelihood, bound.elbo),
        approximation=whole.less(best, [part.approximation for part in parts], num_samples),
        beta=_zeros(star),
        amortization=_difference(star, bound.elbo, (best.shares * left).sum(0)),
        evidence=likelihood,
        bound=bound,
        training_beta=1.0,
        certified=best.sure(certified),
        steps=max(part.steps for part in parts),
        families={
            name: whole.less(each, [part.families[name] for part in parts], num_samples)
            for name, each in families.items()
        },
        elbos={
            "guide": star,
            **{name: each.estimate(num_samples) for name, each in families.items()},
        },
        cost=sum(part.cost for part in parts) + bound.elbo.cost,
    )


class _LogSum:
    """The log of a sum over values of exponentiated estimates, with each value's share, (C, N)."""

    def __init__(self, parts: list[Estimate]) -> None:
        self.values = _table(parts, "per_datum")
        self.errors, self.biases = _table(parts, "errors"), _table(parts, "biases")
        self.reliable = _table(parts, "reliable").bool()
        self.shares = self.values.softmax(0)
        self.cost = sum(part.cost for part in parts)
        self._weighed = parts[0].pareto_k is not None
        self._ess, self._k = _table(parts, "effective_sample_size"), _table(parts, "pareto_k")

    def sure(self, reliable: Tensor) -> Tensor:
        """Return the data whose values are reliable but for a negligible share, ``(N,)``."""
        return (self.shares * ~reliable).sum(0) < _NEGLIGIBLE

    def estimate(self, num_samples: int) -> Estimate:
        """Return the log of the sum, for each datum."""
        left_out = self.shares < _NEGLIGIBLE
        ess = self._ess.masked_fill(left_out, torch.inf).amin(0)
        k = self._k.masked_fill(left_out, -torch.inf).amax(0)
        return Estimate.over_data(
            self.values.logsumexp(0),
            (self.shares * self.errors).square().sum(0).sqrt(),
            (self.shares * self.biases).sum(0),
            effective_sample_size=ess if self._weighed else None,
            pareto_k=k if self._weighed else None,
            num_samples=num_samples,
            reliable=self.sure(self.reliable),
            cost=self.cost,
        )

    def less(self, other: _LogSum, gaps: list[Estimate], num_samples: int) -> Estimate:
        """Return the distance of another log sum, given that of each value by paired draws."""
        apart = (self.shares - other.shares).abs()
        errors = apart * self.errors + other.shares * _table(gaps, "errors")
        biases = apart * self.biases + other.shares * _table(gaps, "biases")
        sure = _table(gaps, "reliable").bool()
        return Estimate.over_data(
            self.values.logsumexp(0) - other.values.logsumexp(0),
            errors.square().sum(0).sqrt(),
            biases.sum(0),
            num_samples=num_samples,
            reliable=self.sure(sure) & other.sure(sure),
        )


def _table(parts: list[Estimate], name: str) -> Tensor:
    """Return a column of each value's estimate, zeros where it has none, ``(C, N)``."""
    columns = [getattr(part, name) for part in parts]
    return torch.stack(
        [
            torch.zeros_like(part.per_datum) if column is None else torch.as_tensor(column).cpu()
            for part, column in zip(parts, columns, strict=True)
        ]
    )


def _difference(one: Estimate, other: Estimate, biases: Tensor | None = None) -> Estimate:
    """Return the difference of two estimates of independent draws."""
    errors = [torch.as_tensor(part.errors) for part in (one, other)]
    return Estimate.over_data(
        one.per_datum - other.per_datum,
        torch.hypot(*errors),
        one.biases if biases is None else biases,
        num_samples=one.num_samples,
        reliable=both_reliable(one, other),
    )


def _zeros(like: Estimate) -> Estimate:
    """Return a gap that is zero by its definition."""
    zeros = torch.zeros_like(like.per_datum)
    sure = torch.ones_like(zeros, dtype=torch.bool)
    return Estimate.over_data(zeros, zeros, zeros, num_samples=like.num_samples, reliable=sure)


def _of_table(exact: Estimate, bound: ElboParts) -> InferenceGaps:
    """Return the gaps of a guide of y alone: a free table is the posterior itself."""
    whole = _difference(exact, bound.elbo)
    return InferenceGaps(
        whole, _zeros(exact), _zeros(exact), whole, exact, bound, 1.0,
        torch.ones(len(exact.per_datum), dtype=torch.bool), 0, elbos={"guide": exact},
        cost=exact.cost + bound.elbo.cost,
    )  # fmt: skip
