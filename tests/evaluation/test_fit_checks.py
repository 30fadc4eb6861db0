"""Predictive checks of any likelihood: right models pass, wrong ones are named."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import predictive_check
from pyro_bvae.evaluation.samples import PredictiveCheck
from pyro_bvae.oracle import LinearGaussian

N, D = 300, 4
RATES = torch.tensor([0.3, 1.0, 2.0, 5.0])
WEIGHT = torch.randn(D, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)

LIKELIHOODS: dict[str, Callable[[Tensor], dist.Distribution]] = {
    "normal": lambda z: dist.Normal(z.unsqueeze(-1) + RATES, 0.5).to_event(1),
    "bernoulli": lambda z: dist.Bernoulli(logits=z.unsqueeze(-1) + RATES - 2).to_event(1),
    "poisson": lambda z: dist.Poisson((0.3 * z).exp().unsqueeze(-1) * RATES).to_event(1),
    "beta": lambda z: dist.Beta(1 + z.exp().unsqueeze(-1), RATES + 1).to_event(1),
    "exponential": lambda z: dist.Exponential((0.2 * z).exp().unsqueeze(-1) * RATES).to_event(1),
}


def drawn(name: str) -> Tensor:
    torch.manual_seed(1)
    return LIKELIHOODS[name](torch.randn(N)).sample()


def checked(name: str, x: Tensor, **options: object) -> PredictiveCheck:
    """Check a model whose guide is its prior, so that both predictives are the same."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            observed = torch.nan_to_num(x, 0.5)
            seen = ~torch.isnan(x)
            likelihood = LIKELIHOODS[name](z)
            base = likelihood.base_dist  # type: ignore[attr-defined]
            pyro.sample("x", base.mask(seen).to_event(1), obs=x if bool(seen.all()) else observed)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return predictive_check(model, guide, x, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_right_model_passes_under_every_likelihood(name: str) -> None:
    found = checked(name, drawn(name))
    assert not found.faults and "no statistic lies" in str(found)
    assert float(found.interval_p_values.min()) > 0.05 / D
    held = found.coverage(0.9)
    assert ((held - 0.9).abs() < 4 * (0.9 * 0.1 / N) ** 0.5).all()
    assert all(float(each.p_value.min()) > 0.015 for each in found.statistics)


def test_too_many_zeros_are_named_with_their_distance() -> None:
    x = drawn("poisson")
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = 0.0
    found = checked("poisson", x)
    zeros = next(each for each in found.statistics if each.name == "share of zeros")
    assert float(zeros.distance.max()) > 10
    assert any("share of zeros of feature" in line and "above" in line for line in found.faults)
    assert found.verdict.startswith("misfit: ")
    assert "predictive intervals of" in " ".join(found.faults)


def test_statistics_by_name_and_as_callables() -> None:
    x = drawn("normal")
    ends = checked("normal", x, statistics=["smallest", "largest", "median", "skewness"])
    assert torch.equal(ends.statistics[0].observed, x.double().amin(0))
    own = checked("normal", x, statistics={"first": lambda x: x[0, 0]}, source="prior")
    assert own.statistics[0].simulated.shape == (99,) and own.source == "prior"
    value = own.statistics[0]
    low = int((value.simulated <= value.observed).sum())
    high = int((value.simulated >= value.observed).sum())
    assert float(value.p_value) == pytest.approx(min(1.0, 2 * (1 + min(low, high)) / 100))


def test_bayesian_p_values_of_the_prior_are_uniform() -> None:
    """Data of the model, again and again: the p-value of their mean is rarely small."""
    linear = LinearGaussian(WEIGHT, 0.5)
    vae = linear.amortized_vae()
    small = 0
    for seed in range(30):
        x = linear.sample(30, seed=seed)
        found = predictive_check(
            vae.model, vae.guide, x, statistics=["spread of totals"], source="prior", seed=seed
        )
        small += float(found.statistics[0].p_value) < 0.2
    assert 1 <= small <= 13  # 6 expected


def test_a_guide_that_saw_the_datum_does_not_spoil_the_intervals() -> None:
    linear = LinearGaussian(WEIGHT, 0.5)
    vae = linear.amortized_vae()
    found = predictive_check(vae.model, vae.guide, linear.sample(400))
    assert float(found.interval_p_values.min()) > 0.05 / D
    narrow = LinearGaussian(0.6 * WEIGHT, 0.5).amortized_vae()
    wrong = predictive_check(narrow.model, narrow.guide, linear.sample(400))
    assert float(wrong.coverage(0.9).min()) < 0.85 and wrong.faults


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_copies": 3}, "'num_copies' must be at least 19, got 3"),
        ({"statistics": ["zeros"]}, "unknown statistic 'zeros'.*share of zeros"),
        ({"statistics": {"a": lambda x: x}}, r"statistic 'a' must return one number"),
        ({"statistics": {"a": 3}}, "'statistics' must map names to callables"),
        ({"source": "guide"}, "'source' must be"),
    ],
)
def test_bad_input_is_refused_in_words(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked("normal", drawn("normal"), **options)
