"""The findings of a diagnosis: the numbers behind each cause, and the smallest remedy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from pyro_bvae.evaluation.collapse.causes import UNSEEN, Cause, LatentDiagnosis, Measurements

# Numbers that are written out one by one.
_MOST_NUMBERS = 6


@dataclass(frozen=True)
class CollapseFinding:
    """One cause, the latents that it concerns, and a remedy.

    Attributes:
        cause: The cause.
        latents: Indices of the latents.
        observation: The numbers behind it, in words.
        remedy: The smallest thing to try.
    """

    cause: Cause
    latents: tuple[int, ...]
    observation: str
    remedy: str

    @property
    def evidence(self) -> str:
        """The ``observation``, by its name of 0.1.0."""
        warnings.warn(
            "CollapseFinding.evidence is now CollapseFinding.observation; the old name goes with"
            " the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.observation

    def __str__(self) -> str:
        noun = "latent" if len(self.latents) == 1 else "latents"
        return (
            f"{self.cause}  ({noun} {ranges(self.latents)})\n    {self.observation}\n    try:"
            f" {self.remedy}"
        )


def findings_of(
    result: Measurements, latents: tuple[LatentDiagnosis, ...]
) -> tuple[CollapseFinding, ...]:
    """Return one finding for each cause, the gravest first."""
    words = {
        Cause.LAGGING: _lagging,
        Cause.DEAD: _dead,
        Cause.BYPASS: _bypass,
        Cause.THRESHOLD: _threshold,
        Cause.NO_SIGNAL: _no_signal,
    }
    findings = []
    for cause, say in words.items():
        concerned = [latent for latent in latents if latent.cause is cause]
        if concerned:
            observation, remedy = say(result, concerned)
            findings.append(
                CollapseFinding(
                    cause, tuple(latent.index for latent in concerned), observation, remedy
                )
            )
    return tuple(findings)


def notes_of(result: Measurements, latents: tuple[LatentDiagnosis, ...]) -> tuple[str, ...]:
    """Return the directions that would pay, for which there is no latent, in words."""
    collapsed = sum(latent.cause is not Cause.HEALTHY for latent in latents)
    more = result.pays[collapsed:]
    if not bool(more.any()):
        return ()
    left = float(result.spectrum.left[collapsed])
    return (
        f"beyond the latents there are, the residuals would pay for more: {int(more.sum())} (λ/σ²"
        f" up to {left:.3g})",
    )


def ranges(numbers: tuple[int, ...]) -> str:
    """Return ascending integers in short, such as ``0, 3-5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _eigenvalues(concerned: list[LatentDiagnosis]) -> list[float]:
    return sorted((latent.eigenvalue or 0.0 for latent in concerned), reverse=True)


def _listed(numbers: list[float]) -> str:
    if len(numbers) > _MOST_NUMBERS:
        return f"{numbers[0]:.3g} to {numbers[-1]:.3g}"
    return ", ".join(f"{number:.3g}" for number in numbers)


def _threshold(result: Measurements, concerned: list[LatentDiagnosis]) -> tuple[str, str]:
    numbers, edge = _eigenvalues(concerned), result.spectrum.edge
    left = f"the decoder's residuals have λ/σ² = {_listed(numbers)}, above noise ({edge:.3g})"
    if numbers[0] > result.beta:
        evidence = (
            f"{left} but not clearly above β = {result.beta:g}: at most worth little more than its"
            " rate"
        )
        first = f"train for longer, or lower β: {numbers[0]:.3g} pays clearly at half as much"
    else:
        evidence = (
            f"{left} but below β = {result.beta:g}: a latent would cost more rate than it is worth"
        )
        all_open = (
            f", or below {numbers[-1]:.3g} for all {len(numbers)}" if len(numbers) > 1 else ""
        )
        first = f"lower β below {numbers[0]:.3g}, where the next latent opens{all_open}"
    by_hand = (
        f"where the likelihood's scale is fixed by hand (variance {result.noise_variance:.3g})"
    )
    return evidence, f"{first}; {by_hand}, a smaller or a learned one does the same"


def _bypass(result: Measurements, concerned: list[LatentDiagnosis]) -> tuple[str, str]:
    spectrum, places = result.spectrum, range(min(len(concerned), len(result.spectrum.values)))
    whole, explained = (
        _listed([float(part[i]) for i in places]) for part in (spectrum.values, spectrum.explained)
    )
    return (
        "log p(x|z) is no sum over features: under the same z they are worth"
        f" {_with_error(result.interaction)} nats to each other, while the right z is worth"
        f" {_with_error(result.worth)}. Of λ/σ² = {whole} that independent features"
        f" would leave to the latents, the decoder explains {explained} by itself",
        "let the decoder see less of the features (a short window, dropout on its input), or"
        " hold a rate with free bits or a target rate; a lower β alone gives it no need of z",
    )


def _lagging(result: Measurements, concerned: list[LatentDiagnosis]) -> tuple[str, str]:
    local = result.local
    assert local is not None
    return (
        f"refitted for each datum, the guide has a rate of {local.rate:.2f} nats (the encoder"
        f" {local.encoder_rate:.2f}) and an objective that is"
        f" {_with_error((local.gain, local.error))} nats better: the decoder can use latents that"
        " the encoder does not give, and gradients reach the encoder",
        "take several steps of the encoder for each of the decoder until the refit gains nothing"
        " (He et al. 2019); no change of the model is needed",
    )


def _dead(result: Measurements, concerned: list[LatentDiagnosis]) -> tuple[str, str]:
    blocked = [latent.index for latent in concerned if latent.blocked]
    unseen = [latent.index for latent in concerned if latent.reaction < UNSEEN]
    reasons = []
    if blocked:
        reasons.append(
            f"no gradient makes the encoder follow the data in {ranges(tuple(blocked))} (dead"
            " units)"
        )
    if unseen:
        reasons.append(f"the decoder does not react to {ranges(tuple(unseen))}")
    if len(set(blocked) | set(unseen)) < len(concerned):
        reasons.append("encoder and decoder both start too near zero to leave it")
    return (
        f"the decoder's residuals have λ/σ² = {_listed(_eigenvalues(concerned))}, which pays at β"
        f" = {result.beta:g}, and nothing moves towards it: {'; '.join(reasons)}",
        "initialise them anew (weights of random sign, biases of zero, an activation without a"
        " dead side such as SiLU) and train again with a smaller learning rate or a warm-up of β",
    )


def _no_signal(result: Measurements, concerned: list[LatentDiagnosis]) -> tuple[str, str]:
    top = max(_eigenvalues(concerned))
    return (
        f"the decoder's residuals have λ/σ² of {top:.3g} at most, and noise alone would show"
        f" {result.spectrum.edge:.3g}:"
        f" there is {'next to ' if top > result.spectrum.edge else ''}nothing to encode",
        f"nothing, or as many latents fewer: {len(concerned)}",
    )


def _with_error(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"
