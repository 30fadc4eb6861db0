"""The doctor of posterior collapse held to the linear VAE, to planted causes, and to leaving all as
it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder, InputError, diagnose
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.collapse import Cause, Diagnosis
from pyro_bvae.likelihoods import (
    BernoulliLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian, optimum
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

D, SIGMA = 16, 0.7
# λ / σ² of the data along their own axes: six of signal, the rest noise.
RATIOS = torch.tensor([12.0, 9.0, 6.0, 4.0, 2.5, 1.7] + [1.0] * (D - 6), dtype=torch.double)
UNIT = 0.5413  # softplus(0.5413) = 1


def data_of(ratios: Tensor, num_data: int = 1500) -> tuple[Tensor, Tensor]:
    """Return data whose sample covariance has exactly these eigenvalues, times σ², and its axes as
    columns."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = torch.randn(num_data, len(ratios), dtype=torch.double)
        axes = torch.linalg.qr(torch.randn(len(ratios), len(ratios), dtype=torch.double)).Q
    rows = torch.linalg.svd(noise - noise.mean(0), full_matrices=False).U * num_data**0.5
    return SIGMA * rows * ratios.sqrt() @ axes.T, axes


def linear_vae(axes: Tensor, beta: float, latents: int, zeroed: tuple[int, ...] = ()) -> BetaVAE:
    """Return the optimum of the β-objective over linear VAEs, with some columns of the decoder set
    to zero."""
    weight = axes[:, :latents] * SIGMA * (RATIOS[:latents] - beta).clamp(min=0).sqrt()
    vae = LinearGaussian(weight, SIGMA).amortized_vae(beta)
    with torch.no_grad():
        vae.decoder.network.layers[0].weight[:, list(zeroed)] = 0
    return vae


def forget(vae: BetaVAE, latents: slice) -> BetaVAE:
    """Make the encoder answer (almost) the prior."""
    with torch.no_grad():
        vae.encoder.network.layers[0].weight[latents] *= 1e-3
        vae.encoder.scale[latents] = 1.0
    return vae


def causes(results: Diagnosis) -> list[Cause]:
    return [latent.cause for latent in results.latents]


@pytest.mark.parametrize("beta", [1.2, 2.0, 3.0, 7.0, 20.0])
def test_exactly_the_latents_below_the_oracles_threshold_have_collapsed_by_it(beta: float) -> None:
    x, axes = data_of(RATIOS)
    results = diagnose(linear_vae(axes, beta, latents=6), x, beta=beta)
    truth = optimum(RATIOS[:6] * SIGMA**2, SIGMA, beta)
    assert causes(results) == [
        Cause.HEALTHY if active else Cause.THRESHOLD for active in truth.active
    ]
    assert results.cause is (Cause.HEALTHY if bool(truth.active.all()) else Cause.THRESHOLD)
    for latent, ratio, rate in zip(results.latents, RATIOS, truth.rates, strict=False):
        # The prior's mean square is 1 over data and noise together, so the mean rate is the closed
        # form.
        assert latent.rate == pytest.approx(float(rate), abs=1e-9)
        assert latent.mean_variance == pytest.approx(
            max(0.0, 1 - beta / float(ratio)), rel=2e-3, abs=1e-9
        )
        if latent.cause is Cause.THRESHOLD:
            assert latent.eigenvalue == pytest.approx(float(ratio), rel=1e-6)
    assert results.noise_variance == pytest.approx(SIGMA**2)
    left = results.eigenvalues[
        : D - int(truth.active.sum())
    ]  # without the axes of the latents in use
    assert torch.allclose(left, RATIOS[int(truth.active.sum()) :], rtol=1e-6)


def test_the_advice_is_the_beta_below_which_the_next_latent_opens() -> None:
    x, axes = data_of(RATIOS)
    (finding,) = diagnose(linear_vae(axes, 5.0, latents=6), x, beta=5.0).findings
    assert finding.latents == (3, 4, 5)
    assert "below 4, where the next latent opens, or below 1.7 for all 3" in finding.remedy
    assert "4, 2.5, 1.7" in finding.observation
    with pytest.warns(DeprecationWarning, match="now CollapseFinding.observation"):
        assert finding.evidence == finding.observation
    reopened = diagnose(linear_vae(axes, 3.9, latents=6), x, beta=3.9)
    assert reopened.collapsed == (4, 5)


def test_latents_beyond_the_signal_are_no_illness() -> None:
    x, axes = data_of(RATIOS)
    results = diagnose(linear_vae(axes, 1.0, latents=9), x)
    assert causes(results) == [Cause.HEALTHY] * 6 + [Cause.NO_SIGNAL] * 3
    assert results.cause is Cause.HEALTHY
    assert str(results).startswith(
        "3 of 9 latents carry nothing: healthy (the others carry all there is)"
    )
    assert "all 6 latents carry something" in str(diagnose(linear_vae(axes, 1.0, latents=6), x))


def test_noise_that_is_too_large_by_hand_is_a_threshold_and_not_for_lack_of_signal() -> None:
    x, _ = data_of(RATIOS)
    scale = 4 * SIGMA  # λ/σ² = 12 / 16 at most
    vae = LinearGaussian(torch.zeros(D, 2), scale).amortized_vae()
    results = diagnose(vae, x)
    assert causes(results) == [Cause.THRESHOLD] * 2
    assert [latent.eigenvalue for latent in results.latents] == pytest.approx([12 / 16, 9 / 16])
    assert f"variance {scale**2:.3g}" in results.findings[0].remedy


def silent_vae(x: Tensor, likelihood: nn.Module, output: Tensor, latents: int = 2) -> BetaVAE:
    """Return a model whose encoder answers the prior and whose decoder gives a constant."""
    decoder, encoder = (
        MLP(latents, len(output), hidden=(8,)),
        MLP(x.shape[1], 2 * latents, hidden=(8,)),
    )
    with torch.no_grad():
        for network, bias in (
            (decoder, output),
            (encoder, torch.tensor([0.0, UNIT]).repeat_interleave(latents)),
        ):
            network.layers[-1].weight.zero_()
            network.layers[-1].bias.copy_(bias)
    return BetaVAE(NormalPrior(latents), Decoder(decoder, likelihood), NormalPosterior(encoder))


def noise_of(kind: str) -> tuple[Tensor, nn.Module, Tensor]:
    """Return independent features, rare and frequent, their likelihood and the decoder's best
    constant."""
    means = torch.linspace(0.02, 0.9, 30)
    if kind == "bernoulli":
        return torch.bernoulli(means.expand(1000, -1)), BernoulliLikelihood(), means.logit()
    if kind == "poisson":
        return torch.poisson(3 * means.expand(1000, -1)), PoissonLikelihood(), (3 * means).log()
    return means + torch.randn(1000, 30), NormalLikelihood(1.0), means


@pytest.mark.parametrize("kind", ["bernoulli", "poisson", "normal"])
@pytest.mark.parametrize("beta", [0.7, 3.0])
def test_noise_of_any_family_is_no_signal_at_any_beta(kind: str, beta: float) -> None:
    x, likelihood, output = noise_of(kind)
    results = diagnose(silent_vae(x, likelihood, output), x, beta=beta)
    assert results.cause is Cause.NO_SIGNAL
    assert results.edge == pytest.approx(
        (1 + (30 / 1000) ** 0.5) ** 2, rel=0.1
    )  # Marchenko and Pastur 1967


@pytest.mark.parametrize(("beta", "cause"), [(1.0, Cause.DEAD), (20.0, Cause.THRESHOLD)])
def test_the_law_holds_for_a_likelihood_that_is_not_normal(beta: float, cause: Cause) -> None:
    hidden = torch.randn(1000, 1)
    x = torch.bernoulli((1.5 * hidden).sigmoid().expand(-1, 30))
    results = diagnose(silent_vae(x, BernoulliLikelihood(), torch.zeros(30)), x, beta=beta)
    pearson = (x - 0.5) / 0.5
    exact = torch.linalg.eigvalsh(
        (pearson - pearson.mean(0)).T.double() @ (pearson - pearson.mean(0)).double() / 1000
    )
    assert results.cause is cause
    assert results.latents[0].eigenvalue == pytest.approx(float(exact[-1]), rel=1e-5)
    assert results.latents[1].cause is Cause.NO_SIGNAL  # there is one direction


def test_an_encoder_that_lags_is_named_with_the_gain_of_its_closed_form() -> None:
    x, axes = data_of(RATIOS)
    beta = 1.5
    vae = forget(linear_vae(axes, beta, latents=3), slice(0, 3))
    results = diagnose(vae, x, beta=beta)
    assert causes(results) == [Cause.LAGGING] * 3
    assert all(latent.blocked is False for latent in results.latents)
    model = LinearGaussian(vae.decoder.network.layers[0].weight.detach(), SIGMA)
    few = x[:128]  # what the refit looks at
    q = vae.encoder(few)
    best = model.best_diagonal(few, beta)

    def objective(loc: Tensor, scale: Tensor) -> Tensor:
        return -model.distortion(few, loc, scale) - beta * model.rate(loc, scale)

    gain = float((objective(*best) - objective(q.mean.detach(), q.stddev.detach())).mean())
    (finding,) = results.findings
    said = float(finding.observation.split("objective that is ")[1].split()[0])
    assert said == pytest.approx(gain, rel=0.03)
    rate = float(finding.observation.split("rate of ")[1].split()[0])
    assert rate == pytest.approx(float(model.rate(*best).mean()), rel=0.05)


def test_a_mixed_case_is_told_apart_latent_by_latent() -> None:
    x, axes = data_of(RATIOS)
    vae = forget(linear_vae(axes, 2.0, latents=8, zeroed=(2,)), slice(0, 1))
    results = diagnose(vae, x, beta=2.0)
    expected = [
        Cause.LAGGING,
        Cause.HEALTHY,
        Cause.DEAD,
        Cause.HEALTHY,
        Cause.HEALTHY,
        Cause.THRESHOLD,
    ]
    assert causes(results) == [*expected, Cause.NO_SIGNAL, Cause.NO_SIGNAL]
    assert results.cause is Cause.LAGGING
    assert [results.latents[i].eigenvalue for i in (0, 2, 5)] == pytest.approx(
        [12, 6, 1.7], rel=1e-2
    )
    assert [finding.cause for finding in results.findings] == [
        Cause.LAGGING, Cause.DEAD, Cause.THRESHOLD, Cause.NO_SIGNAL
    ]  # fmt: skip
    assert (
        results.latents[2].active and results.latents[2].reaction == 0
    )  # a rate that is spent in vain


@pytest.mark.parametrize("live", [True, False], ids=["the decoder sees z", "the decoder does not"])
def test_dead_units_of_the_encoder_are_told_from_one_that_lags(live: bool) -> None:
    x, axes = data_of(RATIOS)
    x = x.float()
    encoder = MLP(D, 4, hidden=(12,), activation=nn.ReLU)
    with torch.no_grad():
        encoder.layers[0].bias.fill_(-1e3)
        encoder.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, UNIT, UNIT]))
    decoder = MLP(2, D, hidden=())
    with torch.no_grad():
        decoder.layers[0].weight.copy_(
            SIGMA * axes[:, :2] * (RATIOS[:2] - 1).sqrt() * (1.0 if live else 0.0)
        )
        decoder.layers[0].bias.zero_()
    vae = BetaVAE(
        NormalPrior(2), Decoder(decoder, NormalLikelihood(SIGMA)), NormalPosterior(encoder)
    )
    results = diagnose(vae, x)
    assert causes(results) == [Cause.DEAD] * 2
    assert all(latent.blocked for latent in results.latents)
    assert "(dead units)" in results.findings[0].observation
    with torch.no_grad():
        encoder.layers[0].bias.zero_()
        encoder.layers[-1].weight.mul_(1e-3)
    results = diagnose(vae, x)
    assert causes(results) == [Cause.LAGGING if live else Cause.DEAD] * 2
    assert not any(latent.blocked for latent in results.latents)


class Correlated(nn.Module):
    """Normal features that see each other, whatever z is."""

    def __init__(self, covariance: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.tril, self.weight = torch.linalg.cholesky(covariance), weight

    def forward(self, z: Tensor) -> dist.Distribution:
        return dist.MultivariateNormal(z @ self.weight.T, scale_tril=self.tril)


def compound(num_features: int, shared: float) -> Tensor:
    return torch.eye(num_features) + shared


def correlated_vae(x: Tensor, covariance: Tensor, weight: Tensor) -> BetaVAE:
    return BetaVAE(
        NormalPrior(2),
        Correlated(covariance, weight),
        silent_vae(x, NormalLikelihood(), x[0]).encoder,
    )


def test_a_decoder_that_explains_features_by_features_bypasses_the_latents() -> None:
    covariance = compound(20, 0.8)
    x = dist.MultivariateNormal(torch.zeros(20), covariance).sample(torch.Size([1500]))
    results = diagnose(correlated_vae(x, covariance, torch.zeros(20, 2)), x)
    assert causes(results) == [
        Cause.BYPASS,
        Cause.NO_SIGNAL,
    ]  # there is one direction for latents to carry
    assert results.cause is Cause.BYPASS
    # Two halves of n = 10 features: minus the trace of the blocks of precision and covariance off
    # the diagonal.
    precision = torch.linalg.inv(covariance)
    exact = -100 * float(precision[0, 1] * covariance[0, 1])
    assert abs(results.interaction[0] - exact) < 3 * results.interaction[1] + 0.05
    assert abs(results.worth[0]) < 1e-6
    assert results.eigenvalues[0] < results.edge


def test_seeing_features_is_no_bypass_where_they_have_nothing_to_say_or_too_little() -> None:
    noise = torch.randn(1500, 20)
    results = diagnose(correlated_vae(noise, torch.eye(20), torch.zeros(20, 2)), noise)
    assert results.cause is Cause.NO_SIGNAL
    assert abs(results.interaction[0]) < 1e-3
    # A tenth of what the features have in common is explained without z; the rest is left to it.
    covariance = compound(20, 0.8)
    x = dist.MultivariateNormal(torch.zeros(20), covariance).sample(torch.Size([1500]))
    results = diagnose(correlated_vae(x, compound(20, 0.08), torch.zeros(20, 2)), x)
    assert results.interaction[0] > 0.1
    assert results.latents[0].cause is Cause.DEAD
    assert float(results.eigenvalues[0]) == pytest.approx((1 + 20 * 0.8) / (1 + 20 * 0.08), rel=0.1)


def test_a_lagging_encoder_under_a_decoder_that_sees_features_is_no_bypass() -> None:
    weight = torch.zeros(20, 2)
    weight[:10, 0], weight[10:, 1] = 1.5, 1.5
    covariance = compound(20, 0.3)
    x = torch.randn(800, 2) @ weight.T
    x = x + dist.MultivariateNormal(torch.zeros(20), covariance).sample(torch.Size([800]))
    results = diagnose(correlated_vae(x, covariance, weight), x)
    assert results.interaction[0] > 0.1
    assert causes(results) == [Cause.LAGGING] * 2


def test_context_and_missing_entries_go_along() -> None:
    x = torch.poisson(torch.full((200, 6), 4.0))
    context = Context(
        size_factor=torch.ones(200, 1), covariates=torch.eye(2)[torch.arange(200) % 2]
    )
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(4, 6, hidden=(8,)), NegativeBinomialLikelihood(6), num_covariates=2),
        NormalPosterior(MLP(8, 4, hidden=(8,)), num_covariates=2),
    )
    assert len(diagnose(vae, Dataset(x, context=context)).latents) == 2
    whole, axes = data_of(RATIOS)
    partly = linear_vae(axes, 1.0, latents=2, zeroed=(0, 1))
    partly.missing = True
    seen = whole.masked_fill(torch.rand(whole.shape) < 0.2, torch.nan)
    results = diagnose(partly, seen)
    assert causes(results) == [Cause.DEAD] * 2
    assert 0.5 * 12 < float(results.eigenvalues[0]) < 12


def test_the_same_seed_gives_the_same_words_and_leaves_everything_alone() -> None:
    x, axes = data_of(RATIOS)
    vae = forget(linear_vae(axes, 2.0, latents=3), slice(0, 2))
    vae.train()
    vae.decoder.requires_grad_(False)
    before, state = (
        torch.random.get_rng_state(),
        {name: value.clone() for name, value in vae.state_dict().items()},
    )
    first, second = (diagnose(vae, x, beta=2.0, num_data=500, seed=3) for _ in range(2))
    assert str(first) == str(second) and torch.equal(first.eigenvalues, second.eigenvalues)
    assert not torch.equal(
        first.eigenvalues, diagnose(vae, x, beta=2.0, num_data=500, seed=4).eigenvalues
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert vae.training and all(module.training for module in vae.modules())
    assert not any(parameter.requires_grad for parameter in vae.decoder.parameters())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in vae.encoder.parameters()
    )
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    assert not pyro.get_param_store()


class LaplaceEncoder(nn.Module):
    """A guide family without a local version."""

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Laplace(torch.zeros(len(x), 2, dtype=x.dtype), 1.0).to_event(1)


def test_a_guide_that_cannot_be_refitted_is_said() -> None:
    x, axes = data_of(RATIOS)
    vae = linear_vae(axes, 1.0, latents=2)
    results = diagnose(BetaVAE(vae.prior, vae.decoder, LaplaceEncoder()), x)
    assert results.cause is Cause.DEAD
    assert "local_guide" in results.notes[0] and "note: no local refit" in str(results)
    assert results.latents[0].refit_variance is None


class Program(nn.Module):
    """A program with some number of latent sites."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.zeros(len(x), dtype=x.dtype)
            for i in range(self.latents):
                loc = loc + pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            features = loc.unsqueeze(-1).expand(*loc.shape, x.shape[1])
            pyro.sample("x", dist.Normal(features, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for i in range(self.latents):
                pyro.sample(f"z{i}", dist.Normal(x.mean(-1), 0.3))


def test_a_program_of_ones_own_with_a_scalar_latent_will_do() -> None:
    x = torch.randn(300, 1) + torch.randn(300, 5)
    assert causes(diagnose(Program(1), x)) == [Cause.HEALTHY]


def test_what_cannot_be_diagnosed_is_refused_in_words() -> None:
    x, axes = data_of(RATIOS)
    vae = linear_vae(axes, 1.0, latents=2)
    for beta in (-1.0, float("nan"), "much"):
        with pytest.raises(InputError, match="'beta' must be non-negative and finite, got"):
            diagnose(vae, x, beta=beta)
    with pytest.raises(InputError, match="'num_data' must be a positive integer, got 0"):
        diagnose(vae, x, num_data=0)
    with pytest.raises(
        InputError, match="'vae' must have Pyro functions model and guide, got Linear without model"
    ):
        diagnose(nn.Linear(2, 2), x)
    with pytest.raises(InputError, match="must have 16 features, got 3"):
        diagnose(vae, x[:, :3])
    with pytest.raises(InputError, match=r"'x' must have shape \(N, D\), got \(1500,\)"):
        diagnose(vae, x[:, 0])
    with pytest.raises(InputError, match="got nan at index"):
        diagnose(vae, x.masked_fill(x > 3, torch.nan))
    with pytest.raises(InputError, match=r"'data' must be a tensor .* or a Dataset, got list"):
        diagnose(vae, [x])
    with pytest.raises(InputError, match="at least 3 data for a variance over them, got 2"):
        diagnose(vae, x[:2])
    with pytest.raises(InputError, match="no latent site"):
        diagnose(Program(0), x)
    with pytest.raises(InputError, match="one latent site, got 2: 'z0', 'z1'"):
        diagnose(Program(2), x)
    heavy = silent_vae(x.float(), StudentTLikelihood(df=1.5), torch.zeros(D))
    with pytest.raises(InputError, match="infinite variance"):
        diagnose(heavy, x.float())
