"""Linear-Gaussian data against their closed-form moments."""

import math

import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import linear_gaussian, linear_gaussian_weight


def whole(splits):
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    return torch.cat([part.x for part in parts]).double(), torch.cat(
        [part.factors for part in parts]
    ).double()


@pytest.mark.parametrize("noise_scale", [0.5, 1.5])
def test_moments_are_those_of_the_model(noise_scale):
    n = 40_000
    bias = torch.linspace(-1, 1, 6)
    x, _ = whole(
        linear_gaussian(n, num_features=6, latent_dim=2, noise_scale=noise_scale, bias=bias, seed=1)
    )
    weight = linear_gaussian_weight(6, 2, seed=1).double()
    expected = weight @ weight.T + noise_scale**2 * torch.eye(6, dtype=torch.float64)
    variance = expected.diagonal()
    assert ((x.mean(0) - bias).abs() < 5 * (variance / n).sqrt()).all()
    # of a Gaussian, var(S_ij) = (C_ii C_jj + C_ij²) / n
    standard_error = ((variance[:, None] * variance[None, :] + expected**2) / n).sqrt()
    assert ((x.T.cov() - expected).abs() < 5 * standard_error).all()


def test_factors_are_the_latents_of_their_rows():
    x, z = whole(linear_gaussian(500, noise_scale=0.0, seed=2))
    weight = linear_gaussian_weight(seed=2).double()
    assert z.shape == (500, 3)
    assert torch.allclose(x, z @ weight.T, atol=1e-5)


def test_given_weight_and_its_type():
    weight = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    splits = linear_gaussian(100, weight=weight, noise_scale=0.0, validation=0, test=10)
    assert splits.validation is None and splits.train.x.dtype == torch.float64
    assert torch.allclose(splits.train.x, splits.train.factors @ weight.T)


def test_is_a_function_of_the_seed():
    first, same, other = (linear_gaussian(50, seed=seed).train.x for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_weight_has_rows_of_unit_variance():
    weight = linear_gaussian_weight(4000, 5, seed=0)
    assert abs(weight.square().sum(1).mean().item() - 1) < 5 * math.sqrt(2 / 5 / 4000)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_data": 0}, "'num_data' must be at least 1, got 0"),
        ({"noise_scale": -1.0}, "'noise_scale' must be non-negative and finite, got -1.0"),
        ({"noise_scale": math.nan}, "'noise_scale' must be non-negative and finite, got nan"),
        ({"weight": torch.zeros(3)}, r"'weight' must be floating of shape \(D, L\)"),
        ({"weight": torch.zeros(3, 2).long()}, "'weight' must be floating"),
        ({"weight": torch.full((3, 2), math.inf)}, "'weight' must be finite"),
        ({"bias": torch.zeros(3)}, r"'bias' must have shape \(10,\), got \(3,\)"),
        ({"latent_dim": 0}, "'latent_dim' must be at least 1, got 0"),
        ({"num_data": 2}, "leaves it empty"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(InputError, match=message):
        linear_gaussian(**kwargs)
