"""The calibration of a run: an option of evaluate, kept in its file and drawn on its page."""

import json
from pathlib import Path

import pytest

from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.report import write_report
from pyro_bvae.runs import TrainConfig, calibrate_run, evaluate_run, train

CONFIG = TrainConfig(
    dataset="linear-gaussian", likelihood="normal", hidden=(4,), latent_dim=2, epochs=1,
    warmup_epochs=0.0, batch_size=2000,
)  # fmt: skip


def test_evaluate_adds_the_calibration_and_the_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(CONFIG, run, progress=False)
    with pytest.raises(InputError, match="run 'pyro-bvae evaluate"):
        calibrate_run(run)
    options = ["--num-samples", "5", "--num-data", "30"]
    assert main(["evaluate", str(run), *options, "--calibration"]) == 0
    assert "under the model" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert found["calibration"]["num_simulations"] == 1000 and "evidence" in found
    page = write_report(run).read_text(encoding="utf-8")
    assert "Calibration of the guide" in page
    evaluate_run(run, num_samples=5, num_data=30, progress=False)
    assert "calibration" not in json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
