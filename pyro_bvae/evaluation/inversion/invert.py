"""Inversion: what a VAE, as a prior, and an observation say of a datum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.context import Context
from pyro_bvae.errors import InputError, check_finite
from pyro_bvae.evaluation.inversion.diagnostics import effective_draws, r_hat
from pyro_bvae.evaluation.inversion.methods import Draws, NUTSMethod, prepared
from pyro_bvae.evaluation.inversion.model import DrawnSignal, InverseProblem, Signal
from pyro_bvae.evaluation.inversion.noise import NOISE_SITE
from pyro_bvae.evaluation.inversion.result import Inversion
from pyro_bvae.evaluation.inversion.starts import Start, default_starts, start_chains
from pyro_bvae.randomness import PREDICTIVE_STREAM, PROPOSAL_STREAM, seeded, stream_seed


def invert(
    vae: Any,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    noise: Callable[[Tensor], Any],
    *,
    prior: Callable[[], Any] | None = None,
    signal: Signal | None = None,
    method: Callable[..., Draws] | None = None,
    starts: Sequence[Start] | None = None,
    data: Tensor | None = None,
    holes: Callable[[Tensor], Tensor] | None = None,
    context: Context | None = None,
    seed: int = 0,
) -> Inversion:
    r"""Draw from the posterior of latents and datum, given what was seen of the datum.

    .. math:: p(z, x \mid y) \propto p(z) \, p(x \mid z) \, p(y \mid A(x))

    The decoder stays as it is. What x is, is said by ``signal``: a draw of the decoder's distribution, or its mean.

    Args:
        vae: A model with a ``prior``, a ``decoder`` and, for starts, an encoder.
        y: What was seen of one datum, ``(M,)``.
        operator: A, from ``(*, D)`` to ``(*, M)``: a :class:`LinearOperator` such as :class:`Mask`, or any callable.
        noise: From A(x) to a distribution of y: :class:`NormalNoise`, of known or inferred scale,
            :class:`CountThinning`, or any callable.
        prior: p(z) in the place of the model's own, such as one that was fitted to its aggregated posterior.
        signal: What x is; by default :class:`DrawnSignal` where there is a closed form, else :class:`MeanSignal`.
        method: :class:`NUTSMethod` by default, or :class:`BatchedHMCMethod`, or :class:`VariationalMethod`.
        starts: Where the chains start, in turn; by default at the prior, at the encoder's answer where there is one,
            and at the aggregated posterior of ``data``.
        data: Data that the model was trained on, ``(N, D)``, for starts at their aggregated posterior.
        holes: From latents ``(K, L)`` to whether each lies in a hole of the aggregated posterior, bool, ``(K,)``.
        context: The context of the one datum, if the decoder takes one.
        seed: Seed of everything random; the caller's generators are left alone.

    Returns:
        The draws with their diagnostics. Reference: Bora, Jalal, Price and Dimakis 2017; Holden, Pereyra and Zygalakis
        2022.

    Raises:
        InputError: if the parts do not fit each other or y, the latents are discrete, or an argument cannot be used.
    """
    method = method or NUTSMethod()
    rows = _rows(y, vae)
    problem = InverseProblem(prior or vae.prior, vae.decoder, operator, noise, signal)
    with prepared(problem):
        problem.check(rows, context)
        chosen = default_starts(vae, problem, rows, data) if starts is None else starts
        num_chains = getattr(method, "num_chains", 1)
        begin = start_chains(vae, problem, rows, context, chosen, num_chains, stream_seed(seed, PROPOSAL_STREAM))
        found = method(problem, rows, context, begin, seed)
        flat = {name: value.flatten(0, 1) for name, value in found.sites.items()}
        with seeded(seed, PREDICTIVE_STREAM):
            x = problem.restore(flat, rows, context)
    z = found.sites["z"].squeeze(2)
    return _result(found, z, x.reshape(*z.shape[:2], -1), y, problem, type(method).__name__, holes)


def _result(
    found: Draws,
    z: Tensor,
    x: Tensor,
    y: Tensor,
    problem: InverseProblem,
    method: str,
    holes: Callable[[Tensor], Tensor] | None,
) -> Inversion:
    scale = found.sites[NOISE_SITE].squeeze(2) if NOISE_SITE in found.sites else None
    in_holes = None if holes is None else holes(z.flatten(0, 1)).reshape(z.shape[:2])
    followed = torch.cat([value.flatten(2) for value in found.sites.values()], 2)
    fit = found.pareto_k is not None
    return Inversion(
        z=z,
        x=x,
        y=y,
        noise_scale=scale,
        r_hat=torch.nan if fit else float(r_hat(followed).max()),
        effective_draws=float(effective_draws(followed).min()),
        divergences=int(found.divergences.sum()),
        pareto_k=float(found.pareto_k[0]) if found.pareto_k is not None else None,
        in_holes=in_holes,
        method=method,
        signal="a draw of p(x|z)" if isinstance(problem.signal, DrawnSignal) else "the decoder's mean",
    )


def _rows(y: Tensor, vae: Any) -> Tensor:
    """Return y as one row, in the model's type; raise unless it is one finite vector."""
    if not callable(getattr(vae, "decoder", None)) or not callable(getattr(vae, "prior", None)):
        raise InputError(f"'vae' must be a model with a prior and a decoder, got {type(vae).__name__}")
    if not isinstance(y, Tensor) or y.dim() != 1 or not y.numel():
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"'y' must be what was seen of one datum, a tensor (M,), got {got}")
    check_finite("y", y)
    like = next(vae.parameters(), None) if isinstance(vae, torch.nn.Module) else None
    return (y.to(like) if like is not None else y).unsqueeze(0)
