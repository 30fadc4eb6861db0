"""Simulation-based calibration.

Uniform ranks and covering intervals where they are due, and not where they are not.
"""

import pytest
import torch

from pyro_bvae import InputError
from pyro_bvae.evaluation import calibrate
from pyro_bvae.evaluation.inversion import (
    BatchedHMCMethod,
    Calibration,
    Draws,
    LinearOperator,
    Mask,
    MeanSignal,
    NormalNoise,
    RandomProjection,
)
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.vae import BetaVAE, Decoder

METHOD = BatchedHMCMethod(num_chains=16, num_draws=50, num_warmup=80, leapfrog_steps=8)


def linear() -> BetaVAE:
    torch.manual_seed(0)
    return LinearGaussian(torch.randn(8, 2), 0.5).amortized_vae()


def trained() -> BetaVAE:
    """Return a decoder that was taught a curved sheet: no longer linear, and of a few units."""
    torch.manual_seed(0)
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, 6, hidden=(16,)), NormalLikelihood(0.3)),
        NormalPosterior(MLP(6, 4, hidden=())),
    )
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.02)
    for _ in range(150):
        z = torch.randn(128, 2)
        x = torch.cat([z, z.square() - 1, (2 * z).sin()], 1)
        loss = -vae.decoder(z).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae


@pytest.mark.parametrize(
    ("vae", "operator", "noise"),
    [
        (linear, RandomProjection(8, 3), NormalNoise(0.3)),
        (linear, Mask(torch.arange(8) < 5), NormalNoise(width=0.5)),
        (trained, Mask(torch.arange(6) > 1), NormalNoise(0.3)),
    ],
    ids=["linear, known noise", "linear, inferred noise", "trained decoder"],
)
def test_ranks_are_uniform_and_intervals_cover(
    vae: object, operator: LinearOperator, noise: NormalNoise
) -> None:
    results = calibrate(vae(), operator, noise, method=METHOD, num_problems=200)  # type: ignore[operator]
    assert results.p_value > 0.001
    for held in results.coverage(0.9).values():
        assert abs(held.value - 0.9) <= 0.065
    assert "corrected" in str(results)


def test_a_posterior_that_is_too_sure_is_found_out() -> None:
    """The same chains drawn together by a third."""

    def narrow(*args: object) -> Draws:
        results = METHOD(*args)  # type: ignore[arg-type]
        z = results.sites["z"]
        centre = z.mean((0, 1))
        return Draws({"z": centre + (z - centre) / 1.5}, results.divergences)

    narrow.num_chains = METHOD.num_chains  # type: ignore[attr-defined]
    results = calibrate(
        linear(), RandomProjection(8, 3), NormalNoise(0.3), method=narrow, num_problems=200
    )
    assert results.p_value < 0.001
    assert results.coverage()["z[0]"].value < 0.835


def test_uniform_ranks_pass_and_others_do_not() -> None:
    torch.manual_seed(0)
    uniform = torch.randint(0, 100, (400,))
    assert Calibration({"a": uniform}, 99).p_value > 0.01
    assert Calibration({"a": uniform, "b": uniform // 2}, 99).p_value < 1e-6
    assert Calibration({"a": torch.tensor([4, 5, 94, 95])}, 99).coverage(0.9)["a"].value == 0.5


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(
        InputError, match="'num_ranked' must be at most the 4 draws of the method, got 99"
    ):
        calibrate(
            linear(), RandomProjection(8, 3), NormalNoise(), signal=MeanSignal(), method=BatchedHMCMethod(2, 2, 2),
            num_problems=3,
        )  # fmt: skip
    with pytest.raises(InputError, match="'num_problems' must be a positive integer"):
        calibrate(linear(), RandomProjection(8, 3), NormalNoise(), num_problems=0)
    with pytest.raises(InputError, match="too few to test"):
        _ = Calibration({"a": torch.tensor([1, 2])}, 99).p_value
    with pytest.raises(InputError, match="'level' must leave whole ranks out"):
        Calibration({"a": torch.tensor([1, 2])}, 99).coverage(0.955)
