"""Data of which some features were not observed."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_bvae.core.errors import InputError


class PartlyObserved(dist.Independent):  # type: ignore[misc]
    r"""A product of features, the values of which may be NaN where a feature was not observed.

    .. math:: \log p(x_O) = \sum_{d \in O} \log p(x_d), \qquad O = \{d : x_d \text{ is no NaN}\},

    the marginal density of the observed features: ``poutine.mask``, feature by feature. No gradient
    sees the NaN. Where nothing was observed it is 0, exactly. Draws are complete.
    """

    @classmethod
    def of(cls, distribution: Any) -> PartlyObserved:
        """Return a product of features as one that may be observed in part.

        Raises:
            InputError: for a distribution that is no product of features.
        """
        if (
            not isinstance(distribution, torch.distributions.Independent)
            or distribution.base_dist.event_shape
        ):
            raise InputError(
                "missing entries need a likelihood whose features are independent given z, a"
                " distribution with"
                f" .to_event(1); got {type(distribution).__name__}"
            )
        return cls(distribution.base_dist, distribution.reinterpreted_batch_ndims)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the observed features of ``(*, D)``, shape ``(*)``."""
        missing = torch.isnan(value)
        filled = torch.where(missing, _inside(self.base_dist.support), value)
        factors = self.base_dist.log_prob(filled).masked_fill(missing, 0)
        return factors.sum(tuple(range(-self.reinterpreted_batch_ndims, 0)))


def _inside(support: Any) -> float | Tensor:
    """Return a value inside a support, off its edges, where a density's slope may be infinite."""
    for number in (0.5, 1.0, 0.0):
        if bool(torch.as_tensor(support.check(torch.tensor(number))).all()):
            return number
    value: Tensor = transform_to(support)(torch.zeros(()))
    return value
