"""The page that a training ends with, and evaluations within a budget, from the command line."""

import json
from pathlib import Path

import pytest

from pyro_bvae.cli import main
from pyro_bvae.core.disk.digests import changed_files
from pyro_bvae.report import page as pages

TINY = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "256", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on digits that was trained from the command line."""
    run = tmp_path_factory.mktemp("runs") / "a run"
    assert main(["train", *TINY, "--likelihood", "normal", "--output", str(run)]) == 0
    return run


def test_a_training_ends_with_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "has not been evaluated" in page
    assert f"pyro-bvae evaluate &#39;{run}&#39;" in page
    for heading in ("Training", "Reconstructions", "Samples from the prior", "Rate per latent"):
        assert f">{heading}</h" in page  # of a section, or of the first screen
    assert not (run / "evaluation.json").exists() and changed_files(run) == []
    assert main(["report", str(run)]) == 0
    assert "not evaluated yet: 'pyro-bvae evaluate" in capsys.readouterr().out
    assert "has not been evaluated" in (run / "report.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ValueError("no ink")

    monkeypatch.setattr(pages, "render", fail)
    output = tmp_path / "run"
    assert main(["train", *TINY, "--likelihood", "normal", "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert "warning: no page was written: no ink" in shown.err
    assert f"run directory: {output}" in shown.out
    assert (output / "checkpoints" / "last.pt").exists() and changed_files(output) == []
    assert not (output / "report.html").exists()


def test_the_counts_of_a_budget_give_the_same_file_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--budget", "1s", "--seed", "2"]) == 0
    shown = capsys.readouterr().out
    assert f"the same counts again: --plan {run / 'evaluation.json'}" in shown
    assert f"page: {run / 'report.html'}" in shown
    first = (run / "evaluation.json").read_bytes()
    plan = json.loads(first)["plan"]
    assert 4 <= sum(plan["gap_blocks"]) <= plan["num_data"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "has not been evaluated" not in page
    if sum(plan["gap_blocks"]) < plan["num_data"]:
        assert f"The gaps are those of {sum(plan['gap_blocks'])} of the {plan['num_data']}" in page
    resume = ["train", "--resume", "--output", str(run)]  # of a run that is over
    assert main(resume) == 0
    assert "has not been evaluated" not in (run / "report.html").read_text(encoding="utf-8")
    again = ["evaluate", str(run), "--plan", str(run / "evaluation.json"), "--seed", "2"]
    assert main(again) == 0
    assert (run / "evaluation.json").read_bytes() == first


@pytest.mark.slow
def test_counts_that_are_typed_win(run: Path) -> None:
    words = ["evaluate", str(run), "--budget", "1s", "--num-data", "9", "--num-samples", "20"]
    assert main(words) == 0
    written = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert (written["num_data"], written["num_samples"]) == (9, 20)
    assert main(["evaluate", str(run), "--num-data", "5", "--num-samples", "20"]) == 0
    written = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert (written["num_data"], written["refits"]["num_data"]) == (5, 5)
    assert "plan" not in written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "soon"], "--budget must be a time such as 60s, 5m or 2h, got 'soon'"),
        (["--budget", "9s", "--full"], "'--budget' and '--full' exclude each other"),
        (["--plan", "p", "--full"], "'--full' and '--plan' exclude each other"),
        (["--plan", "p", "--num-data", "3"], "--plan has its own counts, got --num-data too"),
        (["--plan", "nowhere.json"], "there is no file nowhere.json with a plan"),
    ],
)
def test_words_that_cannot_be(
    words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
