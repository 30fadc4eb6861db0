"""Schedules are functions of the epoch: their values, and what they refuse."""

import math

import pytest
import torch

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant, CosineWarmup, Cyclical, LinearWarmup, OneCycle, Schedule
from pyro_bvae.training.schedules import as_schedule
from pyro_bvae.training.settings import Settings


def test_constant_is_constant() -> None:
    assert [Constant(0.3)(epoch, 10) for epoch in (0.0, 3.7, 10.0)] == [0.3] * 3


@pytest.mark.parametrize("number", [2, 2.0, torch.tensor(2.0)])
def test_a_number_is_a_constant_schedule(number: object) -> None:
    assert as_schedule(number) == Constant(2.0)


def test_a_schedule_stays_itself() -> None:
    schedule = LinearWarmup(4.0, 2)
    assert as_schedule(schedule) is schedule


def test_linear_warmup_is_a_straight_line_and_then_constant() -> None:
    schedule = LinearWarmup(4.0, 10, start=1.0)
    assert [schedule(epoch, 40) for epoch in (0, 2.5, 5, 10, 11, 40)] == [
        1.0,
        1.75,
        2.5,
        4.0,
        4.0,
        4.0,
    ]


def test_cosine_warmup_is_half_a_cosine_and_then_constant() -> None:
    schedule = CosineWarmup(4.0, 10, start=1.0)
    values = [schedule(epoch, 40) for epoch in (0, 2.5, 5, 10, 11, 40)]
    assert values == pytest.approx([1.0, 2.5 - 1.5 * math.sqrt(0.5), 2.5, 4.0, 4.0, 4.0])


@pytest.mark.parametrize("epochs", [0, -1, float("nan")])
@pytest.mark.parametrize("warmup", [LinearWarmup, CosineWarmup])
def test_a_warmup_needs_a_length(warmup: type, epochs: float) -> None:
    with pytest.raises(InputError, match=f"'warmup_epochs' must be positive, got {epochs}"):
        warmup(1.0, epochs)


def test_cyclical_rises_and_stays_in_each_cycle_and_ends_at_its_value() -> None:
    schedule = Cyclical(2.0, num_cycles=3, rise=0.5)
    values = [schedule(epoch / 2, 6) for epoch in range(13)]  # four points a cycle
    assert values == [*[0.0, 1.0, 2.0, 2.0] * 3, 2.0]
    assert schedule(5.9999, 6) == 2.0
    assert Cyclical(2.0, num_cycles=1, rise=0.25)(1.0, 8) == 1.0


@pytest.mark.parametrize("cycles", [3, 7, 10])
def test_every_cycle_starts_at_nothing_whatever_its_length(cycles: int) -> None:
    for cycle in range(cycles):
        assert Cyclical(1.0, cycles)(float(cycle), cycles) == 0.0


def test_a_cycle_that_only_rises_ends_at_its_value_too() -> None:
    schedule = Cyclical(1.0, num_cycles=2, rise=1.0)
    assert [schedule(epoch, 4) for epoch in (1.0, 1.5, 2.0, 3.0, 4.0)] == [0.5, 0.75, 0.0, 0.5, 1.0]


def test_cycles_that_make_no_sense_are_refused() -> None:
    for count in (0, -1, 1.5, True):
        with pytest.raises(
            InputError, match=f"'num_cycles' must be a positive integer, got {count}"
        ):
            Cyclical(1.0, count)
    for rise in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"'rise' must lie in \(0, 1\], got"):
            Cyclical(1.0, rise=rise)


def train(beta: Schedule, epochs: int) -> list[float]:
    decoder = Decoder(MLP(1, 2, hidden=()), NormalLikelihood())
    vae = BetaVAE(NormalPrior(1), decoder, NormalPosterior(MLP(2, 2, hidden=())))
    return fit(
        vae, 9 * torch.eye(4)[:, :2], beta=beta, epochs=epochs, batch_size=2, progress=False
    )["beta"]


def test_fit_takes_them_for_beta_and_warns_of_what_is_not_reached() -> None:
    with pytest.warns(
        UserWarning,
        match=r"outlives the training: it ends at β = 2, not at 4; train for more than 2",
    ):
        train(CosineWarmup(4.0, 4), 2)
    assert train(CosineWarmup(4.0, 1), 2) == [
        pytest.approx(2.0),
        4.0,
    ]  # at the last of two steps an epoch
    assert train(Cyclical(4.0, num_cycles=2), 2) == [4.0, 4.0]


@pytest.mark.parametrize(
    "schedule", [CosineWarmup(-1.0, 1), Cyclical(-1.0), Cyclical(float("nan"))]
)
def test_an_impossible_beta_is_refused(schedule: Schedule) -> None:
    with pytest.raises(InputError, match="'beta' must be non-negative and finite, got"):
        train(schedule, 2)


def test_one_cycle_rises_to_its_value_and_falls_to_nearly_nothing() -> None:
    schedule = OneCycle(2.0, rise=0.25, start_factor=0.1, end_factor=0.01)
    values = [schedule(epoch, 8) for epoch in range(9)]
    assert values[0] == pytest.approx(0.2)
    assert values[1] == pytest.approx((0.2 + 2.0) / 2)  # half way up a half cosine
    assert values[2] == pytest.approx(2.0)
    assert values[5] == pytest.approx((2.0 + 0.02) / 2)
    assert values[8] == pytest.approx(0.02)
    assert values[:3] == sorted(values[:3])
    assert values[2:] == sorted(values[2:], reverse=True)


def test_one_cycle_is_that_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    steps = 50
    # Torch counts from the first step to the last, we from the first to the end of the last.
    stock = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=steps + 1, pct_start=(0.3 * steps + 1) / (steps + 1),
        div_factor=25.0, final_div_factor=400.0, cycle_momentum=False,
    )  # fmt: skip
    schedule = OneCycle(2.0)
    for step in range(steps + 1):
        assert schedule(step / 10, 5) == pytest.approx(stock.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < steps:
            stock.step()


def test_one_cycle_may_fall_from_the_start_but_not_rise_to_the_end() -> None:
    assert OneCycle(1.0, rise=0.0)(0.0, 10) == 1.0
    for rise in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"'rise' must lie in \[0, 1\), got"):
            OneCycle(1.0, rise=rise)


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_an_impossible_learning_rate_is_refused(value: float) -> None:
    for rate in (value, Constant(value)):
        with pytest.raises(
            InputError, match=f"'learning_rate' must be non-negative and finite, got {value}"
        ):
            fit(torch.nn.Linear(1, 1), torch.zeros(1, 1), learning_rate=rate)


def test_schedules_of_a_long_training_are_looked_at_now_and_then_and_as_it_goes() -> None:
    seen: list[float] = []

    def schedule(epoch: float, epochs: int) -> float:
        seen.append(epoch)
        return -1.0 if epoch == 1 else 1.0

    settings = Settings(10_000_000, beta=schedule, learning_rate=Constant(0.1))
    assert len(seen) <= 1001 and (seen[0], seen[-1]) == (0, 10_000_000)
    with pytest.raises(InputError, match=r"'beta' must be non-negative and finite, got -1\.0"):
        settings.check_schedules(1)
    decoder = Decoder(MLP(1, 2, hidden=()), NormalLikelihood(0.1))
    vae = BetaVAE(NormalPrior(1), decoder, NormalPosterior(MLP(2, 2, hidden=())))
    with pytest.raises(
        InputError, match=r"'learning_rate' must be non-negative and finite, got -1"
    ):
        fit(vae, torch.eye(2), learning_rate=schedule, epochs=5000, progress=False)
