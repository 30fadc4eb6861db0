"""Inversion: the posterior of a datum under a VAE as the prior and an observation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.context import Context, check_context
from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.moved import grouped
from pyro_bvae.core.seeds import PREDICTIVE_STREAM, PROPOSAL_STREAM, seeded, stream_seed
from pyro_bvae.evaluation.inversion.methods import Draws, NUTSMethod, prepared
from pyro_bvae.evaluation.inversion.model import DrawnSignal, InverseProblem, Signal, check_vae
from pyro_bvae.evaluation.inversion.noise import NOISE_SITE, as_noise
from pyro_bvae.evaluation.inversion.occupancy import Occupied, occupy
from pyro_bvae.evaluation.inversion.result import Inversion, Inversions
from pyro_bvae.evaluation.inversion.scout import opened_problem, scout
from pyro_bvae.evaluation.inversion.starts import InversionSettings, default_starts, start_chains


@grouped("settings", InversionSettings, starts="starts", data="data", holes="holes")
@exclusive
def invert(
    vae: Any,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    noise: Callable[[Tensor], Any] | float | str,
    *,
    prior: Callable[[], Any] | None = None,
    signal: Signal | None = None,
    method: Callable[..., Draws] | None = None,
    settings: InversionSettings | None = None,
    context: Context | None = None,
    seed: int = 0,
) -> Inversion | Any:  # an Inversions for a table of observations
    r"""Draw from the posterior of latents and datum, given an observation of the datum.

    .. math:: p(z, x \mid y) \propto p(z) \, p(x \mid z) \, p(y \mid A(x))

    The decoder stays as it is. ``signal`` defines x: a draw of the decoder's distribution, or its
    mean.

    Args:
        vae: A model with a ``prior``, a ``decoder`` and, for starts, an encoder.
        y: The observation of one datum, ``(M,)``, or of N data, ``(N, M)``, each inverted on its
            own.
        operator: A, from ``(*, D)`` to ``(*, M)``: a :class:`LinearOperator` such as :class:`Mask`,
            or any callable.
        noise: From A(x) to a distribution of y: :class:`NormalNoise`, of known or inferred scale,
            :class:`CountThinning`, or any callable; a positive number s is ``NormalNoise(s)``, and
            ``"infer"`` normal noise of inferred scale, whose half-normal prior is as wide as the
            standard deviation of y.
        prior: p(z) in the place of the model's own, such as one that was fitted to its aggregated
            posterior.
        signal: The meaning of x; by default :class:`DrawnSignal` where there is a closed form, else
            :class:`MeanSignal`.
        method: :class:`NUTSMethod` by default, or :class:`BatchedHMCMethod`, or
            :class:`VariationalMethod`.
        settings: Where the chains start, and the holes in which draws are counted.
        context: The context of the data, a row for each, if the decoder takes one.
        seed: Seed of everything random; the caller's generators are left alone.

    Returns:
        The draws with their diagnostics; for N data an :class:`Inversions`, a sequence of N of
        them. Reference: Bora, Jalal, Price and Dimakis 2017; Holden,
        Pereyra and Zygalakis 2022.

    Raises:
        InputError: if the parts do not fit each other or y, the latents are discrete, or an
            argument cannot be used.
    """
    method, settings = method or NUTSMethod(), settings or InversionSettings()
    table = _table(y, vae)
    problem = InverseProblem(
        prior or vae.prior, vae.decoder, operator, as_noise(noise, table), signal
    )
    if y.dim() == 1:
        return _invert(vae, table, problem, method, settings, context, seed)
    if context is not None:
        check_context(context, len(table))
    each = range(len(table))
    return Inversions(
        _invert(
            vae,
            table[row : row + 1],
            problem,
            method,
            settings,
            None if context is None else context.take(slice(row, row + 1)),
            seed if row == 0 else stream_seed(seed, row),
        )
        for row in each
    )


def _invert(
    vae: Any,
    rows: Tensor,
    problem: InverseProblem,
    method: Callable[..., Draws],
    settings: InversionSettings,
    context: Context | None,
    seed: int,
) -> Inversion:
    """Invert the observation of one datum, ``(1, M)``."""
    starts = settings.starts
    with prepared(problem):
        problem.check(rows, context)
        chosen = default_starts(vae, problem, rows, settings.data) if starts is None else starts
        num_chains = getattr(method, "num_chains", 1)
        begin = start_chains(
            vae, problem, rows, context, chosen, num_chains, stream_seed(seed, PROPOSAL_STREAM)
        )
        scouted = scout(vae, problem, rows, context, chosen, begin, seed)
        fits = getattr(method, "fits_modes", False)
        seated = scouted is not None and (starts is None or (fits and bool(scouted.counts[0] > 1)))
        if scouted is not None and seated:
            begin = scouted.seats(fits)
        results = method(problem, rows, context, begin, seed)
        vectors = None if scouted is None else _vectors(problem, rows, context, results, seed)
        occupied = occupy(results, vectors, scouted, len(begin) if seated else 0, seed)
        flat = {name: value.flatten(0, 1) for name, value in occupied.draws.sites.items()}
        with seeded(seed, PREDICTIVE_STREAM):
            x = problem.restore(flat, rows, context)
    return _result(occupied, x, rows[0], problem, type(method).__name__, settings.holes)


def _vectors(
    problem: InverseProblem, y: Tensor, context: Context | None, results: Draws, seed: int
) -> Tensor:
    """Return the draws of one problem in unconstrained coordinates, ``(C, K, d)``."""
    shape = results.sites["z"].shape[:2]
    with torch.no_grad(), opened_problem(problem, y, context, seed) as (_, coordinates):
        flat = coordinates.flatten(
            {name: value.flatten(0, 1) for name, value in results.sites.items()}
        )
    return flat[:, 0].unflatten(0, shape)


def _result(
    occupied: Occupied,
    x: Tensor,
    y: Tensor,
    problem: InverseProblem,
    method: str,
    holes: Callable[[Tensor], Tensor] | None,
) -> Inversion:
    results = occupied.draws
    z = results.sites["z"].squeeze(2)
    return Inversion(
        z=z,
        x=x.reshape(*z.shape[:2], -1),
        y=y,
        noise_scale=results.sites[NOISE_SITE].squeeze(2) if NOISE_SITE in results.sites else None,
        r_hat=occupied.r_hat,
        effective_draws=occupied.effective,
        divergences=int(results.divergences.sum()),
        pareto_k=float(results.pareto_k[0]) if results.pareto_k is not None else None,
        in_holes=None if holes is None else holes(z.flatten(0, 1)).reshape(z.shape[:2]),
        method=method,
        signal="a draw of p(x|z)"
        if isinstance(problem.signal, DrawnSignal)
        else "the decoder's mean",
        modes=occupied.modes,
    )


def _table(y: Tensor, vae: Any) -> Tensor:
    """Return y as a table, in the model's type; raise unless it is a finite vector or table."""
    check_vae(vae)
    if not isinstance(y, Tensor) or y.dim() not in (1, 2) or not y.numel():
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(
            "'y' must be the observation of one datum, a tensor (M,), or of several, (N, M), got"
            f" {got}"
        )
    check_finite("y", y)
    like = next(vae.parameters(), None) if isinstance(vae, torch.nn.Module) else None
    return torch.atleast_2d(y.to(like) if like is not None else y)
