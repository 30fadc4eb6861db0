r"""The sleep phase: the guide learns the posterior of data that the model draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.training.objectives.terms import StepsByTerms, Terms, log_density


@public
class SleepPhase(StepsByTerms, Trace_ELBO):
    r"""The sleep phase of wake-sleep (Hinton et al. 1995), for ``pyro.infer.SVI`` and ``fit``.

    .. math::
        - \sum_n \log q_\phi(z_n \mid x_n), \qquad (z_n, x_n) \sim p(z) \, p(x \mid z),

    as many pairs as there are data in the batch, each with the context and the missing entries of
    one of these. Its minimum is that of :math:`KL(p(z \mid x) \,\|\, q(z \mid x))`: the guide
    covers the whole posterior where the ELBO's guide may leave parts out. Importance weights have
    lighter tails, and the bound may be a little lower. Pairs never run out, so no guide learns them
    by heart. The model has no gradient and stays; the evidence is a number of the model alone.

    β is of no effect. It takes one draw for each datum. Reference: Bornschein and Bengio 2015.

    Raises:
        InputError: at a step, if the data are not the first argument of the program.
    """

    def __init__(self) -> None:
        super().__init__(num_particles=1)

    def __repr__(self) -> str:
        return "SleepPhase()"

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of as many drawn data as a batch has."""
        with torch.no_grad():
            drawn = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
            drawn.compute_log_prob()
        sites = [site for site in drawn.nodes.values() if site["type"] == "sample"]
        observed, latents = (
            [site for site in sites if bool((site["infer"] or {}).get("was_observed")) is was]
            for was in (True, False)
        )
        x = self._data_of(observed, args)
        replayed = poutine.replay(guide, trace=drawn)
        asleep = poutine.trace(replayed).get_trace(x, *args[1:], **kwargs)
        asleep.compute_log_prob()
        own = [site for site in asleep.nodes.values() if site["type"] == "sample"]
        log_q = sum((log_density(site) for site in own), x.new_zeros(()))
        log_prior = sum((log_density(site) for site in latents), x.new_zeros(()))
        distortion = -sum((log_density(site) for site in observed), x.new_zeros(()))
        return Terms(-log_q, distortion, (log_q - log_prior).detach())

    def _data_of(self, observed: list[Any], args: tuple[Any, ...]) -> Tensor:
        """Return the drawn data in the place of the first argument, missing where that is."""
        given = args[0] if args else None
        fits = len(observed) == 1 and isinstance(given, Tensor)
        if not fits or observed[0]["value"].shape != given.shape:  # type: ignore[union-attr]
            raise InputError(
                "SleepPhase needs a program whose first argument is its one observed site"
            )
        assert isinstance(given, Tensor)
        x: Tensor = observed[0]["value"]
        return x.masked_fill(torch.isnan(given), torch.nan)
