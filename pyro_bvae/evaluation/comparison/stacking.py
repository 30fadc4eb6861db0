"""Stacking: the weights of a mixture of models that predicts the data best (Yao et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public

# Steps of the fixed point at most, and the gain of a step below which it has arrived, in nats a
# datum.
_STEPS, _ARRIVED = 10_000, 1e-12


@public
def stacking_weights(log_densities: Tensor) -> Tensor:
    r"""Return the weights that maximise :math:`\sum_n \log \sum_m w_m p_m(x_n)` on the simplex.

    The maximum of this concave function is the fixed point of the expectation-maximisation steps
    :math:`w_m \leftarrow \frac1N \sum_n w_m p_m(x_n) / \sum_l w_l p_l(x_n)`.

    Args:
        log_densities: Log density of each datum under each model, ``(M, N)``.

    Returns:
        The weights, ``(M,)``, float64. Reference: Yao, Vehtari, Simpson and Gelman 2018.

    Raises:
        InputError: for another shape, or a datum without a density under any model.
    """
    if log_densities.dim() != 2 or not log_densities.numel():
        raise InputError(
            f"'log_densities' must have shape (M, N), got {tuple(log_densities.shape)}"
        )
    if not bool(torch.isfinite(log_densities).any(0).all()):
        raise InputError("'log_densities' must have a finite value of each datum")
    log_densities = log_densities.double()
    log_weights = (
        log_densities.new_zeros(len(log_densities), 1)
        - torch.tensor(float(len(log_densities))).log()
    )
    before = -torch.inf
    for _ in range(_STEPS):
        joint = log_weights + log_densities
        mixed = joint.logsumexp(0)
        log_weights = (joint - mixed).logsumexp(1, keepdim=True)
        log_weights = log_weights - log_weights.logsumexp(0)
        now = float(mixed.mean())
        if now - before < _ARRIVED:
            break
        before = now
    return log_weights.exp().flatten()
