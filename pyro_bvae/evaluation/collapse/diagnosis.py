"""The doctor of posterior collapse: which latents carry nothing, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError, check_beta, check_count
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import CHOICE_STREAM, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation.collapse.causes import (
    UNSEEN,
    Cause,
    LatentDiagnosis,
    Measurements,
    in_use,
    latent_causes,
    overall_cause,
    sees_features,
)
from pyro_bvae.evaluation.collapse.latents import Latents, encoder_flow, interaction
from pyro_bvae.evaluation.collapse.messages import CollapseFinding, findings_of, notes_of
from pyro_bvae.evaluation.collapse.refit import LocalAnswer, local_answer
from pyro_bvae.evaluation.collapse.spectrum import residuals_of, spectrum
from pyro_bvae.evaluation.refit.optimisation import LocalGuideFactory
from pyro_bvae.program.program import Program, open_program

# Data behind measurements that take a pass of the decoder for each latent, and behind the refit.
_PASSES, _REFITS = 512, 128


@dataclass(frozen=True, eq=False)
class Diagnosis:
    r"""The result of a diagnosis; it prints itself.

    Attributes:
        cause: The gravest cause, or ``Cause.HEALTHY``: latents without signal beside others that
            carry all there is are no illness.
        beta: The β of training.
        latents: The diagnosis of each latent.
        findings: One for each cause, the gravest first: evidence and remedy.
        eigenvalues: Of the residuals, :math:`\lambda_i / \sigma^2` in units of the
            likelihood's variance, largest first; a latent pays where one is above β.
        edge: The largest of them under noise alone.
        noise_variance: The likelihood's variance, mean over data and features: :math:`\sigma^2`.
        worth: The worth of the right latents to ``log p(x|z)`` beside another datum's, in nats,
            and its standard error.
        interaction: The worth of features to each other under the same latents, in nats, and its
            standard error: 0 where they are independent given z.
        notes: Further observations, in words.
    """

    cause: Cause
    beta: float
    latents: tuple[LatentDiagnosis, ...]
    findings: tuple[CollapseFinding, ...]
    eigenvalues: Tensor
    edge: float
    noise_variance: float
    worth: tuple[float, float]
    interaction: tuple[float, float]
    notes: tuple[str, ...] = ()

    @property
    def collapsed(self) -> tuple[int, ...]:
        """Indices of the latents that carry nothing."""
        return tuple(latent.index for latent in self.latents if latent.cause is not Cause.HEALTHY)

    def __str__(self) -> str:
        number, whole = len(self.collapsed), len(self.latents)
        if not number:
            head = f"all {whole} latents carry something: {self.cause}"
        else:
            head = f"{number} of {whole} latents carry nothing: {self.cause}"
            head += " (the others carry all there is)" if self.cause is Cause.HEALTHY else ""
        return "\n".join(
            [head, *map(str, self.findings), *(f"note: {note}" for note in self.notes)]
        )


@exclusive
def diagnose(
    vae: nn.Module,
    data: Tensor | Dataset,
    *,
    beta: float = 1.0,
    num_data: int = 2000,
    local_guide: LocalGuideFactory | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Diagnosis:
    r"""Find the latents that carry nothing, and the cause for each.

    A latent carries something if its posterior mean follows the data and another datum's would be
    worse. For the others the Pearson residuals r at the encoder's answer show the signal
    left to carry, without the part that is linear in the latents in use: a linear VAE opens a
    latent where

    .. math:: \lambda_i / \sigma^2 = \operatorname{eig}_i \operatorname{Cov}(r) > \beta ,

    and so does any VAE near the point of collapse (Lucas et al. 2019). An eigenvalue that permuted
    features would show as well is *no signal*; one above that and not above β is *collapse by
    threshold*; one above β should have been used. That it was not is *decoder bypass* where the
    features explain each other under the same z (Chen et al. 2017), a *lagging encoder* where a
    local refit uses the latent and gains by it (He et al. 2019), and *bad initialisation or dead
    units* where the decoder does not react to it, or no gradient can make the encoder follow the
    data.

    Args:
        vae: A module with Pyro functions ``model(x, context)`` and ``guide(x, context)`` and one
            latent site, such as :class:`~pyro_bvae.BetaVAE`.
        data: A tensor ``(N, D)`` or a :class:`~pyro_bvae.datasets.Dataset`: training data by right,
            since the optimum of training is the one that is looked at.
        beta: The β that training ended with.
        num_data: How many data to look at, at most, chosen by ``seed``.
        local_guide: For guides without a local version: see
            :func:`~pyro_bvae.evaluation.inference_gaps`.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of all draws; the caller's generators, modes and parameter store are left alone.

    Returns:
        The causes with evidence and the smallest remedy to try.

    Raises:
        InputError: if the module has no model and guide, the program not one latent site, or an
            argument or the data cannot be used.
    """
    check_beta(beta)
    check_count("num_data", num_data)
    for name in ("model", "guide"):
        if not callable(getattr(vae, name, None)):
            raise InputError(
                f"'vae' must have Pyro functions model and guide, got {type(vae).__name__} without"
                f" {name}"
            )
    args = _arguments(vae, data, num_data, seed)
    pair: tuple[Any, Any] = vae.model, vae.guide
    with open_program(*pair, args, data_plate=data_plate, seed=seed) as program:
        result, latents, notes = _examine(program, args, float(beta), seed, local_guide)
    findings = findings_of(result, latents)
    return Diagnosis(
        overall_cause(latents),
        result.beta,
        latents,
        findings,
        result.spectrum.left.cpu(),
        result.spectrum.edge,
        result.noise_variance,
        result.worth,
        result.interaction,
        (*notes, *notes_of(result, latents)),
    )


def _examine(
    program: Program,
    args: tuple[Any, ...],
    beta: float,
    seed: int,
    local_guide: LocalGuideFactory | None,
) -> tuple[Measurements, tuple[LatentDiagnosis, ...], tuple[str, ...]]:
    """Measure, and look for the cause of each latent."""
    few = program.take(slice(0, _PASSES)) if program.sliceable else args
    with torch.no_grad():
        latents, some = Latents(program, args), Latents(program, few)
        variances, reactions = latents.means.double().var(0), some.reactions()
        apart = interaction(some)
        together = float(apart.mean()), float(apart.std() / len(apart) ** 0.5)
        # Features that see each other are drawn one after the other: fewer data will have to do.
        independent = not sees_features(together)
        looked = latents if independent else some
        residuals = residuals_of(looked, independent)
        worths, errors = some.worths(some.drawn)
        used = in_use(variances, worths[:-1], errors[:-1])
        left = spectrum(residuals, looked.means[:, used])
    local: LocalAnswer | None = None
    note: tuple[str, ...] = ()
    if bool((~used & (reactions > UNSEEN)).any()):
        block = program.take(slice(0, _REFITS)) if program.sliceable else args
        try:
            local = local_answer(program, block, beta, seed, local_guide)
        except InputError as error:
            note = (
                f"no local refit, so a lagging encoder looks like bad initialisation here: {error}",
            )
    worth = float(worths[-1]), float(errors[-1])
    rates, noise_variance = latents.rates(), residuals.noise_variance
    result = Measurements(
        beta,
        variances,
        rates,
        reactions,
        worths[:-1],
        used,
        worth,
        together,
        left,
        noise_variance,
        local,
    )
    return (
        result,
        latent_causes(result, lambda index, target: encoder_flow(looked, index, target)),
        note,
    )


def _arguments(vae: nn.Module, data: Any, num_data: int, seed: int) -> tuple[Any, ...]:
    """Return arguments of model and guide: some data on the module's device, and context."""
    data = as_dataset(data, vae)
    if len(data) < 3:
        raise InputError(
            f"'data' must hold at least 3 data for a variance over them, got {len(data)}"
        )
    if len(data) > num_data:
        generator = torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM))
        data = data[torch.randperm(len(data), generator=generator)[:num_data].sort().values]
    if data.stochastic_binarization:
        data = data.binarized(seed)
    own = next(vae.parameters(), data.x)
    data = data.to(device=own.device, dtype=own.dtype)
    return arguments(data.x, data.context)
