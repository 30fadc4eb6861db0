"""Runs that version 0.1.0 wrote go on being read."""

import json
import shutil
from pathlib import Path

import pytest

import pyro_bvae
from pyro_bvae.runs import choose_data

RUNS = Path(__file__).parents[1] / "data" / "run-0.1.0"


@pytest.mark.parametrize("name", ["csv", "digits"])
def test_a_run_of_version_0_1_0_loads_and_measures_as_it_did(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(RUNS, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")  # the table's path is relative to its folder
    run = pyro_bvae.load(name)
    written = json.loads((RUNS / name / "evaluation.json").read_text())
    x = choose_data(run.splits.test, written["num_data"], seed=0).x
    bound = pyro_bvae.elbo(run.vae.model, run.vae.guide, x, num_samples=2000)
    errors = (bound.monte_carlo_error**2 + written["elbo"]["monte_carlo_error"] ** 2) ** 0.5
    assert abs(bound.value - written["elbo"]["value"]) < 4 * errors
