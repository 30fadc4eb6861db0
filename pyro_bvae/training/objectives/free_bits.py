"""Free bits: the KL of a latent costs nothing below a threshold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bvae.core.inputs.public import public
from pyro_bvae.training.objectives.kl import KLObjective, Latent, check_number, product_base


@public
class FreeBits(KLObjective):
    r"""Free bits (Kingma et al. 2016), for ``pyro.infer.SVI`` and ``fit``.

    .. math::
        - \sum_n \mathbb{E}_{q(z \mid x_n)} \log p(x_n \mid z)
        + \beta N \sum_d \max \Bigl( \lambda, \; \frac1N \sum_n KL_{nd} \Bigr), \qquad
        KL_{nd} = KL(q(z_d \mid x_n) \,\|\, p(z_d)),

    in nats, over the N data of a batch (those of the whole plate, where it is subsampled): the KL
    of a latent pulls at nothing while its mean over the batch is below λ. Batches must not be
    small, since the mean is theirs. A β for each datum weighs it in both sums, as a mask does.

    Guide and prior have to be products of independent dimensions. The KL of a dimension is a closed
    form where Pyro knows one; else it is the mean of ``log q - log p`` of the draws, whose maximum
    with λ is a little too large on average. λ = 0 is the β-bound of ``TraceMeanField_ELBO``, in
    expectation that of ``Trace_ELBO``. Any other λ is an objective and no bound.

    Args:
        nats_per_latent: λ, at least 0.
        num_particles: Draws for each datum, at least 1.
        data_plate: Name of the data plate, where the latent has more than one.

    Raises:
        InputError: if an argument cannot be used; at a step, if guide or prior is no product of
            dimensions, and as of :class:`~pyro_bvae.training.objectives.kl.KLObjective`.
    """

    def __init__(
        self, nats_per_latent: float, num_particles: int = 1, *, data_plate: str | None = None
    ) -> None:
        check_number("nats_per_latent", nats_per_latent)
        super().__init__(num_particles, data_plate=data_plate)
        self.nats_per_latent = float(nats_per_latent)

    def __repr__(self) -> str:
        return f"FreeBits({self.nats_per_latent}, num_particles={self.num_particles})"

    def kl(self, latent: Latent) -> Tensor:
        """Return the KL of each dimension, ``(N, L)``."""
        guide, prior = (
            product_base("FreeBits needs a KL", *pair)
            for pair in (("guide", latent.guide), ("prior", latent.model))
        )
        try:
            kl: Tensor = kl_divergence(guide, prior)
        except NotImplementedError:
            value = latent.guide["value"]
            kl = guide.log_prob(value) - prior.log_prob(value)
        return kl

    def penalty(self, latent: Latent, kl: Tensor) -> Tensor:
        r"""Return :math:`\sum_d \max(\lambda \sum_n \beta_n, \sum_n \beta_n KL_{nd})`."""
        event_dim = latent.guide["fn"].event_dim
        weights = latent.weights.reshape(*latent.weights.shape, *[1] * event_dim)
        data_dim = latent.plate.dim - event_dim
        costs = (weights * kl).sum(data_dim)
        # No KL is negative, but an estimate of one may be, and a floor of 0 under it would be a
        # bias.
        if self.nats_per_latent > 0:
            costs = torch.maximum(costs, self.nats_per_latent * weights.sum(data_dim))
        return costs.sum()
