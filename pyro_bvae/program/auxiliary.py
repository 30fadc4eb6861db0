r"""Auxiliary noise of a guide, and latents that follow from it.

A guide that draws ``a`` and puts a latent at :math:`z = f(a)` has the density
:math:`\log q(z) = \log q(a) - \log |\det \partial f / \partial a|` if f is a bijection, and the
last term is the ``log_density`` of the latent's ``Delta``. Any other noise needs a density of its
own in the model: without it the weights are divided by q(a) and nothing stands for it. The guide is
run again at the draws of its noisy sites, with a gradient, to see their latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.program.faults import Fault, drawn_by, latents_of, points
from pyro_bvae.program.sites import Site, Sites, is_delta, samples
from pyro_bvae.program.supports import bijection_of, support_of

Run = Callable[[Callable[..., Any]], Any]

# Rows (draws times data) at which a map is looked at, at least, and numbers of one row that are
# differentiated at most.
_ROWS, _MOST_WIDTH = 16, 512
# Part of the rows at which a map has to be regular, and may be turned over; nats that a stated
# Jacobian may be off by.
_REGULAR, _TURNED, _TOLERANCE = 0.75, 0.1, 1e-2


class _Noise(NamedTuple):
    """The sites of a guide that concern its noise.

    Attributes:
        noisy: Sites with noise of their own that are no latents of the model.
        points: Latents at a Delta.
    """

    noisy: list[str]
    points: list[str]


class _TooWide(Exception):
    """A map has more numbers than are differentiated."""


def noise_faults(
    guide: Callable[..., Any], run: Run, model_trace: poutine.Trace, plate: Any | None
) -> Iterator[Fault]:
    """Find noise of a guide beside its latents, and latents at points that no noise moves.

    Args:
        guide: The guide.
        run: Runs it, or a handler around it, on its arguments.
        model_trace: Trace of the model at the guide's draws.
        plate: The plate whose data have noise of their own; without one all sites are one row.
    """
    with torch.no_grad(), seeded(0, PROBE_STREAM):
        trace = poutine.trace(guide)
        run(trace)
    sites, known, priors = drawn_by(trace.trace), samples(model_trace), latents_of(model_trace)
    still = {name for name, site in sites.items() if is_delta(site["fn"])}
    noisy = [name for name in sites if name not in known and name not in still]
    at_points = [
        name for name in sites if name in still & priors.keys() and not is_delta(priors[name]["fn"])
    ]
    yield from _hidden(guide, run, sites)
    if not noisy:
        yield from points(at_points)
    elif lumps := [
        name for name in noisy if getattr(support_of(sites[name]["fn"]), "is_discrete", False)
    ]:
        yield from _unaccounted(lumps, "it is discrete")
    elif not at_points:
        yield from _unaccounted(noisy, "the latents are drawn beside it")
    else:
        try:
            yield from _Map(guide, run, model_trace, _Noise(noisy, at_points), plate).faults()
        except _TooWide:
            return
        except (NotImplementedError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            yield from _unaccounted(noisy, f"its latents cannot be told ({reason})")


def _unaccounted(names: list[str], reason: str) -> Iterator[Fault]:
    for name in names:
        words = (
            f"guide site '{name}' has noise of its own that nothing in the model stands for:"
            f" {reason}"
        )
        do = (
            f"give the model a site '{name}', or make the latents a bijection of it by a Delta"
            " with its Jacobian"
        )
        yield Fault("auxiliary-noise", (name,), f"{words}; {do}")


def _hidden(guide: Callable[..., Any], run: Run, sites: Sites) -> Iterator[Fault]:
    """Find noise drawn outside pyro.sample: the same draws have another density next time."""
    values = {name: site["value"] for name, site in sites.items() if not is_delta(site["fn"])}
    for seed in (1, 2):
        with torch.no_grad(), seeded(seed, PROBE_STREAM):
            again = poutine.trace(poutine.condition(guide, data=values))
            run(again)
        for name, site in sites.items():
            other: Site = again.trace.nodes.get(name)
            if other is None or (name in values and not _same_density(site, other)):
                words = f"guide site '{name}' has another distribution at the same draws"
                yield Fault(
                    "auxiliary-noise",
                    (name,),
                    f"{words}: draw all noise by pyro.sample, so that it is scored",
                )
                return


def _same_density(one: Site, other: Site) -> bool:
    try:
        here, there = (site["fn"].log_prob(one["value"]) for site in (one, other))
    except (
        ValueError,
        RuntimeError,
        KeyError,
        NotImplementedError,
    ):  # a flow without an inverse, say
        return True
    return here.shape == there.shape and torch.allclose(
        here, there, rtol=1e-3, atol=1e-2, equal_nan=True
    )


class _Look(NamedTuple):
    """The map at one draw: Jacobians ``(N, d, m)``, other log volume ``(N,)``, site widths."""

    jacobians: Tensor
    rest: Tensor
    point_widths: list[int]
    noisy_widths: list[int]


class _Map:
    """The map from a guide's auxiliary noise to its latents, in coordinates without constraints."""

    def __init__(
        self,
        guide: Callable[..., Any],
        run: Run,
        model_trace: poutine.Trace,
        results: _Noise,
        plate: Any | None,
    ) -> None:
        self.guide, self.run, self.plate, self.noise = guide, run, plate, results
        self.priors = latents_of(model_trace)

    def faults(self) -> Iterator[Fault]:
        """Yield the faults of the map: sites without a part in it, its size, its Jacobian."""
        first = self._look(0)
        num_looks = max(2, math.ceil(_ROWS / len(first.jacobians)))
        looks = [first, *(self._look(seed) for seed in range(1, num_looks))]
        jacobians = torch.stack([look.jacobians for look in looks])
        moved = (jacobians != 0).flatten(0, 1).double().mean(0) > 1 - _REGULAR
        rows, columns = moved.split(first.point_widths), moved.split(first.noisy_widths, -1)
        still = [name for name, part in zip(self.noise.points, rows, strict=True) if not part.any()]
        idle = [
            name for name, part in zip(self.noise.noisy, columns, strict=True) if not part.any()
        ]
        yield from points(still)
        yield from _unaccounted(idle, "no latent changes with it")
        if still or idle:
            return
        num_points, num_noisy = moved.shape
        reason = (
            f"{num_noisy} numbers are drawn for each row, and {num_points} of its latents"
            " follow from them"
        )
        if num_points < num_noisy:
            yield from _unaccounted(self.noise.noisy, reason)
        elif num_points > num_noisy:
            yield from points(self.noise.points)
        else:
            yield from self._wrong(jacobians, torch.stack([look.rest for look in looks]))

    def _wrong(self, jacobians: Tensor, rest: Tensor) -> Iterator[Fault]:
        names = ", ".join(f"'{name}'" for name in self.noise.points)
        signs, log_volumes = torch.linalg.slogdet(jacobians.double())
        turned = ((signs.amin(0) < 0) & (signs.amax(0) > 0)).double().mean()
        # Whether there is an inverse, whatever the units of rows and columns.
        scaled = jacobians.double()
        for dim in (-2, -1):
            scaled = torch.nn.functional.normalize(scaled, dim=dim, eps=0.0)
        least = torch.linalg.svdvals(torch.nan_to_num(scaled))[..., -1]
        regular = (least > 100 * torch.finfo(jacobians.dtype).eps).double().mean()
        if float(turned) > _TURNED or float(regular) < _REGULAR:
            yield from _unaccounted(self.noise.noisy, f"the map from it to {names} is no bijection")
            return
        off = (log_volumes + rest)[torch.isfinite(log_volumes + rest)]
        wrong = off.abs() > _TOLERANCE + 1e-3 * jacobians.shape[-1]
        if off.numel() and float(wrong.double().mean()) > 1 - _REGULAR:
            words = f"the Jacobian of {names} is not in the log_density of its Delta: it is off by"
            do = (
                "log_density must be minus the log determinant of the latents by the auxiliary"
                " noise"
            )
            yield Fault(
                "jacobian",
                tuple(self.noise.points),
                f"{words} {float(off.median()):.3g} nats; {do}",
            )

    def _look(self, seed: int) -> _Look:
        """Run the guide at a draw of its noisy sites, and differentiate its latents by them."""
        with torch.no_grad(), seeded(seed, PROBE_STREAM):
            traced = poutine.trace(self.guide)
            self.run(traced)
        sites = drawn_by(traced.trace)
        held = {name: site["value"] for name, site in sites.items() if not is_delta(site["fn"])}
        with torch.enable_grad(), seeded(seed, PROBE_STREAM):
            free, inputs, outputs, terms = {}, [], [], []
            for name in self.noise.noisy:
                transform, event_dim = bijection_of(sites[name]["fn"]), sites[name]["fn"].event_dim
                free[name] = transform.inv(held[name]).detach().requires_grad_()
                held[name] = transform(free[name])
                terms.append(-self._volume(transform, free[name], held[name], event_dim))
                inputs.append(free[name].dim() - held[name].dim() + event_dim)
            again = poutine.trace(poutine.condition(self.guide, data=held))
            self.run(again)
            drawn = drawn_by(again.trace)
            for name in self.noise.points:
                transform, value = bijection_of(self.priors[name]["fn"]), drawn[name]["value"]
                vectors, event_dim = transform.inv(value), drawn[name]["fn"].event_dim
                terms.append(self._volume(transform, vectors, value, event_dim))
                outputs.append(self._rows(vectors, vectors.dim() - value.dim() + event_dim))
            deltas = [site for site in drawn.values() if is_delta(site["fn"])]
            terms += [self._rows(site["fn"].log_prob(site["value"]), 0).sum(-1) for site in deltas]
            jacobians, widths = self._jacobians(outputs, list(free.values()), inputs)
        return _Look(
            jacobians,
            torch.stack(torch.broadcast_tensors(*terms)).sum(0).detach().double(),
            [part.shape[-1] for part in outputs],
            widths,
        )

    def _volume(self, transform: Any, free: Tensor, value: Tensor, event_dim: int) -> Tensor:
        terms = transform.log_abs_det_jacobian(free, value)
        return self._rows(terms, event_dim - transform.codomain.event_dim).sum(-1)

    def _rows(self, values: Tensor, event_dim: int) -> Tensor:
        """Return values with a row for each datum, ``(N, *)``, or one row for all."""
        if self.plate is None:
            return values.reshape(1, -1)
        dim = self.plate.dim - event_dim
        values = values.reshape(*[1] * (-dim - values.dim()), *values.shape).movedim(dim, 0)
        return values.reshape(len(values), -1)

    def _jacobians(
        self, outputs: list[Tensor], free: list[Tensor], event_dims: list[int]
    ) -> tuple[Tensor, list[int]]:
        results = []
        columns = torch.cat(outputs, -1).unbind(-1)
        if len(columns) > _MOST_WIDTH:
            raise _TooWide
        for column in columns:
            gradients: Any = [None] * len(free)
            if column.requires_grad:
                gradients = torch.autograd.grad(
                    column.sum(), free, retain_graph=True, allow_unused=True
                )
            filled = [
                torch.zeros_like(f) if g is None else g
                for f, g in zip(free, gradients, strict=True)
            ]
            parts = [self._rows(*pair) for pair in zip(filled, event_dims, strict=True)]
            results.append(torch.cat(parts, -1))
        return torch.stack(results, -2), [part.shape[-1] for part in parts]
