"""Total correlation: β weighs the dependence of the latents over all the data alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.training.objectives.kl import KLObjective, Latent, check_number, product_base

# From the size of a batch and the number of data: the weight of a datum's own posterior, and that
# of each other one.
Weights = Callable[[int, int], tuple[float, float]]


def stratified_weights(batch_size: int, num_data: int) -> tuple[float, float]:
    r"""Return the weights of minibatch stratified sampling (Chen et al. 2018, appendix C.2).

    .. math:: w_{nn} = \frac1N, \qquad w_{nm} = \frac{N - 1}{N (B - 1)} \;\; (m \ne n),

    where the posterior that a draw is from is in the batch for certain, and stands for itself
    alone. The estimate of the aggregated posterior is unbiased over batches without replacement.
    Chen et al. give one other datum a smaller weight than the rest; this is the mean over which one
    it is, of less variance, and exactly 1/N where B = N. A single datum has no others to stand for:
    its weight is then 1, so that its total correlation is 0.

    Args:
        batch_size: B.
        num_data: N, at least B.

    Returns:
        The weight of a datum's own posterior, and that of each other of the batch; their sum over
        the batch is 1.
    """
    if batch_size == 1:
        return 1.0, 0.0
    return 1 / num_data, (num_data - 1) / (num_data * (batch_size - 1))


def minibatch_weights(batch_size: int, num_data: int) -> tuple[float, float]:
    r"""Return :math:`1 / (N B)`, minibatch weighted sampling (Chen et al. 2018, appendix C.1).

    They make the aggregated posterior too small, by a factor between B, where posteriors are far
    apart, and N, where they are all the same; so the total correlation of L latents is too large by
    up to :math:`(L - 1) \log N`. Gradients do not know of factors: theirs are those of the plain
    mean over the batch. A batch of all data is no sample: there each weight is 1/N.

    Args:
        batch_size: B.
        num_data: N, at least B.

    Returns:
        The weight of a datum's own posterior, and that of each other of the batch.
    """
    weight = 1 / num_data if batch_size == num_data else 1 / (num_data * batch_size)
    return weight, weight


@public
class TotalCorrelation(KLObjective):
    r"""The total-correlation objective (Chen et al. 2018), for ``pyro.infer.SVI`` and ``fit``.

    .. math::
        \sum_n \Bigl[ - \log p(x_n \mid z_n)
        + \alpha \log \frac{q(z_n \mid x_n)}{q(z_n)}
        + \beta \log \frac{q(z_n)}{\prod_d q(z_{nd})}
        + \gamma \sum_d \log \frac{q(z_{nd})}{p(z_{nd})} \Bigr], \qquad q(z) = \frac1N \sum_m q(z
        \mid x_m),

    in nats, over the data of a batch (those of the whole plate, where it is subsampled) and draws
    :math:`z_n \sim q(z \mid x_n)`: mutual information, total correlation and dimension-wise KL. The
    β of the program is the weight of the total correlation alone. With all three weights 1 it is
    the bound of ``Trace_ELBO``, draw by draw; with any other an objective and no bound, and β none
    of measurements after training.

    The aggregated posterior q(z) and its marginals are over all N data, and estimated from the
    batch::

        q(z_n) = sum of w_nm q(z_n | x_m) over the data m of the batch,

    which is exact for a batch of all data. The logarithm of an estimate is too small on average, of
    the joint density more than of the marginals: the fewer posteriors of a batch reach to a draw,
    the more mutual information is over- and total correlation underestimated, so batches should not
    be small. Time and memory grow with :math:`B^2 L`: on a CPU, of 20 latents, some milliseconds of
    a step at B = 128 and a second at B = 1000.

    β is read from the scale of the latent site, so no other scale or mask may be around it; a β for
    each datum weighs its total correlation. Dimensions right of the data plate are latents of a
    datum, those left of it are apart, such as replicas.

    Args:
        num_data: N, the number of data that batches are drawn from: ``len(splits.train)``. A
            subsampled plate has it itself.
        num_particles: Draws for each datum, at least 1.
        mutual_information: α, at least 0.
        dimension_wise: γ, at least 0.
        weights: From B and N, the weights of a datum's own posterior and of each other;
            :func:`stratified_weights` or :func:`minibatch_weights`.
        data_plate: Name of the data plate, where the latent has more than one.

    Raises:
        InputError: if an argument cannot be used; at a step, if guide or prior is no product of
            dimensions, if the number of data is not known, is not that of the plate or is less than
            that of the batch, and as of
            :class:`~pyro_bvae.training.objectives.kl.KLObjective`.
    """

    def __init__(
        self,
        num_data: int | None = None,
        num_particles: int = 1,
        *,
        mutual_information: float = 1.0,
        dimension_wise: float = 1.0,
        weights: Weights = stratified_weights,
        data_plate: str | None = None,
    ) -> None:
        if num_data is not None:
            check_count("num_data", num_data)
        check_number("mutual_information", mutual_information)
        check_number("dimension_wise", dimension_wise)
        if not callable(weights):
            raise InputError(
                "'weights' must be a function of B and N, such as stratified_weights, got"
                f" {weights!r}"
            )
        super().__init__(num_particles, data_plate=data_plate)
        self.num_data, self.weights = num_data, weights
        self.mutual_information = float(mutual_information)
        self.dimension_wise = float(dimension_wise)

    def __repr__(self) -> str:
        weights = getattr(self.weights, "__name__", type(self.weights).__name__)
        return (
            f"TotalCorrelation({self.num_data}, num_particles={self.num_particles},"
            f" mutual_information={self.mutual_information}, dimension_wise={self.dimension_wise},"
            f" weights={weights})"
        )

    def kl(self, latent: Latent) -> Tensor:
        r"""Return :math:`\log q(z_n \mid x_n) - \log p(z_n)` in three parts, ``(3, N)``.

        They are mutual information, total correlation and dimension-wise KL.
        """
        product_base("TotalCorrelation needs a density", "prior", latent.model)
        sites = (latent.guide, latent.model)
        conditional, prior = (
            _by_datum(site["unscaled_log_prob"], latent, 0).sum(-1) for site in sites
        )
        base = product_base("TotalCorrelation needs a density", "guide", latent.guide)
        event_dim = latent.guide["fn"].event_dim
        # Every draw under every posterior: (B of the draws, *, B of the posteriors, L).
        pairs = latent.guide["value"].unsqueeze(0).transpose(0, latent.plate.dim - event_dim)
        densities = _by_datum(base.log_prob(pairs), latent, event_dim)
        size = latent.plate.size
        weights = self.weights(size, self._count_data(latent.plate))
        own, other = (math.log(weight) if weight > 0 else -math.inf for weight in weights)
        log_weights = densities.new_full((size, size), other).fill_diagonal_(own)
        log_weights = log_weights.reshape(size, *[1] * (densities.dim() - 3), size)
        # log q(z_n), and the sum of log q(z_nd), (N,) each.
        joint = (densities.sum(-1) + log_weights).logsumexp(-1).movedim(0, -1)
        marginals = (densities + log_weights.unsqueeze(-1)).logsumexp(-2).sum(-1).movedim(0, -1)
        return torch.stack([conditional - joint, joint - marginals, marginals - prior])

    def penalty(self, latent: Latent, kl: Tensor) -> Tensor:
        """Return the three parts by their weights, summed over the data."""
        information, correlation, dimension_wise = kl
        # With the factor of subsampling, as scales have it.
        betas = _by_datum(latent.weights, latent, 0).mean(-1)
        rest = self.mutual_information * information + self.dimension_wise * dimension_wise
        return (betas * correlation).sum() + latent.subsampling * rest.sum()

    def _count_data(self, plate: Any) -> int:
        """Return the number of data that a batch is drawn from, or raise where it is unknown."""
        size: int = plate.size
        whole = size if plate.full_size is None else plate.full_size
        num_data: int | None = whole if whole != size else self.num_data
        if num_data is None:
            raise InputError(
                f"'num_data' must be given, the number of data that batches of {size} are drawn"
                f" from: plate '{plate.name}' is not subsampled and does not tell"
            )
        if self.num_data not in (None, num_data):
            raise InputError(
                f"'num_data' must be {num_data} as plate '{plate.name}' has it, got {self.num_data}"
            )
        if num_data < size:
            raise InputError(
                f"'num_data' must be at least {size}, the number of data of this batch, got"
                f" {num_data}"
            )
        return num_data


def _by_datum(values: Tensor, latent: Latent, event_dim: int) -> Tensor:
    """Return values with the dimensions right of the data plate as one, ``(*, N, L)``."""
    inner = event_dim - latent.plate.dim - 1
    return values.reshape(*values.shape[: values.dim() - inner], -1)
