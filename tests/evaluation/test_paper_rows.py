"""Each row of the tables beside published figures, on planted images of a size that takes seconds."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
import disentanglement
from paper_parts import gaps, iwae, priors, rate_distortion, sprites
from paper_parts.machinery import Clock, Place, Work

from pyro_bvae.datasets import Dataset, Splits
from pyro_bvae.evaluation.disentanglement import mutual_information_gap, sap
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.evaluation.refit import RefitSettings

SHORT = AnnealingSettings(num_temperatures=25, num_chains=11, pilot_temperatures=20)


def planted(*_: object, **__: object) -> Splits:
    """Images of MNIST's size: noise about ten patterns."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 784, generator=generator).pow(4)
    x = patterns[torch.randint(10, (160,), generator=generator)]
    return Splits(Dataset(x[:128]), None, Dataset(x[128:]), name="planted")


@pytest.fixture
def work_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for row in (gaps, iwae, priors, rate_distortion):
        monkeypatch.setattr(row, "mnist", planted)
    place = Place(tmp_path, None, tmp_path / "runs", tmp_path / "results")

    def work(row: str, line: str) -> Work:
        folder = place.runs / row / line
        return Work(place, folder, Clock(folder / "clock.json"))

    return work


@pytest.mark.slow
def test_the_parts_of_the_gap_add_up_and_the_improved_guide_keeps_the_best_bound(
    work_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iwae, "EPOCHS", {1: 2})
    monkeypatch.setattr(iwae, "ANNEALING", SHORT)
    monkeypatch.setattr(gaps, "NUM_IMAGES", 3)
    monkeypatch.setattr(gaps, "MORE_EPOCHS", 1)
    monkeypatch.setattr(gaps, "REFIT", RefitSettings(max_rounds=1, num_starts=0))
    parts = ("evidence", "approximation", "amortization", "amortization after")
    lines = {part: gaps.measure(work_of("gaps", part), part=part) for part in parts}
    whole = float(lines["evidence"]["note"].split("the whole gap ")[1].split(";")[0])
    found = {part: float(lines[part]["ours"]) for part in parts}
    assert found["approximation"] + found["amortization"] == pytest.approx(whole, abs=0.02)
    assert found["amortization after"] < found["amortization"] + 0.5
    assert all(line["images"] == "3" for line in lines.values())


def test_a_prior_gains_the_difference_of_the_evidences(
    work_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("EPOCHS", 2), ("NUM_SAMPLES", 20)):
        monkeypatch.setattr(priors, name, value)
    plain = priors.measure(work_of("priors", "normal-prior"), name=priors.PLAIN)
    other = priors.measure(work_of("priors", "mixture-prior"), name="mixture prior")
    own = float(other["note"].split("evidence ")[1].split(" ±")[0])
    assert float(other["ours"]) == pytest.approx(own - float(plain["ours"]), abs=0.02)


@pytest.mark.slow
def test_slopes_and_curves_come_from_one_sweep(work_of, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"SIZES": (128,), "STEPS": 3, "POINTS": (0.5, 1.0, 4.0), "NUM_CURVE": 3}
    for name, value in (small | {"ANNEALING": SHORT, "BETAS": (0.5, 1.0, 4.0)}).items():
        monkeypatch.setattr(rate_distortion, name, value)
    slope = rate_distortion.measure_slope(work_of("rate_distortion", "slope"), size=128)
    work = work_of("rate_distortion", "curve")
    curve = rate_distortion.measure_curve(work, beta=1.0)
    assert slope["images"] == "32" and curve["images"] == "3"
    assert len(list((work.folder.parent / "sweep-128").iterdir())) >= 3  # trained once
    # The objective of the guide cannot be below what the decoder's own curve reaches.
    assert float(curve["ours"]) > -4 * float(curve["monte_carlo_error"])
    assert rate_distortion.figure([curve], work.place).axes


@pytest.mark.slow
def test_sprites_are_scored_beside_their_nulls(work_of, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = disentanglement.Setting(32, 256, 400)
    monkeypatch.setattr(disentanglement, "Setting", lambda size: setting)
    monkeypatch.setattr(disentanglement, "METRICS", (mutual_information_gap, sap))
    line = sprites.measure(work_of("sprites", "line"), beta=1.0, steps=8, seeds=(0,))
    assert 0 <= float(line["ours"]) <= 100 and "highest null of MIG" in line["note"]
    assert line["seeds"] == "1" and "SAP" in line["note"]
