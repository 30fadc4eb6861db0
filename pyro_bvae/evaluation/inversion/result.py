"""The result of an inversion: draws, and summaries where the chains have mixed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.arviz import Arrays, as_array, library, to_datatree
from pyro_bvae.evaluation.information.holes import log_aggregate
from pyro_bvae.evaluation.inversion.occupancy import LEAST_EFFECTIVE, MOST_R_HAT, FoundModes

# A fit whose importance weights have a heavier tail is none (Vehtari et al. 2024).
_MOST_PARETO_K = 0.7
# Above this share of draws in holes the decoder extrapolates.
_MOST_IN_HOLES = 0.05


@dataclass(frozen=True, eq=False)
class Inversion:
    r"""Draws from the posterior :math:`p(z, x \mid y)`.

    Draws can always be had. ``mean`` and the other summaries raise where the chains have not mixed.

    Attributes:
        z: Draws of the latents, ``(C, K, L)``.
        x: Draws of the datum, ``(C, K, D)``: with :class:`MeanSignal` the decoder's means at z.
        y: The observation, ``(M,)``.
        noise_scale: Draws of an inferred scale, ``(C, K)``; None for a known one.
        r_hat: The largest r-hat of latents and scale; NaN for a fit, which has no chains.
        effective_draws: The smallest effective sample size of latents and scale.
        divergences: Transitions of all chains that diverged.
        pareto_k: Tail shape of the importance weights of a fit; None for chains.
        in_holes: Which draws lie in holes of the aggregated posterior, ``(C, K)``; None where
            nobody asked.
        method: Name of the method.
        signal: Name of the meaning of x.
        modes: The modes that were looked for before the draws, and how much of the mass and of the
            draws lies in each; None where the model cannot be run for many particles at once.
    """

    z: Tensor
    x: Tensor
    y: Tensor
    noise_scale: Tensor | None
    r_hat: float
    effective_draws: float
    divergences: int
    pareto_k: float | None
    in_holes: Tensor | None
    method: str
    signal: str
    modes: FoundModes | None = None

    @property
    def problem(self) -> str | None:
        """Why the draws are no posterior to summarise, in words, or None."""
        if self.pareto_k is not None:
            if self.pareto_k <= _MOST_PARETO_K:
                return self._missed
            heavy = f"Pareto k {self.pareto_k:.2f} is above {_MOST_PARETO_K}"
            return f"the fit is not the posterior: {heavy}; take NUTSMethod()"
        advice = "take more warm-up and draws, or look at each chain for modes of its own"
        if not self.r_hat <= MOST_R_HAT:
            return f"the chains did not mix: r-hat {self.r_hat:.3f} is above {MOST_R_HAT}; {advice}"
        if not self.effective_draws >= LEAST_EFFECTIVE:
            few = f"{self.effective_draws:.0f} effective draws are below {LEAST_EFFECTIVE:.0f}"
            return f"the chains did not mix: {few} (r-hat {self.r_hat:.3f}); {advice}"
        return self._missed

    @property
    def _missed(self) -> str | None:
        return None if self.modes is None else self.modes.missed

    @property
    def hole_share(self) -> float | None:
        """Share of draws in holes, or None where nobody asked."""
        return None if self.in_holes is None else float(self.in_holes.double().mean())

    @property
    def mean(self) -> Tensor:
        """Posterior mean of x, ``(D,)``; raises if the chains did not mix."""
        return self._draws(self.x).mean(0)

    @property
    def standard_deviation(self) -> Tensor:
        """Posterior standard deviation of each feature, ``(D,)``; raises without mixing."""
        return self._draws(self.x).std(0)

    @property
    def latent_mean(self) -> Tensor:
        """Posterior mean of z, ``(L,)``; raises if the chains did not mix."""
        return self._draws(self.z).mean(0)

    @property
    def latent_covariance(self) -> Tensor:
        """Posterior covariance of z, ``(L, L)``; raises if the chains did not mix."""
        return torch.cov(self._draws(self.z).T).reshape(self.z.shape[-1], self.z.shape[-1])

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Return the ends of the central interval of each feature of x, ``(D,)`` each.

        Raises:
            InputError: if the level does not lie between 0 and 1, or the chains did not mix.
        """
        if not 0 < level < 1:
            raise InputError(f"'level' must lie between 0 and 1, got {level}")
        draws, tail = self._draws(self.x), (1 - level) / 2
        return torch.quantile(draws, tail, dim=0), torch.quantile(draws, 1 - tail, dim=0)

    def _draws(self, draws: Tensor) -> Tensor:
        if self.problem is not None:
            raise InputError(f"{self.problem}. The draws themselves are in 'z' and 'x'")
        return draws.flatten(0, 1)

    def __str__(self) -> str:
        chains, draws, latents = self.z.shape
        lines = [
            f"{self.method}: {chains} x {draws} draws of {latents} latents; x is {self.signal}"
        ]
        if self.problem is not None:
            return "\n".join([*lines, f"no summary: {self.problem}", *self._warnings()])
        if self.pareto_k is None:
            lines.append(
                f"r-hat {self.r_hat:.3f}, {self.effective_draws:.0f} effective draws at least"
            )
        else:
            lines.append(f"Pareto k {self.pareto_k:.2f}: importance weights bear the fit out")
        if self.noise_scale is not None:
            scale = self.noise_scale
            lines.append(f"noise scale {float(scale.mean()):.3g} ± {float(scale.std()):.2g}")
        mean = float(self.standard_deviation.mean())
        lines.append(f"posterior standard deviation of a feature: {mean:.3g} on average")
        return "\n".join([*lines, *self._warnings()])

    def _warnings(self) -> list[str]:
        lines = [] if self.modes is None else [str(self.modes)]
        if self.divergences:
            lines.append(
                f"{self.divergences} transitions diverged: parts of the posterior may not have"
                " been reached"
            )
        if (share := self.hole_share) is not None:
            word = "beware: " if share > _MOST_IN_HOLES else ""
            lines.append(
                f"{word}{share:.1%} of the draws lie in holes, where the decoder was never trained"
            )
        return lines

    def to_arviz(self) -> Any:
        """Return the draws as ArviZ's object, InferenceData on ArviZ 0.x and a DataTree on 1.x.

        Groups: ``posterior`` (``z``, ``x``, ``noise_scale``), ``sample_stats`` (``in_hole``),
        ``observed_data`` (``y``). Attributes: r-hat, effective sample size, divergences, Pareto k.
        NUTS reports divergences as a number.
        """
        drawn = ("chain", "draw")
        groups: dict[str, Arrays] = {
            "posterior": {
                "z": ((*drawn, "latent"), as_array(self.z)),
                "x": ((*drawn, "feature"), as_array(self.x)),
            },
            "sample_stats": {},
            "observed_data": {"y": (("measurement",), as_array(self.y))},
        }
        if self.noise_scale is not None:
            groups["posterior"]["noise_scale"] = (drawn, as_array(self.noise_scale))
        if self.in_holes is not None:
            groups["sample_stats"]["in_hole"] = (drawn, as_array(self.in_holes))
        about = {"method": self.method, "signal": self.signal, "divergences": self.divergences}
        numbers = {
            "r_hat": self.r_hat,
            "effective_draws": self.effective_draws,
            "pareto_k": self.pareto_k,
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        return to_datatree(groups, {**library(), **about, **known})


class Inversions(tuple[Inversion, ...]):
    """The inversions of several observations, each on its own; it prints itself."""

    __slots__ = ()

    def __new__(cls, results: Iterable[Inversion]) -> Inversions:
        """Keep the inversions in their order."""
        return super().__new__(cls, results)

    @property
    def z(self) -> Tensor:
        """Draws of the latents, ``(N, C, K, L)``."""
        return torch.stack([one.z for one in self])

    @property
    def x(self) -> Tensor:
        """Draws of the data, ``(N, C, K, D)``."""
        return torch.stack([one.x for one in self])

    @property
    def y(self) -> Tensor:
        """The observations, ``(N, M)``."""
        return torch.stack([one.y for one in self])

    @property
    def mean(self) -> Tensor:
        """Posterior means of x, ``(N, D)``; raises if the chains of any did not mix."""
        return torch.stack([one.mean for one in self])

    def __str__(self) -> str:
        bad = [index for index, one in enumerate(self) if one.problem is not None]
        head = f"{len(self)} inversions, {len(self) - len(bad)} of which have a summary"
        lines = [f"observation {index}: {self[index].problem}" for index in bad[:5]]
        more = [f"and {len(bad) - 5} more without"] if len(bad) > 5 else []
        return "\n".join([head, *lines, *more])


@dataclass(frozen=True, eq=False)
class AggregateHoles:
    r"""Holes of the aggregated posterior, :math:`\log q(z) < t`.

    Attributes:
        vae: The model, with the encoder that made the aggregated posterior.
        data: Data that it was trained on, ``(N, D)``.
        threshold: t in nats: the ``threshold`` of a :class:`~pyro_bvae.evaluation.HoleMass` of the
            same data.
        context: Their context.
    """

    vae: Any
    data: Tensor
    threshold: float
    context: Context | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return whether each of the latents ``(K, L)`` lies in a hole, bool, ``(K,)``."""
        args = (self.data,) if self.context is None else (self.data, self.context)
        return log_aggregate(self.vae.model, self.vae.guide, *args, points=z) < self.threshold
