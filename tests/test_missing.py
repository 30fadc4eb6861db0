"""Missing data: every number is that of what was observed."""

import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder, elbo, evidence, fit, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.datasets.readers.arrays import read_npy, read_npz
from pyro_bvae.datasets.readers.csv import read_csv
from pyro_bvae.distributions import DiagonalNormal, GreyBernoulli, Pixels
from pyro_bvae.distributions.partly_observed import PartlyObserved
from pyro_bvae.evaluation import annealed_evidence, bidirectional_evidence, elbo_parts, to_arviz
from pyro_bvae.evaluation.marginal import AnnealingSettings, GuideProposal
from pyro_bvae.likelihoods import BernoulliLikelihood, DecoderScale, LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import IWELBO, Loss, TraceTerms, TrainingError


@pytest.fixture
def linear() -> LinearGaussian:
    weight = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]])
    return LinearGaussian(weight, 0.7, torch.tensor([0.1, -0.2, 0.3, 0.0]))


def spoiled(x: Tensor, share: float = 0.3, seed: int = 0) -> Tensor:
    """Return data with entries missing at random.

    The first datum is whole and of the second nothing was seen.
    """
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    missing[0], missing[1] = False, True
    return x.masked_fill(missing, math.nan)


def exact_posterior(linear: LinearGaussian, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return evidence, and mean and scale of the best diagonal guide, of the observed entries of
    each datum."""
    rows = []
    for datum in x:
        seen = ~torch.isnan(datum)
        part = LinearGaussian(linear.weight[seen], linear.noise_scale, linear.bias[seen])
        loc, scale = part.best_diagonal(datum[seen][None])
        log_prob = (
            part.evidence(datum[seen][None]) if seen.any() else torch.zeros(1, dtype=torch.double)
        )
        rows.append((log_prob[0], loc[0], scale[0]))
    evidences, locs, scales = zip(*rows, strict=True)
    return torch.stack(evidences), torch.stack(locs), torch.stack(scales)


def partly_observed(linear: LinearGaussian, x: Tensor, mean_shift: float = 0.0) -> BetaVAE:
    _, loc, scale = exact_posterior(linear, x)
    vae = linear.vae(loc + mean_shift, scale)
    vae.missing = True
    return vae


def small_vae(likelihood: nn.Module | None = None, missing: bool = True) -> BetaVAE:
    likelihood = likelihood or BernoulliLikelihood()
    decoder = Decoder(MLP(2, 6 * likelihood.parameters_per_feature, (8,)), likelihood)
    return BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, (8,))), missing=missing)


# -- the oracle
# --------------------------------------------------------------------------------------------------


def test_evidence_is_that_of_the_observed_entries(linear: LinearGaussian) -> None:
    x = spoiled(linear.sample(200))
    exact, _, _ = exact_posterior(linear, x)
    vae = partly_observed(linear, x, mean_shift=0.1)
    estimate = evidence(vae.model, vae.guide, x, num_samples=4000)
    assert abs(estimate.value - float(exact.mean())) < min(0.01, 4 * estimate.monte_carlo_error)
    errors = (1 / estimate.effective_sample_size - 1 / 4000).clamp(min=0).sqrt()
    assert ((estimate.per_datum - exact).abs() < 5 * errors + 1e-9).all()
    # The difference to the complete data is far above the errors: the test could tell.
    assert abs(float(exact.mean() - linear.evidence(linear.sample(200)).mean())) > 1


def test_the_bound_of_what_was_observed_has_its_closed_form(linear: LinearGaussian) -> None:
    x = spoiled(linear.sample(100))
    _, loc, scale = exact_posterior(linear, x)
    vae = partly_observed(linear, x)
    measured = elbo_parts(vae.model, vae.guide, x, num_samples=400)
    assert torch.allclose(measured.rate.per_datum, linear.rate(loc, scale))
    seen = ~torch.isnan(x)
    residual = (x - linear.bias - loc @ linear.weight.T).masked_fill(~seen, 0).square()
    spread = (scale**2) @ (linear.weight**2).T
    terms = 0.5 * (residual + spread) / linear.noise_scale**2 + 0.5 * math.log(
        2 * math.pi * linear.noise_scale**2
    )
    distortion = float((terms * seen).sum(-1).mean())
    assert abs(measured.distortion.value - distortion) < 4 * measured.distortion.monte_carlo_error
    loss = TraceMeanField_ELBO(num_particles=2000, vectorize_particles=True).loss(
        vae.model, vae.guide, x, None, 2.0
    )
    expected = 100 * distortion + 2 * float(linear.rate(loc, scale).sum())
    assert loss == pytest.approx(expected, abs=4 * 3 * math.sqrt(100 / 2000))


def test_a_datum_of_which_nothing_was_seen_has_the_evidence_of_nothing(
    linear: LinearGaussian,
) -> None:
    x = spoiled(linear.sample(5))
    vae = partly_observed(linear, x)
    alone = evidence(vae.model, vae.guide, x, num_samples=50, proposal=GuideProposal())
    for estimate in (alone, elbo(vae.model, vae.guide, x)):
        assert abs(float(estimate.per_datum[1])) < 1e-12  # log 1, the guide being the prior
    with_tails = evidence(vae.model, vae.guide, x, num_samples=2000)
    assert with_tails.errors is not None
    assert abs(float(with_tails.per_datum[1])) < 4 * float(with_tails.errors[1]) < 0.1


def test_annealing_and_its_certificate_keep_what_is_missing(linear: LinearGaussian) -> None:
    x = spoiled(linear.sample(40))
    exact, _, _ = exact_posterior(linear, x)
    vae = partly_observed(linear, x)
    settings = AnnealingSettings(num_temperatures=30, num_chains=8)
    for start in ("prior", "guide"):
        estimate = annealed_evidence(vae.model, vae.guide, x, start=start, settings=settings)
        assert abs(estimate.value - float(exact.mean())) < min(
            0.1, 4 * estimate.monte_carlo_error + 1e-6
        )
        below, above, gap, simulated = bidirectional_evidence(
            vae.model, vae.guide, x, start=start, settings=settings
        )
        assert torch.equal(torch.isnan(simulated["x"]), torch.isnan(x))
        truth, _, _ = exact_posterior(linear, simulated["x"])
        for side in (below, above):
            assert abs(side.value - float(truth.mean())) < 4 * side.monte_carlo_error + 1e-6
        assert abs(gap.value) < 0.2


def test_gaps_are_those_of_what_was_observed(linear: LinearGaussian) -> None:
    x = spoiled(linear.sample(60))
    exact, _, _ = exact_posterior(linear, x)
    vae = partly_observed(linear, x, mean_shift=0.3)
    gaps = inference_gaps(vae.model, vae.guide, x, num_samples=2000)
    # The precision of the exact posterior is that of a normal; a shift of its best mean costs a
    # quadratic form.
    amortization = []
    for datum in x:
        seen = ~torch.isnan(datum)
        precision = LinearGaussian(linear.weight[seen], linear.noise_scale).precision()
        amortization.append(0.5 * 0.3**2 * float(precision.sum()))
    assert abs(gaps.evidence.value - float(exact.mean())) < 4 * gaps.evidence.monte_carlo_error
    assert abs(gaps.amortization.value - np.mean(amortization)) < 0.02


# -- the loss and its gradient
# ------------------------------------------------------------------------------------

LIKELIHOODS = {
    "bernoulli": BernoulliLikelihood,
    "normal": lambda: NormalLikelihood(LearnedScale(6)),
    "normal, scale from the decoder": lambda: NormalLikelihood(DecoderScale()),
}


@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())
def test_loss_and_gradient_are_those_of_a_hand_masked_loss(make: type[nn.Module]) -> None:
    vae, x = small_vae(make()), spoiled((torch.rand(20, 6) < 0.5).float())
    noise = torch.randn(20, 2)
    parameters = list(vae.parameters())
    terms = Loss(vae, TraceTerms())(x, None, 1.5, {"z": noise})
    seen = ~torch.isnan(x)
    q = vae.encoder(torch.where(seen, x, 0.0))
    z = q.base_dist.loc + q.base_dist.scale * noise
    factors = vae.decoder(z).base_dist.log_prob(torch.where(seen, x, 1.0))
    rate = q.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    by_hand = 1.5 * rate.sum() - factors[seen].sum()
    assert torch.allclose(terms.loss, by_hand)
    assert torch.allclose(terms.distortion, -factors[seen].sum())
    pairs = zip(
        torch.autograd.grad(terms.loss, parameters),
        torch.autograd.grad(by_hand, parameters),
        strict=True,
    )
    assert all(torch.allclose(*pair, atol=1e-5) for pair in pairs)


@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())
def test_whole_data_get_the_numbers_that_they_get_without_the_flag(make: type[nn.Module]) -> None:
    vae, x = small_vae(make(), missing=False), (torch.rand(10, 6) < 0.5).float()
    plain = evidence(vae.model, vae.guide, x, num_samples=100)
    vae.missing = True
    partly = spoiled(x)
    assert torch.allclose(
        evidence(vae.model, vae.guide, x, num_samples=100).per_datum, plain.per_datum, atol=1e-5
    )
    # One datum's missing entries are no other's: the first is whole.
    first = evidence(vae.model, vae.guide, partly, num_samples=100).per_datum[0]
    assert first == pytest.approx(float(plain.per_datum[0]), abs=1e-5)


def test_fast_densities_are_right_in_part() -> None:
    x = spoiled(torch.rand(5, 4))
    seen = ~torch.isnan(x)
    cases = [
        Pixels(GreyBernoulli(logits=torch.randn(3, 5, 4)), 1),
        DiagonalNormal.of(torch.randn(3, 5, 4), torch.rand(4) + 0.5),
    ]
    for whole in cases:
        part = PartlyObserved.of(whole)
        factors = whole.base_dist.log_prob(torch.where(seen, x, 0.3))
        assert torch.allclose(part.log_prob(x), (factors * seen).sum(-1))
        expanded = part.expand([2, 3, 5])
        assert torch.allclose(expanded.log_prob(x), part.log_prob(x).expand(2, 3, 5))
        assert torch.equal(part.mean, whole.mean) and not torch.isnan(part.sample()).any()


SUPPORTS = {
    "gamma": dist.Gamma(0.5, torch.ones(3)),  # an infinite density at 0
    "poisson": dist.Poisson(torch.ones(3)),
    "beta": dist.Beta(0.5, torch.full((3,), 0.5)),
    "bernoulli": dist.Bernoulli(torch.full((3,), 0.5)),
    "categorical": dist.Categorical(torch.full((3, 2), 0.5)),
    "above 2": dist.Pareto(2.0, torch.full((3,), 3.0)),
}


@pytest.mark.parametrize("base", SUPPORTS.values(), ids=SUPPORTS.keys())
def test_what_is_filled_in_lies_inside_any_support(base: dist.Distribution) -> None:
    x = base.sample().float()
    x[1] = math.nan
    expected = base.log_prob(torch.where(torch.isnan(x), base.sample().float(), x))[[0, 2]].sum()
    assert torch.allclose(PartlyObserved.of(base.to_event(1)).log_prob(x), expected)


def test_no_gradient_sees_a_missing_entry() -> None:
    power, rate = torch.full((3,), 0.5, requires_grad=True), torch.ones(3, requires_grad=True)
    x = torch.tensor([0.3, math.nan, 0.4], requires_grad=True)
    PartlyObserved.of(dist.Kumaraswamy(power, rate).to_event(1)).log_prob(
        x
    ).backward()  # at 0 its slope is infinite
    for leaf in (power, rate, x):
        assert torch.isfinite(leaf.grad).all() and leaf.grad[1] == 0


# -- training
# --------------------------------------------------------------------------------------------------


def test_fit_learns_from_what_was_observed(linear: LinearGaussian) -> None:
    x = spoiled(linear.sample(400)).float()
    pyro.set_rng_seed(0)
    decoder = Decoder(MLP(2, 4, ()), NormalLikelihood(LearnedScale()))
    vae = BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(4, 4, (16,))), missing=True)
    before = evidence(vae.model, vae.guide, x[:200], num_samples=500)
    history = fit(vae, x, epochs=15, validation=x[:50], learning_rate=0.03, progress=False)
    assert all(math.isfinite(value) for row in history.rows for value in row.values())
    after = evidence(vae.model, vae.guide, x[:200], num_samples=500)
    truth = float(exact_posterior(linear, x[:200].double())[0].mean())
    assert before.value < truth - 0.5 and abs(after.value - truth) < 0.1


@pytest.mark.parametrize(
    "objective", [None, IWELBO(3), IWELBO(3, doubly_reparametrized=True)], ids=str
)
def test_every_way_to_train_takes_missing_entries(objective: IWELBO | None) -> None:
    vae, x = small_vae(), spoiled((torch.rand(32, 6) < 0.5).float())
    dataset = Dataset(
        x.nan_to_num(0.3).where(~torch.isnan(x), x), stochastic_binarization=True, missing=True
    )
    history = fit(vae, dataset, epochs=1, objective=objective, batch_size=16, progress=False)
    assert math.isfinite(history.rows[0]["objective"])
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective or Trace_ELBO())
    assert math.isfinite(svi.step(x))
    assert all(torch.isfinite(parameter).all() for parameter in vae.parameters())


def test_a_step_that_fails_names_the_site_and_not_the_missing_entries() -> None:
    vae, x = small_vae(NormalLikelihood()), spoiled(torch.randn(8, 6))
    with pytest.raises(
        TrainingError, match="site 'x' of the model has a log density that is not finite"
    ):
        with torch.no_grad():
            vae.decoder.network.layers[0].weight.fill_(1e30)
        fit(vae, x, epochs=1, progress=False)


# -- what people use
# ------------------------------------------------------------------------------------------------


def test_codes_and_reconstructions_are_of_what_was_seen() -> None:
    vae, x = small_vae(), spoiled((torch.rand(9, 6) < 0.5).float())
    zeros = x.nan_to_num(0.0)
    assert torch.equal(vae.encode(x), vae.encode(zeros))
    assert torch.equal(vae.reconstruct(x), vae.reconstruct(zeros))
    imputed, seen = vae.impute(x), ~torch.isnan(x)
    assert torch.equal(imputed[seen], x[seen]) and torch.equal(
        imputed[~seen], vae.reconstruct(x)[~seen]
    )
    assert torch.equal(vae.impute(imputed), imputed)  # nothing is missing any more
    assert not torch.isnan(vae.generate(4, noise=True)).any()


def test_imputation_of_a_known_model_is_nearer_than_the_mean(linear: LinearGaussian) -> None:
    whole = linear.sample(400)
    x = spoiled(whole)
    missing = torch.isnan(x)
    imputed = partly_observed(linear, x).impute(x)
    error, plain = (
        (guess - whole)[missing].square().mean() for guess in (imputed, linear.bias.expand_as(x))
    )
    assert error < 0.9 * plain


def test_predictive_draws_complete_data() -> None:
    vae, x = small_vae(), spoiled((torch.rand(5, 6) < 0.5).float())
    drawn = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=7)(x)["x"]
    assert drawn.shape == (7, 5, 6) and not torch.isnan(drawn).any()
    observed = Predictive(vae.model, guide=vae.guide, num_samples=2)(x)["x"]
    assert torch.equal(torch.isnan(observed[-1]), torch.isnan(x))


def test_the_export_shows_what_is_missing() -> None:
    vae, x = small_vae(), spoiled((torch.rand(5, 6) < 0.5).float())
    exported = to_arviz(vae.model, vae.guide, x, num_draws=3, num_predictive=2)
    assert np.array_equal(np.asarray(exported["observed_data"]["x"]), x.numpy(), equal_nan=True)
    assert not np.isnan(np.asarray(exported["posterior_predictive"]["x"])).any()
    assert np.isfinite(np.asarray(exported["log_likelihood"]["x"])).all()


def test_the_indicator_may_be_a_covariate() -> None:
    decoder = Decoder(MLP(2 + 6, 6), BernoulliLikelihood(), num_covariates=6)
    encoder = NormalPosterior(MLP(12, 4), num_covariates=6)
    vae = BetaVAE(NormalPrior(2), decoder, encoder, missing=True)
    x = spoiled((torch.rand(5, 6) < 0.5).float())
    estimate = evidence(
        vae.model, vae.guide, x, Context(covariates=torch.isnan(x).float()), num_samples=20
    )
    assert torch.isfinite(estimate.per_datum).all()


# -- data
# --------------------------------------------------------------------------------------------------


def test_files_with_missing_entries_are_read_on_purpose(tmp_path: Path) -> None:
    x = np.array([[1.0, np.nan], [np.nan, np.nan], [0.5, 2.0]], dtype=np.float32)
    (tmp_path / "t.csv").write_text("a,b,label\n1,,u\n,NaN,v\n0.5,2,u\n")
    np.save(tmp_path / "t.npy", x)
    np.savez(tmp_path / "t.npz", x=x, labels=np.array([0, 1, 0]))
    for name, read in (("t.csv", read_csv), ("t.npy", read_npy), ("t.npz", read_npz)):
        data = read(tmp_path / name, missing=True)["all"]
        assert data.missing and np.array_equal(data.x.numpy(), x, equal_nan=True)
        assert data[1:].missing and data.to(dtype=torch.double).missing
        with pytest.raises(InputError, match="missing=True takes it as missing"):
            read(tmp_path / name)
    (tmp_path / "t.csv").write_text("a,b\n1,inf\n,1\n")
    with pytest.raises(InputError, match=r"values must be finite, got inf in row 1, column 'b'$"):
        read_csv(tmp_path / "t.csv", missing=True)


def test_missing_pixels_stay_missing_when_they_are_drawn() -> None:
    x = spoiled(torch.rand(6, 4))
    data = Dataset(x, missing=True)
    assert torch.equal(torch.isnan(data.binarized(0).x), torch.isnan(x))
    (batch, _), *_ = data.dynamically_binarized().batches(6, seed=0, epoch=0, shuffle=False)
    assert torch.equal(torch.isnan(batch), torch.isnan(x))
    assert set(batch[~torch.isnan(x)].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "use", [evidence, elbo, lambda model, guide, x: model.__self__.check_data(x)]
)
def test_values_are_refused_in_words(use: object) -> None:
    x = spoiled((torch.rand(5, 6) < 0.5).float())
    x[1] = 0.0
    x[3, 2] = math.nan
    vae = small_vae(missing=False)
    index = tuple(torch.isnan(x).nonzero()[0].tolist())
    words = (
        rf"got nan at index \({index[0]}, {index[1]}\); BetaVAE\(..., missing=True\) takes it "
        rf"as missing"
    )
    with pytest.raises(InputError, match=words):
        use(vae.model, vae.guide, x)
    vae.missing = True
    x[4, 5] = math.inf
    with pytest.raises(InputError, match=r"'x' must be finite, got inf at index \(4, 5\)"):
        use(vae.model, vae.guide, x)
    x[4, 5] = 2.0
    with pytest.raises(InputError, match=r"support, .*, got 2.0 at index \(4, 5\)"):
        use(vae.model, vae.guide, x)


def test_data_sets_refuse_nan_unless_told() -> None:
    x = torch.tensor([[0.0, math.nan], [math.inf, 1.0]])
    with pytest.raises(
        InputError, match=r"'x' must be finite, got nan at index \(0, 1\); missing=True takes it"
    ):
        Dataset(x)
    with pytest.raises(InputError, match=r"'x' must be finite, got inf at index \(1, 0\)"):
        Dataset(x, missing=True)
    partly = torch.tensor([[0.0, 1.0, math.nan, 1.0, 0.0, 1.0]])
    for data in (partly, Dataset(partly, missing=True)):
        with pytest.raises(InputError, match="missing=True"):
            fit(small_vae(missing=False), data, epochs=1, progress=False)


def test_a_likelihood_that_is_no_product_of_features_is_refused() -> None:
    class Joint(nn.Module):
        def forward(self, parameters: Tensor) -> dist.Distribution:
            return dist.MultivariateNormal(parameters, torch.eye(6))

    vae = BetaVAE(
        NormalPrior(2), Decoder(MLP(2, 6), Joint()), NormalPosterior(MLP(6, 4)), missing=True
    )
    with pytest.raises(
        InputError,
        match=r"independent given z, a distribution with .to_event\(1\); got Multivariate",
    ):
        vae.model(torch.zeros(3, 6))


def test_a_mask_of_the_data_set_is_its_missing_entries() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    observed = torch.tensor([[True, False, True], [True, True, False]])
    data = Dataset(x).masked(observed)
    assert (
        data.missing
        and torch.equal(torch.isnan(data.x), ~observed)
        and torch.equal(data.x[observed], x[observed])
    )
    with pytest.raises(
        InputError, match=r"must be boolean of the shape of 'x', \(2, 3\), got torch.bool \(3,\)"
    ):
        Dataset(x).masked(observed[0, :1].expand(3))
