"""The calibration of a guide: exact on the linear-Gaussian model, and what it says of wrong ones."""

import json
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import calibrate_guide
from pyro_bvae.evaluation.calibration import GuideCalibration, rank_bands, uniformity_p_value
from pyro_bvae.oracle import LinearGaussian

DIRECTIONS = torch.linalg.qr(
    torch.randn(4, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
)[0] * torch.tensor([2.0, 1.0])
LINEAR = LinearGaussian(DIRECTIONS, 0.7)  # whose best diagonal guide is the exact posterior


def calibrated(
    scale: float = 1.0, mean: float = 1.0, data: float = 1.0, seed: int = 0, **options: object
) -> GuideCalibration:
    vae = LINEAR.amortized_vae(scale_factor=scale, mean_factor=mean)
    x = data * LINEAR.sample(300, seed=100 + seed)
    return calibrate_guide(vae.model, vae.guide, x, seed=seed, **options)  # type: ignore[arg-type]


def test_the_p_value_of_ranks_is_the_share_of_all_as_extreme() -> None:
    """Every sequence of three ranks among two draws, counted."""
    values = {
        ranks: uniformity_p_value(torch.tensor(ranks), 2) for ranks in product(range(3), repeat=3)
    }
    for value in values.values():
        share = sum(other <= value + 1e-12 for other in values.values()) / len(values)
        assert value == pytest.approx(share, abs=1e-12)


def test_bands_hold_the_whole_distribution_function_as_often_as_they_say() -> None:
    places, lower, upper = rank_bands(200, 19)
    drawn = torch.randint(0, 20, (4000, 200), generator=torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(drawn, 20).sum(1).cumsum(-1)[:, :19].double() / 200
    inside = float(((counts >= lower) & (counts <= upper)).all(-1).double().mean())
    assert len(places) == 19 and 0.95 - 4 * 0.0035 < inside < 0.97


def test_an_exact_guide_passes_and_a_narrow_one_does_not() -> None:
    """The reduced form of analysis/guide_calibration.py, which has 200 seeds."""
    exact = [calibrated(seed=seed, num_simulations=300) for seed in range(8)]
    assert sum(each.p_value < 0.05 for each in exact) <= 2
    assert "cannot be told from the posterior" in max(exact, key=lambda r: r.p_value).verdict
    narrow = calibrated(0.8)
    assert narrow.p_value < 1e-6 and "the guide is wrong under the model" in narrow.verdict
    z = narrow.quantities[0]
    assert z.name == "z[0]" and z.coverage.high < 0.9
    assert z.spread is not None and z.spread.low < 1.25 < z.spread.high
    assert "too narrow" in z.fault and "z[0]" in str(narrow)


def test_shifted_means_are_seen_in_the_shift() -> None:
    off = torch.tensor([0.5, 0.0, 0.0, 0.0], dtype=torch.double) @ DIRECTIONS
    vae = LINEAR.amortized_vae()
    with torch.no_grad():
        vae.encoder.network.layers[0].bias += off  # type: ignore[union-attr, operator]
    found = calibrate_guide(vae.model, vae.guide, LINEAR.sample(50), num_simulations=400)
    shift = found.quantities[0].shift
    exact = float(-off[0] * LINEAR.precision()[0, 0].sqrt())
    assert shift is not None and shift.low < exact < shift.high and shift.high - shift.low < 0.3


def test_a_guide_that_returns_the_prior_is_found_by_the_likelihood_alone() -> None:
    """Its latents have uniform ranks: data are needed to see that it does not read them."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    found = calibrate_guide(LINEAR.amortized_vae().model, guide, LINEAR.sample(50))
    values = {each.name: each.p_value for each in found.quantities}
    assert values["z[0]"] > 0.01 and values["z[1]"] > 0.01
    assert values["log p(x|z)"] < 1e-9 and found.worst.name == "log p(x|z)"


def test_a_model_that_is_wrong_about_the_data_is_told_from_a_guide_that_is_wrong() -> None:
    wide = calibrated(data=1.4)
    assert wide.p_value > 0.05 and wide.data_p_value < 1e-3
    assert "the model is wrong about the data" in wide.verdict
    both = calibrated(0.8)
    assert both.data_p_value > 0.05 and "look like the model's own" in both.verdict


def test_functions_are_ranked_too_and_ties_broken_at_random() -> None:
    functions = {"sign": lambda z: z[..., 0] > 0, "mean": lambda z: z @ DIRECTIONS.T}
    found = calibrated(functions=functions, num_simulations=400)
    names = [each.name for each in found.quantities]
    assert names[2:] == ["sign", *(f"mean[{i}]" for i in range(4)), *names[-2:]]
    sign = found.quantities[2]
    assert sign.spread is None and sign.p_value > 0.01 and found.p_value > 0.01
    narrow = calibrated(0.8, functions=functions)
    assert narrow.quantities[3].p_value < 1e-3


def test_around_the_data_an_exact_guide_agrees_with_itself() -> None:
    right = calibrated(around_data=True, num_simulations=300).around_data
    assert right is not None and right.trusted and right.p_value > 0.01
    wrong = calibrated(0.7, around_data=True, num_simulations=300)
    assert wrong.around_data is not None and wrong.around_data.p_value < 1e-3
    assert "around the data the guide is wrong" in wrong.verdict


def test_numbers_follow_the_seed_and_go_into_a_file() -> None:
    first, again = (calibrated(num_simulations=50, num_draws=19) for _ in range(2))
    assert json.dumps(first.to_dict()) == json.dumps(again.to_dict())
    counts = first.to_dict()["quantities"][0]["counts"]
    assert len(counts) == 20 and sum(counts) == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_simulations": 5}, "'num_simulations' must be at least 20, got 5"),
        ({"functions": {"a": 3}}, "'functions' must map names to callables"),
        ({"functions": {"a": lambda z: z.sum()}}, "function 'a' must return a tensor"),
    ],
)
def test_bad_input_is_refused_in_words(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibrated(**options)  # type: ignore[arg-type]
