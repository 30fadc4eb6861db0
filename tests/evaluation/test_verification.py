"""The suite for a user's own machine: it passes where all is well, and finds what is not."""

import math
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bvae import cli
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate, verification, verification_traps
from pyro_bvae.evaluation.marginal import averages
from pyro_bvae.evaluation.verification import Check, verify
from pyro_bvae.priors import NormalPrior

EVIDENCE = [
    "from the guide", "from the refit", "heavy-tailed", "defensive", "Pareto-smoothed", "jackknife, order 1",
    "jackknife, order 2", "annealed from guide", "annealed from prior", "annealed in reverse",
]  # fmt: skip
GAPS = ["variational", "approximation", "β", "amortization"]
NAMES = [
    *("ELBO", "distortion", "rate"),
    *(f"evidence, {name}" for name in EVIDENCE),
    "difference of the two",
    *(f"{name} gap at β = {beta}" for beta in (1, 2) for name in GAPS),
]
REFUSED = [
    "noise beside the latents", "a guide that is a point", "an observed latent that is drawn",
    "one number for three latents", "a count of -0.5 in row 73",
]  # fmt: skip
TRAPS = [
    *REFUSED,
    "a guide beyond its support",
    *("a guide of 0.5 sd, 0 off", "a guide of 0.5 sd, 0 off", "a guide of 0.7 sd, 1 off"),
    *("annealing in 10 temperatures", "annealing in 60 temperatures"),
    *("refit of 0.01 sd, 3 off", "refit of 0.001 sd, 1 off"),
    *("an encoder in the smaller mode", "a bound with a heavy tail"),
]


@pytest.fixture
def only_importance(monkeypatch):
    """Reduce the suite to importance sampling on the smallest model."""
    parts = tuple(part for part in verification._PARTS if part.what == "importance sampling")
    monkeypatch.setattr(verification, "_PARTS", parts)
    monkeypatch.setattr(verification, "verify", partial(verify, latents=(2,)))


def states(checks):
    return {check.what: check.state for check in checks}


# --- the suite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_estimator_is_right_on_the_smallest_model(dtype):
    checks = verify(dtype=dtype, latents=(2,))
    assert [check.what for check in checks] == [*NAMES, *TRAPS]
    assert all(check.ok for check in checks), states(checks)
    assert all(check.latents == 2 and math.isfinite(check.exact) for check in checks[: len(NAMES)])
    assert {check.what for check in checks if check.state == "refused"} == set(REFUSED)
    beta_gap = next(check for check in checks if check.what == "β gap at β = 2")
    assert beta_gap.exact > 5 * beta_gap.allowed


@pytest.mark.slow
def test_every_estimator_is_right_on_all_models():
    checks = verify(seed=1)
    estimates = [check for check in checks if check.what not in TRAPS]
    assert {check.latents for check in estimates} == {2, 20, 100} and len(checks) == len(
        estimates
    ) + len(TRAPS)
    assert sum(check.latents == 20 for check in checks) == len(NAMES)
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def test_the_suite_leaves_the_callers_generator_and_store_alone(only_importance):
    before = torch.random.get_rng_state()
    first = verify(latents=(2,))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not dict(pyro.get_param_store())
    assert verify(latents=(2,)) == first
    assert verify(latents=(2,), seed=1) != first


def test_rounding_is_allowed_for_by_the_number_type(only_importance):
    rough, fine = verify(latents=(2,)), verify(latents=(2,), dtype=torch.float64)
    rounding = [check.allowed - 4 * check.monte_carlo_error for check in (rough[0], fine[0])]
    assert 1e-6 < rounding[0] < 1e-3
    assert rounding[1] < 1e-12


@pytest.mark.parametrize(
    ("option", "message"), [({"dtype": torch.float16}, "'dtype' must be"), ({"seed": -1}, "'seed")]
)
def test_what_cannot_be_verified_is_refused(option, message):
    with pytest.raises(InputError, match=message):
        verify(**option)


# --- what is off is found


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "ok"),
        ({"estimated": 1.06}, "OFF"),
        ({"estimated": math.nan}, "OFF"),
        ({"allowed": math.nan}, "OFF"),
        ({"trusted": False}, "UNTRUSTED"),
        ({"allowed": 0.11}, "UNSURE"),
        ({"allowed": 0.11, "latents": 100}, "ok"),
    ],
)
def test_a_check_is_ok_if_right_and_trusted_and_sure(change, state):
    check = replace(
        Check("evidence", 2, exact=1.0, estimated=1.04, monte_carlo_error=0.01, allowed=0.05),
        **change,
    )
    assert check.state == state
    assert check.ok == (state == "ok")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"note": "guide site 'a' has noise"}, "refused"),
        ({}, "NOT REFUSED"),
        ({"expected": "right or untrusted", "trusted": False}, "untrusted"),
        ({"expected": "right or untrusted"}, "OFF"),
        ({"expected": "right or untrusted", "estimated": 1.0}, "ok"),
    ],
)
def test_a_trap_is_well_if_it_is_refused_or_called_untrusted(change, state):
    trap = Check(
        "a trap",
        1,
        exact=1.0,
        estimated=2.0,
        monte_carlo_error=0.01,
        allowed=0.05,
        expected="refused",
    )
    assert replace(trap, **change).state == state
    assert replace(trap, **change).ok == (state in ("refused", "untrusted", "ok"))


def test_a_program_that_is_measured_as_something_else_is_found(monkeypatch, capsys):
    parts = tuple(part for part in verification._PARTS if part.what == "traps")
    monkeypatch.setattr(verification, "_PARTS", parts)
    monkeypatch.setattr(verification, "verify", partial(verify, latents=(2,)))
    monkeypatch.setattr(
        verification_traps, "evidence", lambda *_, **__: replace(good, reliable=None)
    )
    status, lines = run(capsys)
    assert status == 1
    assert sum("NOT REFUSED" in line for line in lines) == len(REFUSED)
    assert sum(line.endswith("OFF") for line in lines) >= 3


good = Estimate.over_data(torch.zeros(8), torch.full((8,), 1e-3))


def test_a_scaled_prior_is_found_by_every_part(monkeypatch):
    def broken(self):
        return dist.Normal(self.loc, 2 * self.scale).to_event(1)

    parts = tuple(
        part for part in verification._PARTS if "gaps" not in part.what and part.what != "traps"
    )
    monkeypatch.setattr(verification, "_PARTS", parts)
    monkeypatch.setattr(NormalPrior, "forward", broken)
    results = states(verify(latents=(2,)))
    wrong = {what for what, state in results.items() if state != "ok"}
    assert wrong >= {"ELBO", "rate", *(f"evidence, {name}" for name in EVIDENCE[:8])}
    assert not wrong & {"distortion", "difference of the two"}


def shifted(by):
    def evidence(*args, **options):
        estimate = verification_evidence(*args, **options)
        return replace(estimate, value=estimate.value + by)

    return evidence


verification_evidence = verification.evidence


def run(capsys):
    status = cli.main(["verify"])
    return status, capsys.readouterr().out.splitlines()


def test_the_command_prints_exact_estimated_and_error_side_by_side(only_importance, capsys):
    status, lines = run(capsys)
    assert status == 0
    assert lines[0].split() == [
        "nats",
        "per",
        "datum",
        "latents",
        "exact",
        "estimated",
        "error",
        "allowed",
    ]
    what, (latents, exact, estimated, error, allowed, state) = (
        lines[1][:32].strip(),
        lines[1][32:].split(),
    )
    assert (what, latents, state) == ("evidence, from the guide", "2", "ok")
    assert float(estimated) - float(exact) == pytest.approx(float(error), abs=2e-4)
    assert 0 < float(allowed) < 0.02
    assert all(
        f"{name} {version}" in lines[-2]
        for name, version in (("torch", ""), ("pyro-ppl", "1."), ("arviz", ""))
    )
    assert lines[-1].startswith("all 7 estimates are right on cpu in float32, ")


def test_evidence_that_is_off_ends_with_status_one(only_importance, monkeypatch, capsys):
    monkeypatch.setattr(verification, "evidence", shifted(0.05))
    status, lines = run(capsys)
    assert status == 1
    assert all(line.endswith("  OFF") for line in lines[1:8])
    assert lines[-1].startswith("7 of 7 estimates are OFF on cpu in float32")


def test_a_single_estimator_that_is_off_is_named(only_importance, monkeypatch, capsys):
    smoothed = averages.pareto_smoothed

    def broken(log_weights):
        average = smoothed(log_weights)
        return average._replace(value=average.value + 0.05)

    monkeypatch.setattr(averages, "pareto_smoothed", broken)
    status, lines = run(capsys)
    assert status == 1
    assert [line[:32].strip() for line in lines if line.endswith("  OFF")] == [
        "evidence, Pareto-smoothed"
    ]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"reliable": torch.zeros(16, dtype=torch.bool)}, "UNTRUSTED"),
        ({"monte_carlo_error": 1.0}, "UNSURE"),
    ],
)
def test_estimates_that_are_right_but_of_no_use_end_with_status_one(
    only_importance, monkeypatch, capsys, change, state
):
    monkeypatch.setattr(
        verification, "evidence", lambda *a, **o: replace(verification_evidence(*a, **o), **change)
    )
    status, lines = run(capsys)
    assert status == 1
    assert all(line.endswith(f"  {state}") for line in lines[1:8])


def test_an_estimator_that_refuses_is_a_failed_check_and_not_bad_input(
    only_importance, monkeypatch, capsys
):
    def refuse(*_, **__):
        raise InputError("the log weights of datum 3 are NaN")

    monkeypatch.setattr(verification, "evidence", refuse)
    status, lines = run(capsys)
    assert status == 1
    assert (
        lines[1].startswith("importance sampling")
        and "OFF: the log weights of datum 3 are NaN" in lines[1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "tpu"], "--device must be"), (["--seed", "-1"], "--seed must be")],
)
def test_a_command_that_cannot_be_used_ends_with_status_two(arguments, message, capsys):
    assert cli.main(["verify", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
