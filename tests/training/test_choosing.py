"""The number of latents and β that held-out evidence asks for, on data of a planted rank."""

import pytest
import torch

from pyro_bvae import BetaVAE, Decoder, choose
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, split
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FullRankPosterior
from pyro_bvae.priors import NormalPrior

RANK, FEATURES, NOISE = 2, 6, 0.5
QUICK = {"epochs": 40, "batch_size": 100, "learning_rate": 3e-2, "progress": False}


def planted(seed: int, count: int = 900) -> Dataset:
    """Return linear-Gaussian data of rank 2 whose eigenvalues are 4 and 3 times the noise's."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(FEATURES, RANK, generator=generator))
    weight = NOISE * basis * torch.tensor([4.0, 3.0]).sqrt()
    z = torch.randn(count, RANK, generator=generator)
    return Dataset(z @ weight.T + NOISE * torch.randn(count, FEATURES, generator=generator))


def make_vae(latent_dim: int = 2) -> BetaVAE:
    return BetaVAE(
        NormalPrior(latent_dim),
        Decoder(MLP(latent_dim, FEATURES, ()), NormalLikelihood(LearnedScale())),
        FullRankPosterior(MLP(FEATURES, FullRankPosterior.num_outputs(latent_dim), ())),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_smallest_size_that_cannot_be_told_from_the_best_is_the_rank(seed: int) -> None:
    found = choose(
        make_vae,
        planted(seed),
        latent_dims=(1, 2, 3),
        num_samples=100,
        method="importance",
        **QUICK,
    )
    assert found.setting == (RANK, 1.0)
    assert found.vae.prior.latent_dim == RANK
    assert {each.latent_dim for each in found.alike} >= {2}
    assert 1 not in {each.latent_dim for each in found.alike}
    assert "chosen: 2 latents, β = 1." in str(found)


def test_a_beta_that_collapses_the_latents_is_not_chosen() -> None:
    parts = split(planted(3), validation=200, test=100, seed=0, name="planted")
    found = choose(
        make_vae, parts, betas=(1.0, 50.0), num_samples=100, method="importance", **QUICK
    )
    assert found.setting == (None, 1.0) and len(found.alike) == 1
    assert found.comparison.num_data == 200


def test_settings_that_cannot_be_told_apart_are_named() -> None:
    few = planted(4, 60)
    found = choose(
        make_vae, few[:20], latent_dims=(2, 3), held_out=few[20:25], num_samples=100,
        method="importance", **{**QUICK, "epochs": 5},
    )  # fmt: skip
    assert len(found.alike) == 2
    assert "It cannot be told from 3 latents, β = 1." in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "at least two settings"),
        ({"betas": (1.0, 1.0)}, "at least two settings, each once"),
        ({"latent_dims": (0, 1)}, "'latent_dims' must be"),
        ({"latent_dims": (1, 2), "held_out": 3}, "'data' must be"),
    ],
)
def test_settings_or_data_that_cannot_be_used_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(make_vae, planted(0, 20), **QUICK, **options)
