"""Kills at random moments of training, evaluating, reporting and sweeping: nothing is lost by any.

``tests/runs/test_kill.py`` holds a training that is killed 20 times to the bits of one that is not;
``test_transactions.py`` kills at each change of a directory. Here the moment is the clock's.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_bvae import load, runs
from pyro_bvae.report import write_report
from pyro_bvae.runs import read_config
from pyro_bvae.training import checkpoint_path, load_checkpoint
from tests.reliability.children import (
    CONFIG,
    coarse_figures,  # noqa: F401
    end,
    start,
    traces,
    tree,
)

LONG = CONFIG.with_options(epochs=20)
SWEEP = {"betas": (1.0, 2.0), "overwrite": True, "progress": False}
KILLS = 10


def evaluate(run: Path) -> None:
    """Measure without annealing, which is most of the time and writes nothing."""
    runs.evaluate_run(run, num_samples=200, num_data=20, method="importance", progress=False)


def weights(run: Path) -> list[torch.Tensor]:
    return list(load_checkpoint(checkpoint_path(run, "last"))["model"].values())


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that was never killed, its evaluation and page, and a sweep."""
    folder = tmp_path_factory.mktemp("reference")
    runs.train(LONG, folder / "run", progress=False)
    evaluate(folder / "run")
    write_report(folder / "run")
    runs.train_sweep(CONFIG, folder / "sweep", **SWEEP)
    return folder


def kill(work: Callable[[], object], moments: list[float]) -> int:
    """Do some work once to its end, and then kill it at shares of the time that it took.

    Returns:
        How many kills came before the end.
    """
    begun = time.monotonic()
    assert end(start(work)) == 0
    took, count = time.monotonic() - begun, 0
    for share in moments:
        child = start(work)
        time.sleep(share * took)
        os.kill(child, signal.SIGKILL)
        count += end(child) == -signal.SIGKILL
    return count


KILLED = [
    pytest.param(2, id="some", marks=pytest.mark.sample),
    pytest.param(KILLS, id="many", marks=pytest.mark.slow),
]


def moments(count: int) -> list[float]:
    numbers = random.Random(0)
    return [numbers.uniform(0.05, 0.5) for _ in range(count)]


@pytest.mark.parametrize("kills", KILLED)
def test_kills_in_training(kills: int, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def work() -> None:
        again = (run / "config.json").exists()
        runs.train(LONG, run, resume=again, progress=False)

    shutil.rmtree(run, ignore_errors=True)
    begun = time.monotonic()
    assert end(start(work)) == 0
    took, done = time.monotonic() - begun, 0
    shutil.rmtree(run)
    for share in moments(kills):
        child = start(work)
        time.sleep(share * took / kills)
        os.kill(child, signal.SIGKILL)
        end(child)
        last = checkpoint_path(run, "last")
        epochs = len(load_checkpoint(last)["history"]) if last.exists() else 0
        assert epochs >= done
        done = epochs
        if done:
            assert load(run, checkpoint="last").config == LONG.resolved()
    runs.train(LONG, run, resume=(run / "config.json").exists(), progress=False)
    assert same(run, reference / "run")
    assert not traces(tmp_path)


@pytest.mark.parametrize("kills", KILLED)
def test_kills_in_overwriting(kills: int, reference: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference / "run", tmp_path / "run"))
    before = tree(run)
    other = LONG.with_options(beta=3.0)
    for share in moments(kills):
        child = start(lambda: runs.train(other, run, overwrite=True, progress=False))
        time.sleep(share * 0.5)
        os.kill(child, signal.SIGKILL)
        end(child)
        if any((run / name).exists() for name in (".pyro-bvae-whole", ".pyro-bvae-moving")):
            runs.train(other, run, resume=True, progress=False)
        config = read_config(run / "config.json")
        if config.training.beta == 3.0:
            runs.train(other, run, resume=True, progress=False)
            shutil.rmtree(run)
            shutil.copytree(reference / "run", run)
        else:
            assert {name: value for name, value in tree(run).items() if name in before} == before
    runs.train(other, run, overwrite=True, progress=False)
    assert load(run).config == other.resolved() and not traces(tmp_path)


@pytest.mark.parametrize("kills", KILLED)
def test_kills_in_evaluating(kills: int, reference: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference / "run", tmp_path / "run"))
    before = tree(run)
    assert kill(lambda: evaluate(run), moments(kills)) > 0
    assert {name: value for name, value in tree(run).items() if name in before} == before
    evaluate(run)
    assert json.loads((run / "evaluation.json").read_text())["num_data"] == 20
    assert tree(run) == before, "no trace of the killed ones"


@pytest.mark.parametrize("kills", KILLED)
def test_kills_in_reporting(kills: int, reference: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference / "run", tmp_path / "run"))
    before = tree(run)
    assert kill(lambda: write_report(run), moments(kills)) > 0
    assert {name: value for name, value in tree(run).items() if name in before} == before
    write_report(run)
    assert tree(run) == before, "no trace of the killed ones"


@pytest.mark.parametrize("kills", KILLED)
def test_kills_in_sweeping(kills: int, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert kill(lambda: runs.train_sweep(CONFIG, folder, **SWEEP), moments(kills)) > 0
    for run in folder.iterdir():
        if (run / "checkpoints").exists():
            load(run)
    runs.train_sweep(CONFIG, folder, **SWEEP)
    for run in (reference / "sweep").iterdir():
        assert same(run, folder / run.name)
    assert not traces(tmp_path)
