"""Counts drawn from a factor model whose every parameter is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets.counts.checks import with_size_factor
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.seeds import SYNTHESIS_STREAM, WEIGHT_STREAM
from pyro_bvae.datasets.splits import Splits, split

# Spread of the latents around the centre of their type, where the centres have spread 1 in all.
_WITHIN = 0.3


@dataclass(frozen=True, eq=False)
class CountTruth:
    r"""The parameters behind :func:`negative_binomial_factors`.

    .. math::
        \mu_{nd} = l_n \operatorname{softmax}(W z_n + b)_d, \qquad
        \operatorname{Var}(x_{nd}) = \mu_{nd} + \mu_{nd}^2 / \theta_d

    and with probability :math:`\pi_d` the count is zero instead.

    Attributes:
        weight: W, shape ``(D, L)``.
        bias: b, shape ``(D,)``.
        dispersion: θ, the inverse overdispersion of each gene, positive, ``(D,)``; infinite for
            Poisson counts.
        zero_inflation: π, the probability of an extra zero of each gene, in [0, 1), ``(D,)``.
        centres: Where the cell types lie among the latents, ``(T, L)``; no rows for z ~ N(0, I).

    Raises:
        InputError: if a shape or a value cannot be used.
    """

    weight: Tensor
    bias: Tensor
    dispersion: Tensor
    zero_inflation: Tensor
    centres: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not self.weight.is_floating_point():
            raise InputError(
                f"'weight' must be floating of shape (D, L), got {tuple(self.weight.shape)}"
            )
        genes, latents = self.weight.shape
        for name in ("bias", "dispersion", "zero_inflation"):
            if getattr(self, name).shape != (genes,):
                raise InputError(
                    f"'{name}' must have shape ({genes},), got {tuple(getattr(self, name).shape)}"
                )
        if self.centres.ndim != 2 or self.centres.shape[1] != latents:
            raise InputError(
                f"'centres' must have shape (T, {latents}), got {tuple(self.centres.shape)}"
            )
        for name in ("weight", "bias", "centres"):
            check_finite(name, getattr(self, name))
        if not bool((self.dispersion > 0).all()):
            raise InputError(f"'dispersion' must be positive, got {self.dispersion.min().item():g}")
        outside = ~((self.zero_inflation >= 0) & (self.zero_inflation < 1))
        if bool(outside.any()):
            raise InputError(
                "'zero_inflation' must lie in [0, 1), got "
                f"{self.zero_inflation[outside][0].item():g}"
            )

    def shares(self, z: Tensor) -> Tensor:
        """Return each gene's share of the counts, softmax(W z + b), ``(*, L)`` to ``(*, D)``."""
        return torch.softmax(z @ self.weight.to(z).T + self.bias.to(z), dim=-1)

    def draw(
        self, z: np.ndarray, size_factor: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Return counts ``(N, D)`` for latents ``(N, L)`` and size factors ``(N, 1)``."""
        rate = size_factor * self.shares(torch.from_numpy(z)).numpy()
        overdispersed = np.isfinite(self.dispersion.numpy())
        if overdispersed.any():
            shape = self.dispersion.double().numpy()[overdispersed]
            rate[:, overdispersed] *= (
                generator.gamma(np.broadcast_to(shape, (len(z), len(shape)))) / shape
            )
        counts = generator.poisson(rate)
        return counts * (generator.random(counts.shape) >= self.zero_inflation.double().numpy())


@public
def negative_binomial_truth(
    num_features: int = 50,
    latent_dim: int = 3,
    *,
    dispersion: float | None = None,
    zero_inflation: float = 0.0,
    num_types: int = 0,
    seed: int = 0,
) -> CountTruth:
    r"""Return the parameters that :func:`negative_binomial_factors` draws from the same seed.

    :math:`W_{dl} \sim N(0, 1/L)`, :math:`b_d \sim N(0, 1)`, and :math:`\log \theta_d \sim N(\log 2,
    1/4)`.

    Args:
        num_features: D, the number of genes.
        latent_dim: L.
        dispersion: θ of all genes in place of drawn ones; ``math.inf`` for Poisson counts.
        zero_inflation: π of all genes.
        num_types: T, the number of cell types; 0 for z ~ N(0, I).
        seed: Of all that is drawn.
    """
    for name, value, least in (
        ("num_features", num_features, 1),
        ("latent_dim", latent_dim, 1),
        ("num_types", num_types, 0),
    ):
        if value < least:
            raise InputError(f"'{name}' must be at least {least}, got {value}")
    generator = np.random.default_rng(stream_seed(seed, 0, WEIGHT_STREAM))
    weight = generator.normal(size=(num_features, latent_dim)) / math.sqrt(latent_dim)
    bias = generator.normal(size=num_features)
    drawn = 2 * np.exp(generator.normal(size=num_features) / 2)
    centres = generator.normal(size=(num_types, latent_dim)) * math.sqrt(1 - _WITHIN**2)
    return CountTruth(
        weight=torch.from_numpy(weight).float(),
        bias=torch.from_numpy(bias).float(),
        dispersion=torch.from_numpy(
            drawn if dispersion is None else np.full(num_features, float(dispersion))
        ).float(),
        zero_inflation=torch.full((num_features,), float(zero_inflation)),
        centres=torch.from_numpy(centres).float(),
    )


@public
def negative_binomial_factors(
    num_data: int = 5000,
    *,
    truth: CountTruth | None = None,
    library_size: float = 200.0,
    library_scale: float = 0.4,
    observed_size: bool = False,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    r"""Draw counts from a negative binomial factor model with known parameters.

    .. math::
        z \sim N(0, I), \quad l \sim \operatorname{LogNormal}, \quad
        x_d \sim NB(\mu_d, \theta_d), \quad \mu = l \operatorname{softmax}(W z + b)

    with mean :math:`\mu_d` and variance :math:`\mu_d + \mu_d^2 / \theta_d`, drawn as a Poisson
    count whose rate is a gamma variable. Infinite θ makes them Poisson, a zero inflation above 0
    thins them out: the truth can be any of the three families. With cell types, z lies around the
    centre of one of them, each as likely.

    Args:
        num_data: N, of all parts together.
        truth: The parameters; by default :func:`negative_binomial_truth` of ``seed``.
        library_size: Median of the size factors l, the expected counts of a datum.
        library_scale: Standard deviation of log l.
        observed_size: Give the total counts of each datum as its size factor in place of l,
            as one has of real data. The model with l is then only nearly the true one.
        validation: Fraction or number of data; 0 for none.
        test: Fraction or number of data.
        seed: Of parameters, data and split.

    Returns:
        x of shape ``(N, D)``; the context holds the size factor; ``factors`` is z, ``(N, L)``;
        ``labels`` are cell types where the truth has any.

    Raises:
        InputError: if an argument makes no sense, or an observed size factor would be zero.
    """
    if num_data < 1:
        raise InputError(f"'num_data' must be at least 1, got {num_data}")
    if not (math.isfinite(library_size) and library_size > 0):
        raise InputError(f"'library_size' must be positive and finite, got {library_size}")
    if not (math.isfinite(library_scale) and library_scale >= 0):
        raise InputError(f"'library_scale' must be non-negative and finite, got {library_scale}")
    truth = negative_binomial_truth(seed=seed) if truth is None else truth
    types, latents = truth.centres.shape
    generator = np.random.default_rng(stream_seed(seed, 0, SYNTHESIS_STREAM))
    z = generator.normal(size=(num_data, latents))
    labels = generator.integers(types, size=num_data) if types else None
    if labels is not None:
        z = truth.centres.double().numpy()[labels] + _WITHIN * z
    size_factor = library_size * np.exp(library_scale * generator.normal(size=(num_data, 1)))
    x = torch.from_numpy(truth.draw(z, size_factor, generator)).float()
    dataset = Dataset(
        x=x,
        context=Context(size_factor=torch.from_numpy(size_factor).float()),
        labels=None if labels is None else torch.from_numpy(labels),
        factors=torch.from_numpy(z).float(),
        factor_names=tuple(f"z{index}" for index in range(latents)),
        label_names=tuple(f"type {index}" for index in range(types)),
    )
    if observed_size:
        dataset = with_size_factor(dataset)
    return split(dataset, validation=validation, test=test, seed=seed, name="counts")
