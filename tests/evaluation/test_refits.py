"""Local refits of guides whose scale or place is far from the posterior's, and posteriors of
several modes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae import inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.refit.curvature import Target, noises
from pyro_bvae.evaluation.refit.local_guides import local_guide_of
from pyro_bvae.evaluation.refit.mode_guides import mode_guide
from pyro_bvae.evaluation.refit.modes import find_modes
from pyro_bvae.evaluation.refit.optimisation import Refit, refit
from pyro_bvae.posteriors import LocalTransformedPosterior, local_posterior
from pyro_bvae.program.program import open_program

QUICK = RefitSettings(
    num_particles=8, steps_per_round=20, max_rounds=8, num_plateaus=3, check_particles=64
)
# A descent that never gets off the ground, from the encoder's answer alone.
STILL = RefitSettings(
    learning_rate=1e-9, max_rounds=1, steps_per_round=1, num_particles=8, num_starts=0
)
ONE = torch.eye(1, dtype=torch.double)
CORRELATED = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.double)
MIXED = torch.diag(torch.tensor([1e-6, 1e6], dtype=torch.double))  # scales of 1e-3 and 1e3


class Problem:
    """A normal posterior of a given covariance under β = 1, with a diagonal guide that is off by known amounts.

    The guide lies ``shift`` conditional standard deviations off the optimum at ``guide_beta``, with
    ``factor`` times its scales.
    """

    def __init__(
        self,
        covariance: Tensor,
        shift: float,
        factor: float,
        beta: float = 1.0,
        dtype: torch.dtype = torch.double,
    ) -> None:
        size = len(covariance)
        self.prior = 20 * covariance.diagonal().sqrt()
        likelihood = torch.linalg.inv(covariance) - torch.diag(self.prior**-2)
        weight = torch.linalg.cholesky(likelihood).mT
        self.precision = likelihood / beta + torch.diag(self.prior**-2)
        with pyro.poutine.block(), torch.random.fork_rng():
            torch.manual_seed(0)
            z = self.prior * torch.randn(8, size, dtype=torch.double)
            self.x = (z @ weight.mT + torch.randn(8, size, dtype=torch.double)).to(dtype)
        self.best_loc = torch.linalg.solve(self.precision, weight.mT @ self.x.double().mT / beta).mT
        self.best_scale = self.precision.diagonal().rsqrt()

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Normal(0 * self.prior.to(dtype), self.prior.to(dtype)).to_event(1)
                )
                pyro.sample("x", dist.Normal(z @ weight.mT.to(dtype), 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            loc = torch.linalg.solve(self.precision, weight.mT @ x.double().mT / beta).mT
            scale = (factor * self.best_scale).expand_as(loc)
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z",
                    dist.Normal(
                        (loc + shift * self.best_scale).to(dtype), scale.to(dtype)
                    ).to_event(1),
                )

        self.model, self.guide, self.beta = model, guide, beta

    def missing(self, results: Refit) -> Tensor:
        """Return how much of the objective over β each refit misses, ``(N,)``: a closed form."""
        with torch.no_grad():
            loc, scale = (part.double() for part in results.guide.normal_parameters()["z"])  # type: ignore[attr-defined]
        off, ratio = loc - self.best_loc, scale / self.best_scale
        squares = (off @ self.precision * off).sum(-1)
        return squares / 2 + (ratio.square() / 2 - 0.5 - ratio.log()).sum(-1)

    def refit(self, settings: RefitSettings) -> Refit:
        with open_program(self.model, self.guide, (self.x,)) as program:
            return refit(program, (self.x,), self.beta, settings, seed=0)


# -- in units that know nothing of the start
# ---------------------------------------------------------------------

STARTS = [(3.0, 0.01), (1.0, 0.001), (0.0, 0.01), (0.0, 100.0), (10.0, 1.0), (10.0, 100.0)]


@pytest.mark.parametrize(("shift", "factor"), STARTS)
@pytest.mark.parametrize("num_starts", [0, 4])
def test_a_refit_ends_at_the_optimum_whatever_the_scale_of_its_start(
    shift: float, factor: float, num_starts: int
) -> None:
    problem = Problem(ONE, shift, factor)
    settings = RefitSettings(
        num_particles=4, steps_per_round=40, check_particles=32, num_starts=num_starts
    )
    results = problem.refit(settings)
    assert problem.missing(results).max() < 1e-3 and results.certified.all()
    assert results.remaining.max() < 5e-3


@pytest.mark.parametrize(
    "covariance", [ONE, CORRELATED, MIXED], ids=["one", "correlated", "mixed scales"]
)
@pytest.mark.parametrize(("shift", "factor"), STARTS)
def test_nothing_is_certified_that_is_far_from_its_optimum(
    covariance: Tensor, shift: float, factor: float
) -> None:
    problem = Problem(covariance, shift, factor)
    results = problem.refit(STILL)
    missing = problem.missing(results)
    assert missing.max() > 0.1
    assert not results.certified[missing > 0.02].any()


def test_what_is_left_along_a_narrow_valley_is_seen() -> None:
    """A gradient step gains next to nothing there, in any units of single latents."""
    problem = Problem(CORRELATED, 30.0, 1.0)
    results = problem.refit(STILL)
    missing = problem.missing(results)
    assert not results.certified.any() and missing.min() > 1.0
    assert ((results.remaining / missing - 1).abs() < 0.1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.01, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("covariance", [CORRELATED, MIXED], ids=["correlated", "mixed scales"])
def test_any_beta_and_dtype_reaches_its_optimum(
    covariance: Tensor, beta: float, dtype: torch.dtype
) -> None:
    problem = Problem(covariance, 3.0, 0.01, beta, dtype)
    results = problem.refit(QUICK)
    missing = problem.missing(results)
    assert missing[results.certified].max() < 0.02 and missing.max() < 0.1
    assert results.certified.any()


def test_the_cases_that_were_certified_at_wrong_values_have_no_approximation_gap() -> None:
    for shift, factor in ((3.0, 0.01), (1.0, 0.001)):
        problem = Problem(ONE, shift, factor)
        gaps = inference_gaps(
            problem.model, problem.guide, problem.x, num_samples=1000, settings=QUICK
        )
        assert gaps.converged and abs(gaps.approximation.value) < 0.01
        exact = shift**2 / 2 + factor**2 / 2 - 0.5 - math.log(factor)
        assert abs(gaps.variational.value - exact) < 4 * gaps.variational.monte_carlo_error < 0.5


# -- families
# --------------------------------------------------------------------------------------------------


def sizes(x: Tensor) -> None:
    with pyro.plate("days", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2 * torch.ones((), dtype=torch.double), 0.5))
        pyro.sample("visits", dist.Poisson(rate), obs=x)


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (2.0, 0.01), (-1.0, 5.0)])
def test_a_log_normal_guide_is_refitted_in_the_logarithm(shift: float, factor: float) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("days", len(x)):
            scale = (x + 1.5).rsqrt()
            pyro.sample(
                "rate", dist.LogNormal(((x + 1.5) / 1.5).log() + shift * scale, factor * scale)
            )

    x = torch.tensor([0.0, 1.0, 5.0, 11.0], dtype=torch.double)
    gaps = inference_gaps(sizes, guide, x, num_samples=2000, settings=QUICK)
    exact = dist.GammaPoisson(torch.tensor(2.0).double(), 0.5).log_prob(x)
    assert gaps.converged
    assert (
        abs(gaps.evidence.value - float(exact.mean())) < 4 * gaps.evidence.monte_carlo_error < 0.02
    )
    # By quadrature over location and scale, as in the tests of families: 0.016 for these four.
    assert 0.0 < gaps.approximation.value < 0.03


def test_a_transform_with_parameters_has_no_local_version() -> None:
    base = dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0),
        [dist.transforms.AffineTransform(torch.zeros(3), 2 * torch.ones(3))],
    )
    with pytest.raises(
        InputError, match="through a AffineTransform is known, which has parameters"
    ):
        local_posterior(base, 0)
    local = local_posterior(dist.LogNormal(torch.zeros(3), torch.ones(3)), 0)
    assert isinstance(local, LocalTransformedPosterior)
    local.restart(torch.ones(3), 2 * torch.ones(3))
    z = torch.tensor([0.5, 1.0, 2.0])
    assert torch.allclose(local().log_prob(z), dist.LogNormal(1.0, 2.0).log_prob(z))
    assert torch.allclose(local.untransformed(z), z.log())


def test_two_sites_in_two_plates_are_refitted_from_far_off() -> None:
    """The optimum of a product of normals for a normal posterior is a closed form."""
    one = torch.ones((), dtype=torch.double)

    def model(x: Tensor) -> None:
        with pyro.plate("cells", len(x), dim=-2):
            level = pyro.sample("level", dist.Normal(0 * one, 1.0))
            with pyro.plate("times", 3, dim=-1):
                pyro.sample(
                    "seen", dist.Normal(pyro.sample("drift", dist.Normal(level, 1.0)), 0.5), obs=x
                )

    def guide(x: Tensor) -> None:
        with pyro.plate("cells", len(x), dim=-2):
            pyro.sample("level", dist.Normal(0.5 * x.mean(-1, keepdim=True) + 3, 0.002))
            with pyro.plate("times", 3, dim=-1):
                pyro.sample("drift", dist.Normal(0.8 * x - 1, 50.0))

    x = torch.linspace(-1.5, 1.5, 12, dtype=torch.double).reshape(4, 3)
    gaps = inference_gaps(model, guide, x, num_samples=1000, settings=QUICK)
    precision = torch.diag(torch.tensor([4.0, 5.0, 5.0, 5.0], dtype=torch.double))
    precision[0, 1:] = precision[1:, 0] = -1.0
    exact = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert (
        gaps.converged
        and abs(gaps.approximation.value - exact) < 0.01 + 3 * gaps.approximation.monte_carlo_error
    )


# -- several modes
# --------------------------------------------------------------------------------------------------


def two_modes(weight: float) -> tuple[Callable[..., None], Callable[..., None]]:
    """A mixture prior that the data leave as it is, and a guide that is its component of a
    weight."""
    weights = torch.tensor([weight, 1 - weight], dtype=torch.double)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(torch.tensor([3.0, -3.0], dtype=torch.double), 0.5)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), parts))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x, 3.0), 0.5))

    return model, guide


@pytest.mark.parametrize("weight", [0.1, 0.9])
def test_an_encoder_in_one_of_two_modes_misses_the_other(weight: float) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.double)
    gaps = inference_gaps(*two_modes(weight), x, num_samples=1000, settings=QUICK)
    error = 4 * gaps.variational.monte_carlo_error + 1e-3
    assert error < 0.05
    assert abs(gaps.variational.value + math.log(weight)) < error
    assert abs(gaps.approximation.value + math.log(0.9)) < error + 0.01
    assert gaps.modes is not None and gaps.modes.tolist() == [2] * 5
    assert "The posteriors of 5 of 5 data have several modes." in gaps.verdict
    assert (
        "Looked for modes from the encoder's answer, the prior and 4 other data's codes."
        in gaps.verdict
    )


def test_a_single_datum_has_no_other_codes_and_few_starts_say_so() -> None:
    gaps = inference_gaps(
        *two_modes(0.1), torch.zeros(1, dtype=torch.double), num_samples=1000, settings=QUICK
    )
    assert "Looked for modes from the encoder's answer and the prior." in gaps.verdict
    assert abs(gaps.variational.value + math.log(0.1)) < 0.02
    alone = RefitSettings(
        num_particles=8, steps_per_round=5, max_rounds=2, check_particles=16, num_starts=0
    )
    unseen = inference_gaps(
        *two_modes(0.1), torch.zeros(1, dtype=torch.double), num_samples=100, settings=alone
    )
    assert unseen.modes is None and "Looked" not in unseen.verdict


def test_a_ridge_that_bends_is_one_mode() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1] - z[..., 0].square(), 0.2), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(torch.zeros(len(x), 2, dtype=torch.double), 0.5).to_event(1)
            )

    x = torch.linspace(-0.5, 0.5, 6, dtype=torch.double)
    with open_program(model, guide, (x,)) as program:
        results = find_modes(program, (x,), 1.0, 6, seed=0)
    assert results is not None and results.counts.tolist() == [1] * 6


def test_a_normal_posterior_is_found_exactly_from_every_start() -> None:
    problem = Problem(CORRELATED, 10.0, 100.0)
    with open_program(problem.model, problem.guide, (problem.x,)) as program:
        results = find_modes(program, (problem.x,), 1.0, 5, seed=0)
    assert results is not None and results.counts.tolist() == [1] * 8
    assert ((results.locs - problem.best_loc) / problem.best_scale).abs().max() < 1e-3
    assert torch.allclose(
        results.factors @ results.factors.mT, torch.linalg.inv(problem.precision), rtol=1e-3
    )
    assert torch.allclose(
        results.scales(conditional=True), problem.best_scale.expand_as(results.locs), rtol=1e-3
    )


@pytest.mark.parametrize("size", [1, 2, 10, 64, 100])
def test_noises_have_the_moments_of_a_normal(size: int) -> None:
    noise = noises(size, 16)
    assert len(noise) >= 16 and noise.mean(0).abs().max() < 1e-12
    covariance = noise.mT @ noise / len(noise)
    if size <= 64:
        assert torch.allclose(covariance, torch.eye(size).double())
    assert torch.allclose(covariance.diagonal(), torch.ones(size).double())


def test_many_latents_are_searched_without_their_correlations() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(80, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x + 1, 0.01).to_event(1))

    x = torch.randn(4, 80, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    settings = RefitSettings(
        num_particles=4, steps_per_round=10, max_rounds=3, check_particles=32, num_starts=2
    )
    with open_program(model, guide, (x,)) as program:
        results = refit(program, (x,), 1.0, settings, seed=0)
    loc, scale = results.guide.normal_parameters()["z"]  # type: ignore[attr-defined]
    assert (loc - 0.8 * x).abs().max() < 0.05 and (scale / 0.2**0.5).log().abs().max() < 0.1
    assert (
        results.modes is not None
        and results.modes.factors.dim() == 3
        and results.modes.counts.tolist() == [1] * 4
    )


def test_a_placed_copy_leaves_the_guide_as_it_was() -> None:
    problem = Problem(MIXED, 3.0, 0.01)
    with open_program(problem.model, problem.guide, (problem.x,)) as program:
        guide = local_guide_of(program, (problem.x,))
        before = [part.clone() for part in guide.state_dict().values()]
        target = Target(program, (problem.x,), 1.0)
        noise = noises(2, 16).unsqueeze(1)
        values, _ = target.coordinates.unflatten(problem.best_loc + problem.best_scale * noise)
        placed = guide.placed(values, values).normal_parameters()
    assert all(torch.equal(*pair) for pair in zip(before, guide.state_dict().values(), strict=True))
    assert placed is not None
    assert torch.allclose(placed["z"][0], problem.best_loc) and torch.allclose(
        placed["z"][1], problem.best_scale.expand_as(problem.best_loc)
    )


def test_impossible_numbers_of_starts_are_refused() -> None:
    with pytest.raises(InputError, match="'num_starts' must be an integer from 0, got -1"):
        RefitSettings(num_starts=-1)


def test_planted_modes_are_found_or_flagged_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from analysis.trust_parts import modes

    rows: list[dict[str, Any]] = list(modes.gaps_rows(8, seed=3))
    two, one = (
        [row for row in rows if bool(row["separation"]) == several] for several in (True, False)
    )
    assert len(two) == len(one) == 4
    assert all(row["found"] or row["flagged"] for row in two)
    assert not any(row["flagged"] for row in one)


def test_one_guide_draws_from_all_modes_by_mass_and_evenly() -> None:
    x = torch.zeros(3, dtype=torch.double)
    with open_program(*two_modes(0.1), (x,)) as program:
        modes = find_modes(program, (x,), 1.0, 6, seed=0)
        assert modes is not None and modes.counts.tolist() == [2] * 3
        guide = mode_guide(program, (x,), modes)
        torch.manual_seed(0)
        values = program.draw(4000, (x,), guide).values
        density = program.log_guide(values, (x,), guide)
    drawn = (values["z"] > 0).double().mean()
    assert float(drawn) == pytest.approx(0.5 * 0.1 + 0.25, abs=4 * (0.3 * 0.7 / 12_000) ** 0.5)
    found = modes.distinct[:, 0]
    loc, order = modes.locs[found, 0, 0].sort()  # the mode at -3 first
    scale = modes.factors[found, 0, 0, 0][order]
    shares = dist.Categorical(torch.tensor([0.7, 0.3], dtype=torch.double))
    mixture = dist.MixtureSameFamily(shares, dist.StudentT(5.0, loc, scale))
    assert torch.allclose(density, mixture.log_prob(values["z"]), atol=0.02)


@pytest.mark.parametrize("off", [0.0, 0.2])
def test_only_data_that_are_not_certified_are_polished(off: float) -> None:
    """The posterior is N(x / 2, 1 / 2); the guides of the last two of six data are off."""

    def model(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.5**0.5 * shift, 0.5**0.5))

    x = torch.linspace(-1, 1, 6, dtype=torch.double)
    shift = torch.tensor([0, 0, 0, 0, off, off], dtype=torch.double)
    with open_program(model, guide, (x, shift)) as program:
        results = refit(program, (x, shift), 1.0, STILL, seed=0)
    loc, _ = results.guide.normal_parameters()["z"]  # type: ignore[attr-defined]
    assert torch.allclose(loc[:4], x[:4] / 2, atol=1e-6)
    assert bool(results.certified.all()) and ((loc - x / 2).square() < 0.01).all()
    # A gradient of 64 times 8 particles and 3 times 4 times 128 draws; then twice the draws, of two.
    first, again = 64 * 8 + 12 * 128, 64 * 8 + 24 * 128
    beside = 1 * 8 + 2 * 128 + 2 * 256
    assert results.cost == 6 * (first + beside) + (2 * again if off else 0)
