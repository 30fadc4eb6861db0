"""Criteria of a choice beside the evidence: a rate to hold, and latents that collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyro_bvae.core.context import arguments
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import Estimate, diagnose, elbo_parts
from pyro_bvae.evaluation.comparison import Comparison
from pyro_bvae.vae import BetaVAE


def distortions_at(
    nats: float,
    models: Mapping[str, tuple[float, Sequence[BetaVAE]]],
    held: Dataset,
    level: float,
    num_samples: int,
) -> tuple[Comparison | None, dict[str, str]]:
    r"""Compare models by the distortion that they need at one rate.

    .. math:: D(R^*) \approx D + \beta (R - R^*), \qquad dD/dR = -\beta

    Args:
        nats: The rate :math:`R^*`.
        models: By name, the β of the models and one for each training seed.
        held: The data to measure on.
        level: Level of the intervals.
        num_samples: Particles for each datum.

    Returns:
        The comparison of minus the distortions, None of one model alone, and a line of each model.
    """
    estimates: dict[str, list[Estimate]] = {}
    notes = {}
    for name, (beta, vaes) in models.items():
        rates = []
        for vae in vaes:
            parts = elbo_parts(
                vae.model, vae.guide, *arguments(held.x, held.context), num_samples=num_samples
            )
            cost = parts.objective(beta)
            per_datum = beta * nats - cost.per_datum
            score = replace(cost, value=beta * nats - cost.value, per_datum=per_datum)
            estimates.setdefault(name, []).append(score)
            rates.append(parts.rate.value)
        distortion = -sum(each.value for each in estimates[name]) / len(vaes)
        error = estimates[name][0].standard_error
        notes[name] = (
            f"rate {sum(rates) / len(rates):.2f} nats, distortion at {nats:g} nats"
            f" {distortion:.2f} ± {error:.2f}"
        )
    return Comparison.of(estimates, level=level) if len(models) > 1 else None, notes


def collapsed_in(
    models: Mapping[str, tuple[float, Sequence[BetaVAE]]], held: Dataset
) -> tuple[dict[str, int], dict[str, str]]:
    """Return how many latents of each model carry nothing, at most over its seeds, and notes.

    Args:
        models: By name, the β of the models and one for each training seed.
        held: The data to look at.
    """
    numbers, notes = {}, {}
    for name, (beta, vaes) in models.items():
        found = [diagnose(vae, held, beta=beta) for vae in vaes]
        numbers[name] = max(len(each.collapsed) for each in found)
        notes[name] = f"{numbers[name]} of {len(found[0].latents)} latents carry nothing"
    return numbers, notes
