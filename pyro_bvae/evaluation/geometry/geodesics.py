r"""Geodesics of a decoder: the paths between two latents that change the features least."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Legendre
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.evaluation.geometry.jacobian import View, check_latents, looking, means, view_of

# A round of the optimiser, after which its progress is looked at.
_ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class Geodesic:
    r"""A path of least energy between two latents, beside the straight line; it prints itself.

    Attributes:
        path: The path at T equal steps of its parameter, ``(T, L)``; the straight line if no
            shorter one was found.
        straight: The straight line at T equal steps of the latents, ``(T, L)``.
        length: Of the path, in units of the view: :math:`\sum_t |f(z_{t+1}) - f(z_t)|`. Never above
            ``straight_length``.
        straight_length: Of the straight line.
        energy: Of the path, :math:`(T - 1) \sum_t |f(z_{t+1}) - f(z_t)|^2`: at least the square of
            the length, and equal to it at constant pace.
        straight_energy: Of the straight line at equal steps of the latents.
        decoded: The features along the path: the means of :math:`p(x|z)`, ``(T, D)``.
        straight_decoded: Likewise along the straight line.
        converged: Whether the last 20 iterations lowered the energy by less than the tolerance.
        iterations: How many there were.
    """

    path: Tensor
    straight: Tensor
    length: float
    straight_length: float
    energy: float
    straight_energy: float
    decoded: Tensor
    straight_decoded: Tensor
    converged: bool
    iterations: int

    def __str__(self) -> str:
        saved = 100 * (1 - self.length / self.straight_length) if self.straight_length > 0 else 0.0
        text = (
            f"geodesic {self.length:.4g}, straight line {self.straight_length:.4g}: {saved:.1f}%"
            " shorter"
        )
        return (
            text if self.converged else f"{text}; NOT CONVERGED after {self.iterations} iterations"
        )


@exclusive
def geodesic(
    vae: Any,
    start: Tensor,
    end: Tensor,
    context: Context | None = None,
    *,
    view: View = means,
    num_terms: int = 12,
    num_points: int = 129,
    tolerance: float = 1e-5,
    max_iterations: int = 400,
) -> Geodesic:
    r"""Find the path between two latents along which the decoder's output moves least.

    The energy :math:`\int_0^1 |\partial_t f(z(t))|^2 dt` is minimised over curves

    .. math:: z(t) = (1 - t) z_0 + t z_1 + \sum_{k=1}^K c_k \phi_k(t), \qquad
        \phi_k(t) = \sqrt{2 k + 1} \int_0^t P_k(2 s - 1) \, ds

    with Legendre's polynomials P: they vanish at both ends, and under a linear decoder no two of
    them share energy. The search, L-BFGS from the straight line, finds a local minimum: the
    geodesic that the straight line leads to.
    References: Arvanitidis, Hansen and Hauberg 2018; Shao, Kumar and Fletcher 2018; of the
    Fisher-Rao metric, ``view=fisher_rao``, Arvanitidis et al. 2022.

    Args:
        vae: A model with a ``decoder``, or a decoder; see
            :func:`~pyro_bvae.evaluation.decoder_jacobian`.
        start: Latents :math:`z_0`, ``(L,)``.
        end: Latents :math:`z_1`, ``(L,)``.
        context: Context of the whole path, one row, if the decoder takes one.
        view: The features of :math:`p(x|z)` to look at.
        num_terms: Number K of polynomials.
        num_points: Number T of points at which path and straight line are decoded. Lengths are
            those of their chords: too small by a share of order :math:`T^{-2}`.
        tolerance: Share of the energy below which 20 iterations have stopped to help.
        max_iterations: When to give up.

    Raises:
        InputError: if the ends do not fit the decoder or are not finite, if it returns no
            distribution that the view can look at or cannot be differentiated, and for settings
            that cannot be used.
    """
    _check(vae, start, end, num_terms, num_points, tolerance, max_iterations)
    spread = _spread(context, num_points)

    def show(path: Tensor) -> Tensor:
        return view_of(vae, path, spread, view)

    with looking(vae):
        with torch.no_grad():
            straight = start + torch.linspace(0, 1, num_points).to(start).unsqueeze(1) * (
                end - start
            )
            views = show(straight)
            check_finite("the decoder's output", views)
            paced = start + _pace(views).to(start).unsqueeze(1) * (end - start)
        basis = torch.as_tensor(_basis(num_terms, num_points)).to(start)
        with torch.enable_grad():
            bend, converged, iterations = _bend(show, paced, basis, tolerance, max_iterations)
        with torch.no_grad():
            path = paced + bend
            (length, energy), (straight_length, straight_energy) = (
                _measure(show(curve)) for curve in (path, straight)
            )
            if not length <= straight_length:
                path, length, energy = straight, straight_length, straight_energy
            decoded, straight_decoded = (
                view_of(vae, curve, spread, means) for curve in (path, straight)
            )
    numbers = (length, straight_length, energy, straight_energy)
    return Geodesic(path, straight, *numbers, decoded, straight_decoded, converged, iterations)


def _check(
    vae: Any,
    start: Tensor,
    end: Tensor,
    num_terms: int,
    num_points: int,
    tolerance: float,
    max_iterations: int,
) -> None:
    for name, value in (("start", start), ("end", end)):
        if value.dim() != 1 or not value.is_floating_point():
            got = f"shape {tuple(value.shape)}"
            got += "" if value.is_floating_point() else f" of {value.dtype}"
            raise InputError(f"'{name}' must be a tensor (L,), got {got}")
    if start.shape != end.shape:
        raise InputError(f"'end' must have {len(start)} latents as 'start' has, got {len(end)}")
    check_latents(vae, torch.stack([start, end]))
    check_count("num_terms", num_terms)
    check_count("max_iterations", max_iterations)
    check_count("num_points", num_points)
    if num_points < 2 * num_terms:
        raise InputError(
            f"'num_points' must be at least {2 * num_terms}, twice 'num_terms', got {num_points}"
        )
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"'tolerance' must be positive and finite, got {tolerance}")


def _spread(context: Context | None, num_points: int) -> Context | None:
    """Return the context of the path for each of its points."""
    for name, part in (context or Context())._asdict().items():
        if part is not None and (part.dim() != 2 or len(part) != 1):
            raise InputError(
                f"'context.{name}' must have one row for the whole path, got shape"
                f" {tuple(part.shape)}"
            )
    return context and context.map(lambda part: part.expand(num_points, -1))


def _measure(views: Tensor) -> tuple[float, float]:
    """Return length and energy of a path from its features, ``(T, D)``."""
    steps = views.double().diff(dim=0).square().sum(-1)
    return float(steps.sqrt().sum()), float(len(steps) * steps.sum())


def _pace(views: Tensor) -> Tensor:
    """Return the places of T steps of equal change on a line, ``(T,)``, from equal steps on it."""
    steps = views.double().diff(dim=0).norm(dim=-1).cpu().numpy()
    places = np.linspace(0, 1, len(views))
    total = steps.sum()
    if not total > 0:
        return torch.as_tensor(places)
    # A little of the latents' own pace, so that no two steps lie on one point where the decoder
    # shows no change.
    travelled = 0.999 * np.concatenate([[0], steps.cumsum()]) / total + 0.001 * places
    return torch.as_tensor(np.interp(places, travelled, places))


def _basis(num_terms: int, num_points: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the polynomials that bend a path, ``(T, K)``."""
    places = np.linspace(0, 1, num_points)
    terms = (
        Legendre.basis(k, domain=[0, 1]).integ(lbnd=0) * math.sqrt(2 * k + 1)
        for k in range(1, num_terms + 1)
    )
    basis = np.stack([term(places) for term in terms], axis=1)
    basis[[0, -1]] = 0  # to the last bit: a path keeps its ends
    return basis


def _bend(
    show: Callable[[Tensor], Tensor],
    line: Tensor,
    basis: Tensor,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, bool, int]:
    """Return the bend of a line that makes its energy least, its success and its iterations."""
    coefficients = line.new_zeros(basis.shape[1], line.shape[1], requires_grad=True)

    def energy() -> Tensor:
        steps = show(line + basis @ coefficients).double().diff(dim=0)
        return len(steps) * steps.square().sum()

    unit = float(energy().detach())
    if unit == 0:
        return torch.zeros_like(line), True, 0
    optimizer = torch.optim.LBFGS(
        [coefficients],
        max_iter=_ITERATIONS,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value = energy() / unit
        if not value.requires_grad:
            raise InputError(
                "the decoder cannot be differentiated in its latents: is its output detached?"
            )
        (coefficients.grad,) = torch.autograd.grad(value, [coefficients])
        return value

    before, iterations, converged = math.inf, 0, False
    while iterations < max_iterations and not converged:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        iterations += _ITERATIONS
        after = float(energy().detach()) / unit
        converged = before - after < tolerance * after
        before = after
    return (basis @ coefficients).detach(), converged and math.isfinite(before), iterations
