r"""The oracle suite, in seconds: every estimator on linear-Gaussian models.

It is for the machine at hand: another device, number type or version of torch is another
arithmetic. The models are random but always the same; the seed is that of the draws. Whether the
estimators keep their word over hundreds of models is measured elsewhere, by
``analysis/oracle_evidence.py``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import seeded, stream_seed
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.gaps.measure import inference_gaps
from pyro_bvae.evaluation.marginal import averages
from pyro_bvae.evaluation.marginal.annealing import annealed_evidence, bidirectional_evidence
from pyro_bvae.evaluation.marginal.bounds import elbo_parts
from pyro_bvae.evaluation.marginal.importance import evidence
from pyro_bvae.evaluation.marginal.proposals import (
    DefensiveProposal,
    HeavyTailedProposal,
    RefitProposal,
)
from pyro_bvae.evaluation.marginal.temperatures import AnnealingSettings
from pyro_bvae.evaluation.verification_traps import traps
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.vae import BetaVAE

# An estimate may be off by so many of its Monte Carlo errors. By chance one in 16,000 is: of the
# some fifty here, which share data and draws besides, none is in 997 suites of 1,000.
_ERRORS = 4.0
# A log density is a sum whose terms add up to about the size of the evidence: each is rounded a few
# times on its way.
_ROUNDINGS = 16
# Within so many nats an estimate has to be sure of itself, or it would find nothing off.
_SURE, _SURE_PER_LATENT = 0.1, 0.002
_NUM_DATA, _NUM_SIMULATED = 16, 64


@dataclass(frozen=True)
class Check:
    """An estimate beside the exact value, in nats.

    Attributes:
        what: The quantity, and its estimator.
        latents: Number of latents of the model.
        exact: The closed form.
        estimated: The estimate.
        monte_carlo_error: Its Monte Carlo error.
        allowed: How far it may be off: four such errors, and the rounding of the number type.
        trusted: Whether the estimate calls itself trusted.
        note: Why there is no estimate, where there is none.
        expected: ``"right"``; of a trap ``"refused"``, or ``"right or untrusted"``.
    """

    what: str
    latents: int
    exact: float
    estimated: float
    monte_carlo_error: float
    allowed: float
    trusted: bool = True
    note: str = ""
    expected: Literal["right", "right or untrusted", "refused"] = "right"

    @property
    def error(self) -> float:
        """``estimated - exact``."""
        return self.estimated - self.exact

    @property
    def state(self) -> str:
        """``"ok"``, or the fault: off, untrusted, too uncertain to tell, not refused.

        A trap is also well with ``"refused"``, and with ``"untrusted"`` where an estimate cannot be
        had.
        """
        if self.expected == "refused":
            return "refused" if self.note else "NOT REFUSED"
        if self.expected == "right or untrusted" and not self.trusted:
            return "untrusted"
        if not abs(self.error) <= self.allowed:
            return "OFF"
        if not self.trusted:
            return "UNTRUSTED"
        return "ok" if self.allowed <= max(_SURE, _SURE_PER_LATENT * self.latents) else "UNSURE"

    @property
    def ok(self) -> bool:
        """Whether the estimate is right, trusted and certain, or a trap was avoided."""
        return self.state in ("ok", "refused", "untrusted")


class _Subject(NamedTuple):
    """A model, a guide that is a little off, data, and the seed of the draws."""

    linear: LinearGaussian
    vae: BetaVAE
    x: Tensor
    beta: float
    seed: int

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.linear.weight.shape[1]

    @property
    def guide(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of the guide, as it computes them."""
        with torch.no_grad():
            distribution = self.vae.encoder(self.x)
        return distribution.mean.double().cpu(), distribution.stddev.double().cpu()

    @property
    def data(self) -> Tensor:
        """The data as the closed forms take them."""
        return self.x.double().cpu()

    def check(
        self, what: str, exact: Tensor | float, estimate: Estimate, *, trusted: bool = True
    ) -> Check:
        """Return the check of an estimate of the mean of ``exact``."""
        truth = float(exact.mean()) if isinstance(exact, Tensor) else exact
        size = float(self.linear.evidence(self.data).abs().mean())
        rounding = _ROUNDINGS * torch.finfo(self.x.dtype).eps * size
        error = estimate.monte_carlo_error
        allowed = _ERRORS * error + rounding
        return Check(
            what, self.latents, truth, estimate.value, error, allowed, trusted and estimate.trusted
        )


def _subject(latents: int, beta: float, device: str, dtype: torch.dtype, seed: int) -> _Subject:
    """Return a model of four features a latent in random directions, of signal-to-noise 1.

    Its posterior is correlated, so that the best diagonal guide misses some of it, and the encoder
    is not the best
    one: no gap is zero. The closed forms are those of the parameters and data as the number type
    rounds them.
    """
    generator = torch.Generator().manual_seed(3000 + latents)
    features = 4 * latents
    weight = torch.randn(features, latents, generator=generator, dtype=torch.double) * math.sqrt(
        1 / features
    )
    linear = LinearGaussian(weight.to(dtype), 1.0)
    with seeded(seed):  # modules are made with random weights, before they are given these
        vae = linear.amortized_vae(beta, mean_factor=0.9, scale_factor=1.2).to(
            device=device, dtype=dtype
        )
    x = linear.sample(_NUM_DATA, seed=latents).to(device=device, dtype=dtype)
    return _Subject(linear, vae, x, beta, seed)


def _bounds(subject: _Subject) -> Iterator[Check]:
    loc, scale = subject.guide
    linear, x = subject.linear, subject.data
    measured = elbo_parts(
        subject.vae.model, subject.vae.guide, subject.x, num_samples=5000, seed=subject.seed
    )
    yield subject.check("ELBO", linear.elbo(x, loc, scale), measured.elbo)
    yield subject.check("distortion", linear.distortion(x, loc, scale), measured.distortion)
    yield subject.check("rate", linear.rate(loc, scale), measured.rate)


def _importance(subject: _Subject) -> Iterator[Check]:
    options: dict[str, dict[str, Any]] = {
        "from the guide": {},
        "from the refit": {"proposal": RefitProposal()},
        "heavy-tailed": {"proposal": HeavyTailedProposal()},
        "defensive": {"proposal": DefensiveProposal()},
        "Pareto-smoothed": {"average": averages.pareto_smoothed},
        "jackknife, order 1": {"average": averages.jackknife(1)},
        "jackknife, order 2": {"average": averages.jackknife(2)},
    }
    exact = subject.linear.evidence(subject.data)
    for name, option in options.items():
        estimate = evidence(
            subject.vae.model, subject.vae.guide, subject.x, seed=subject.seed, **option
        )
        yield subject.check(f"evidence, {name}", exact, estimate)


def _annealing(subject: _Subject) -> Iterator[Check]:
    settings = AnnealingSettings(num_temperatures=80)
    program = subject.vae.model, subject.vae.guide, subject.x
    estimate = annealed_evidence(*program, start="guide", settings=settings, seed=subject.seed)
    yield subject.check(
        "evidence, annealed from guide", subject.linear.evidence(subject.data), estimate
    )


def _sandwich(subject: _Subject) -> Iterator[Check]:
    settings = AnnealingSettings(num_temperatures=160)
    shape = subject.x.repeat(_NUM_SIMULATED // _NUM_DATA, 1)  # as many data are simulated
    lower, upper, gap, simulated = bidirectional_evidence(
        subject.vae.model, subject.vae.guide, shape, settings=settings, seed=subject.seed
    )
    exact = subject.linear.evidence(simulated["x"].double().cpu())
    yield subject.check("evidence, annealed from prior", exact, lower)
    yield subject.check("evidence, annealed in reverse", exact, upper)
    yield subject.check("difference of the two", 0.0, gap)


def _gaps(subject: _Subject) -> Iterator[Check]:
    beta = subject.beta
    measured = inference_gaps(
        subject.vae.model, subject.vae.guide, subject.x, training_beta=beta, seed=subject.seed
    )
    exact = subject.linear.gaps(subject.data, *subject.guide, beta)
    for name in ("variational", "approximation", "beta", "amortization"):
        what = f"{name.replace('beta', 'β')} gap at β = {beta:g}"
        yield subject.check(
            what, getattr(exact, name), getattr(measured, name), trusted=measured.evidence.trusted
        )


def _traps(subject: _Subject) -> Iterator[Check]:
    """Yield programs that invite a wrong number: right, untrusted, or refused."""
    for trap in traps(subject.x.dtype, subject.x.device, subject.seed):
        if trap.exact is None:
            refused = ""
            try:
                trap.measure()
            except InputError as error:
                refused = str(error)
            yield Check(
                trap.what,
                1,
                math.nan,
                math.nan,
                math.nan,
                math.nan,
                note=refused,
                expected="refused",
            )
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trap is known to be one
            estimate = trap.measure()
        allowed = _ERRORS * estimate.monte_carlo_error + 1e-3
        numbers = trap.exact, estimate.value, estimate.monte_carlo_error, allowed
        yield Check(
            trap.what,
            trap.latents,
            *numbers,
            trusted=estimate.trusted,
            expected="right or untrusted",
        )


class _Part(NamedTuple):
    """Some checks of one model, and the most latents at which they are made."""

    what: str
    checks: Callable[[_Subject], Iterator[Check]]
    most_latents: int
    beta: float = 1.0


_PARTS = (
    _Part("bound", _bounds, 100),
    _Part("importance sampling", _importance, 20),
    _Part("annealing", _annealing, 100),
    _Part("sandwich", _sandwich, 20),
    _Part("gaps at β = 1", _gaps, 20),
    _Part("gaps at β = 2", _gaps, 20, beta=2.0),
    _Part("traps", _traps, 2),
)


@exclusive
def verify(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    latents: tuple[int, ...] = (2, 20, 100),
    seed: int = 0,
    progress: bool = False,
) -> list[Check]:
    """Hold every estimator to closed forms on this machine.

    Args:
        device: Where to compute.
        dtype: ``torch.float32`` or ``torch.float64``.
        latents: Numbers of latents of the models. Above 20, where importance sampling fails, only
            the bound and annealing from the guide are checked.
        seed: Seed of the draws; the caller's generators are left alone.
        progress: Show a progress bar.

    Returns:
        One check for each estimate; an estimator that refuses its input is a check that is not ok.

    Raises:
        InputError: for another number type, or a negative seed.
    """
    stream_seed(seed)
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"'dtype' must be torch.float32 or torch.float64, got {dtype}")
    todo = [(size, part) for size in latents for part in _PARTS if size <= part.most_latents]
    results: list[Check] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on small products, threads mostly wait for each other
    try:
        for size, part in ProgressBar(
            todo, desc="verify", disable=not progress, unit="part", leave=False
        ):
            subject = _subject(size, part.beta, device, dtype, seed)
            try:
                results += part.checks(subject)
            except InputError as error:
                results.append(
                    Check(
                        part.what, size, math.nan, math.nan, math.nan, math.nan, False, str(error)
                    )
                )
    finally:
        torch.set_num_threads(threads)
    return results
