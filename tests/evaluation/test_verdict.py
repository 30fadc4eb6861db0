"""The verdict: the largest part of the gap, its remedy, and what keeps it from being the whole
truth."""

from types import SimpleNamespace

import pytest
import torch

from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.gaps.result import finding, verdict


def estimate(value, error=0.01, untrusted=0):
    reliable = torch.arange(10) >= untrusted
    return Estimate(value, 0.05, error, torch.full((10,), value), reliable=reliable)


def gaps(
    approximation=0.2,
    beta=0.0,
    amortization=0.0,
    *,
    untrusted=0,
    certified=10,
    error=0.01,
    **options,
):
    given = {"families": {}, "generalization": None, "training_beta": 1.0, "modes": None, **options}
    return SimpleNamespace(
        variational=estimate(approximation + beta + amortization, error),
        approximation=estimate(approximation, error),
        beta=estimate(beta, error),
        amortization=estimate(amortization, error),
        evidence=estimate(-90.0, error, untrusted),
        certified=torch.arange(10) < certified,
        **given,
    )


def left(**families):
    return {name.replace("_", "-"): estimate(value) for name, value in families.items()}


def part(value, standard_error=0.01):
    return Estimate(value, standard_error, 0.001, torch.full((10,), value))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            gaps(0.6, amortization=1.4),
            "amortization is 70% of the gap (1.40 of 2.00 nats): enlarge the encoder",
        ),
        (
            gaps(1.5, amortization=0.5),
            "approximation is 75% of the gap (1.50 of 2.00 nats): use a richer guide",
        ),
        (
            gaps(0.1, 1.7, 0.2, training_beta=4.0),
            "the β gap is 85% of the gap (1.70 of 2.00 nats): the guide was",
        ),
        (
            gaps(0.1, 1.7, 0.2, training_beta=4.0),
            "trained at β = 4; where the evidence matters, train the encoder on",
        ),
        (
            gaps(0.02, amortization=0.03),
            "the gap is 0.05 nats: the guide is as good as it needs to be.",
        ),
        (
            gaps(0.3, amortization=0.1, error=0.5),
            "the gap is 0.40 ± 0.50 nats: the error is too large to tell",
        ),
        (gaps(0.1, 2.0, -0.9), "the β gap is more than all of the gap (2.00 of 1.20 nats)"),
    ],
)
def test_the_largest_part_is_named_with_its_remedy(given, said):
    assert said in verdict(given)


def test_parts_of_nearly_the_same_size_are_named_together():
    assert "Nearly as large: approximation (0.95)." in verdict(gaps(0.95, amortization=1.0))
    assert "Nearly as large" not in verdict(gaps(0.7, amortization=1.0))


@pytest.mark.parametrize(
    ("families", "said"),
    [
        (left(full_rank=0.1, flow=0.08), "a full-rank guide would close 0.90 nats of it"),
        (left(full_rank=0.9, flow=0.1), "a flow guide would close 0.90 nats of it"),
        (
            left(full_rank=0.99, flow=0.95),
            "the richest family tried would close only 0.05 nats of it",
        ),
        (left(full_rank=1.02), "would close only 0.00 nats of it"),
    ],
)
def test_the_simplest_family_that_helps_is_named(families, said):
    assert said in verdict(gaps(1.0, families=families))


@pytest.mark.parametrize(
    ("generalization", "said"),
    [
        (part(0.8), "0.80 of it is missing on the training data, so the encoder overfits"),
        (part(0.1), "it generalises (0.10 nats lost on new data)"),
        (part(0.8, standard_error=0.6), "it generalises"),
    ],
)
def test_an_encoder_that_overfits_is_told_from_one_that_is_too_small(generalization, said):
    assert said in verdict(gaps(amortization=1.0, generalization=generalization))


def test_what_limits_the_truth_of_it_is_said():
    said = verdict(gaps(1.0, untrusted=3, certified=8))
    assert "The evidence is untrusted for 3 of 10 data: their gap may be larger." in said
    assert "The refits of 2 of 10 data are not certified" in said
    assert "untrusted" not in verdict(gaps(1.0)) and "certified" not in verdict(gaps(1.0))
    for said in (verdict(gaps(0.01, untrusted=3)), verdict(gaps(0.01, untrusted=10))):
        assert "as good as it needs" not in said and "nothing" not in said
        assert "the evidence cannot be trusted: take more samples" in said


def test_a_negative_amortization_gap_is_explained():
    assert "The encoder lies 0.40 nats nearer to the posterior" in verdict(gaps(0.5, 1.0, -0.4))
    assert "nearer" not in verdict(gaps(0.5, 1.0, -0.008, error=0.001))


def test_the_finding_names_the_part_and_its_remedy():
    largest = finding(gaps(0.6, amortization=1.4))
    assert (largest.code, largest.severity) == ("amortization-gap", "warning")
    assert largest.subject == ("amortization",) and largest.advice.startswith("enlarge the encoder")
    assert verdict(gaps(0.6, amortization=1.4)).startswith(largest.sentence)
    assert finding(gaps(0.05)).severity == "note"
    assert finding(gaps(0.05, untrusted=2)).severity == "warning"
