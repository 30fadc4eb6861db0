"""The cause of each collapsed latent, from measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae.evaluation.collapse.latents import Flow
from pyro_bvae.evaluation.collapse.refit import LocalAnswer
from pyro_bvae.evaluation.collapse.spectrum import Spectrum
from pyro_bvae.evaluation.marginal.bounds import ACTIVE_VARIANCE

# A decoder whose log p(x|z) moves by less, in nats, when a latent is drawn anew does not see that
# latent.
UNSEEN = 0.01
# A refit uses a latent whose mean has at least this variance over the data and whose worth is at
# least this share of β, and gains at least this share of β by all of them.
_REFIT_VARIANCE, _REFIT_WORTH, _REFIT_GAIN = 0.05, 0.25, 0.1
# A ratio above the threshold by less than the first factor, or above the noise by less than the
# second, pays so little that training need not have found it.
_MARGIN, _NOISE_MARGIN = 1.5, 1.25
_ROUNDING = 1e-6
# A latent that is worth nothing to the decoder is worth less than so many standard errors.
_WORTH_ERRORS, _LEAST_WORTH = 3.0, 1e-3
# A decoder that explains this share of a direction's variance beyond the noise does so in place of
# the latents.
_BYPASSED = 0.5
# Features that see each other gain at least so many nats by it, and so many standard errors.
_INTERACTION, _ERRORS = 0.05, 3.0


class Cause(StrEnum):
    """Why a latent carries nothing."""

    HEALTHY = "healthy"
    LAGGING = "lagging encoder"
    DEAD = "bad initialisation or dead units"
    BYPASS = "decoder bypass"
    THRESHOLD = "collapse by threshold"
    NO_SIGNAL = "no signal"


@dataclass(frozen=True)
class LatentDiagnosis:
    r"""The diagnosis of one latent.

    Attributes:
        index: Which latent.
        cause: Why it carries nothing, or ``HEALTHY``.
        active: Whether the variance of its posterior mean over the data is above 0.01 (Burda et al.
            2016).
        mean_variance: That variance.
        rate: Its mean KL between guide and prior, in nats; None where guide or prior is no product.
        worth: Its worth to ``log p(x|z)`` beside another datum's, in nats.
        reaction: How much ``log p(x|z)`` moves when it alone is drawn anew from the prior, in nats.
        refit_variance: The variance of the locally refitted means; None where there was no refit.
        eigenvalue: The largest eigenvalue of the residuals that falls to it,
            :math:`\lambda / \sigma^2`, in units of the likelihood's variance; None for latents that
            carry something. Collapsed latents are interchangeable: the largest falls to the first
            in the order of causes.
        blocked: Whether no gradient can make the encoder's answer follow the data; None where it
            was not looked at.
    """

    index: int
    cause: Cause
    active: bool
    mean_variance: float
    rate: float | None
    worth: float
    reaction: float
    refit_variance: float | None = None
    eigenvalue: float | None = None
    blocked: bool | None = None


class Measurements(NamedTuple):
    """All that was measured.

    Attributes:
        beta: The β of training.
        mean_variances: ``(L,)``.
        rates: ``(L,)`` or None.
        reactions: ``(L,)``.
        worths: The worth of each latent in nats beside another datum's, ``(L,)``.
        used: Which latents carry something, ``(L,)``.
        worth: The worth of all together, and standard error.
        interaction: Nats that features are worth to each other under the same z, and standard
            error.
        spectrum: Of the residuals.
        noise_variance: Of the likelihood.
        local: The local refit; None where there was no call for one, or none to be had.
    """

    beta: float
    mean_variances: Tensor
    rates: Tensor | None
    reactions: Tensor
    worths: Tensor
    used: Tensor
    worth: tuple[float, float]
    interaction: tuple[float, float]
    spectrum: Spectrum
    noise_variance: float
    local: LocalAnswer | None

    @property
    def active(self) -> Tensor:
        """Which posterior means follow the data, ``(L,)``."""
        return self.mean_variances > ACTIVE_VARIANCE

    @property
    def pays(self) -> Tensor:
        """Which of the directions left would pay for a latent, ``(r,)``."""
        return self.spectrum.left > max(_NOISE_MARGIN * self.spectrum.edge, _MARGIN * self.beta)


def sees_features(interaction: tuple[float, float]) -> bool:
    """Whether the decoder explains features by features, from their gain and its error."""
    return interaction[0] > max(_INTERACTION, _ERRORS * interaction[1])


def in_use(mean_variances: Tensor, worths: Tensor, errors: Tensor) -> Tensor:
    """Return which latents follow the data and are worth something to the decoder, ``(L,)``.

    Args:
        mean_variances: Variances of the posterior means over the data, ``(L,)``.
        worths: The worth of each in nats, ``(L,)``.
        errors: Their standard errors.
    """
    return (mean_variances > ACTIVE_VARIANCE) & (
        worths > (_WORTH_ERRORS * errors).clamp(min=_LEAST_WORTH)
    )


def latent_causes(
    result: Measurements, flow_of: Callable[[int, Tensor], Flow]
) -> tuple[LatentDiagnosis, ...]:
    """Return the diagnosis of each latent.

    Args:
        result: The measurements.
        flow_of: Looks whether the encoder can make a latent follow a target, ``(N,)``.
    """
    used = result.used
    lags = _lagging(result) & ~used
    # Whom a direction falls to: first the latents that a refit would use, then those whose encoder
    # is still alive.
    collapsed = sorted(
        torch.nonzero(~used).flatten().tolist(),
        key=lambda i: (not lags[i], -float(result.mean_variances[i]), i),
    )
    causes = dict.fromkeys(range(len(used)), Cause.HEALTHY)
    eigenvalues: dict[int, float] = {}
    blocked: dict[int, bool] = {}
    for place, index in enumerate(collapsed):
        inside = place < len(result.spectrum.values)
        eigenvalues[index] = float(result.spectrum.left[place]) if inside else 0.0
        causes[index] = Cause.LAGGING if lags[index] else _by_spectrum(result, place)
        if inside and causes[index] in (Cause.LAGGING, Cause.DEAD):
            blocked[index] = flow_of(index, result.spectrum.scores[:, place]).blocked
            causes[index] = Cause.DEAD if blocked[index] else causes[index]
    return tuple(
        LatentDiagnosis(
            index=index,
            cause=cause,
            active=bool(result.active[index]),
            mean_variance=float(result.mean_variances[index]),
            rate=None if result.rates is None else float(result.rates[index]),
            worth=float(result.worths[index]),
            reaction=float(result.reactions[index]),
            refit_variance=None if result.local is None else float(result.local.variances[index]),
            eigenvalue=eigenvalues.get(index),
            blocked=blocked.get(index),
        )
        for index, cause in causes.items()
    )


def _lagging(result: Measurements) -> Tensor:
    """Return the latents that a refit uses with a clear gain, ``(L,)``."""
    local = result.local
    if local is None or local.gain < max(_REFIT_GAIN * result.beta, _ERRORS * local.error):
        return torch.zeros_like(result.mean_variances, dtype=torch.bool)
    least = (_WORTH_ERRORS * local.worth_errors).clamp(min=_REFIT_WORTH * result.beta)
    return (local.variances > _REFIT_VARIANCE) & (local.worths > least)


def _by_spectrum(result: Measurements, place: int) -> Cause:
    """Return why no latent carries a direction of the residuals."""
    spectrum = result.spectrum
    if place >= len(spectrum.values) or float(spectrum.values[place]) <= spectrum.edge:
        return Cause.NO_SIGNAL
    whole, explained = (float(part[place]) - 1 for part in (spectrum.values, spectrum.explained))
    if sees_features(result.interaction) and (
        explained >= _BYPASSED * whole or spectrum.left[place] <= spectrum.edge
    ):
        return Cause.BYPASS
    left = float(spectrum.left[place])
    if spectrum.edge < left <= (1 + _ROUNDING) * result.beta:
        return Cause.THRESHOLD
    if left <= _NOISE_MARGIN * spectrum.edge:
        return Cause.NO_SIGNAL
    return Cause.DEAD if bool(result.pays[place]) else Cause.THRESHOLD


def overall_cause(latents: tuple[LatentDiagnosis, ...]) -> Cause:
    """Return the gravest cause.

    Latents without signal beside others that carry all there is are no illness.
    """
    causes = {latent.cause for latent in latents}
    grave = [
        cause
        for cause in Cause
        if cause in causes and cause not in (Cause.HEALTHY, Cause.NO_SIGNAL)
    ]
    if grave:
        return grave[0]
    return Cause.HEALTHY if Cause.HEALTHY in causes else Cause.NO_SIGNAL
