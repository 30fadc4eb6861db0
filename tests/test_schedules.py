"""Schedules are functions of the epoch: their values, and what they refuse."""

import pytest
import torch

from pyro_bvae import fit
from pyro_bvae.errors import InputError
from pyro_bvae.training import Constant, LinearWarmup, OneCycle
from pyro_bvae.training.schedules import as_schedule


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
    assert [schedule(epoch, 40) for epoch in (0, 2.5, 5, 10, 11, 40)] == [1.0, 1.75, 2.5, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("epochs", [0, -1, float("nan")])
def test_linear_warmup_needs_a_length(epochs: float) -> None:
    with pytest.raises(InputError, match="'warmup_epochs' must be positive, got"):
        LinearWarmup(1.0, epochs)


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
        with pytest.raises(InputError, match=f"'learning_rate' must be non-negative and finite, got {value}"):
            fit(torch.nn.Linear(1, 1), torch.zeros(1, 1), learning_rate=rate)
