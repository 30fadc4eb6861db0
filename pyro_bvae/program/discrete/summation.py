r"""Densities of a program with its discrete latents y summed out.

.. math:: p(x, z) = \sum_y p(x, y, z), \qquad q(z \mid x) = \sum_y q(y, z \mid x)

z are the other latents. A guide that draws y has a looser bound than that of these two, since its
:math:`q(y \mid z, x)` stands for the exact posterior:

.. math:: \text{ELBO} = \mathbb{E}_{q(z \mid x)} \sum_y q(y \mid z, x)
    [\log p(x, y, z) - \log q(y, z \mid x)].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.program.densities import BoundTerms, LatentValues, LogDensities
from pyro_bvae.program.discrete.contraction import Factor, expectations, log_sum, negated, sum_out
from pyro_bvae.program.discrete.factors import Factors, Function, Layout, Run, in_one_pass
from pyro_bvae.program.discrete.structure import DiscreteSites


class Summation:
    """The sums over the discrete latents of a program.

    Args:
        sites: The discrete latents.
        layout: Whatever is known of the program's sites.

    Attributes:
        gather: Runs model and guide at all values: in one pass, or in one a value.
    """

    def __init__(self, sites: DiscreteSites, layout: Layout) -> None:
        self.sites, self.layout = sites, layout
        self.gather: Callable[..., Factors] = in_one_pass
        self._drawn: dict[Function, dict[str, int]] = {}

    def drawn_by(self, guide: Function, args: tuple[Any, ...]) -> dict[str, int]:
        """Return the discrete latents that a guide draws, with their numbers of values."""
        if guide not in self._drawn:
            with torch.no_grad():
                trace = poutine.trace(guide).get_trace(*args)
            self._drawn[guide] = {
                name: size for name, size in self.sites.model.items() if name in trace.nodes
            }
        return self._drawn[guide]

    def log_joint(
        self, model: Function, values: LatentValues, args: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return ``log p(z)`` and ``log p(x | z)``, ``(K, N)`` each."""
        run = Run(model, self.sites.model)
        return _split(self.gather(run, None, values, args, self.layout))

    def log_guide(self, guide: Run, values: LatentValues, args: tuple[Any, ...]) -> Tensor:
        """Return ``log q(z | x)``, ``(K, N)``."""
        factors = self.gather(None, guide, values, args, self.layout)
        return log_sum(factors.guide, set(factors.letters.values()), factors.axes)

    def weigh(
        self, model: Function, guide: Run, values: LatentValues, args: tuple[Any, ...]
    ) -> tuple[LogDensities, BoundTerms]:
        """Return the densities of z, and the bound of a guide that draws discrete latents."""
        run = Run(model, self.sites.model)
        factors = self.gather(run, guide, values, args, self.layout)
        letters, axes = set(factors.letters.values()), factors.axes
        left = {factors.letters[name] for name in self.sites.model if name not in guide.names}
        joint = sum_out(factors.model, left, axes)
        prior = sum_out([part for part in factors.model if not part.is_observed], left, axes)
        elbo, observed = expectations(
            factors.guide,
            [[*joint, *negated(factors.guide)], [*joint, *negated(prior)]],
            letters - left,
            axes,
        )
        log_guide = log_sum(factors.guide, letters - left, axes)
        return LogDensities(*_split(factors), log_guide), BoundTerms(elbo, observed)


def _split(factors: Factors) -> tuple[Tensor, Tensor]:
    letters = set(factors.letters.values())
    prior: list[Factor] = [part for part in factors.model if not part.is_observed]
    latent = log_sum(prior, letters, factors.axes)
    joint = log_sum(factors.model, letters, factors.axes)
    lost = torch.isneginf(latent) & torch.isneginf(joint)
    return latent, (joint - latent).masked_fill(lost, -torch.inf)
