"""What is made of weights: held to brute force, to known means, and to ArviZ's own smoothing."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyro_bvae import evidence
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.estimate import pareto_k_limit
from pyro_bvae.evaluation.marginal import averages
from pyro_bvae.evaluation.marginal.blocks import EvidenceBlock, join_evidence
from pyro_bvae.oracle import LinearGaussian


def leave_out(log_weights: Tensor, count: int) -> Tensor:
    """The log average weight, averaged over all subsets that leave so many out.

    Sums over the others, one by one.
    """
    num_samples = len(log_weights)
    subsets = torch.tensor(
        list(itertools.combinations(range(num_samples), count)), dtype=torch.long
    )
    kept = torch.ones(len(subsets), num_samples, dtype=torch.bool).scatter(1, subsets, False)
    inside = torch.where(kept.unsqueeze(-1), log_weights, -torch.inf).logsumexp(1)
    return (inside - math.log(num_samples - count)).mean(0)


def brute_force(log_weights: Tensor, order: int) -> Tensor:
    k, none_out, one_out = len(log_weights), leave_out(log_weights, 0), leave_out(log_weights, 1)
    if order == 1:
        return k * none_out - (k - 1) * one_out
    return (
        0.5 * k**2 * none_out
        - (k - 1) ** 2 * one_out
        + 0.5 * (k - 2) ** 2 * leave_out(log_weights, 2)
    )


def weights(num_samples: int) -> Tensor:
    """Log weights of three data, ``(K, 3)``: of a normal spread, one dominating, all equal."""
    spread = torch.randn(num_samples, dtype=torch.double)
    dominated = 0.3 * torch.randn(num_samples, dtype=torch.double)
    dominated[num_samples // 2] = 7.0 + math.log(
        num_samples
    )  # a thousand times all others together
    return torch.stack([spread, dominated, torch.full((num_samples,), 0.4, dtype=torch.double)], 1)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("num_samples", [6, 7, 12, 64, 65, 66, 150])
def test_the_jackknife_is_that_of_all_subsets(num_samples: int, order: int) -> None:
    """64 weights are gone through pair by pair, those beyond are a series."""
    log_weights = weights(num_samples)
    average = averages.jackknife(order)(log_weights)
    expected = brute_force(log_weights, order)
    assert torch.allclose(average.value, expected, rtol=0, atol=1e-10)
    assert average.value[2] == pytest.approx(0.4, abs=1e-10)
    assert (average.bias == 0).all()


def test_the_jackknife_knows_no_units() -> None:
    log_weights = weights(80)
    for order in (1, 2):
        average = averages.jackknife(order)
        assert torch.allclose(
            average(log_weights - 4000).value, average(log_weights).value - 4000, atol=1e-9
        )


def test_the_jackknife_of_one_weight_that_is_all_is_finite() -> None:
    log_weights = torch.full((30, 1), -5000.0, dtype=torch.double)
    log_weights[4] = 3.0
    for order in (1, 2):
        assert torch.isfinite(averages.jackknife(order)(log_weights).value).all()


def test_the_jackknife_removes_the_bias() -> None:
    """Log-normal weights of mean 1.

    The log of their average is low by about var / 2K, and corrected by less.
    """
    num_samples, replicates = 25, 40_000
    log_weights = torch.randn(num_samples, replicates, dtype=torch.double) - 0.5
    log_weights = log_weights.clamp(max=8)  # no effect on a mean that can be measured
    biases = []
    for average in (averages.plain, averages.jackknife(1), averages.jackknife(2)):
        values = average(
            log_weights[:20]
        ).value  # too few for a tail, which would be fitted to each of them
        error = float(values.std()) / math.sqrt(replicates)
        assert error < 0.002
        biases.append(abs(float(values.mean())))
    leading = (math.e - 1) / 40
    assert biases[0] == pytest.approx(leading, rel=0.25)
    assert biases[1] < 0.5 * biases[0]
    assert biases[2] < 0.75 * biases[1]


@pytest.mark.parametrize(("order", "num_samples"), [(1, 1), (2, 1), (2, 2)])
def test_too_few_weights_for_a_jackknife_are_refused(order: int, num_samples: int) -> None:
    message = f"the jackknife of order {order} needs more than {order} samples, got {num_samples}"
    with pytest.raises(InputError, match=message):
        averages.jackknife(order)(torch.zeros(num_samples, 4))


@pytest.mark.parametrize("order", [0, 3, 1.5, None])
def test_there_are_two_jackknives(order: object) -> None:
    with pytest.raises(InputError, match="'order' of the jackknife must be 1 or 2, got"):
        averages.jackknife(order)


# -- errors and biases
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("average", "num_samples"),
    [
        (averages.plain, 20),
        (averages.jackknife(1), 200),
        (averages.jackknife(2), 200),
        (averages.pareto_smoothed, 200),
    ],
    ids=["plain", "jackknife 1", "jackknife 2", "pareto smoothed"],
)
def test_the_error_is_the_spread_of_replicates(
    average: averages.Averaging, num_samples: int
) -> None:
    replicates = 600
    log_weights = 0.5 * torch.randn(num_samples, replicates, dtype=torch.double)
    result = average(log_weights)
    spread = result.value.std()
    # The standard error of a standard deviation, four times, and that of the mean of the claimed
    # ones.
    allowed = (
        4 / math.sqrt(2 * replicates)
        + 4 * float(result.error.std() / result.error.mean()) / replicates**0.5
    )
    assert float(result.error.square().mean().sqrt() / spread) == pytest.approx(1, abs=allowed)


def test_degrees_of_freedom_are_those_of_the_kurtosis() -> None:
    samples = torch.zeros(200, 3, dtype=torch.double)
    samples[:, 0] = torch.randn(200, dtype=torch.double)
    samples[7, 1] = 5.0  # one of 200: of kurtosis (1 - 3 p (1 - p)) / p (1 - p)
    degrees = averages.degrees_of_freedom(samples)
    assert 100 < float(degrees[0]) <= 199
    share = 0.005 * 0.995
    assert float(degrees[1]) == pytest.approx(400 / ((1 - 3 * share) / share - 1))
    assert float(degrees[2]) == 199  # equal ones
    # Degrees over the tenth percentile of their chi-square, by tables: 20.599 and 0.2107.
    limits = averages.variance_limit(torch.tensor([30.0, 2.0]), 0.1)
    assert limits.tolist() == pytest.approx([1.4564, 9.4912], rel=1e-4)


def test_a_trusted_error_is_that_of_the_largest_likely_spread() -> None:
    """Log-normal weights of which about 240 of 1,000 are effective.

    Those that are trusted drew few large weights, so that their values and usual errors are small.
    """
    log_weights = 1.2 * torch.randn(1000, 1500, dtype=torch.double) - 0.72
    block = EvidenceBlock.from_log_weights(log_weights, has_tails=True)
    usual = averages.plain(log_weights).error
    sure = block.reliable
    assert 600 < int(sure.sum()) < 1500
    assert torch.equal(block.error[~sure], usual[~sure]) and (block.error[sure] > usual[sure]).all()

    def covered(error: Tensor) -> float:
        inside = block.value.abs() <= 1.96 * torch.hypot(error, block.bias)
        return float(inside[sure].double().mean())

    assert covered(usual) + 0.02 < covered(block.error)
    assert 0.93 < covered(block.error) < 0.97


def test_the_bias_of_the_plain_average_is_what_it_says() -> None:
    log_weights = 0.6 * torch.randn(24, 30_000, dtype=torch.double) - 0.18
    average = averages.plain(log_weights)
    low = -float(average.value.mean())
    error = float(average.value.std()) / math.sqrt(30_000)
    assert low > 8 * error
    assert float(average.bias.mean()) == pytest.approx(low, rel=0.15)


def test_one_sample_has_no_error_and_is_not_trusted() -> None:
    log_weights = torch.tensor([[0.3, -2.0]])
    average = averages.plain(log_weights)
    assert torch.equal(average.value.float(), log_weights[0])
    assert torch.isnan(average.error).all() and (average.bias == 0).all()
    assert join_evidence([EvidenceBlock.from_log_weights(log_weights)], 1).untrusted == 2


def test_the_bias_counts_in_the_error_of_an_estimate() -> None:
    """Errors shrink with the number of data, a bias does not."""
    log_weights = torch.randn(50, 400, dtype=torch.double)
    plain, corrected = (
        Estimate.over_data(*average(log_weights)[:3])
        for average in (averages.plain, averages.jackknife(1))
    )
    average = averages.plain(log_weights)
    noise = float(average.error.square().sum().sqrt()) / 400
    assert corrected.monte_carlo_error == pytest.approx(noise)
    assert plain.monte_carlo_error == pytest.approx(math.hypot(noise, float(average.bias.mean())))
    assert plain.monte_carlo_error > 1.3 * noise
    assert plain.value < 0.5 - 0.5 * float(average.bias.mean())
    low, high = plain.interval
    assert (high - low) / 2 == pytest.approx(
        1.96 * plain.monte_carlo_error
    ) and low + high == pytest.approx(2 * plain.value)


# -- Pareto smoothing
# ---------------------------------------------------------------------------------------------


def arviz_psislw(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """ArviZ's normalised smoothed log weights and k of one datum, ``(K,)``.

    Of 1.x the weights' logs are negated.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz import psislw

        smoothed, k = psislw(log_weights.numpy())
    else:
        smoothed, k = array_stats.psislw(-log_weights.numpy())
    return torch.as_tensor(smoothed), torch.as_tensor(k)


def test_smoothing_is_that_of_arviz() -> None:
    generator = torch.Generator().manual_seed(3)
    # Weights of a guide whose variance is s times the posterior's have tails of k = 1 - s.
    noise = torch.randn(1000, generator=generator, dtype=torch.double)
    for ratio, offset in ((0.9, 0.0), (0.5, -300.0), (0.2, 40.0)):
        log_weights = 0.5 * (1 - ratio) * noise.square() + offset
        average = averages.pareto_smoothed(log_weights.unsqueeze(-1))
        smoothed, k = arviz_psislw(log_weights)
        # The body is not smoothed: the median weight says by how much ArviZ has shifted all of
        # them.
        median = log_weights.argsort()[500]
        smoothed = smoothed + (log_weights[median] - smoothed[median])
        expected = smoothed.logsumexp(0) - math.log(1000)
        assert float(average.value) == pytest.approx(float(expected), abs=1e-9)
        assert float(average.pareto_k) == pytest.approx(float(k), abs=1e-9)
        assert float(average.pareto_k) == pytest.approx(
            float(averages.plain(log_weights[:, None]).pareto_k)
        )
        assert float(smoothed.max()) <= float(log_weights.max()) + 1e-9
        moved = abs(float(expected - log_weights.logsumexp(0)) + math.log(1000))
        assert moved > 1e-5
        assert float(average.bias) == pytest.approx(
            moved + 0.5 * float(average.error) ** 2, abs=1e-9
        )


def test_constant_weights_are_those_of_a_perfect_guide() -> None:
    log_weights = torch.full((40, 3), -700.25, dtype=torch.double)
    average = averages.pareto_smoothed(log_weights)
    assert (
        (average.value == -700.25).all()
        and (average.error == 0).all()
        and (average.bias == 0).all()
    )
    assert (average.pareto_k == 0).all()
    assert join_evidence([EvidenceBlock.from_log_weights(log_weights)], 40).trusted


@pytest.mark.parametrize(
    "average", [averages.plain, averages.pareto_smoothed], ids=["plain", "pareto smoothed"]
)
def test_weights_of_zero_are_no_tail_and_infinite_ones_are_never_trusted(
    average: averages.Averaging,
) -> None:
    log_weights = torch.randn(200, 3, dtype=torch.double)
    log_weights[:100, 1] = -torch.inf
    log_weights[5, 2] = torch.inf
    result = average(log_weights)
    expected = float(log_weights[100:, 1].logsumexp(0)) - math.log(200)
    assert float(result.value[1]) == pytest.approx(
        expected, abs=1e-9 if average is averages.plain else 0.05
    )
    assert float(result.value[2]) == torch.inf
    assert torch.isfinite(result.pareto_k).tolist() == [True, True, False]
    estimate = join_evidence([EvidenceBlock.from_log_weights(log_weights, average)], 200)
    assert estimate.reliable is not None and not bool(estimate.reliable[2]) and not estimate.trusted


@pytest.mark.parametrize(
    ("num_samples", "limit"), [(10, 0.0), (100, 0.5), (1000, 2 / 3), (2155, 0.7), (10**6, 0.7)]
)
def test_fewer_samples_must_have_lighter_tails(num_samples: int, limit: float) -> None:
    assert pareto_k_limit(num_samples) == pytest.approx(limit)


def test_one_sample_is_never_enough() -> None:
    assert pareto_k_limit(1) == -math.inf
    assert pareto_k_limit(2154) < 0.7


# -- the estimate
# -------------------------------------------------------------------------------------------------


def test_an_estimate_is_trusted_where_all_of_it_can_be() -> None:
    values, sure = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, True])
    good = Estimate.over_data(values, torch.full((3,), 0.3), reliable=sure)
    assert (
        good.trusted
        and good.untrusted == 0
        and good.monte_carlo_error == pytest.approx(0.3 / math.sqrt(3))
    )
    assert good.interval == pytest.approx((2 - 1.96 * 0.3 / 3**0.5, 2 + 1.96 * 0.3 / 3**0.5))
    assert Estimate.over_data(values).trusted  # a closed form has no weights
    one_off = Estimate.over_data(values, reliable=torch.tensor([True, False, True]))
    assert not one_off.trusted and one_off.untrusted == 1
    assert not Estimate.over_data(torch.tensor([1.0, math.nan]), reliable=sure[:2]).trusted
    assert not Estimate.over_data(values, torch.full((3,), math.nan), reliable=sure).trusted
    assert not Estimate.over_data(torch.tensor([1.0, -math.inf])).trusted


def test_the_cost_is_counted_in_decoder_evaluations() -> None:
    linear = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0]]), 0.7)
    vae, x = linear.amortized_vae(), linear.sample(600)  # two blocks
    rows = []
    vae.decoder.register_forward_hook(
        lambda _module, inputs, _output: rows.append(inputs[0][..., 0].numel())
    )
    probes = {}
    for num_samples in (1, 40):
        rows.clear()
        estimate = evidence(vae.model, vae.guide, x, num_samples=num_samples)
        probes[num_samples] = sum(rows) - estimate.cost
        assert estimate.cost == 600 * num_samples and estimate.num_samples == num_samples
    assert (
        probes[1] == probes[40]
    )  # what looking the program over costs, whatever the number of samples
