"""Inference gaps: the distance from bound to evidence, by cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_beta
from pyro_bvae.core.inputs.programs import program_arguments
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import frozen
from pyro_bvae.core.moved import grouped
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import REFIT_STREAM, stream_seed
from pyro_bvae.evaluation.estimate import Estimate, both_reliable
from pyro_bvae.evaluation.gaps.blocks import GapBlock, Request, gap_block
from pyro_bvae.evaluation.gaps.by_value import draws_values, gaps_by_value
from pyro_bvae.evaluation.gaps.result import InferenceGaps
from pyro_bvae.evaluation.marginal.blocks import join_evidence
from pyro_bvae.evaluation.marginal.bounds import join_bound
from pyro_bvae.evaluation.marginal.importance import check_num_samples, data_bar, stream_blocks
from pyro_bvae.evaluation.refit.joint_guides import family_of
from pyro_bvae.evaluation.refit.local_guides import LocalGuide
from pyro_bvae.evaluation.refit.optimisation import OnProgress
from pyro_bvae.evaluation.refit.settings import RefitSettings
from pyro_bvae.program.program import Function, open_program

#: The reason why a guide trained at β = 0 has no gaps.
AT_ZERO = "'training_beta' must be positive for the gaps to be finite, got 0"

_TITLE = "inference gaps"


@grouped("settings", RefitSettings, families="families", local_guide="local_guide")
@exclusive
def inference_gaps(
    model: Function,
    guide: Function,
    *args: Any,
    training_beta: float = 1.0,
    num_samples: int = 5000,
    train: tuple[Any, ...] | None = None,
    evidence: Estimate | None = None,
    settings: RefitSettings | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InferenceGaps:
    r"""Measure the variational gap and split it into approximation, β and amortization gap.

    .. math::
        \log p(x) - \text{ELBO}(q_\phi) = [\log p(x) - \text{ELBO}(q^*)]
            + [\text{ELBO}(q^*) - \text{ELBO}(q^*_\beta)] + [\text{ELBO}(q^*_\beta) -
            \text{ELBO}(q_\phi)]

    with :math:`q^*` the best member of the guide's family for each datum under the ELBO and
    :math:`q^*_\beta` the best under the objective the model was trained with, both found by local
    refits (after Cremer et al. 2018, who have no β gap). The evidence is importance weighted from
    the mixture of guide and refits, a lower bound in expectation that lies where the best of them
    puts it. The modes of each posterior are searched for from the encoder's answer, the prior and
    other data's codes; where there are several, the evidence is weighed with draws from each. A
    datum's refit starts at the best of them, never ends below the encoder's answer, and is
    certified: neither another gradient step nor a Newton step of its mean, which knows nothing of
    the start, would gain 0.01 nats.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        training_beta: The β that the guide was trained with, positive.
        num_samples: Particles for each datum behind the evidence and each bound.
        train: Arguments with training data: the gaps are measured on them too, and the difference
            of the amortization gaps is the encoder's failure to generalise.
        evidence: The evidence of the same data from elsewhere, such as
            :func:`~pyro_bvae.evaluation.annealed_evidence`, where importance sampling cannot be
            trusted.
        settings: How the local refits run, of which guide and of which richer families.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of all draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        All gaps with their errors, the evidence, the bound, and a verdict in words.

    Raises:
        InputError: if the guide has no local version and the settings have no ``local_guide``, if a
            guide site has no reparametrised draw, or if β is not positive: at β = 0 the best guide
            is a point, whose bound is minus infinity.
    """
    if train is not None and not isinstance(train, tuple):
        raise InputError(
            f"'train' must be a tuple of arguments, such as (x,), got a {type(train).__name__}"
        )
    request = _request(num_samples, training_beta, settings or RefitSettings())
    train = train and program_arguments(model, guide, *train)[2:]
    options: dict[str, Any] = {"data_plate": data_plate, "progress": progress}
    measured, _ = _measure(
        model, guide, args, request, request.settings.families, seed=seed, title=_TITLE, **options
    )
    if evidence is not None:
        measured = with_evidence(measured, evidence)
    if train is None:
        return measured
    seen, _ = _measure(
        model, guide, train, request, (), seed=stream_seed(seed, 1), title="gaps on train",
        **options,
    )  # fmt: skip
    return replace(
        measured,
        train=seen,
        generalization=_generalization(measured.amortization, seen.amortization),
    )


def gaps_and_refits(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    *,
    training_beta: float,
    num_samples: int,
    settings: RefitSettings,
    data_plate: str | None,
    seed: int,
    progress: bool,
) -> tuple[InferenceGaps, list[tuple[Tensor, LocalGuide]]]:
    """Return what :func:`inference_gaps` does, and the refits of the guide's own family.

    They come block by block, with the numbers of its data.
    """
    request = _request(num_samples, training_beta, settings)
    measured, guides = _measure(
        model, guide, args, request, settings.families, data_plate=data_plate, seed=seed,
        progress=progress, title=_TITLE,
    )  # fmt: skip
    return measured, [(rows, fitted) for rows, fitted in guides if isinstance(fitted, LocalGuide)]


def _request(num_samples: int, training_beta: float, settings: RefitSettings) -> Request:
    check_num_samples(num_samples)
    check_beta(training_beta)
    if training_beta == 0:
        raise InputError(AT_ZERO)
    chosen = tuple(family_of(name) for name in settings.families)
    return Request(num_samples, training_beta, settings, settings.local_guide, chosen)


def _measure(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    request: Request,
    names: tuple[str, ...],
    *,
    data_plate: str | None,
    seed: int,
    progress: bool,
    title: str,
) -> tuple[InferenceGaps, Iterator[tuple[Tensor, Function]]]:
    request = request if names else replace(request, families=())
    opened = open_program(model, guide, args, data_plate=data_plate, seed=seed, sums_discrete=True)
    with opened as program, frozen(model, guide):
        if draws_values(program):

            def measure(one: Function, other: Function, own_seed: int) -> InferenceGaps:
                options: dict[str, Any] = {"data_plate": program.plate.name, "progress": progress}
                return _measure(
                    one, other, args, request, names, seed=own_seed, title=title, **options
                )[0]

            return gaps_by_value(program, request, seed, measure), iter(())
        with data_bar(program, progress, title) as bar:
            blocks = []
            for index, block in enumerate(stream_blocks(program, request.num_samples, bar)):
                listener = _moving(bar, int(bar.n), program.count(block))
                stream = stream_seed(seed, index, REFIT_STREAM)
                blocks.append(gap_block(program, block, request, stream, listener))
    return _gathered(blocks, request, names)


def _gathered(
    blocks: list[GapBlock], request: Request, names: tuple[str, ...]
) -> tuple[InferenceGaps, Iterator[tuple[Tensor, Function]]]:
    """Return the gaps of all blocks, and the refits of each with the numbers of its data."""
    num_samples = request.num_samples

    def estimates(*names: str) -> list[Estimate]:
        """Return estimates from rows of values, errors, biases (if any) and reliability."""
        *numbers, reliable = (
            torch.cat([getattr(block, name).cpu() for block in blocks], dim=1) for name in names
        )
        rows = zip(reliable, *numbers, strict=True)
        return [
            Estimate.over_data(*row, num_samples=num_samples, reliable=sure) for sure, *row in rows
        ]

    variational, approximation, beta, amortization, *richer = estimates(
        "gaps", "gap_errors", "gap_biases", "gap_reliable"
    )
    modes = [block.modes for block in blocks if block.modes is not None]
    bests = estimates("elbos", "elbo_errors", "elbo_reliable")
    rows = torch.arange(len(variational.per_datum)).split(
        [len(block.certified) for block in blocks]
    )
    measured = InferenceGaps(
        variational,
        approximation,
        beta,
        amortization,
        evidence=join_evidence(
            [block.evidence for block in blocks],
            num_samples,
            sum(block.evidence_cost for block in blocks),
        ),
        bound=join_bound([block.bound for block in blocks], num_samples),
        training_beta=request.training_beta,
        certified=torch.cat([block.certified for block in blocks]),
        steps=max(block.steps for block in blocks),
        families=dict(zip(names, richer, strict=True)),
        elbos=dict(zip(("guide", *names), bests, strict=True)),
        cost=sum(block.cost for block in blocks),
        modes=torch.cat(modes) if len(modes) == len(blocks) else None,
        looked=blocks[0].looked,
    )
    return measured, zip(rows, (block.guide for block in blocks), strict=True)


def _moving(bar: ProgressBar, before: int, count: int) -> OnProgress:
    """Return a listener that moves a bar through a block of data by the share that is done."""
    return lambda phase, share: bar.move(before + share * count, phase)


def with_evidence(
    gaps: InferenceGaps, evidence: Estimate, rows: Tensor | None = None
) -> InferenceGaps:
    """Return the gaps from another estimate of the evidence, whose error is independent.

    Args:
        gaps: The gaps.
        evidence: The evidence of the same data.
        rows: A mask of the data whose evidence is another, ``(N,)``; by default all. The others
            keep their paired errors.

    Raises:
        InputError: for an evidence of other data.
    """
    if evidence.per_datum.shape != gaps.evidence.per_datum.shape:
        raise InputError(
            f"'evidence' must be of the same {len(gaps.certified)} data, got that of"
            f" {len(evidence.per_datum)}"
        )
    if rows is not None:
        return _with_rows(gaps, evidence, rows.cpu())

    def below(elbo: Estimate) -> Estimate:
        gap = Estimate.over_data(
            evidence.per_datum - elbo.per_datum,
            elbo.errors,
            evidence.biases,
            num_samples=elbo.num_samples,
            reliable=both_reliable(evidence, elbo),
        )
        return replace(
            gap, monte_carlo_error=math.hypot(evidence.monte_carlo_error, elbo.monte_carlo_error)
        )

    return replace(
        gaps,
        variational=below(gaps.elbo),
        approximation=below(gaps.elbos["guide"]),
        families={name: below(gaps.elbos[name]) for name in gaps.families},
        evidence=evidence,
        cost=gaps.cost + evidence.cost,
    )


def _with_rows(gaps: InferenceGaps, evidence: Estimate, rows: Tensor) -> InferenceGaps:
    """Return the gaps with the evidence of some data measured again."""
    before = gaps.evidence

    def of(estimate: Estimate, name: str) -> Tensor:
        part = getattr(estimate, name)
        assert part is not None, "evidence, bounds and gaps have errors and trust"
        return torch.as_tensor(part).cpu()

    def below(gap: Estimate, elbo: Estimate) -> Estimate:
        errors = torch.hypot(of(evidence, "errors"), of(elbo, "errors"))
        shift = of(evidence, "biases") - of(before, "biases")  # the rest is the refit's
        sure = of(evidence, "reliable") & of(elbo, "reliable")
        return Estimate.over_data(
            torch.where(rows, evidence.per_datum - elbo.per_datum, gap.per_datum),
            torch.where(rows, errors, of(gap, "errors")),
            torch.where(rows, of(gap, "biases") + shift, of(gap, "biases")),
            num_samples=gap.num_samples,
            reliable=torch.where(rows, sure, of(gap, "reliable")),
        )

    return replace(
        gaps,
        variational=below(gaps.variational, gaps.elbo),
        approximation=below(gaps.approximation, gaps.elbos["guide"]),
        families={name: below(gap, gaps.elbos[name]) for name, gap in gaps.families.items()},
        evidence=evidence,
        cost=gaps.cost + evidence.cost - before.cost,
    )


def _generalization(test: Estimate, train: Estimate) -> Estimate:
    """Return the difference of a gap between other data: its errors are independent."""
    return replace(
        Estimate.over_data(
            test.per_datum - train.value,
            None,
            test.biases,
            num_samples=test.num_samples,
            reliable=test.reliable,
        ),
        standard_error=math.hypot(test.standard_error, train.standard_error),
        monte_carlo_error=math.hypot(test.monte_carlo_error, train.monte_carlo_error),
    )
