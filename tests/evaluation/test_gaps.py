"""Inference gaps held to their closed forms, and what the refits promise."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation._evaluate import evaluate
from pyro_bvae.evaluation.marginal import GuideProposal
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.refit.certificates import objective_samples
from pyro_bvae.evaluation.refit.optimisation import local_guide_of, refit
from pyro_bvae.oracle import ExactGaps, LinearGaussian
from pyro_bvae.posteriors import LocalNormalPosterior
from pyro_bvae.program.program import open_program


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]]), 0.5)


def exact_gaps(linear: LinearGaussian, vae: BetaVAE, x: Tensor, beta: float) -> ExactGaps:
    with torch.no_grad():
        guide = vae.encoder(x)
    return linear.gaps(x, guide.mean, guide.stddev, beta)


@pytest.mark.parametrize(
    ("beta", "mean_factor", "scale_factor"),
    [(1.0, 1.0, 1.0), (1.0, 0.9, 1.3), (4.0, 1.0, 1.0), (4.0, 0.9, 1.3), (0.5, 1.1, 0.9)],
)
def test_gaps_are_their_closed_forms(
    linear: LinearGaussian, beta: float, mean_factor: float, scale_factor: float
) -> None:
    x = linear.sample(100)
    vae = linear.amortized_vae(beta, mean_factor, scale_factor)
    exact = exact_gaps(linear, vae, x, beta)
    assert float(exact.approximation.mean()) > 0.05  # a diagonal guide of a correlated posterior
    gaps = inference_gaps(vae.model, vae.guide, x, training_beta=beta)
    assert gaps.converged
    assert gaps.evidence.value == pytest.approx(float(linear.evidence(x).mean()), abs=0.02)
    for name, truth in exact._asdict().items():
        estimate = getattr(gaps, name)
        assert abs(estimate.value - float(truth.mean())) < max(
            0.01, 3 * estimate.monte_carlo_error
        ), name
        assert estimate.monte_carlo_error < 0.02, name


def test_gaps_add_up_for_each_datum(linear: LinearGaussian) -> None:
    x = linear.sample(40)
    vae = linear.amortized_vae(4.0, 0.8)
    gaps = inference_gaps(vae.model, vae.guide, x, training_beta=4.0, num_samples=200)
    parts = gaps.approximation.per_datum + gaps.beta.per_datum + gaps.amortization.per_datum
    assert torch.allclose(gaps.variational.per_datum, parts)
    assert torch.allclose(gaps.variational.per_datum, gaps.evidence.per_datum - gaps.elbo.per_datum)


def test_the_refit_lends_its_draws_to_the_evidence(linear: LinearGaussian) -> None:
    """A guide that misses the posterior has weights that cannot be trusted.

    With the refit's draws they can.
    """
    x = linear.sample(40)
    vae = linear.amortized_vae(1.0, 0.5, 0.6)
    alone = evidence(vae.model, vae.guide, x, num_samples=500)
    gaps = inference_gaps(vae.model, vae.guide, x, num_samples=500)
    exact = linear.evidence(x)
    assert alone.untrusted > 20 and gaps.evidence.untrusted < 5
    assert (gaps.evidence.per_datum - exact).abs().mean() < 0.2 * (
        alone.per_datum - exact
    ).abs().mean()
    assert abs(gaps.evidence.value - float(exact.mean())) < 4 * gaps.evidence.monte_carlo_error
    assert gaps.approximation.value > 0


def test_at_beta_one_the_beta_gap_is_exactly_zero(linear: LinearGaussian) -> None:
    vae = linear.amortized_vae(1.0, 0.8)
    gaps = inference_gaps(vae.model, vae.guide, linear.sample(10), num_samples=100)
    assert (gaps.beta.per_datum == 0).all() and gaps.beta.monte_carlo_error == 0


def test_an_encoder_that_gives_the_posterior_has_a_negative_amortization_gap() -> None:
    linear = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 0.5)  # a diagonal posterior
    x = linear.sample(50)
    vae = linear.vae(*linear.best_diagonal(x))
    gaps = inference_gaps(vae.model, vae.guide, x, training_beta=4.0, num_samples=1000)
    assert gaps.beta.value > 0.5
    assert gaps.amortization.value == pytest.approx(-gaps.beta.value, abs=0.02)
    assert gaps.variational.value == pytest.approx(0.0, abs=1e-3)


def test_log_weights_of_a_perfect_guide_are_trusted() -> None:
    linear = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 0.5)
    x = linear.sample(5)
    vae = linear.vae(*linear.best_diagonal(x))
    estimate = evidence(vae.model, vae.guide, x, num_samples=100, proposal=GuideProposal())
    assert estimate.untrusted == 0 and (estimate.pareto_k == 0).all()
    assert (
        torch.allclose(estimate.per_datum, linear.evidence(x))
        and estimate.monte_carlo_error < 1e-12
    )
    with_tails = evidence(vae.model, vae.guide, x, num_samples=100)
    assert with_tails.untrusted == 0
    assert abs(with_tails.value - estimate.value) < 4 * with_tails.monte_carlo_error < 0.2


def test_gaps_one_particle_at_a_time_are_the_same(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = linear.sample(10)
    vae = linear.amortized_vae(1.0, 0.9, 1.2)
    settings = RefitSettings(
        steps_per_round=20, num_plateaus=2, num_particles=4, check_particles=32
    )
    together = inference_gaps(vae.model, vae.guide, x, num_samples=300, settings=settings)
    monkeypatch.setattr("pyro_bvae.program.program.Program._is_vectorized", lambda self: False)
    with pytest.warns(UserWarning, match="one particle at a time"):
        singly = inference_gaps(vae.model, vae.guide, x, num_samples=300, settings=settings)
    assert (
        abs(together.evidence.value - singly.evidence.value)
        < 5 * together.evidence.monte_carlo_error
    )
    assert (
        abs(together.variational.value - singly.variational.value)
        < 5 * together.variational.monte_carlo_error
    )


def test_two_latent_sites_are_refitted_together(linear: LinearGaussian) -> None:
    x = linear.sample(30)
    weight = linear.weight

    def model(rows: Tensor) -> None:
        with pyro.plate("cells", len(rows)):
            first = pyro.sample("first", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
            second = pyro.sample(
                "second", dist.Normal(torch.zeros(1, dtype=torch.double), 1.0).to_event(1)
            )
            means = torch.cat([first.unsqueeze(-1), second], -1) @ weight.T
            pyro.sample("y", dist.Normal(means, linear.noise_scale).to_event(1), obs=rows)

    def guide(rows: Tensor) -> None:
        loc, scale = linear.best_diagonal(rows)
        with pyro.plate("cells", len(rows)):
            pyro.sample("second", dist.Normal(loc[:, 1:] + 0.3, 1.2 * scale[:, 1:]).to_event(1))
            pyro.sample("first", dist.Normal(loc[:, 0], scale[:, 0]))

    loc, scale = linear.best_diagonal(x)
    shift, factor = torch.tensor([0.0, 0.3]), torch.tensor([1.0, 1.2])
    exact = linear.gaps(x, loc + shift, scale * factor)
    gaps = inference_gaps(model, guide, x, num_samples=2000)
    for name in ("approximation", "amortization"):
        estimate, truth = getattr(gaps, name), float(getattr(exact, name).mean())
        assert abs(estimate.value - truth) < max(0.01, 3 * estimate.monte_carlo_error), name


# -- the refits
# -----------------------------------------------------------------------------------------------


def test_no_datum_ends_below_its_start(linear: LinearGaussian) -> None:
    """A hopeless step size makes refits diverge; a datum then keeps the encoder's answer."""
    x = linear.sample(30)
    vae = linear.amortized_vae(1.0)
    wild = RefitSettings(learning_rate=30.0, max_rounds=2, steps_per_round=3, num_particles=1)
    with open_program(vae.model, vae.guide, (x,)) as program:
        best = refit(program, (x,), 1.0, wild, seed=0)
        with torch.no_grad():
            pyro.set_rng_seed(3)
            start = objective_samples(program, (x,), vae.guide, 1.0, 4000).mean(0)
            pyro.set_rng_seed(3)
            end = objective_samples(program, (x,), best.guide, 1.0, 4000).mean(0)
    assert best.certified.all()  # the encoder's answer, which was kept, is the best there is
    assert (end >= start - 0.05).all()


def test_every_datum_is_refitted(linear: LinearGaussian) -> None:
    """A start that is only a little worse must not come back by the noise of the comparison.

    The β gap would be off.
    """
    x = linear.sample(400)
    vae = linear.amortized_vae(4.0, 0.9, 1.2)
    with open_program(vae.model, vae.guide, (x,)) as program:
        refitted = refit(program, (x,), 4.0, RefitSettings(), seed=0).guide.locals[0]()
    _, scale = linear.best_diagonal(x, 4.0)
    assert (refitted.stddev / scale).log().abs().max() < 0.5 * math.log(1.2)


def test_an_unconverged_refit_says_so(linear: LinearGaussian) -> None:
    x = linear.sample(20)
    vae = linear.amortized_vae(1.0, 0.3, 3.0)
    hasty = RefitSettings(max_rounds=1, steps_per_round=2, num_starts=0)
    gaps = inference_gaps(vae.model, vae.guide, x, num_samples=100, settings=hasty)
    assert (
        not gaps.converged and "not certified" in gaps.verdict and "0 of 20 certified" in str(gaps)
    )


def test_refits_do_not_depend_on_the_scale_of_the_latents() -> None:
    for scale in (1e-2, 1e2):
        linear = LinearGaussian(
            torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3]]) / scale, 0.5 / scale
        )
        x = linear.sample(30)
        vae = linear.amortized_vae(1.0, 1.02, 1.3)
        gaps = inference_gaps(vae.model, vae.guide, x, num_samples=1000)
        exact = exact_gaps(linear, vae, x, 1.0)
        assert gaps.amortization.value == pytest.approx(
            float(exact.amortization.mean()), rel=0.05, abs=0.01
        )


def test_refits_touch_neither_model_nor_encoder(linear: LinearGaussian) -> None:
    x = linear.sample(10)
    vae = linear.amortized_vae(2.0)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    inference_gaps(vae.model, vae.guide, x, training_beta=2.0, num_samples=10)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_path_gradient_has_no_noise_at_the_target() -> None:
    linear = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 0.5)
    x = linear.sample(5)
    vae = linear.vae(*linear.best_diagonal(x))
    with open_program(vae.model, vae.guide, (x,)) as program:
        guide = local_guide_of(program, (x,))
        loss = objective_samples(program, (x,), guide, 1.0, 3).sum()
        gradients = torch.autograd.grad(loss, list(guide.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-10


# -- what cannot be split
# -------------------------------------------------------------------------------------


def hierarchical(linear: LinearGaussian):
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("low", dist.Normal(top, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(x / 2, 0.8))
            pyro.sample("top", dist.Normal(low / 2, 0.7))

    return model, guide


def test_a_hierarchical_guide_is_refused_in_words(linear: LinearGaussian) -> None:
    x = torch.randn(6, dtype=torch.double)
    with pytest.raises(
        InputError, match="guide site 'top' depends on other draws; pass 'local_guide'"
    ):
        inference_gaps(*hierarchical(linear), x, num_samples=10)


def test_a_local_guide_of_ones_own_is_fitted(linear: LinearGaussian) -> None:
    """x | top ~ N(top, 2): with the exact family of the hierarchy all gaps but the amortization gap
    vanish."""

    class Local(nn.Module):
        def __init__(self, x: Tensor) -> None:
            super().__init__()
            self.low = LocalNormalPosterior(x / 2, torch.full_like(x, 0.8), event_dim=0)
            self.slope = nn.Parameter(torch.full_like(x, 0.5))
            self.log_scale = nn.Parameter(torch.full_like(x, math.log(0.7)))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                low = pyro.sample("low", self.low())
                pyro.sample("top", dist.Normal(self.slope * low, self.log_scale.exp()))

    x = torch.randn(12, dtype=torch.double)
    gaps = inference_gaps(
        *hierarchical(linear), x, settings=RefitSettings(local_guide=Local), num_samples=2000
    )
    assert abs(gaps.approximation.value) < max(0.01, 3 * gaps.approximation.monte_carlo_error)
    exact = dist.Normal(0, math.sqrt(3)).log_prob(x).mean()
    assert gaps.evidence.value == pytest.approx(float(exact), abs=0.02)


def test_an_error_of_the_gaps_is_raised_and_is_no_note(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **options: object) -> None:
        raise InputError("a fault of the data")

    vae = linear.amortized_vae()
    monkeypatch.setattr("pyro_bvae.evaluation._evaluate.gaps_and_refits", failing)
    with pytest.raises(InputError, match="a fault of the data"):
        evaluate(vae.model, vae.guide, linear.sample(3), num_samples=10)


def test_a_family_without_a_local_version_is_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(x / 2, 0.6))

    x = torch.randn(5)
    with pytest.raises(InputError, match="'z' of family Laplace needs 'local_guide'"):
        inference_gaps(model, guide, x, num_samples=10)
    # The rest of an evaluation stands without the parts of the gap.
    evaluation = evaluate(model, guide, x, num_samples=200)
    assert evaluation.gaps is None and "Laplace" in evaluation.gaps_note
    written = evaluation.to_dict()
    assert written["approximation_gap"] is None
    rows = {row.label: row.estimate for row in evaluation.rows()}
    assert rows["Approximation gap"] is None and rows["ELBO"] is evaluation.bound.elbo
    difference = written["evidence"]["value"] - written["elbo"]["value"]
    assert written["variational_gap"]["value"] == pytest.approx(difference)


@pytest.mark.parametrize(
    ("beta", "message"), [(0.0, "must be positive"), (-1.0, "must be non-negative")]
)
def test_impossible_training_betas_are_refused(
    linear: LinearGaussian, beta: float, message: str
) -> None:
    vae = linear.amortized_vae()
    with pytest.raises(InputError, match=message):
        inference_gaps(vae.model, vae.guide, linear.sample(3), training_beta=beta)
