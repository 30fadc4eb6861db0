"""Expression behind counts: closed forms, planted changes, and labels that mean nothing."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.evaluation import differential_expression
from pyro_bvae.evaluation.expression import corrected_expression
from pyro_bvae.evaluation.expression.differential import compared
from pyro_bvae.evaluation.expression.sums import ExpressionSums, units_of
from pyro_bvae.likelihoods import NormalLikelihood, PoissonLikelihood, SoftmaxRate
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

N, D, L, BATCHES = 40, 4, 2, 2
GENERATOR = torch.Generator().manual_seed(0)


def linear_vae(shift: float = 0.0) -> tuple[BetaVAE, Tensor, Tensor]:
    """Return x = W z + V c + noise, with a guide that is the posterior but for a shift."""
    weight, effect = torch.randn(D, L, generator=GENERATOR), torch.tensor([[0.0, 2.0]] * D)
    decoder = nn.Linear(L + BATCHES, D, bias=False)
    decoder.weight.data = torch.cat([weight, effect], 1)
    precision = torch.eye(L) + weight.T @ weight
    covariance = torch.linalg.inv(precision)
    encoder = nn.Linear(D + BATCHES, 2 * L)
    gain = covariance @ weight.T
    encoder.weight.data.zero_()
    encoder.weight.data[:L] = torch.cat([gain, -gain @ effect], 1)
    encoder.bias.data = torch.cat([torch.full((L,), shift), covariance.diagonal().sqrt().log()])
    vae = BetaVAE(
        NormalPrior(L),
        Decoder(decoder, NormalLikelihood(1.0), num_covariates=BATCHES),
        NormalPosterior(encoder, num_covariates=BATCHES),
    )
    return vae, gain, effect


def batched(vae: BetaVAE, effect: Tensor) -> Dataset:
    covariates = torch.eye(BATCHES)[torch.arange(N) % BATCHES]
    z = torch.randn(N, L, generator=GENERATOR)
    mean = vae.decoder(z, Context(covariates=covariates)).mean
    return Dataset(
        mean.detach() + torch.randn(N, D, generator=GENERATOR), Context(None, covariates)
    )


def test_expression_is_the_posterior_mean_in_the_context_of_reference() -> None:
    vae, gain, effect = linear_vae(shift=0.5)  # a guide that is off: weights put it right
    data = batched(vae, effect)
    weight = vae.decoder.network.weight[:, :L].detach()
    z = (data.x - data.context.covariates @ effect.T) @ gain.T
    own = z @ weight.T + data.context.covariates @ effect.T
    found = corrected_expression(vae, data, num_samples=4000)
    error = 5 * weight.norm(dim=1) / math.sqrt(1000)  # of a quarter of the draws effective
    assert ((found - own).abs() < error).all()
    moved = corrected_expression(vae, data, references=[[0.0, 1.0]], num_samples=4000)
    assert torch.allclose(
        moved - found, (2 - data.context.covariates @ effect.T).double(), atol=1e-5
    )
    average = corrected_expression(vae, data, references=torch.eye(2), num_samples=4000)
    assert torch.allclose(average, moved - 1, atol=1e-5)


class Blocks:
    """A table that knows how many of its rows were asked for at once."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.most = x, x.shape, 0

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(rows))
        return self.x[rows]


def counts_vae(seed: int = 0, genes: int = 6) -> BetaVAE:
    torch.manual_seed(seed)
    return BetaVAE(
        NormalPrior(L),
        Decoder(MLP(L, genes, (8,)), PoissonLikelihood(SoftmaxRate())),
        NormalPosterior(MLP(genes, 2 * L, (8,)), inputs=torch.log1p),
    )


def counts(rows: int = 60, genes: int = 6) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    rates = torch.linspace(1, 9, genes).repeat(rows, 1)
    rates[rows // 2 :, 0] *= 4  # in the second half, the first gene is up
    x = torch.poisson(rates, generator=generator)
    return Dataset(x, Context(torch.ones(rows, 1)), feature_names=tuple("abcdef")[:genes])


def test_cells_pass_in_blocks_and_the_result_is_that_of_all_at_once() -> None:
    data = counts(3000)
    table = Blocks(data.x.numpy())
    lazy = LazyDataset(table, context=data.context)
    groups = (np.arange(3000) >= 1500).astype(int)
    found = differential_expression(counts_vae(), lazy, groups, num_samples=10)
    assert table.most <= 1024 and found.num_cells == (1500, 1500)
    whole = differential_expression(counts_vae(), data, groups, num_samples=10)
    assert np.allclose(found.log_fold_change, whole.log_fold_change, atol=1e-4)


def test_a_wrong_model_is_corrected_by_the_counts() -> None:
    groups = torch.arange(400) // 200
    found = differential_expression(counts_vae(), counts(400), groups, num_samples=20)
    truth = np.array([2.0, 0, 0, 0, 0, 0])  # a size factor of 1: expression is the rate
    assert abs(found.posterior[0] - 2) > 1  # of an untrained model
    away = np.abs(found.log_fold_change - truth) / found.standard_error
    assert away.max() < 3.5 and found.called.tolist() == [True] + [False] * 5
    assert "1 of 6 features changed" in str(found) and "a +" in str(found)
    assert list(found.table()["feature"]) == list("abcdef") and found.bias > 0.5


def sums_of(
    posterior: Tensor, observed: Tensor, groups: Tensor, donors: Tensor | None = None
) -> ExpressionSums:
    units, unit = units_of(groups, donors)
    sums = ExpressionSums(units, posterior.shape[1], donors is not None)
    for rows in torch.arange(len(groups)).split(7):
        sums.add(posterior[rows], observed[rows], unit[rows])
    return sums


def lognormal(rows: int, genes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.5 * torch.randn(rows, genes, generator=generator, dtype=torch.double)).exp()


def test_sums_over_blocks_are_those_of_the_whole() -> None:
    x, y = lognormal(50, 3, 0), lognormal(50, 3, 1)
    groups = torch.arange(50) % 3 - 1  # a third is left out
    sums = sums_of(x, y, groups)
    for group in (0, 1):
        own, other = x[groups == group], y[groups == group]
        assert torch.allclose(sums.means[group], torch.stack([own.mean(0), other.mean(0)]))
        expected = torch.stack(
            [
                own.var(0),
                other.var(0),
                torch.stack([own, other]).sub(sums.means[group][:, None]).prod(0).sum(0)
                / (len(own) - 1),
            ]
        )
        assert torch.allclose(sums.products[group] / (len(own) - 1), expected)


def test_errors_are_those_of_the_delta_method_and_of_paired_donors() -> None:
    x = lognormal(400, 3, 2)
    groups = torch.arange(400) % 2
    change = sums_of(x, x, groups).change()
    errors = [x[groups == g].std(0) / math.sqrt(200) / x[groups == g].mean(0) for g in (0, 1)]
    assert torch.allclose(change.standard_error, torch.hypot(*errors) / math.log(2))
    assert change.bias == 0 and torch.allclose(change.observed, change.posterior)
    donors = torch.arange(400) // 2 % 8
    paired = sums_of(x, x, groups, donors).change()
    means = torch.stack(
        [torch.stack([x[(groups == g) & (donors == d)].mean(0) for d in range(8)]) for g in (0, 1)]
    )
    shares = means / means.mean(1, keepdim=True)
    expected = (shares[1] - shares[0]).std(0) / math.sqrt(8) / math.log(2)
    assert torch.allclose(paired.standard_error, expected)
    assert torch.allclose(paired.degrees, torch.full((3,), 7.0, dtype=torch.double))


def test_a_bias_is_found_and_intervals_hold_with_it() -> None:
    generator, held = torch.Generator().manual_seed(3), []
    for seed in range(20):
        truth = lognormal(600, 40, seed)
        noisy = torch.poisson(10 * truth, generator=generator) / 10
        bias = torch.randn(40, generator=generator, dtype=torch.double) * 0.3 * math.log(2)
        groups = torch.arange(600) // 300
        model = truth * torch.where(groups[:, None] == 1, bias.exp(), 1.0)
        found = compared(sums_of(model, noisy, groups), 0.0, 0.05)
        assert 0.25 < found.bias < 0.6  # an upper limit of 0.3
        held.append(((found.lower <= 0) & (found.upper >= 0)).mean())
    share = np.mean(held)  # of 800 intervals
    assert share > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 800)


@pytest.mark.parametrize("by_donor", [False, True])
def test_permuted_labels_call_any_gene_in_a_tenth_of_the_permutations(by_donor: bool) -> None:
    cells, donors = lognormal(240, 30, 4), torch.arange(240) // 20
    own = lognormal(12, 30, 5)[donors]
    x = cells * own if by_donor else cells
    generator, calls = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        groups = torch.randperm(240, generator=generator) % 2
        if by_donor:
            groups = (torch.randperm(12, generator=generator) % 2)[donors]
        units, unit = units_of(groups, donors if by_donor else None)
        sums = ExpressionSums(units, 30, by_donor)
        sums.add(x, torch.poisson(20 * x, generator=generator) / 20, unit)
        calls += bool(compared(sums, 0.0, 0.05).called.any())
    assert calls <= 20


def test_the_threshold_is_a_hypothesis_of_its_own() -> None:
    x = lognormal(200, 1, 6)
    groups = torch.arange(200) % 2
    sums = sums_of(x * (1 + groups[:, None]), x * (1 + groups[:, None]), groups)
    found = compared(sums, 0.0, 0.05)
    t = found.log_fold_change / found.standard_error
    degrees = sums.change().degrees
    assert np.allclose(found.p_value, 2 * scipy.stats.t.sf(np.abs(t), degrees))
    assert compared(sums, 5.0, 0.05).p_value > 0.99 and found.called.all()


def test_bad_groups_and_donors_are_refused_in_one_line() -> None:
    vae, data = counts_vae(), counts(6)
    groups = [0, 0, 0, 1, 1, 1]
    for values, options, words in (
        ([0, 1, 1, 1, 1, 1], {}, "at least 2 cells of each group, got 1"),
        ([0, 0, 0, 1, 1, 2], {}, "'groups' must be whole numbers from -1 to 1, got 2 at index 5"),
        ([0, 1], {}, r"'groups' must have shape \(6,\)"),
        (groups, {"donors": [0, 0, 1, 1, 2, 3]}, "1 of 4 in both"),
        (groups, {"donors": [0, 0, 0, 1, 2, 3]}, "at least 2 in each group, got 1"),
        (groups, {"references": [[1.0]]}, "'references' must be rows of the 0 covariates"),
        (groups, {"threshold": -1.0}, "'threshold' must be non-negative"),
        (groups, {"level": 1.5}, "'level' must lie between 0 and 1"),
    ):
        with pytest.raises(InputError, match=words):
            differential_expression(vae, data, values, num_samples=5, **options)
    with pytest.raises(InputError, match="'vae' must be a model of counts"):
        differential_expression(linear_vae()[0], data, groups)
