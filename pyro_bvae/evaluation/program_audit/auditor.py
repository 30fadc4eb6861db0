"""Looking a Pyro program over for the mistakes that change its numbers and raise nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro

from pyro_bvae.core.findings import Finding
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.param_store import private_store
from pyro_bvae.evaluation.program_audit.faults import check_context, check_noise, check_supports
from pyro_bvae.evaluation.program_audit.parameters import check_gradients, check_store
from pyro_bvae.evaluation.program_audit.scales import (
    check_ignored,
    check_observed,
    check_permanent,
    check_sides,
)
from pyro_bvae.evaluation.program_audit.sites import (
    check_events,
    check_failures,
    check_latents,
    check_orphans,
    check_plates,
    check_shapes,
    check_subsamples,
    check_values,
)
from pyro_bvae.evaluation.program_audit.traces import View, find_betas, look, restored

__all__ = ["Audit", "Finding", "audit"]


@dataclass(frozen=True)
class Audit:
    """The result of an audit; it prints itself.

    Attributes:
        findings: Errors first, each once.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found but warnings."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make numbers wrong."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def __str__(self) -> str:
        if not self.findings:
            return "nothing found"
        warnings = len(self.findings) - len(self.errors)
        return "\n".join(
            [f"{len(self.errors)} errors, {warnings} warnings", *map(str, self.findings)]
        )


@exclusive
def audit(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Audit:
    r"""Look any Pyro model and guide over for mistakes that change numbers and raise nothing.

    Both functions are run a few times on the arguments, without β and, where a function takes an
    argument named ``beta``, with it; one backward pass of the ELBO follows. In

    .. math:: \mathbb{E}_q [\log p(x \mid z)] + \beta \, \mathbb{E}_q [\log p(z) - \log q(z \mid x)]

    β has to stand before both densities of the latents and before nothing else; every batch
    dimension has to be a plate's; sizes of plates, names, shapes and supports have to agree; the
    guide's noise has to be that of its latents, none of them a point; every parameter has to be its
    own, and reached by a gradient. The user's parameter store, random state, training modes,
    gradients and modules are left as they were. After the checks of Pyro itself (Bingham et al.
    2019), which stop at the first mistake they see and know of no β.

    Args:
        model: Pyro model.
        guide: Pyro guide.
        args: The arguments of both, as ``SVI.step`` takes them.
        kwargs: The keyword arguments of both; ``beta`` goes to the functions that take it.

    Returns:
        The findings: a code, a severity, the names of sites, and words.
    """
    stored = dict(pyro.get_param_store().named_parameters())
    args, plain, given, probe = find_betas(model, guide, args, kwargs)
    with restored(model, guide), evaluating(model, guide), private_store(model, guide):
        first = look(model, guide, args, *plain)
        told = [first] if given is None else [first, look(model, guide, args, *given)]
        probed = [] if probe is None else [look(model, guide, args, *probe)]
        results = [*check_context((args, plain)), *_on_sites(first, [*told[1:], *probed])]
        results += [
            *check_noise(first, guide, args, plain.guide, results),
            *check_supports(first, results),
        ]
        results += check_ignored(first, probed)
        results += check_store(first, stored)
        results += check_subsamples(first, look(model, guide, args, *plain, stream=1))
        results += check_permanent(first, results)
        unexplained = [
            _stopped(program, error) for view in told for program, error in view.failures.items()
        ]
        if not first.failures:
            try:
                results += check_gradients(model, guide, args, plain)
            except (ValueError, RuntimeError, KeyError) as error:
                unexplained.append(_stopped("objective", error))
        if not any(finding.severity == "error" for finding in results):
            results += unexplained
    once = {(finding.code, finding.sites): finding for finding in reversed(results)}
    return Audit(tuple(sorted(reversed(once.values()), key=lambda finding: finding.severity)))


def _on_sites(first: View, weighted: list[View]) -> Iterator[Finding]:
    for check in (
        check_failures,
        check_latents,
        check_plates,
        check_orphans,
        check_shapes,
        check_events,
        check_values,
    ):
        yield from check(first)
    for view in (first, *weighted):
        yield from check_sides(view)
    yield from check_observed(first, weighted)


def _stopped(program: str, error: Exception) -> Finding:
    reason = " ".join(str(error).split("Trace Shapes")[0].split())[:300]
    return Finding(
        "does-not-run",
        "error",
        (program,),
        f"the {program} stops with {type(error).__name__}: {reason}",
    )
