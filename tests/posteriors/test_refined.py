"""Refined posteriors held to the linear-Gaussian truth: the bound rises to the family's best."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn

from pyro_bvae import BetaVAE, elbo, evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import (
    FlowPosterior,
    FullRankPosterior,
    LowRankPosterior,
    MixturePosterior,
    RefinedPosterior,
    refined,
)
from pyro_bvae.posteriors.refinement_draws import noise_points

TRUTH = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]]), 0.5)
X = TRUTH.sample(50)
POOR = TRUTH.amortized_vae(1.0, mean_factor=0.3, scale_factor=2.0)
STEPS = (0, 1, 2, 5, 10, 40)
QUICK = RefitSettings(max_rounds=3, steps_per_round=20, num_starts=0)


def with_steps(vae: BetaVAE, encoder: Any, num_steps: int) -> BetaVAE:
    part = RefinedPosterior(encoder, vae.prior, vae.decoder, num_steps=num_steps)
    return BetaVAE(vae.prior, vae.decoder, part, name="refined")


@pytest.mark.parametrize(("beta", "factors"), [(1.0, (0.3, 2.0)), (1.0, (0.8, 1.2)), (4.0, (1, 1))])
def test_the_bound_rises_with_each_step_to_the_best_of_the_family(
    beta: float, factors: tuple[float, float]
) -> None:
    vae = TRUTH.amortized_vae(beta, *factors)
    bounds = []
    for num_steps in STEPS:
        guide = with_steps(vae, vae.encoder, num_steps).posterior(X)
        bounds.append(TRUTH.elbo(X, guide.mean, guide.stddev))
    for before, after in itertools.pairwise(bounds):
        assert bool((after > before - 1e-9).all())  # of every datum
    best = TRUTH.elbo(X, *TRUTH.best_diagonal(X))
    assert float((best - bounds[0]).mean()) > 0.2
    assert float((best - bounds[-1]).max()) < 1e-3 and bool((bounds[-1] < best + 1e-9).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: FullRankPosterior(MLP(4, 5, hidden=())),
        lambda: LowRankPosterior(MLP(4, 8, hidden=())),
        lambda: FlowPosterior(MLP(4, 8, hidden=()), summary_dim=4),
    ],
)
def test_a_family_that_holds_the_posterior_comes_to_the_evidence(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    encoder, x = make().double(), X[:20]
    bounds = []
    for num_steps in (0, 5, 20, 80):
        with torch.no_grad():
            law = with_steps(POOR, encoder, num_steps).encoder(x)
            torch.manual_seed(1)
            z = law.sample(torch.Size([2000]))
            joint = POOR.prior().log_prob(z) + POOR.decoder(z).log_prob(x)
            bounds.append((joint - law.log_prob(z)).mean(0))
    means = [float(bound.mean()) for bound in bounds]
    exact = TRUTH.evidence(x)
    assert means == sorted(means) and means[0] < float(exact.mean()) - 1
    # The steps of a flow are fixed, so its family is near the posterior and does not hold it.
    assert float((exact - bounds[-1]).mean()) < (
        0.1 if isinstance(encoder, FlowPosterior) else 0.02
    )


def test_the_guide_of_a_program_is_the_part_of_a_model() -> None:
    guide = refined(POOR.guide, POOR.model, 7)
    law = guide.posterior(X)["z"]
    part = with_steps(POOR, POOR.encoder, 7)
    assert torch.allclose(law.mean, part.encode(X)) and torch.allclose(
        law.stddev, part.posterior(X).stddev
    )
    assert torch.equal(law.mean, guide.posterior(X)["z"].mean)  # always the same
    alone = torch.cat([guide.posterior(row)["z"].mean for row in X.split(7)])
    assert torch.allclose(law.mean, alone)  # whatever other data are there


def test_it_serves_wherever_a_guide_does() -> None:
    guide = refined(POOR.guide, POOR.model, 20)
    truth = float(TRUTH.evidence(X).mean())
    weighed = evidence(POOR.model, guide, X, num_samples=1000)
    assert weighed.value == pytest.approx(truth, abs=4 * weighed.monte_carlo_error + 0.005)
    gaps = inference_gaps(POOR.model, guide, X[:5], num_samples=100, settings=QUICK)
    poor = inference_gaps(POOR.model, POOR.guide, X[:5], num_samples=100, settings=QUICK)
    assert gaps.amortization.value < 0.1 * poor.amortization.value
    drawn = Predictive(POOR.model, guide=guide, num_samples=3)(X)
    assert drawn["z"].shape == (3, 50, 2)


def test_a_datum_has_points_of_its_own_for_each_of_its_latents() -> None:
    weight = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3]]).double()
    encoder = nn.Linear(3, 4).double()

    def program(observed: Tensor) -> None:
        with pyro.plate("data", len(observed)):
            a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            mean = torch.cat([a.unsqueeze(-1), b], -1) @ weight.T
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=observed)

    def guide(observed: Tensor) -> None:
        loc, raw = encoder(observed).split(2, -1)
        scale = nn.functional.softplus(raw)
        with pyro.plate("data", len(observed)):
            pyro.sample("a", dist.Normal(loc[:, 0], scale[:, 0]))
            pyro.sample("b", dist.Normal(loc[:, 1:], scale[:, 1:]).to_event(1))

    truth = LinearGaussian(weight, 0.5)
    x = truth.sample(5)
    laws = refined(guide, program, 60).posterior(x)
    loc = torch.stack([laws["a"].mean, laws["b"].mean[:, 0]], -1)
    scale = torch.stack([laws["a"].stddev, laws["b"].stddev[:, 0]], -1)
    best = truth.elbo(x, *truth.best_diagonal(x))
    assert float((best - truth.elbo(x, loc, scale)).max()) < 1e-2
    bound = elbo(program, refined(guide, program, 40), x, num_samples=500)
    assert bound.value == pytest.approx(float(best.mean()), abs=0.05)


def test_an_answer_is_made_anew_when_data_or_weights_change() -> None:
    vae = TRUTH.amortized_vae(1.0, 0.5)
    guide, x = refined(vae.guide, vae.model, 3), X[:5].clone()
    first = guide.posterior(x)["z"]
    assert guide.posterior(x)["z"] is first
    x += 0.1
    second = guide.posterior(x)["z"]
    assert not torch.allclose(first.mean, second.mean)
    with torch.no_grad():
        next(vae.encoder.parameters()).mul_(0.5)
    assert not torch.allclose(second.mean, guide.posterior(x)["z"].mean)

    def function(observed: Tensor) -> None:
        vae.guide(observed)

    free = refined(function, vae.model, 3)  # of weights that nobody knows
    assert free.posterior(x)["z"] is not free.posterior(x)["z"]


def test_points_have_the_moments_of_their_law() -> None:
    points = noise_points(32, 5, 1)
    assert torch.allclose(points.mean(0), torch.zeros(5).double(), atol=1e-12)
    assert torch.allclose(points.T @ points / 32, torch.eye(5).double(), atol=1e-9)
    few = noise_points(6, 40, 1)
    assert torch.allclose(few.square().mean(0), torch.ones(40).double())


def test_a_guide_that_cannot_be_refined_is_refused() -> None:
    mixture = MixturePosterior(MLP(4, 20, hidden=())).double()
    with pytest.raises(InputError, match="NormalMixture cannot be refined"):
        with_steps(POOR, mixture, 2).encode(X)
    with pytest.raises(InputError, match="'num_steps' must be"):
        refined(POOR.guide, POOR.model, -1)
    with pytest.raises(InputError, match="'learning_rate' must be positive"):
        refined(POOR.guide, POOR.model, learning_rate=0.0)
    with pytest.raises(InputError, match="'guide' must be a Pyro function"):
        refined(BetaVAE, POOR.model)  # type: ignore[arg-type]

    def chained(observed: Tensor) -> None:
        with pyro.plate("data", len(observed)):
            a = pyro.sample("a", dist.Normal(observed[:, 0], 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    def model(observed: Tensor) -> None:
        with pyro.plate("data", len(observed)):
            a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=observed[:, 0])

    with pytest.raises(InputError, match="'b' depends on other draws"):
        refined(chained, model)(X)
