"""The mean of a whole set from a designed subsample: a population whose mean is known."""

import math

import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate, stratified_sample
from pyro_bvae.evaluation.stratified import StratifiedSample

SIZES = torch.tensor([3000, 1500, 400, 80, 20])
LABELS = torch.arange(5).repeat_interleave(SIZES)
MEANS, SPREADS = torch.tensor([-200.0, -150, -300, -90, -400]), torch.tensor([10.0, 20, 40, 5, 60])


def population() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    skewed = torch.rand(len(LABELS), generator=generator).log().neg() - 1  # of spread 1
    return (MEANS[LABELS] + SPREADS[LABELS] * skewed).double()


@pytest.mark.parametrize("deviations", [None, SPREADS])
def test_intervals_hold_the_mean_of_the_whole_in_95_of_100(deviations: torch.Tensor | None) -> None:
    values, held, errors = population(), 0, []
    for seed in range(1000):
        sample = stratified_sample(LABELS, 500, deviations=deviations, seed=seed)
        found = sample.mean(values[sample.rows])
        held += abs(found.value - float(values.mean())) <= 1.96 * found.standard_error
        errors.append((found.value, found.standard_error))
    assert abs(held / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)
    means, stated = torch.tensor(errors, dtype=torch.double).T
    assert abs(means.std() / stated.square().mean().sqrt() - 1) < 0.1
    assert abs(means.mean() - values.mean()) < 4 * means.std() / math.sqrt(1000)
    simple = values.std() * math.sqrt((1 - 500 / len(values)) / 500)
    assert stated.mean() < 0.5 * simple  # the labels tell most of the spread


def test_a_sample_is_in_proportion_and_of_everything_has_no_error() -> None:
    sample = stratified_sample(LABELS, 500)
    assert ((torch.bincount(sample.strata) - SIZES / 10).abs() <= 2).all()
    assert torch.equal(LABELS[sample.rows], sample.strata) and len(sample.rows.unique()) == 500
    assert not torch.equal(sample.rows, stratified_sample(LABELS, 500, seed=1).rows)
    whole, values = stratified_sample(LABELS, 5000), population()
    found = whole.mean(values[whole.rows])
    assert math.isclose(found.value, float(values.mean())) and found.standard_error == 0


def test_monte_carlo_errors_are_carried_on() -> None:
    sample = StratifiedSample(torch.arange(4), torch.tensor([0, 0, 1, 1]), torch.tensor([30, 10]))
    own = Estimate.over_data(
        torch.tensor([1.0, 3, 5, 9]), torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.full((4,), 0.5)
    )
    found = sample.mean(own)
    assert found.value == 0.75 * 2 + 0.25 * 7
    variance = 0.75**2 * (1 - 2 / 30) * 2 / 2 + 0.25**2 * (1 - 2 / 10) * 8 / 2
    assert math.isclose(found.standard_error, math.sqrt(variance))
    weights = torch.tensor([0.375, 0.375, 0.125, 0.125])
    noise = float((weights * torch.tensor([0.4, 0.3, 0.2, 0.1])).norm())
    assert math.isclose(found.monte_carlo_error, math.hypot(noise, 0.5), rel_tol=1e-6)


def test_what_cannot_be_chosen_is_refused_in_words() -> None:
    for labels, number, words in (
        (LABELS, 9, "'num_data' must be from 10, 2 of each of 5 strata, to the 5000 data"),
        (LABELS, 5001, "got 5001"),
        (LABELS - 1, 50, "'labels' must be whole numbers from 0"),
        (LABELS[None], 50, r"'labels' must have shape \(N,\), got \(1, 5000\)"),
    ):
        with pytest.raises(InputError, match=words):
            stratified_sample(labels, number)
    with pytest.raises(InputError, match="'deviations' must be 5 finite numbers"):
        stratified_sample(LABELS, 50, deviations=[1.0])
    with pytest.raises(InputError, match="'values' must be of the 50 data"):
        stratified_sample(LABELS, 50).mean(torch.zeros(3))
