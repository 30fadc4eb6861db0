"""Tables that the command line prints."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from pyro_bvae.core.errors import listed

if TYPE_CHECKING:
    from pyro_bvae.evaluation._evaluate import Evaluation
    from pyro_bvae.evaluation.estimate import Estimate
    from pyro_bvae.evaluation.verification import Check

# Untrusted data that are named.
_SHOWN = 10


def verification_table(checks: Sequence[Check]) -> str:
    """Return exact values and estimates side by side for the terminal."""
    lines = [
        f"{'nats per datum':<32}{'latents':>8}{'exact':>11}"
        f"{'estimated':>11}{'error':>9}{'allowed':>9}"
    ]
    for check in checks:
        if check.note or check.state == "NOT REFUSED":
            state = "OFF" if check.expected != "refused" else check.state
            lines.append(f"{check.what:<32}{check.latents:>8}  {state}: {check.note}".rstrip(": "))
            continue
        lines.append(
            f"{check.what:<32}{check.latents:>8}{check.exact:>11.4f}{check.estimated:>11.4f}"
            f"{check.error:>9.4f}{check.allowed:>9.4f}  {check.state}"
        )
    return "\n".join(lines)


def versions(device: str) -> str:
    """Return one line on processor, Python and the packages behind the estimates."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    packages = ", ".join(f"{package} {version(package)}" for package in ("pyro-ppl", "arviz"))
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {name}, {python}, {packages}"


def _trust(evidence: Estimate) -> str:
    """Return a line on the estimators of the evidence, and on the data that none is trusted for."""
    if evidence.methods is None:
        whose = f"{evidence.untrusted} of {len(evidence.per_datum)} data"
        return f"evidence not to be trusted: {whose}"
    counts = {**evidence.by_method, "untrusted": evidence.untrusted}
    line = f"evidence: {', '.join(f'{name} {count}' for name, count in counts.items())}"
    if rows := evidence.untrusted_rows:
        line += f" (rows {listed(rows, _SHOWN)})"
    return f"{line}; {evidence.cost:,} decoder evaluations of at most {evidence.budget:,}"


def evaluation_table(evaluation: Evaluation) -> str:
    """Return an evaluation as a table for the terminal."""
    lines = [f"{'nats per datum':<28}{'value':>10}{'std. error':>12}{'Monte Carlo':>13}"]
    for label, _, row in evaluation.rows():
        if row is not None:
            numbers = f"{row.value:>10.3f}{row.standard_error:>12.3f}{row.monte_carlo_error:>13.4f}"
            lines.append(f"{label:<28}{numbers}" + ("" if row.trusted else "  untrusted"))
    evidence = evaluation.evidence
    lines.append(
        f"{len(evidence.per_datum)} test data, {evidence.num_samples} particles each,"
        f" trained at β = {evaluation.training_beta:g}"
    )
    if evaluation.gaps is not None and len(evaluation.gaps.certified) < len(evidence.per_datum):
        lines.append(f"the gaps are those of {len(evaluation.gaps.certified)} of them")
    if evaluation.given is not None:
        lines.append(f"all densities are given the {evaluation.given} of the data")
    if evaluation.kl is not None:
        active = evaluation.kl.active
        lines.append(f"{int(active.sum())} of {active.numel()} latents active")
    lines.append(_trust(evidence))
    if evaluation.gaps is not None:
        certified = evaluation.gaps.certified
        count = f"{int(certified.sum())} of {len(certified)} data"
        lines.append(f"local refits certified to have converged: {count}")
        lines.append(f"verdict: {evaluation.verdict}")
    elif evaluation.gaps_note:
        lines.append(f"no gaps: {evaluation.gaps_note}")
    if evaluation.counts is not None:
        lines.append(f"predictive check of counts: {evaluation.counts.verdict}")
    return "\n".join(lines)


def evaluations_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the evaluations of several runs as a table for the terminal, a line a run."""
    columns = ("evidence", "elbo", "rate", "distortion", "variational_gap")
    width = max(3, *map(len, evaluations))
    lines = [f"{'run':{width}}" + "".join(f"{name:>17}" for name in columns) + "   untrusted"]
    for name, evaluation in evaluations.items():
        row = f"{name:{width}}"
        for column in columns:
            estimate = evaluation.estimates[column]
            row += f"{estimate.value:>17.3f}" if estimate is not None else f"{'none':>17}"
        evidence = evaluation.evidence
        lines.append(f"{row}{evidence.untrusted:>5} of {len(evidence.per_datum)}")
    return "\n".join(lines)
