"""Inversions of several observations, of noise that is a number or inferred."""

import pytest
import torch

from pyro_bvae import BetaVAE, Context, Decoder, invert
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.inversion import (
    BatchedHMCMethod,
    Inversions,
    Mask,
    NormalNoise,
    NUTSMethod,
    calibrate,
)
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.priors import NormalPrior

SEEN = Mask(torch.tensor([True] * 5 + [False]))
WEIGHT = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
LINEAR = LinearGaussian(WEIGHT, 0.3)
QUICK = BatchedHMCMethod(2, 4, 4)


def _prior_again(x: torch.Tensor, context: object = None) -> torch.distributions.Distribution:
    normal = torch.distributions.Normal(torch.zeros(len(x), 2), 1.0)
    return torch.distributions.Independent(normal, 1)


def test_each_row_of_a_table_is_inverted_on_its_own() -> None:
    y, method = LINEAR.sample(2)[:, :5], BatchedHMCMethod(2, 30, 30)
    found = invert(LINEAR.amortized_vae(), y, SEEN, 0.4, method=method)
    assert isinstance(found, Inversions) and len(found) == 2
    assert found.z.shape == (2, 2, 30, 2) and found.x.shape == (2, 2, 30, 6)
    assert torch.equal(found.y, y) and "2 inversions" in str(found)
    variance = 0.3**2 + 0.4**2
    precision = torch.eye(2, dtype=torch.double) + WEIGHT[:5].T @ WEIGHT[:5] / variance
    exact = torch.linalg.solve(precision, WEIGHT[:5].T @ y.T / variance).T
    deviation = torch.linalg.inv(precision).diagonal().sqrt()
    for one, mean in zip(found, exact, strict=True):
        drawn = one.z.flatten(0, 1).mean(0)
        assert ((drawn - mean).abs() < 5 * deviation / one.effective_draws**0.5).all()
    single = invert(LINEAR.amortized_vae(), y[0], SEEN, 0.4, method=method)
    assert torch.equal(found[0].z, single.z) and single.y.shape == (5,)


def test_an_inferred_scale_follows_the_units_of_y() -> None:
    y = LINEAR.sample(1, seed=3)[0, :5]
    found = invert(LINEAR.amortized_vae(), y, SEEN, "infer", method=QUICK)
    same = NormalNoise(width=float(y.std()))
    assert found.noise_scale is not None
    assert torch.equal(found.z, invert(LINEAR.amortized_vae(), y, SEEN, same, method=QUICK).z)
    lone = invert(LINEAR.amortized_vae(), y[:1], Mask(torch.arange(6) == 0), "infer", method=QUICK)
    assert lone.noise_scale is not None and bool(torch.isfinite(lone.noise_scale).all())


def test_each_row_has_its_context() -> None:
    network = MLP(2 + 1, 6, hidden=())
    decoder = Decoder(network, NormalLikelihood(0.3), num_covariates=1)
    vae = BetaVAE(NormalPrior(2), decoder, _prior_again)
    y, context = torch.randn(2, 5), Context(covariates=torch.tensor([[50.0], [0.0]]))
    found = invert(vae, y, SEEN, 0.4, method=QUICK, context=context)
    assert float(found.x[0].abs().mean()) > 5 * float(found.x[1].abs().mean())
    with pytest.raises(InputError, match="must have 2 rows, got 1"):
        invert(vae, y, SEEN, 0.4, method=QUICK, context=context.take(slice(0, 1)))


def test_a_calibration_takes_a_number_too_and_no_width_of_a_y_it_has_not() -> None:
    vae = LINEAR.amortized_vae()
    found = calibrate(vae, SEEN, 0.4, method=QUICK, num_problems=20, num_ranked=3)
    assert set(found.ranks) >= {"z[0]", "z[1]"}
    with pytest.raises(InputError, match=r"'noise' must be a function or a number, got 'infer'"):
        calibrate(vae, SEEN, "infer", method=QUICK)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [True, None, [0.1, 0.2], float("inf"), torch.ones(2)])
def test_noise_that_is_none_is_refused_in_a_line(noise: object) -> None:
    with pytest.raises(InputError, match="'noise' must be") as caught:
        invert(
            LINEAR.amortized_vae(), LINEAR.sample(1)[0, :5], SEEN, noise, method=NUTSMethod(1, 4, 4)
        )  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
