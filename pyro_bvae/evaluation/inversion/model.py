r"""An inverse problem as a Pyro model: prior, decoder, operator and noise.

:math:`z \sim p(z)`, x from the decoder, :math:`y \sim \text{noise}(A(x))`.

The meaning of x is a part. With :class:`DrawnSignal` it is a draw, :math:`x \sim p(x \mid z)`,
with the likelihood's noise: integrated out of y, and drawn given z and y. With :class:`MeanSignal`
it is the decoder's mean, and y differs from A(x) by the observation's noise alone: for a likelihood
that is a device of training more than a model of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import PROBE_STREAM, SIMULATION_STREAM, seeded
from pyro_bvae.evaluation.inversion.noise import NOISE_SITE

# Numbers of x that are drawn at once.
_NUMBERS = 2_000_000


class Signal(Protocol):
    """The meaning of x, given the decoder's distribution."""

    def observe(self, likelihood: Any, operator: Any, noise: Any) -> Any:
        """Return the distribution of y given z."""
        ...

    def restore(self, likelihood: Any, operator: Any, noise: Any, y: Tensor) -> Tensor:
        """Return x given z and y, ``(*, D)``."""
        ...

    def simulate(self, likelihood: Any) -> Tensor:
        """Return x given z alone, ``(*, D)``."""
        ...


class DrawnSignal:
    r"""x is a draw, :math:`x \sim p(x \mid z)`: integrated out of y, and drawn given z and y.

    There are closed forms for a normal likelihood with a linear operator and :class:`NormalNoise`,
    and for counts with a :class:`Mask` and :class:`CountThinning`.
    """

    def observe(self, likelihood: Any, operator: Any, noise: Any) -> Any:
        """Return :math:`p(y | z)`; raises where there is no closed form."""
        if not hasattr(noise, "marginal"):
            raise InputError(
                f"'noise' must have a 'marginal' for x to be a draw, got {type(noise).__name__}"
            )
        return noise.marginal(likelihood, operator)

    def restore(self, likelihood: Any, operator: Any, noise: Any, y: Tensor) -> Tensor:
        """Return a draw of :math:`p(x | z, y)`."""
        x: Tensor = noise.restore(likelihood, operator, y)
        return x

    def simulate(self, likelihood: Any) -> Tensor:
        """Return a draw of :math:`p(x | z)`."""
        x: Tensor = likelihood.sample()
        return x


class MeanSignal:
    r"""x is the decoder's mean, :math:`\mathbb{E}[x \mid z]`, for any operator and noise."""

    def observe(self, likelihood: Any, operator: Any, noise: Any) -> Any:
        """Return the noise about the operator's image of the mean."""
        return noise(operator(likelihood.mean))

    def restore(self, likelihood: Any, operator: Any, noise: Any, y: Tensor) -> Tensor:
        """Return the mean."""
        x: Tensor = likelihood.mean
        return x

    def simulate(self, likelihood: Any) -> Tensor:
        """Return the mean."""
        x: Tensor = likelihood.mean
        return x


class Simulated(NamedTuple):
    """Problems drawn from the model, with their answers."""

    sites: dict[str, Tensor]  # z, (N, L), and an inferred scale, (N,)
    x: Tensor  # (N, D)
    y: Tensor  # (N, M)


def check_vae(vae: Any) -> None:
    """Raise unless a model has a prior and a decoder.

    Raises:
        InputError: with its type.
    """
    if not all(callable(getattr(vae, name, None)) for name in ("decoder", "prior")):
        raise InputError(
            f"'vae' must be a model with a prior and a decoder, got {type(vae).__name__}"
        )


class InverseProblem:
    """The Pyro program of an inversion, for any number N of observations at once.

    ``model(y)`` and ``start(y)`` are a (model, guide) pair as all others of this package: the guide
    draws from the prior.

    Args:
        prior: ``prior()`` returns p(z).
        decoder: ``decoder(z)``, or ``decoder(z, context)``, returns p(x|z).
        operator: From x to its measurements.
        noise: From that to a distribution of y.
        signal: The meaning of x; by default :class:`DrawnSignal` where there is a closed form, else
            :class:`MeanSignal`.

    Raises:
        InputError: for discrete latents.
    """

    def __init__(
        self,
        prior: Callable[[], Any],
        decoder: Callable[..., Any],
        operator: Callable[[Tensor], Tensor],
        noise: Callable[[Tensor], Any],
        signal: Signal | None = None,
    ) -> None:
        self.prior, self.decoder, self.operator, self.noise = prior, decoder, operator, noise
        support = prior().support
        if support.is_discrete:
            raise InputError(
                "the latents must be continuous, as NUTS and the other methods move them, got the"
                f" support {support}"
            )
        self.signal = signal or DrawnSignal()
        self.chooses = signal is None

    def model(self, y: Tensor, context: Context | None = None) -> None:
        """The model: sites ``z``, ``noise_scale`` if inferred, and ``y``, in the plate ``data``."""
        with pyro.plate("data", len(y), dim=-1):
            likelihood = self._likelihood(pyro.sample("z", self.prior()), context)
            pyro.sample("y", self.signal.observe(likelihood, self.operator, self.noise), obs=y)

    def start(self, y: Tensor, context: Context | None = None) -> None:
        """The prior of everything that is inferred, as a guide."""
        with poutine.block(hide=["y"]):
            self.model(y, context)

    def check(self, y: Tensor, context: Context | None = None) -> None:
        """Raise unless the parts fit each other and y, and settle x where that was left open.

        Raises:
            InputError: saying which does not fit.
        """
        with (
            torch.no_grad(),
            seeded(0, PROBE_STREAM),
            poutine.block(),
            pyro.plate("data", len(y), dim=-1),
        ):
            likelihood = self._likelihood(self.prior().sample(torch.Size([len(y)])), context)
            try:
                seen = self.operator(likelihood.mean)
            except RuntimeError as error:
                raise InputError(
                    f"'operator' cannot be applied to x of shape {tuple(likelihood.mean.shape)}:"
                    f" {error}"
                ) from error
            if seen.shape != y.shape:
                raise InputError(
                    f"'y' must hold the {seen.shape[-1]} numbers of 'operator', got"
                    f" {y.shape[-1]}; of a whole x that is operator(x)"
                )
            self._choose(likelihood)
            observed = self.signal.observe(likelihood, self.operator, self.noise)
        if observed.event_shape != y.shape[1:]:
            raise InputError(
                f"'noise' must give a distribution with event shape {tuple(y.shape[1:])}, got"
                f" {tuple(observed.event_shape)}; is .to_event(1) missing?"
            )
        inside = observed.support.check(y)
        if not bool(inside.all()):
            raise InputError(f"'y' must lie in the support of the noise, {observed.support}")

    def settle(self, num_problems: int, context: Context | None = None) -> None:
        """Settle x before there is a y, where that was left open; raise if the parts do not fit."""
        with (
            torch.no_grad(),
            seeded(0, PROBE_STREAM),
            poutine.block(),
            pyro.plate("data", num_problems, dim=-1),
        ):
            self._choose(self._likelihood(self.prior().sample(torch.Size([num_problems])), context))

    def _choose(self, likelihood: Any) -> None:
        if not self.chooses:
            return
        try:
            self.signal.observe(likelihood, self.operator, self.noise)
        except InputError as reason:
            self.signal = MeanSignal()
            try:
                self.signal.observe(likelihood, self.operator, self.noise)
            except InputError:
                raise reason from None
        self.chooses = False

    @torch.no_grad()
    def restore(
        self, sites: dict[str, Tensor], y: Tensor, context: Context | None = None
    ) -> Tensor:
        """Return x given draws of all sites, ``(K, N, ...)`` each, and y; shape ``(K, N, D)``."""
        width = max(1, self._likelihood(sites["z"][:1], context).event_shape[0])
        size = max(1, _NUMBERS // (len(y) * width * max(1, y.shape[1] if self._correlates else 1)))
        parts = []
        for start in range(0, len(sites["z"]), size):
            some = {name: value[start : start + size] for name, value in sites.items()}
            with poutine.block(), poutine.condition(data=some), pyro.plate("data", len(y), dim=-1):
                likelihood = self._likelihood(some["z"], context)
                parts.append(self.signal.restore(likelihood, self.operator, self.noise, y))
        return torch.cat(parts)

    @property
    def _correlates(self) -> bool:
        return isinstance(self.signal, DrawnSignal) and not getattr(self.operator, "disjoint", True)

    @torch.no_grad()
    def simulate(
        self, num_problems: int, context: Context | None = None, seed: int = 0
    ) -> Simulated:
        """Draw latents, x and y from the model, step by step: x is not integrated out."""
        with (
            seeded(seed, SIMULATION_STREAM),
            poutine.trace() as tracer,
            pyro.plate("data", num_problems, dim=-1),
        ):
            likelihood = self._likelihood(pyro.sample("z", self.prior()), context)
            x = self.signal.simulate(likelihood)
            y = self.noise(self.operator(x)).sample()
        nodes: dict[str, Any] = tracer.trace.nodes
        return Simulated(
            {name: nodes[name]["value"] for name in ("z", NOISE_SITE) if name in nodes}, x, y
        )

    def _likelihood(self, z: Tensor, context: Context | None) -> Any:
        return self.decoder(*arguments(z, context))
