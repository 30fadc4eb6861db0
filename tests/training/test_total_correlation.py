"""Total correlation: the parts of the KL against loops in SciPy, unbiased weights, the plain bound,
SVI and fit."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import NOISE_STREAM, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior, StudentTPrior
from pyro_bvae.training import Constant, GivenNoise, LinearWarmup, Loss, Terms, TotalCorrelation
from pyro_bvae.training.objectives.kl import find_latent
from pyro_bvae.training.objectives.total_correlation import minibatch_weights, stratified_weights

WEIGHT = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]], dtype=torch.double)
SIGMA, N, L = 0.6, 6, 2
LINEAR = LinearGaussian(WEIGHT, SIGMA, torch.tensor([0.1, -0.2, 0.3, 0.0]))
BOTH = pytest.mark.parametrize("weights", [stratified_weights, minibatch_weights])
# A guide whose latents are correlated over the data, with the noise of its draws.
LOC = torch.stack([torch.linspace(-1.5, 2, N), torch.linspace(-1.2, 0.8, N) ** 2], -1).double()
SCALE = torch.stack([torch.linspace(0.3, 0.6, N), torch.linspace(0.5, 0.9, N)], -1).double()
NOISE = torch.randn(N, L, dtype=torch.double, generator=torch.Generator().manual_seed(1))
DRAWS = LOC + SCALE * NOISE


def parts_by_hand(
    index: list[int], num_data: int = N, own_at: Callable[[int], int] = lambda row: row
) -> np.ndarray:
    """Return (I, TC, DWKL) of each datum of a batch, ``(3, B)``, by the stratified weights, in
    loops."""
    draws, loc, scale = (part[index].numpy() for part in (DRAWS, LOC, SCALE))
    size, parts = len(index), []
    for row in range(size):
        weights = np.full(size, (num_data - 1) / (num_data * (size - 1)))
        weights[own_at(row)] = 1 / num_data
        logs = norm.logpdf(draws[row], loc, scale)  # of each posterior and latent
        joint = logsumexp(logs.sum(1), b=weights)
        marginals = sum(logsumexp(logs[:, d], b=weights) for d in range(L))
        prior = norm.logpdf(draws[row]).sum()
        parts.append([logs[row].sum() - joint, joint - marginals, marginals - prior])
    return np.array(parts).T


def subsampled(
    index: list[int] | Tensor, beta: float = 1.0, size: int = N
) -> tuple[Callable, Callable]:
    """Return a program on a subsample of the data, without a likelihood."""
    index = torch.as_tensor(index)

    def model() -> None:
        with pyro.plate("data", size, subsample=index), poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))

    def guide() -> None:
        with pyro.plate("data", size, subsample=index), poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(LOC[index], SCALE[index]).to_event(1))

    return model, guide


def parts_of(objective: TotalCorrelation, index: list[int]) -> Tensor:
    """Return the parts that the objective finds in a batch of the data, at the draws that each
    datum has."""
    with GivenNoise({"z": NOISE[index]}):
        ((model_trace, guide_trace),) = objective._get_traces(*subsampled(index), (), {})
    return objective.kl(find_latent(model_trace, guide_trace, None, ()))


def program(latent_prior: Callable, posterior: Callable) -> BetaVAE:
    """A small float64 VAE with a linear decoder and a given prior and guide."""
    return BetaVAE(
        latent_prior, Decoder(MLP(L, 4, hidden=()), NormalLikelihood(SIGMA)), posterior
    ).double()


def normal_vae(seed: int = 0) -> BetaVAE:
    torch.manual_seed(seed)
    return program(NormalPrior(L), NormalPosterior(MLP(4, 2 * L, hidden=())))


# -- the parts and their weights
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beta", [1.0, 0.0, 0.4, 3.0, torch.tensor(2.0).double(), torch.linspace(0, 3, N).double()]
)
@pytest.mark.parametrize(("alpha", "gamma"), [(1.0, 1.0), (0.0, 0.5), (2.0, 0.0)])
@BOTH
def test_on_all_data_the_parts_are_those_of_the_aggregated_posterior(
    weights: Callable, alpha: float, gamma: float, beta: float | Tensor
) -> None:
    x, vae = LINEAR.sample(N), LINEAR.vae(LOC, SCALE)
    objective = TotalCorrelation(N, mutual_information=alpha, dimension_wise=gamma, weights=weights)
    loss, distortion, rate = Loss(vae, objective)(x, None, beta, {"z": NOISE})
    information, correlation, dimension_wise = (
        torch.as_tensor(part) for part in parts_by_hand(list(range(N)))
    )
    residual = (x - LINEAR.bias - DRAWS @ WEIGHT.T) / SIGMA
    torch.testing.assert_close(
        distortion,
        (0.5 * residual**2 + math.log(SIGMA * math.sqrt(2 * math.pi))).sum(),
        atol=1e-9,
        rtol=0,
    )
    expected = alpha * information + beta * correlation + gamma * dimension_wise
    torch.testing.assert_close(loss - distortion, expected.sum(), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        rate, (information + correlation + dimension_wise).sum(), atol=1e-9, rtol=0
    )
    assert not distortion.requires_grad and not rate.requires_grad


def test_the_weights_of_a_draws_own_datum_are_on_the_diagonal() -> None:
    """And not in the first column, where public code has them: by hand, that is something else."""
    index = [4, 0, 5]
    results = parts_of(TotalCorrelation(), index)
    torch.testing.assert_close(results, torch.as_tensor(parts_by_hand(index)))
    assert np.abs(results.numpy() - parts_by_hand(index, own_at=lambda row: 0)).max() > 0.3


def test_the_estimated_aggregate_is_unbiased_over_all_batches() -> None:
    """Of all batches of 3 that hold a datum.

    The mean of q(z) at its draw is the aggregate over all the data.
    """
    log_own = dist.Normal(LOC, SCALE).log_prob(DRAWS).sum(-1)
    estimates: dict[int, list[float]] = {n: [] for n in range(N)}
    for batch in itertools.combinations(range(N), 3):
        index = list(batch)
        information = parts_of(TotalCorrelation(), index)[0]
        for n, density in zip(index, (log_own[index] - information).exp(), strict=True):
            estimates[n].append(float(density))
    pairs = dist.Normal(LOC, SCALE).log_prob(DRAWS.unsqueeze(1)).sum(-1)
    for n, exact in enumerate(pairs.exp().mean(1)):
        assert len(estimates[n]) == 10
        assert np.mean(estimates[n]) == pytest.approx(float(exact), rel=1e-12)
        assert np.std(estimates[n]) > 1e-4


def test_the_order_of_a_batch_is_nothing_to_its_data() -> None:
    order = [3, 1, 0, 2]
    first = parts_of(TotalCorrelation(), [0, 1, 4, 5])
    second = parts_of(TotalCorrelation(), [[0, 1, 4, 5][i] for i in order])
    torch.testing.assert_close(second, first[:, order])


@pytest.mark.parametrize(("size", "num_data"), [(2, 5), (100, 2000), (7, 7), (2, 2)])
def test_stratified_weights_are_chen_s_on_average(size: int, num_data: int) -> None:
    own, other = stratified_weights(size, num_data)
    m = size - 1
    mean = (
        (m - 1) / m + (num_data - m) / (num_data * m)
    ) / m  # of 1/M for all others but one, and what is left for it
    assert other == pytest.approx(mean, rel=1e-12)
    assert own == 1 / num_data
    assert own + (size - 1) * other == pytest.approx(1, rel=1e-12)
    if size == num_data:
        assert own == other == 1 / num_data
        assert minibatch_weights(size, num_data) == (own, other)


def test_minibatch_weights_are_the_plain_mean_but_for_a_constant() -> None:
    """The values are off by (L - 1) log N of a datum; the gradients are not."""
    vae, x = normal_vae(), LINEAR.sample(N)
    results = []
    for weights in (minibatch_weights, lambda size, num_data: (1 / size, 1 / size)):
        objective = TotalCorrelation(50, weights=weights)
        loss = Loss(vae, objective)(x, None, 3.0, {"z": NOISE}).loss
        results.append((loss, torch.autograd.grad(loss, list(vae.parameters()))))
    (scaled, scaled_gradients), (plain, plain_gradients) = results
    torch.testing.assert_close(
        scaled - plain, torch.tensor(2.0 * N * (L - 1) * math.log(50)).double()
    )
    torch.testing.assert_close(scaled_gradients, plain_gradients)


def test_a_single_datum_has_no_total_correlation() -> None:
    information, correlation, dimension_wise = parts_of(TotalCorrelation(), [2])
    assert float(information) == pytest.approx(0, abs=1e-12)
    assert float(correlation) == pytest.approx(0, abs=1e-12)
    kl = dist.Normal(LOC[2], SCALE[2]).log_prob(DRAWS[2]) - dist.Normal(0.0, 1.0).log_prob(DRAWS[2])
    torch.testing.assert_close(dimension_wise, kl.sum().reshape(1))


# -- the objective
# --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("prior", [NormalPrior, StudentTPrior])
def test_at_weights_of_one_it_is_the_plain_bound(prior: type, weights: Callable) -> None:
    vae, x = program(prior(L), NormalPosterior(MLP(4, 2 * L, hidden=()))), LINEAR.sample(N)
    results = []
    for objective in (
        Trace_ELBO(num_particles=3),
        TotalCorrelation(50, num_particles=3, weights=weights),
    ):
        torch.manual_seed(4)
        loss = objective.loss_and_grads(vae.model, vae.guide, x)
        results.append(
            [torch.tensor(loss), *(parameter.grad.clone() for parameter in vae.parameters())]
        )
        vae.zero_grad()
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)


def test_the_gradient_is_that_of_the_loss_and_reaches_every_parameter() -> None:
    vae, x = normal_vae(), LINEAR.sample(N)
    objective = TotalCorrelation(20, mutual_information=0.5, dimension_wise=2.0)

    def loss() -> Tensor:
        return Loss(vae, objective)(x, None, 4.0, {"z": NOISE}).loss

    gradients = torch.autograd.grad(loss(), list(vae.parameters()))
    for parameter, gradient in zip(vae.parameters(), gradients, strict=True):
        assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 1e-3
        entry, step = parameter.data.view(-1), 1e-6
        with torch.no_grad():
            entry[0] += step
            above = loss()
            entry[0] -= 2 * step
            below = loss()
            entry[0] += step
        assert float(gradient.flatten()[0]) == pytest.approx(
            float(above - below) / (2 * step), rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("told", [None, N])
def test_a_subsampled_plate_tells_its_data_and_stands_for_them(told: int | None) -> None:
    index = [0, 2, 5]
    with GivenNoise({"z": NOISE[index]}):
        loss, _, rate = TotalCorrelation(told, mutual_information=0.5).terms(
            *subsampled(index, beta=3.0)
        )
    information, correlation, dimension_wise = parts_by_hand(index).sum(1)
    assert float(loss) == pytest.approx(
        N / 3 * (0.5 * information + 3 * correlation + dimension_wise)
    )
    assert float(rate) == pytest.approx(N / 3 * (information + correlation + dimension_wise))


def test_dimensions_right_of_the_data_are_latents_and_left_of_it_are_apart() -> None:
    """Two replicas of a program whose latents are a plate.

    Each has the loss of the program with one event.
    """
    locs, scales, noise = (
        torch.stack([LOC, -0.5 * LOC]),
        torch.stack([SCALE, 2 * SCALE]),
        torch.stack([NOISE, -NOISE]),
    )
    betas = torch.tensor([2.0, 5.0], dtype=torch.double)
    zero, one = torch.zeros(L).double(), torch.ones(L).double()
    objective = TotalCorrelation(9, mutual_information=0.5, data_plate="data")

    def apart(loc: Tensor, scale: Tensor) -> None:
        with (
            pyro.plate("replicas", 2, dim=-3),
            pyro.plate("data", N, dim=-2),
            pyro.plate("latents", L, dim=-1),
        ):
            pyro.sample("z", dist.Normal(loc, scale))

    def alone(loc: Tensor, scale: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def terms(program: Callable, loc: Tensor, scale: Tensor, beta: Tensor, noise: Tensor) -> Terms:
        with GivenNoise({"z": noise}), poutine.scale(scale=beta):
            return objective.terms(lambda: program(zero, one), lambda: program(loc, scale))

    together = terms(apart, locs, scales, betas.reshape(2, 1, 1), noise)
    singles = [terms(alone, *given) for given in zip(locs, scales, betas, noise, strict=True)]
    torch.testing.assert_close(together.loss, singles[0].loss + singles[1].loss)
    torch.testing.assert_close(together.rate, singles[0].rate + singles[1].rate)
    assert abs(float(singles[0].loss - singles[1].loss)) > 1


def test_particles_are_averaged() -> None:
    vae, x = normal_vae(), LINEAR.sample(N)
    torch.manual_seed(2)
    together = TotalCorrelation(20, num_particles=3).loss(vae.model, vae.guide, x, None, 0.7)
    torch.manual_seed(2)
    singles = [TotalCorrelation(20).loss(vae.model, vae.guide, x, None, 0.7) for _ in range(3)]
    assert together == pytest.approx(sum(singles) / 3)


def test_a_whole_fit_is_stock_svi() -> None:
    """With a last batch of a single datum."""
    data, schedule, objective = (
        Dataset(LINEAR.sample(17)),
        LinearWarmup(4.0, 1),
        TotalCorrelation(17),
    )
    stock, ours = normal_vae(), normal_vae()
    stock.name = "stock"
    svi = SVI(stock.model, stock.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    losses = []
    for epoch in range(2):
        torch.manual_seed(stream_seed(0, epoch, NOISE_STREAM))
        batches = enumerate(data.batches(8, seed=0, epoch=epoch))
        losses.append(
            sum(svi.step(x, None, schedule(epoch + step / 3, 2)) for step, (x, _) in batches)
            / len(data)
        )
    history = fit(
        ours, data, beta=schedule, epochs=2, batch_size=8, learning_rate=Constant(0.01), gradient_clip=None,
        objective=objective, validation=data, progress=False,
    )  # fmt: skip
    assert history["objective"] == pytest.approx(losses, abs=1e-9)
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-8, rtol=0)
    assert math.isfinite(svi.evaluate_loss(data.x))


def test_a_run_is_resumed_with_its_own_objective_only(tmp_path: Path) -> None:
    options = {"batch_size": 4, "progress": False, "output": tmp_path}
    fit(normal_vae(), LINEAR.sample(8), epochs=1, objective=TotalCorrelation(8), **options)
    for other in (
        TotalCorrelation(8, mutual_information=0.0),
        TotalCorrelation(8, weights=minibatch_weights),
    ):
        with pytest.raises(
            InputError,
            match=r"'objective' was TotalCorrelation\(8, .* weights=stratified_weights\), ",
        ):
            fit(normal_vae(), LINEAR.sample(8), epochs=2, objective=other, resume=True, **options)
    fit(
        normal_vae(),
        LINEAR.sample(8),
        epochs=2,
        objective=TotalCorrelation(8),
        resume=True,
        **options,
    )


# -- what it is for
# --------------------------------------------------------------------------------------------------


def trained_aggregate(
    x: Tensor, objective: TotalCorrelation | None, beta: float
) -> tuple[float, float]:
    """Return total correlation and mean KL of normal data under the identity as a decoder, which is
    not trained."""
    torch.manual_seed(3)
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, 2, hidden=()), NormalLikelihood(0.5)),
        NormalPosterior(MLP(2, 4, hidden=())),
    )
    vae = vae.double()
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            parameter.copy_(torch.eye(2) if "weight" in name else torch.zeros(2))
    vae.decoder.requires_grad_(False)
    fit(
        vae,
        x,
        beta=beta,
        epochs=40,
        batch_size=32,
        learning_rate=0.03,
        objective=objective,
        progress=False,
    )
    with torch.no_grad():
        posterior = vae.encoder(x).base_dist
        covariance = torch.cov(posterior.loc.T, correction=0) + torch.diag(
            posterior.variance.mean(0)
        )
        kl = torch.distributions.kl_divergence(posterior, dist.Normal(0.0, 1.0)).sum(-1).mean()
    return float(0.5 * (covariance.diagonal().log().sum() - covariance.logdet())), float(kl)


def test_it_makes_latents_independent_that_the_bound_leaves_correlated() -> None:
    """The total correlation of what is nearly a normal aggregate, by its covariance.

    And not as the β-bound of that weight does, by forgetting the data.
    """
    mixing = torch.tensor([[1.0, 0.0], [0.9, math.sqrt(1 - 0.9**2)]], dtype=torch.double)
    x = torch.randn(128, 2, dtype=torch.double) @ mixing.T
    plain, plain_kl = trained_aggregate(x, None, 1.0)
    same, _ = trained_aggregate(x, TotalCorrelation(128), 1.0)
    less, less_kl = trained_aggregate(x, TotalCorrelation(128), 8.0)
    _, forgetful_kl = trained_aggregate(x, None, 8.0)
    assert plain > 0.2
    assert same == pytest.approx(plain, rel=1e-6)
    assert less < 0.25 * plain
    assert less_kl > 0.5 * plain_kl > 2 * forgetful_kl


# -- bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 2.0, True])
def test_bad_numbers_of_data_are_refused(value: object) -> None:
    with pytest.raises(InputError, match=f"'num_data' must be a positive integer, got {value!r}"):
        TotalCorrelation(value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", True])
def test_bad_weights_are_refused(value: object) -> None:
    for name in ("mutual_information", "dimension_wise"):
        with pytest.raises(
            InputError, match=f"'{name}' must be non-negative and finite, got {value!r}"
        ):
            TotalCorrelation(5, **{name: value})
    with pytest.raises(
        InputError, match=f"'weights' must be a function of B and N, .* got {value!r}"
    ):
        TotalCorrelation(5, weights=value)


def test_the_number_of_data_must_be_known_and_right() -> None:
    vae, x = normal_vae(), LINEAR.sample(N)
    with pytest.raises(
        InputError,
        match=r"'num_data' must be given, .* batches of 6 .*: plate 'data' is not subsampled",
    ):
        TotalCorrelation().loss(vae.model, vae.guide, x)
    with pytest.raises(
        InputError, match="'num_data' must be at least 6, the number of data of this batch, got 5"
    ):
        TotalCorrelation(5).loss(vae.model, vae.guide, x)
    with pytest.raises(InputError, match="'num_data' must be 6 as plate 'data' has it, got 7"):
        TotalCorrelation(7).loss(*subsampled([0, 1]))


def test_it_needs_products() -> None:
    mixture = program(MixturePrior(L, 3), NormalPosterior(MLP(4, 2 * L, hidden=())))
    with pytest.raises(
        InputError, match=r"the prior \(\w+\) is no product of independent dimensions"
    ):
        TotalCorrelation(N).loss(mixture.model, mixture.guide, LINEAR.sample(N))
    full = program(
        NormalPrior(L), FullRankPosterior(MLP(4, FullRankPosterior.num_outputs(L), hidden=()))
    )
    full.name = "full"
    with pytest.raises(
        InputError, match=r"the guide \(FullRankNormal\) is no product of independent dimensions"
    ):
        TotalCorrelation(N).loss(full.model, full.guide, LINEAR.sample(N))
