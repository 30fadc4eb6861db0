"""The evidence of rows, each by the same noise, whatever other rows there are."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.seeds import PROPOSAL_STREAM, seeded
from pyro_bvae.distributions.partly_observed import PartlyObserved
from pyro_bvae.evaluation.marginal.blocks import EvidenceBlock
from pyro_bvae.evaluation.marginal.proposals import TAIL_SHARE
from pyro_bvae.evaluation.marginal.tails import MixedTails, heavier
from pyro_bvae.vae import BetaVAE

# Rows whose weights are held at a time.
_BLOCK = 1000


class RowScores(NamedTuple):
    """The evidence of each row in nats, and whether it can be trusted, each ``(N,)``."""

    evidence: Tensor
    reliable: Tensor


@torch.no_grad()
def score_rows(vae: BetaVAE, x: Tensor, num_samples: int, seed: int) -> RowScores:
    r"""Estimate :math:`\log p(x)` of each row by importance samples of the guide with tails.

    .. math::
        \log \hat p(x_n) = \log \frac1K \sum_k \frac{p(x_n, z_{nk})}{\tilde q(z_{nk} \mid x_n)}

    The generator starts anew for each row (common random numbers): a row's evidence is a function
    of the row alone, and differences between models have less noise.

    Args:
        vae: The trained model.
        x: The rows, ``(N, D)``.
        num_samples: K.
        seed: Of the noise.
    """
    blocks = []
    with evaluating(vae):
        prior = vae.prior()
        for rows in x.split(_BLOCK):
            weights = [_log_weights(vae, prior, row[None], num_samples, seed) for row in rows]
            blocks.append(EvidenceBlock.from_log_weights(torch.cat(weights, 1), has_tails=True))
    return RowScores(
        torch.cat([block.value for block in blocks]),
        torch.cat([block.reliable for block in blocks]),
    )


def _log_weights(vae: BetaVAE, prior: Any, row: Tensor, num_samples: int, seed: int) -> Tensor:
    """Return the log weights of one row ``(1, D)``, shape ``(K, 1)``."""
    guide = vae.posterior(row)
    with suppress(InputError):  # of a family without a wider version
        guide = heavier(guide, MixedTails(TAIL_SHARE))
    with seeded(seed, PROPOSAL_STREAM):
        z = guide.sample(torch.Size([num_samples]))
    decoded = vae.decoder(z)
    observed = PartlyObserved.of(decoded) if vae.missing else decoded
    weights: Tensor = observed.log_prob(row) + prior.log_prob(z) - guide.log_prob(z)
    return weights
