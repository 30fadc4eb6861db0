"""A guide trained on with the model fixed: what it regains, and what it leaves alone."""

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import VampPrior
from pyro_bvae.training import IWELBO, improve_guide

TRUTH = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]]), 0.5)
X, TEST = TRUTH.sample(1000), TRUTH.sample(40, seed=1)
REFITS = RefitSettings(num_starts=0, max_rounds=12)
QUICK: dict[str, Any] = {
    "test": TEST, "num_samples": 200, "settings": REFITS, "progress": False, "batch_size": 100,
}  # fmt: skip


def planted(beta: float = 1.0, mean_factor: float = 1.0, scale_factor: float = 1.0) -> BetaVAE:
    """Return the linear-Gaussian model with an encoder that can learn, planted gaps and all."""
    vae = TRUTH.amortized_vae(beta, mean_factor, scale_factor)
    encoder = NormalPosterior(MLP(4, 4, hidden=())).double()
    affine, own = encoder.network.layers[0], vae.encoder.network.layers[0]  # type: ignore
    with torch.no_grad():
        affine.weight.zero_()
        affine.weight[:2], affine.bias[:2] = own.weight, own.bias
        affine.bias[2:] = torch.log(torch.expm1(vae.encoder.scale))  # type: ignore[operator]
    vae.encoder = encoder
    return vae


def still(vae: Any) -> dict[str, Tensor]:
    """Return the weights of a model without those of its guide."""
    state = vae.state_dict().items()
    return {name: value.clone() for name, value in state if not name.startswith("encoder")}


def test_a_planted_beta_gap_closes_and_all_else_stays_to_the_bit() -> None:
    vae = planted(beta=4.0)
    before, weights = copy.deepcopy(vae.state_dict()), still(vae)
    store = set(pyro.get_param_store().keys())
    random = torch.get_rng_state()
    result = improve_guide(vae, X, training_beta=4.0, epochs=15, learning_rate=2e-2, **QUICK)
    exact = TRUTH.gaps(TEST, *TRUTH.best_diagonal(TEST, 4.0), training_beta=4.0)
    assert result.before.beta.value == pytest.approx(float(exact.beta.mean()), abs=0.03)
    fell = result.before.variational.value - result.after.variational.value
    assert fell > 0.8 * result.before.beta.value  # of the planted gap
    assert (result.before.training_beta, result.after.training_beta) == (4.0, 1.0)
    change, error = result.evidence_change
    assert abs(change) < 4 * error + 1e-6
    # The model to the bit, in the improved one and in the one that was given.
    improved = still(result.vae)
    assert all(torch.equal(improved[name], value) for name, value in weights.items())
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(parameter.requires_grad for parameter in result.vae.decoder.parameters())
    assert not any(module.training != vae.training for module in result.vae.modules())
    assert set(pyro.get_param_store().keys()) == store
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.slow
def test_a_planted_amortization_gap_closes() -> None:
    result = improve_guide(planted(1.0, 0.6, 1.5), X, epochs=15, learning_rate=2e-2, **QUICK)
    assert result.before.amortization.value > 0.5
    assert result.after.amortization.value < 0.1 * result.before.amortization.value
    assert result.closed > 0.5 and not result.kept
    said = str(result)
    assert "before" in said and "amortization" in said and "The variational gap fell" in said


def test_local_steps_leave_the_gap_of_the_family_alone() -> None:
    few = TEST[:10]
    options = {**QUICK, "test": few}
    result = improve_guide(planted(1.0, 0.6, 1.5), X[:200], epochs=1, learning_rate=1e-4, **options)
    assert result.after.amortization.value > 0.5
    exact = TRUTH.gaps(few, *TRUTH.best_diagonal(few))
    left = result.refined_gap(60)
    assert left.value == pytest.approx(float(exact.approximation.mean()), abs=0.02)
    assert left.per_datum.shape == (10,) and left.monte_carlo_error < 0.02
    assert result.refined_gap(0).value == pytest.approx(result.after.variational.value, abs=0.1)


@pytest.mark.slow
def test_another_family_closes_a_planted_approximation_gap() -> None:
    torch.manual_seed(0)
    encoder = FullRankPosterior(MLP(4, 5, hidden=()))
    result = improve_guide(planted(), X, posterior=encoder, epochs=40, learning_rate=2e-2, **QUICK)
    assert result.vae.encoder is encoder
    assert result.before.approximation.value > 0.08
    assert result.after.approximation.value < 0.1 * result.before.approximation.value
    assert result.after.variational.value < 0.5 * result.before.variational.value


@pytest.mark.slow
def test_the_importance_weighted_bound_trains_a_guide_too() -> None:
    objective = IWELBO(4, doubly_reparametrized=True)
    result = improve_guide(
        planted(1.0, 0.6, 1.5), X, objective=objective, epochs=15, learning_rate=2e-2, **QUICK
    )
    assert result.after.variational.value < 0.3 * result.before.variational.value


@pytest.mark.slow
def test_a_prior_that_looks_through_the_encoder_keeps_its_own() -> None:
    torch.manual_seed(0)
    encoder = NormalPosterior(MLP(4, 4, hidden=(8,)))
    vae = BetaVAE(
        VampPrior(encoder, torch.randn(5, 4)), Decoder(MLP(2, 4, (8,)), NormalLikelihood()), encoder
    )
    x = X.float()
    law = vae.prior().log_prob(torch.zeros(2))
    options = {**QUICK, "test": TEST.float()[:20]}
    result = improve_guide(vae, x, epochs=3, **options)
    assert torch.equal(result.vae.prior().log_prob(torch.zeros(2)), law)
    assert torch.equal(vae.prior().log_prob(torch.zeros(2)), law)
    assert result.vae.prior.encoder is not result.vae.encoder
    moved = zip(result.vae.encoder.parameters(), vae.encoder.parameters(), strict=True)
    assert not all(torch.equal(new, old) for new, old in moved)
    change, error = result.evidence_change
    assert abs(change) < 4 * error + 1e-4


def test_batch_norm_of_the_decoder_does_not_move() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    vae = BetaVAE(
        TRUTH.amortized_vae().prior,
        Decoder(network, NormalLikelihood()),
        NormalPosterior(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))),
    ).float()
    weights = still(vae)
    result = improve_guide(vae, X.float(), epochs=3, **{**QUICK, "test": TEST.float()[:5]})
    assert all(torch.equal(still(result.vae)[name], value) for name, value in weights.items())
    moved = result.vae.encoder.network[1].running_mean
    assert not torch.equal(moved, vae.encoder.network[1].running_mean)
    assert all(module.training for module in result.vae.decoder.modules())


@pytest.mark.slow
def test_a_guide_that_cannot_be_better_is_kept() -> None:
    vae = planted()
    result = improve_guide(vae, X, epochs=2, learning_rate=0.3, **QUICK)
    assert result.kept and "the guide is as it was" in result.verdict
    pairs = zip(result.vae.parameters(), vae.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


# -- a person's own program


class Own(nn.Module):
    """A program whose guide has parameters of modules and of the store."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 4)

    def model(self, x: Tensor, labels: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x)):
            with pyro.poutine.scale(scale=4.0):
                z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decoder(z) + 0.1 * labels.unsqueeze(-1)
            pyro.sample("seen", dist.Normal(mean, scale).to_event(1), obs=x)

    def guide(self, x: Tensor, labels: Tensor) -> None:
        factor = pyro.param("factor", torch.tensor(2.0), constraint=dist.constraints.positive)
        loc, raw = self.encoder(x).split(2, -1)
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=4.0):
            law = dist.Normal(loc, factor * nn.functional.softplus(raw))
            pyro.sample("code", law.to_event(1))


def own_data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(300, 4), torch.arange(300) % 2


@pytest.mark.parametrize("as_pair", [True, False])
def test_the_guide_of_a_program_is_trained_on(as_pair: bool) -> None:
    own, data = Own(), own_data()
    own.model(*data)
    own.guide(*data)
    decoder, encoder = (copy.deepcopy(part.state_dict()) for part in (own.decoder, own.encoder))
    given: Any = (own.model, own.guide) if as_pair else own
    result = improve_guide(
        given, data, epochs=20, num_data=20, num_samples=200, settings=REFITS, progress=False,
        batch_size=32, learning_rate=2e-2,
    )  # fmt: skip
    assert result.after.variational.value < 0.5 * result.before.variational.value
    change, error = result.evidence_change
    assert abs(change) < 4 * error + 1e-4
    assert pyro.param("scale").item() == 0.5 and pyro.param("factor").item() < 1.8
    assert all(
        torch.equal(decoder[name], value) for name, value in own.decoder.state_dict().items()
    )
    moved = any(
        not torch.equal(encoder[name], value) for name, value in own.encoder.state_dict().items()
    )
    assert moved == as_pair  # a pair is trained in place, a module is copied
    assert result.vae is None if as_pair else result.vae is not own
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_faults_are_refused_in_one_line() -> None:
    vae, own, data = planted(), Own(), own_data()
    for words, arguments, options in [
        ("'epochs' must be", (vae, X), {"epochs": 0}),
        ("'beta' is 1", (vae, X), {"beta": 2.0}),
        ("'data' must be at least 4", (vae, X[:3]), {}),
        ("'validation' must be given", (vae, [(X[:5], 1)]), {}),
        ("'beta' must be non-negative", (vae, X), {"training_beta": -1.0}),
        ("the parts must agree", (vae, X), {"posterior": NormalPosterior(MLP(4, 6))}),
        ("'vae' must be a module with", (3, X), {}),
        ("takes the place of the encoder", (own, data), {"posterior": vae.encoder}),
        ("a tensor, or a tuple of its arguments", (own, "data"), {}),
        ("makes the parameters factor", (own, data), {}),
    ]:
        with pytest.raises(InputError, match=words):
            improve_guide(*arguments, progress=False, **{"num_data": 5, **options})


def test_a_program_that_shares_weights_with_its_guide_is_refused() -> None:
    shared = nn.Linear(4, 2)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ shared.weight, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(shared(x), 1.0).to_event(1))

    with pytest.raises(InputError, match=r"model and guide share .*shared\.weight"):
        improve_guide((model, guide), own_data()[0], num_data=5, num_samples=50, progress=False,
                      settings=REFITS)  # fmt: skip
