"""Inversion of posteriors with several modes.

All are found with their mass, or the result says what it lacks.
"""

import math
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae import InputError
from pyro_bvae.evaluation import invert
from pyro_bvae.evaluation.inversion import (
    BatchedHMCMethod,
    Draws,
    Inversion,
    InversionSettings,
    MeanSignal,
    NUTSMethod,
    VariationalMethod,
)
from pyro_bvae.evaluation.inversion.climb import find_modes
from pyro_bvae.evaluation.inversion.mixture import Mixture, weigh
from pyro_bvae.evaluation.inversion.occupancy import occupy
from pyro_bvae.evaluation.inversion.scout import Scouted

FIT = VariationalMethod(num_draws=1000, num_steps=150, num_particles=16)
HMC = BatchedHMCMethod(
    num_chains=8, num_draws=120, num_warmup=60, leapfrog_steps=3, target_acceptance=0.9
)
NOISE = 0.2


def squares(centre: float = 0.0, size: int = 1) -> Any:
    """Return the parts of a model whose first feature is the square of its first latent."""
    loc = torch.zeros(size, dtype=torch.double)
    loc[0] = centre
    return SimpleNamespace(
        prior=lambda: dist.Normal(loc, torch.ones_like(loc)).to_event(1),
        decoder=lambda z: dist.Normal(
            torch.cat([z[..., :1].square(), z[..., 1:]], -1), 1.0
        ).to_event(1),
    )


def solve(vae: Any, method: Any, size: int = 1, noise: Any = NOISE, **options: Any) -> Inversion:
    return invert(
        vae,
        torch.ones(size).double(),
        lambda x: x,
        noise,
        signal=MeanSignal(),
        method=method,
        **options,
    )


def upper_share(centre: float) -> float:
    """Return the posterior mass above zero, by quadrature."""
    z = torch.linspace(-8, 8, 80_001, dtype=torch.double)
    weights = (-0.5 * (z - centre).square() - 0.5 * ((z.square() - 1) / NOISE).square()).softmax(0)
    return float(weights[z > 0].sum())


CASES = {
    "fit": (FIT, 0.0, 1),
    "fit, d=3": (FIT, 0.0, 3),
    "fit, unequal": (FIT, 1.0, 2),
    "chains": (HMC, 0.0, 1),
}


@pytest.mark.parametrize(("method", "centre", "size"), CASES.values(), ids=list(CASES))
def test_both_modes_have_their_shares(method: Any, centre: float, size: int) -> None:
    """The fit took one mode and said nothing.

    Chains had as many draws in a mode as had started there.
    """
    results = solve(squares(centre, size), method, size)
    truth = upper_share(centre)
    share = float((results.z[..., 0] > 0).double().mean())
    assert results.problem is None, results.problem
    assert abs(share - truth) < 0.02 + 4 * math.sqrt(truth * (1 - truth) / results.effective_draws)
    assert results.modes is not None and results.modes.z.shape == (2, size)
    assert torch.allclose(results.modes.z[:, 0].abs(), torch.ones(2).double(), atol=0.05)
    assert "2 modes found from 128 draws of the prior" in str(results)


def test_nuts_has_chains_in_each_mode() -> None:
    results = solve(squares(), NUTSMethod(num_chains=4, num_draws=60, num_warmup=40))
    assert {bool(above) for above in (results.z[..., 0] > 0).flatten()} == {True, False}
    share = float((results.z > 0).double().mean())
    assert (
        results.problem is not None
        or abs(share - 0.5) < 0.02 + 4 * 0.5 / results.effective_draws**0.5
    )


class OneSided:
    """A method that starts in the upper mode, and knows of no other."""

    def __init__(self, method: Any) -> None:
        self.method, self.num_chains = method, method.num_chains

    def __call__(self, problem: Any, y: Tensor, context: Any, starts: Tensor, seed: int) -> Draws:
        results = self.method(problem, y, context, torch.ones_like(starts), seed)
        return Draws({"z": results.sites["z"].abs()}, results.divergences, results.pareto_k)


def test_chains_that_miss_a_mode_are_no_posterior() -> None:
    """Chains that all start in one mode mix in it, and r-hat has nothing to say."""
    settings = InversionSettings([lambda *_: torch.ones(1, 1).double()])
    results = solve(squares(), OneSided(HMC), settings=settings)
    assert results.r_hat <= 1.05
    assert results.problem is not None and "the posterior has 2 modes with 5" in results.problem
    assert (
        "the draws lie in them with" in results.problem
        and "128 draws of the prior" in results.problem
    )
    with pytest.raises(InputError, match="the posterior has 2 modes"):
        _ = results.mean


def test_a_fit_of_one_mode_is_found_out_by_its_share_of_the_prior() -> None:
    """The weights of its own draws are those of a perfect fit, whatever it has missed."""
    results = solve(squares(), OneSided(FIT))
    assert results.pareto_k == math.inf and "the fit is not the posterior" in str(results)


BENT = SimpleNamespace(
    prior=lambda: dist.Normal(torch.zeros(2).double(), torch.ones(2).double()).to_event(1),
    decoder=lambda z: dist.Normal(
        torch.stack([z[..., 0] / 10, z[..., 1] + 0.4 * (z[..., 0].square() - 1)], -1), 1.0
    ).to_event(1),
)
HEAVY = SimpleNamespace(
    prior=lambda: dist.StudentT(3.0, torch.zeros(2).double(), torch.ones(2).double()).to_event(1),
    decoder=lambda z: dist.Normal(z, 1.0).to_event(1),
)


@pytest.mark.parametrize(
    ("vae", "method"), [(BENT, FIT), (HEAVY, FIT), (HEAVY, HMC)], ids=["bent", "heavy", "chains"]
)
def test_one_mode_is_left_in_peace(vae: Any, method: Any) -> None:
    results = solve(vae, method, 2, noise=1.5 if vae is HEAVY else 0.4)
    assert results.problem is None and results.modes is not None and len(results.modes.masses) == 1


def test_a_fit_that_is_mended_has_the_moments_of_quadrature() -> None:
    """A banana is no normal: importance weights make it the posterior."""
    results = solve(BENT, FIT, 2, noise=0.4)
    grid = torch.linspace(-5, 5, 801, dtype=torch.double)
    z = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    density = BENT.prior().log_prob(z) - 0.5 * ((1 - BENT.decoder(z).mean) / 0.4).square().sum(-1)
    weights = density.flatten().softmax(0)
    mean = weights @ z.flatten(0, 1)
    deviation = (weights @ (z.flatten(0, 1) - mean).square()).sqrt()
    assert results.problem is None
    assert ((results.latent_mean - mean).abs() < 5 * deviation / results.effective_draws**0.5).all()
    assert torch.allclose(results.z[0].std(0), deviation, rtol=0.15)


def test_a_chain_that_starts_where_nothing_is_likely_climbs_first() -> None:
    """Below a cliff every step was refused, and the chain never moved."""
    steep = SimpleNamespace(
        prior=lambda: dist.Normal(torch.zeros(1).double(), torch.full((1,), 2.0).double()).to_event(
            1
        ),
        decoder=lambda z: dist.Normal((2 * z).exp(), 1.0).to_event(1),
    )
    results = solve(steep, HMC, noise=0.3)
    assert (results.z.std(1) > 0).all() and results.problem is None


def planted(size: int, light: float, apart: float) -> tuple[Any, Tensor]:
    """Return the path of a mixture of two normals of different widths, and the centres."""
    centres = torch.zeros(2, size, dtype=torch.double)
    centres[:, 0] = torch.tensor([-apart / 2, apart / 2])
    widths = torch.tensor([[0.5], [1.0]]).double()

    def path(u: Tensor) -> tuple[Tensor, Tensor]:
        parts = dist.Normal(centres, widths).to_event(1).log_prob(u.unsqueeze(-2))
        whole = (parts + torch.tensor([light, 1 - light]).double().log()).logsumexp(-1)
        prior = dist.Normal(torch.zeros(size).double(), 3.0).to_event(1).log_prob(u)
        return prior, whole - prior

    return path, centres


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("light", [0.05, 0.3])
def test_climbs_and_weights_find_the_mass_of_each_mode(size: int, light: float) -> None:
    path, centres = planted(size, light, 6.0)
    torch.manual_seed(size)
    starts = 3 * torch.randn(128, 1, size, dtype=torch.double)
    modes, _ = find_modes(path, starts, torch.full((1, size), 3.0).double())
    masses = modes.log_masses.exp()[:, 0]
    assert int((masses > 1e-3).sum()) == 2
    assert torch.allclose(masses[:2], torch.tensor([1 - light, light]).double(), rtol=0.1)
    assert torch.allclose(modes.points[:2, 0], centres.flip(0), atol=0.1)
    widths = modes.factors[:2, 0].diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(widths, torch.tensor([[1.0], [0.5]]).double().expand(2, size), rtol=0.1)
    mixture = Mixture(
        modes.points[:2], modes.factors[:2], torch.full((2, 1), 0.5).double().log(), heavy=True
    )
    told = weigh(path, mixture, starts[:100], 4000).masses(mixture)[:, 0]
    error = math.sqrt(light * (1 - light) / 500)
    assert abs(float(told[1]) - light) < 5 * error
    assert abs(float(told.sum()) - 1) < 1e-9


def chains_of(ups: list[bool]) -> tuple[Draws, Tensor, Scouted]:
    """Return chains that stay in modes at -3 and 3, of which the upper has nine tenths of the
    mass."""
    torch.manual_seed(0)
    sides = torch.tensor([3.0 if up else -3.0 for up in ups], dtype=torch.double).reshape(-1, 1, 1)
    vectors = sides + torch.randn(len(ups), 200, 1, dtype=torch.double)
    loc = torch.tensor([3.0, -3.0], dtype=torch.double).reshape(2, 1, 1)
    mixture = Mixture(
        loc, torch.ones(2, 1, 1, 1).double(), torch.full((2, 1), 0.5).double().log(), heavy=True
    )
    masses = torch.tensor([[0.9], [0.1]], dtype=torch.double)
    scouted = Scouted(
        mixture, loc, masses, torch.tensor([2000.0]).double(), vectors[:, 0, None], "the prior"
    )
    return Draws({"z": vectors.unsqueeze(2)}, torch.zeros(1, dtype=torch.long)), vectors, scouted


def test_chains_that_keep_to_their_modes_are_mixed_by_the_masses() -> None:
    results = occupy(*chains_of([True, False] * 4), 8, 0)
    assert results.modes is not None and results.modes.joined and results.modes.missed is None
    share = float((results.draws.sites["z"] > 0).double().mean())
    assert abs(share - 0.9) < 0.005 and results.r_hat < 1.05
    assert results.effective <= 2000


def test_one_chain_in_a_mode_says_too_little_to_be_mixed() -> None:
    results = occupy(*chains_of([True] * 3 + [False]), 4, 0)
    assert results.r_hat > 1.05 and results.modes is not None and not results.modes.joined


def test_many_chains_with_few_in_a_mode_are_seen_though_r_hat_is_low() -> None:
    """Equal occupancy says where chains started; r-hat of many chains hardly sees the odd one."""
    draws, vectors, scouted = chains_of([True] * 127 + [False])
    heavier = Scouted(
        scouted.mixture,
        scouted.z,
        scouted.masses.flip(0),
        scouted.effective,
        scouted.begin,
        "the prior",
    )
    results = occupy(draws, vectors, heavier, 128, 0)
    assert (
        results.modes is not None
        and results.modes.missed is not None
        and "2 modes" in results.modes.missed
    )


def test_a_number_is_noise_of_known_scale() -> None:
    method = BatchedHMCMethod(2, 4, 4)
    drawn = solve(squares(), method, noise=0.3)
    same = solve(squares(), method, noise=lambda s: dist.Normal(s, 0.3).to_event(1))
    assert torch.allclose(drawn.z, same.z)
    for noise, got in ((-1, "-1.0"), (0.0, "0.0"), (float("nan"), "nan"), ("a lot", "'a lot'")):
        with pytest.raises(InputError, match=f"'noise' must be a positive number, .*got {got}"):
            solve(squares(), method, noise=noise)
