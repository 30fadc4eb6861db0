"""Counts: what a table of them must be, and simulated ones against the moments and masses of their
law."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from torch import Tensor

from pyro_bvae import datasets
from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import (
    CountTruth,
    Dataset,
    check_counts,
    negative_binomial_factors,
    negative_binomial_truth,
    with_size_factor,
)

FAMILIES = {
    "negative binomial": {},
    "zero-inflated": {"zero_inflation": 0.3},
    "Poisson": {"dispersion": math.inf},
    "zero-inflated Poisson": {"dispersion": math.inf, "zero_inflation": 0.2},
}


def simulated(**options: float) -> tuple[CountTruth, np.ndarray, np.ndarray]:
    """Return the truth, its means given what was planted, and the counts, all in one order."""
    truth = negative_binomial_truth(8, 2, seed=3, **options)
    data = negative_binomial_factors(20_000, truth=truth, validation=0, test=1, seed=3).train
    return (
        truth,
        (data.context.size_factor * truth.shares(data.factors)).double().numpy(),
        data.x.double().numpy(),
    )


def within(values: np.ndarray, errors: float = 5.0) -> bool:
    """Whether the mean of each column is zero to within so many standard errors."""
    return bool((np.abs(values.mean(0)) < errors * values.std(0) / math.sqrt(len(values))).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_variance_and_zeros_are_those_of_the_law(family: str) -> None:
    truth, mean, x = simulated(**FAMILIES[family])
    theta, extra = truth.dispersion.double().numpy(), truth.zero_inflation.double().numpy()
    assert np.array_equal(x, np.rint(x)) and x.min() == 0
    assert within(x - (1 - extra) * mean)
    # E x² of a count is that of the family, times the share that is not thinned out
    assert within(x**2 - (1 - extra) * (mean + mean**2 / theta + mean**2))
    for count in (0, 1, 3):
        if math.isinf(theta[0]):
            mass = scipy.stats.poisson.pmf(count, mean)
        else:
            mass = scipy.stats.nbinom.pmf(count, theta, theta / (theta + mean))
        assert within((x == count) - ((1 - extra) * mass + extra * (count == 0)))


def test_the_expected_total_is_the_size_factor() -> None:
    data = negative_binomial_factors(5000, validation=0, test=1, seed=1).train
    size_factor = data.context.size_factor
    assert within((data.x.sum(1, keepdim=True) - size_factor).numpy())
    logs = size_factor.log()
    assert abs(logs.mean() - math.log(200)) < 5 * 0.4 / math.sqrt(5000)
    assert abs(logs.std() - 0.4) < 5 * 0.4 / math.sqrt(2 * 5000)


def test_latents_are_standard_normal_without_types() -> None:
    z = negative_binomial_factors(5000, validation=0, test=1).train.factors
    assert (z.mean(0).abs() < 5 / math.sqrt(5000)).all()
    assert ((z.T.cov() - torch.eye(3)).abs() < 5 * math.sqrt(2 / 5000)).all()


def test_types_are_labels_and_lie_around_their_centres() -> None:
    truth = negative_binomial_truth(20, 4, num_types=5, seed=2)
    data = negative_binomial_factors(4000, truth=truth, validation=0, test=1, seed=2).train
    assert data.label_names == tuple(f"type {i}" for i in range(5))
    assert data.labels.dtype == torch.long and set(data.labels.tolist()) == set(range(5))
    residuals = data.factors - truth.centres[data.labels]
    assert abs(residuals.std() - 0.3) < 5 * 0.3 / math.sqrt(2 * residuals.numel())


def test_truth_and_data_are_functions_of_the_seed() -> None:
    one, same, other = (negative_binomial_truth(seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one.weight, same.weight) and torch.equal(one.dispersion, same.dispersion)
    assert not torch.equal(one.weight, other.weight)
    given = negative_binomial_factors(50, truth=one, seed=4)
    assert torch.equal(negative_binomial_factors(50, seed=4).train.x, given.train.x)
    assert not torch.equal(negative_binomial_factors(50, seed=5).train.x, given.train.x)
    # another family has the same weights: tables of families compare the same genes
    assert torch.equal(negative_binomial_truth(seed=4, dispersion=math.inf).weight, one.weight)


def test_the_registry_has_counts() -> None:
    splits = datasets.load("counts", seed=3)
    assert splits.name == "counts" and splits.train.num_features == 50
    assert torch.equal(splits.train.x, negative_binomial_factors(seed=3).train.x)


def test_the_observed_size_factor_is_the_total() -> None:
    splits = negative_binomial_factors(100, observed_size=True, seed=1)
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal(part.context.size_factor, part.x.sum(1, keepdim=True))
    with pytest.raises(InputError, match=r"row .* has no count at all"):
        negative_binomial_factors(100, observed_size=True, library_size=0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_data": 0}, "'num_data' must be at least 1, got 0"),
        ({"library_size": 0.0}, "'library_size' must be positive and finite, got 0.0"),
        ({"library_size": math.inf}, "'library_size' must be positive and finite, got inf"),
        ({"library_scale": -1.0}, "'library_scale' must be non-negative and finite, got -1.0"),
    ],
)
def test_bad_simulations(kwargs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        negative_binomial_factors(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_features": 0}, "'num_features' must be at least 1, got 0"),
        ({"num_types": -1}, "'num_types' must be at least 0, got -1"),
        ({"dispersion": 0.0}, "'dispersion' must be positive, got 0"),
        ({"dispersion": math.nan}, "'dispersion' must be positive, got nan"),
        ({"zero_inflation": 1.0}, r"'zero_inflation' must lie in \[0, 1\), got 1"),
    ],
)
def test_bad_truths(kwargs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        negative_binomial_truth(**kwargs)


def test_a_truth_of_the_wrong_shape() -> None:
    with pytest.raises(InputError, match=r"'bias' must have shape \(4,\), got \(3,\)"):
        CountTruth(
            torch.zeros(4, 2), torch.zeros(3), torch.ones(4), torch.zeros(4), torch.zeros(0, 2)
        )
    with pytest.raises(InputError, match=r"'centres' must have shape \(T, 2\), got \(1, 3\)"):
        CountTruth(
            torch.zeros(4, 2), torch.zeros(4), torch.ones(4), torch.zeros(4), torch.zeros(1, 3)
        )


# -- what counts must be
# --------------------------------------------------------------------------------------


def table(value: float) -> np.ndarray:
    x = np.arange(12, dtype=np.float64).reshape(4, 3)
    x[2, 1] = value
    return x


KINDS = {
    "array": lambda x: x,
    "tensor": torch.from_numpy,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "sparse array": sp.csr_array,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, r"counts in 'x' must be non-negative, got -1 at index \(2, 1\)"),
        (2.5, r"counts in 'x' must be whole numbers, .*got 2.5 at index \(2, 1\)"),
        (2.0002, r"whole numbers.*got 2.0002 at index \(2, 1\)"),
        (math.inf, r"counts in 'x' must be finite, got inf at index \(2, 1\)"),
        (math.nan, r"counts in 'x' must be finite, got nan at index \(2, 1\)"),
    ],
)
def test_what_is_no_count_is_named(kind: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_counts(KINDS[kind](table(value)))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_pass_with_what_rounding_leaves(kind: str) -> None:
    for value in (0.0, 7.0, 7 + 5e-5, 1e9):
        check_counts(KINDS[kind](table(value)))
    check_counts(np.ones((2, 2), dtype=np.uint8))
    check_counts(torch.full((2, 2), 2.0**30))


def test_errors_of_counts_can_have_names() -> None:
    with pytest.raises(
        InputError, match=r"'raw' .* at index \(12, 1\) \(row 'c12'\) \(column 'Xkr4'\)"
    ):
        check_counts(
            table(-1.0),
            "raw",
            row_names=[f"c{i}" for i in range(20)],
            column_names=["a", "Xkr4", "b"],
            first_row=10,
        )
    with pytest.raises(InputError, match="must hold counts, got type <U1"):
        check_counts(np.array([["a"]]))


def test_the_total_becomes_the_size_factor() -> None:
    covariates = torch.eye(4)
    data = with_size_factor(Dataset(torch.from_numpy(table(4.0)), Context(covariates=covariates)))
    assert data.context.size_factor.flatten().tolist() == [3.0, 12.0, 18.0, 30.0]
    assert torch.equal(data.context.covariates, covariates)
    x: Tensor = torch.ones(3, 2)
    x[1] = 0
    with pytest.raises(InputError, match=r"row 1 has no count at all: .*min_counts=1"):
        with_size_factor(Dataset(x))
    with pytest.raises(InputError, match="non-negative, got -1"):
        with_size_factor(Dataset(-torch.ones(2, 2)))
