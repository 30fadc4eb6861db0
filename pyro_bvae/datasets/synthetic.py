"""Data drawn from a model whose evidence and posterior are closed forms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.seeds import SYNTHESIS_STREAM, WEIGHT_STREAM, stream_generator
from pyro_bvae.datasets.splits import Splits, split


@public
def linear_gaussian_weight(num_features: int = 10, latent_dim: int = 3, seed: int = 0) -> Tensor:
    r"""Return the weight :func:`linear_gaussian` draws from the same seed.

    Returns:
        W with entries :math:`W_{dl} \sim N(0, 1/L)`, shape ``(D, L)``.
    """
    for name, value in (("num_features", num_features), ("latent_dim", latent_dim)):
        if value < 1:
            raise InputError(f"'{name}' must be at least 1, got {value}")
    generator = stream_generator(seed, 0, WEIGHT_STREAM)
    return torch.randn(num_features, latent_dim, generator=generator) / math.sqrt(latent_dim)


@public
def linear_gaussian(
    num_data: int = 5000,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    noise_scale: float = 0.5,
    num_features: int = 10,
    latent_dim: int = 3,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    r"""Draw :math:`z \sim N(0, I)`, :math:`x = W z + b + \sigma\epsilon`: probabilistic PCA.

    Reference: Tipping and Bishop 1999.

    Args:
        num_data: N, of all parts together.
        weight: W, shape ``(D, L)``; by default :func:`linear_gaussian_weight` of ``num_features``,
            ``latent_dim`` and ``seed``, which a given weight makes void.
        bias: b, shape ``(D,)``; by default zero.
        noise_scale: σ.
        num_features: D.
        latent_dim: L.
        validation: Fraction or number of data; 0 for none.
        test: Fraction or number of data.
        seed: Of weight, data and split.

    Returns:
        x of shape ``(N, D)``; ``factors`` is z, ``(N, L)``.
    """
    if num_data < 1:
        raise InputError(f"'num_data' must be at least 1, got {num_data}")
    if not (math.isfinite(noise_scale) and noise_scale >= 0):
        raise InputError(f"'noise_scale' must be non-negative and finite, got {noise_scale}")
    weight = linear_gaussian_weight(num_features, latent_dim, seed) if weight is None else weight
    weight, bias = _on_cpu(weight, bias)
    rows, columns = weight.shape
    generator = stream_generator(seed, 0, SYNTHESIS_STREAM)
    z = torch.randn(num_data, columns, generator=generator, dtype=weight.dtype)
    noise = torch.randn(num_data, rows, generator=generator, dtype=weight.dtype)
    names = tuple(f"z{index}" for index in range(columns))
    dataset = Dataset(x=z @ weight.T + bias + noise_scale * noise, factors=z, factor_names=names)
    return split(dataset, validation=validation, test=test, seed=seed, name="linear-gaussian")


def _on_cpu(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight ``(D, L)`` and bias ``(D,)``, zero for None, checked and without gradients."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise InputError(
            f"'weight' must be floating of shape (D, L), got {weight.dtype} {tuple(weight.shape)}"
        )
    check_finite("weight", weight)
    weight = weight.detach().cpu()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
    if bias.shape != (len(weight),):
        raise InputError(f"'bias' must have shape ({len(weight)},), got {tuple(bias.shape)}")
    return weight, bias
