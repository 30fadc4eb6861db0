"""An evaluation is of the checkpoint and of the draws beside it, wherever its process is killed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_bvae import InputError, runs
from pyro_bvae.report import write_report
from pyro_bvae.report.page import read_evaluation
from pyro_bvae.training import checkpoint_path
from tests.reliability.children import (
    CONFIG,
    coarse_figures,  # noqa: F401
    killed_before,
)

AGAIN = r"does not belong to .*: a process was killed .*; run 'pyro-bvae evaluate .*' again"


def evaluate(run: Path, seed: int) -> None:
    options = {"num_samples": 5, "num_data": 4, "method": "importance", "progress": False}
    runs.evaluate_run(run, seed=seed, **options)


def further(run: Path) -> None:
    runs.train(CONFIG.with_options(epochs=CONFIG.epochs + 1), run, resume=True, progress=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    runs.train(CONFIG, run, progress=False)
    evaluate(run, 0)
    return run


def outcomes(
    changes: range, evaluated: Path, tmp_path: Path, work: Callable[[Path], object]
) -> list[str]:
    """Kill some work on a run before each change, and return how its evaluation is then read.

    Returns:
        ``old``, ``new`` (another evaluation or none), or ``refused``, by the change.
    """
    old, found = (evaluated / "evaluation.json").read_text(encoding="utf-8"), []
    for change in changes:
        run = Path(shutil.copytree(evaluated, tmp_path / f"{change}"))
        weights = checkpoint_path(run, "best").read_bytes()
        if not killed_before(change, lambda run=run: work(run), run):
            return found
        try:
            is_old = read_evaluation(run) == json.loads(old)
        except InputError as error:
            is_old = False
            if "has no evaluation.json" not in str(error):
                with pytest.raises(InputError, match=AGAIN):
                    write_report(run)
                found.append("refused")
                shutil.rmtree(run)
                continue
        if is_old:
            assert checkpoint_path(run, "best").read_bytes() == weights, change
        found.append("old" if is_old else "new")
        shutil.rmtree(run)
    pytest.fail("there are more changes than were tried")


KILLED = [
    pytest.param(5, id="some", marks=pytest.mark.sample),
    pytest.param(1, id="all", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("step", KILLED)
@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_training_that_is_killed_leaves_no_evaluation_of_another_model(
    step: int, evaluated: Path, tmp_path: Path
) -> None:
    found = outcomes(range(0, 300, step), evaluated, tmp_path, further)
    assert found == sorted(found, key=["old", "refused", "new"].index)
    assert {"old", "new"} | ({"refused"} if step == 1 else set()) <= {*found}


@pytest.mark.parametrize("step", KILLED)
def test_an_evaluation_that_is_killed_leaves_two_files_of_one_measurement(
    step: int, evaluated: Path, tmp_path: Path
) -> None:
    found = outcomes(range(0, 300, step), evaluated, tmp_path, lambda run: evaluate(run, 1))
    assert found == sorted(found, key=["old", "refused", "new"].index)
    assert {"old"} | ({"refused"} if step == 1 else set()) <= {*found}


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_an_evaluation_of_a_model_that_was_trained_less_is_refused(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    monkeypatch.setattr("pyro_bvae.training.state.remove_evaluation", lambda run: None)
    further(run)
    with pytest.raises(InputError, match=AGAIN):
        write_report(run)
    evaluate(run, 0)
    write_report(run)
