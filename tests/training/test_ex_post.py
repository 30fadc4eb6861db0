"""The prior fitted after the fact.

The aggregate's closed form, what the evidence gains, and what is left alone.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader

from pyro_bvae import BetaVAE, Context, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import decompose_kl, elbo_parts, evidence, hole_mass
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import FlowPrior, MixturePrior, NormalPrior, VampPrior
from pyro_bvae.training import TrainingError, fit_ex_post_prior

TRUTH = LinearGaussian(torch.tensor([[1.5, 0.3], [-0.4, 1.2], [0.5, 0.5]], dtype=torch.double), 0.6)
# Data of another distribution of the latents than the model's prior: wider, moved and correlated.
MEAN, ROOT = torch.tensor([1.5, -1.0]).double(), torch.tensor([[1.4, 0.0], [0.8, 0.5]]).double()


def mismatched(count: int, seed: int) -> Tensor:
    """Draw data whose latents are normal, but not as the prior says."""
    generator = torch.Generator().manual_seed(seed)
    z = MEAN + torch.randn(count, 2, generator=generator, dtype=torch.double) @ ROOT.T
    return z @ TRUTH.weight.T + 0.6 * torch.randn(count, 3, generator=generator, dtype=torch.double)


def aggregate(vae: BetaVAE) -> MultivariateNormal:
    """Return the closed form of the aggregated posterior over all such data."""
    zero = torch.zeros(1, 3, dtype=torch.double)
    with torch.no_grad():
        bias, variance = vae.encoder(zero).mean[0], vae.encoder(zero).variance[0]
        matrix = vae.encoder(torch.eye(3, dtype=torch.double)).mean - bias  # (D, L)
    through = matrix.T @ TRUTH.weight
    data = TRUTH.weight @ ROOT @ ROOT.T @ TRUTH.weight.T + 0.36 * torch.eye(3, dtype=torch.double)
    return MultivariateNormal(
        bias + through @ MEAN, matrix.T @ data @ matrix + torch.diag(variance)
    )


# With the batch size that gives it steps enough.
PRIORS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mixture": (lambda: MixturePrior(2, 8).double(), 200),
    "flow": (lambda: FlowPrior(2, hidden=(16,)).double(), 500),
}


@pytest.fixture(scope="module", params=PRIORS)
def repaired(request: pytest.FixtureRequest) -> tuple[BetaVAE, BetaVAE]:
    """Return the model before and after."""
    vae = TRUTH.amortized_vae()
    torch.manual_seed(0)
    make, batch_size = PRIORS[request.param]
    after = fit_ex_post_prior(
        vae, mismatched(4000, 0), make(), epochs=20, batch_size=batch_size, progress=False
    )
    return vae, after


def test_the_prior_comes_to_the_closed_form_of_the_aggregate(
    repaired: tuple[BetaVAE, BetaVAE],
) -> None:
    before, after = repaired
    exact = aggregate(before)
    z = exact.sample(torch.Size([4000]))
    with torch.no_grad():
        off = [
            float((exact.log_prob(z) - vae.prior().log_prob(z)).mean()) for vae in (before, after)
        ]
    assert off[0] > 1.0 and off[1] < 0.03  # nats, KL(q(z) || p(z)) before and after


def test_the_evidence_of_held_out_data_gains(repaired: tuple[BetaVAE, BetaVAE]) -> None:
    x = mismatched(300, 1)
    results = [evidence(vae.model, vae.guide, x, num_samples=400) for vae in repaired]
    gain = results[1].per_datum - results[0].per_datum
    assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(len(gain))
    data = TRUTH.weight @ ROOT @ ROOT.T @ TRUTH.weight.T + 0.36 * torch.eye(3, dtype=torch.double)
    best = MultivariateNormal(TRUTH.weight @ MEAN, data).log_prob(x).mean()
    assert float(TRUTH.evidence(x).mean()) < results[0].value + 0.1 < results[1].value
    assert results[1].value < float(best) + 0.1


def test_the_bound_gains_what_the_prior_comes_nearer(repaired: tuple[BetaVAE, BetaVAE]) -> None:
    x = mismatched(600, 2)
    bounds = [elbo_parts(vae.model, vae.guide, x, num_samples=20).elbo for vae in repaired]
    nearer = [decompose_kl(vae.model, vae.guide, x, num_samples=20).marginal_kl for vae in repaired]
    noise = math.hypot(*(part.monte_carlo_error for part in (*bounds, *nearer)))
    assert bounds[1].value - bounds[0].value == pytest.approx(
        nearer[0].value - nearer[1].value, abs=4 * noise
    )


def test_holes_are_repaired(repaired: tuple[BetaVAE, BetaVAE]) -> None:
    x = mismatched(4000, 3)
    results = [
        hole_mass(
            vae.model, vae.guide, x[:3000], held_out=x[3000:], num_samples=2000, num_permutations=99
        )
        for vae in repaired
    ]
    assert results[0].hole_mass.value > 0.2 and results[0].p_value == 0.01
    assert results[1].hole_mass.value < 0.025


# -- what is left alone
# -----------------------------------------------------------------------------------------------


def small() -> BetaVAE:
    torch.manual_seed(1)
    encoder = NormalPosterior(MLP(3, 4, hidden=(8,)))
    return BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, 3, hidden=(8,)), NormalLikelihood(0.5)),
        encoder,
        name="small",
    )


X = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
QUICK = {"epochs": 2, "batch_size": 50, "progress": False}


def test_the_model_is_left_alone_and_shared() -> None:
    vae = small()
    before, prior = copy.deepcopy(vae.state_dict()), vae.prior
    vae.train()
    state = torch.get_rng_state()
    new = MixturePrior(2, 3)
    start = copy.deepcopy(new.state_dict())
    torch.set_rng_state(state)
    after = fit_ex_post_prior(vae, X, new, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert after.encoder is vae.encoder and after.decoder is vae.decoder and after.prior is new
    assert after.name == "small_ex_post" and vae.prior is prior and vae.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in after.parameters())
    assert not torch.equal(new.loc, start["loc"])


def test_the_seed_is_all_its_randomness() -> None:
    fitted = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        fitted.append(
            fit_ex_post_prior(small(), X, MixturePrior(2, 3), seed=seed, **QUICK).prior.loc
        )
    assert torch.equal(fitted[0], fitted[1]) and not torch.equal(fitted[0], fitted[2])


def test_a_vamp_prior_leaves_its_encoder_as_it_is() -> None:
    vae = small()
    before = copy.deepcopy(vae.encoder.state_dict())
    prior = VampPrior(vae.encoder, X[:5])
    inputs = prior.pseudo_inputs.clone()
    fit_ex_post_prior(vae, X, prior, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in vae.encoder.state_dict().items())
    assert not torch.equal(prior.pseudo_inputs, inputs) and all(
        p.grad is None for p in vae.parameters()
    )


def test_held_out_data_keep_it_from_learning_few_data_by_heart() -> None:
    vae = TRUTH.amortized_vae(scale_factor=0.1)
    few, kept, fresh = mismatched(20, 0), mismatched(200, 1), mismatched(2000, 2)
    with torch.no_grad():
        z = vae.encoder(fresh).sample()
    scores = []
    for validation in (None, kept):
        torch.manual_seed(0)
        prior = MixturePrior(2, 20).double()
        fit_ex_post_prior(
            vae, few, prior, validation=validation, epochs=150, learning_rate=0.05, progress=False
        )
        with torch.no_grad():
            scores.append(float(prior().log_prob(z).mean()))
    assert scores[1] > scores[0] + 0.5  # nats


def test_what_fit_takes_is_taken() -> None:
    vae = small()
    for data in (Dataset(X), DataLoader(X, batch_size=20)):
        assert (
            fit_ex_post_prior(
                vae, data, MixturePrior(2, 3), validation=X[:10], **QUICK
            ).num_features
            == 3
        )
    unseen = BetaVAE(vae.prior, vae.decoder, vae.encoder, missing=True)
    after = fit_ex_post_prior(unseen, X.masked_fill(X > 1, math.nan), MixturePrior(2, 3), **QUICK)
    assert after.missing
    encoder = NormalPosterior(MLP(4, 4, hidden=(8,)), num_covariates=1)
    given = BetaVAE(
        NormalPrior(2), Decoder(MLP(3, 3), NormalLikelihood(0.5), num_covariates=1), encoder
    )
    data = Dataset(X, context=Context(covariates=X[:, :1]))
    assert fit_ex_post_prior(given, data, MixturePrior(2, 3), **QUICK).encoder is encoder


class Wide(MixturePrior):
    """Says two latents and draws three."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.latent_dim = 2


VAE = small()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: fit_ex_post_prior(VAE, X, VAE.prior, **QUICK),
            "got the prior of the model itself",
        ),
        (
            lambda: fit_ex_post_prior(VAE, X, NormalPrior(2), **QUICK),
            "'prior' .NormalPrior. has no parameter",
        ),
        (
            lambda: fit_ex_post_prior(VAE, X, MixturePrior(3), **QUICK),
            "agree on the number of latents, got prior 3",
        ),
        (
            lambda: fit_ex_post_prior(VAE, X, Wide(), **QUICK),
            r"event shape \(2,\), as the guide has, .* \(3,\)",
        ),
        (
            lambda: fit_ex_post_prior(VAE, X[:, :2], MixturePrior(2), **QUICK),
            "'x' must have 3 features, got 2",
        ),
        (
            lambda: fit_ex_post_prior(VAE, X, MixturePrior(2), **(QUICK | {"epochs": 0})),
            "'epochs' must be a positive",
        ),
        (
            lambda: fit_ex_post_prior(VAE, X, MixturePrior(2), learning_rate=0.0, **QUICK),
            "positive and finite, got 0.0",
        ),
    ],
)
def test_bad_input_is_refused_in_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_a_density_that_leaves_the_finite_numbers_is_said() -> None:
    prior = MixturePrior(2, 3)
    with torch.no_grad():
        prior.loc[0, 0] = math.nan
    with pytest.raises(TrainingError, match="stopped being finite in epoch 1"):
        fit_ex_post_prior(VAE, X, prior, **QUICK)
