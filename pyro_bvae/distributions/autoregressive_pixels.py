"""Binary pixels that see each other, as a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_bvae.distributions.pixels import GreyBernoulli, Pixels


class AutoregressivePixels(dist.TorchDistribution):
    r"""Binary pixels, each of which sees those before it (Germain et al. 2015).

    .. math:: \log p(x) = \sum_d \log \mathrm{Bernoulli}(x_d; \, \operatorname{sigmoid}(l_d +
        m_d(x_{<d})))

    for logits l and a function m of the pixels. m knows nothing of l, so that it is evaluated once
    for ``(N, D)`` pixels however many l they are scored under: ``(K, N, D)`` logits cost one pass
    over N. A draw takes D passes.

    Args:
        logits: l, shape ``(*, D)``.
        preceding: m, from pixels ``(*, D)`` to ``(*, D)``; output d must depend on the pixels
            before d alone.
        validate_args: Whether values other than 0 and 1 are refused.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        logits: Tensor,
        preceding: Callable[[Tensor], Tensor],
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.preceding = logits, preceding
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressivePixels:
        """Return the distribution with a larger batch shape."""
        logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        return AutoregressivePixels(logits, self.preceding, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of pixels ``(*, D)``, in one pass."""
        if self._validate_args:
            self._validate_sample(value)
        pixels = GreyBernoulli(logits=self.logits + self.preceding(value), validate_args=False)
        return Pixels(pixels, 1, validate_args=False).log_prob(value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw the pixels one after the other, in D passes."""
        with torch.no_grad():
            logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
            uniform = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device)
            return self._in_turn(logits, lambda logit: (uniform < logit.sigmoid()).to(logit.dtype))

    @property
    def mean(self) -> Tensor:
        r"""Each pixel's probability given the *means* of those before it: not the exact mean.

        .. math:: \pi_d = \operatorname{sigmoid}(l_d + m_d(\pi_{<d}))

        The exact mean is a sum over all images. The two agree for the first pixel, and for all
        where m is 0; else this is a smooth picture of the distribution's expectation, and the mean
        of draws is the thing to compute with.
        """
        return self._in_turn(self.logits, torch.sigmoid)

    def _in_turn(self, logits: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Return pixels that are chosen one after the other, given their logits."""
        pixels, number = (
            torch.zeros_like(logits),
            torch.arange(logits.shape[-1], device=logits.device),
        )
        for dim in range(logits.shape[-1]):
            pixels = torch.where(number == dim, choose(logits + self.preceding(pixels)), pixels)
        return pixels
