"""The number of latents and β that held-out evidence asks for, on data of a planted rank."""

import pytest
import torch

from pyro_bvae import BetaVAE, Decoder, choose
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, split
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import TargetRate

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


def known_noise(latent_dim: int = 2) -> BetaVAE:
    """Return an affine model of the planted noise: its optimum at each β is a closed form."""
    return BetaVAE(
        NormalPrior(latent_dim),
        Decoder(MLP(latent_dim, FEATURES, ()), NormalLikelihood(NOISE)),
        NormalPosterior(MLP(FEATURES, 2 * latent_dim, ())),
    )


def eigenvalues(data: Dataset) -> torch.Tensor:
    """Return those of the data's covariance in units of the noise, the largest first."""
    return torch.linalg.eigvalsh(torch.cov(data.x.T.double())).flip(0) / NOISE**2


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


@pytest.mark.slow
def test_a_rate_is_held_by_the_beta_of_the_closed_form_and_needs_the_planted_size() -> None:
    data = planted(0)
    train, held = data[:700], data[700:]
    found = choose(
        known_noise, train, latent_dims=(1, 2), held_out=held, criterion=TargetRate(1.0, integral=4e-2),
        num_samples=50, **QUICK,
    )  # fmt: skip
    # R = ½ Σ log(λ / β) over both latents, and D = ½ Σ min(λ, β) and the constant.
    first, second = eigenvalues(train)[:2]
    beta = float((first * second).sqrt() / torch.e)
    assert found.setting.latent_dim == 2 and len(found.alike) == 1
    assert found.setting.beta == pytest.approx(beta, rel=0.05)
    assert found.comparison is not None
    two = found.comparison.models[found.comparison.best][0]
    constant = FEATURES / 2 * torch.log(torch.tensor(2 * torch.pi * NOISE**2))
    exact = float(eigenvalues(held).clamp(max=beta).sum() / 2 + constant)
    assert two.value == pytest.approx(-exact, abs=0.1)
    assert "distortion at 1 nats" in str(found) and "chosen: 2 latents" in str(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:β σ² is")
def test_the_latents_above_the_threshold_of_collapse_are_kept() -> None:
    data = planted(0)
    assert eigenvalues(data)[1] > 3 and eigenvalues(data)[2] < 1.5
    sizes = choose(
        known_noise, data, betas=(1.5,), latent_dims=(1, 2, 3), criterion="collapse", **QUICK
    )
    assert sizes.setting == (2, 1.5)
    assert "3 latents, β = 1.5: 1 of 3 latents carry nothing" in str(sizes)
    betas = choose(known_noise, data, betas=(1.0, 2.5, 7.0), criterion="collapse", **QUICK)
    assert betas.setting == (None, 2.5)
    assert betas.comparison is None and "β = 7: 2 of 2 latents carry nothing" in str(betas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "at least two settings"),
        ({"betas": (1.0, 2.0), "criterion": "elbow"}, "'collapse' or a TargetRate, got 'elbow'"),
        (
            {"betas": (1.0, 2.0), "criterion": 5.0},
            "'evidence' or 'collapse' or a TargetRate, got 5",
        ),
        ({"betas": (2.0,), "criterion": TargetRate(1.0)}, "finds its β: leave out 'betas'"),
        ({"betas": (1.0, 1.0)}, "at least two settings, each once"),
        ({"latent_dims": (0, 1)}, "'latent_dims' must be"),
        ({"latent_dims": (1, 2), "held_out": 3}, "'data' must be"),
    ],
)
def test_settings_or_data_that_cannot_be_used_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(make_vae, planted(0, 20), **QUICK, **options)
