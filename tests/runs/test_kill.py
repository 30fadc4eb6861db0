"""A run that is killed at any moment and resumed is the run that was never killed."""

import csv
import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_bvae.runs import TrainConfig, evaluate_run, train
from pyro_bvae.training import checkpoint_path, load_checkpoint

CONFIG = TrainConfig(
    dataset="digits", likelihood="normal", likelihood_scale=0.3, latent_dim=4, hidden=(16,), batch_size=256,
    target_rate=3.0, epochs=250,
)  # fmt: skip
KILLS = 20
CLOCKS = ("seconds",)


def run_to_the_end(output: Path, begun: Any) -> None:
    """Train or continue, as a process of its own does.

    What it takes to import is nothing to be killed in.
    """
    torch.set_num_threads(1)
    begun.set()
    train(CONFIG, output, resume=(output / "config.json").exists(), progress=False)


def without_clocks(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def assert_same(one: object, other: object, where: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in set(one) - {*CLOCKS}:
            assert_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list):
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_the_run_that_was_not(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pyro_bvae.runs", "sklearn.datasets", "torch._dynamo"])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    threads = torch.get_num_threads()

    def start(output: Path) -> Any:
        begun = processes.Event()
        process = processes.Process(target=run_to_the_end, args=(output, begun))
        process.start()
        assert begun.wait(120)
        return process

    # How long a life should be is a matter of the machine: the time to the first checkpoint, and a
    # few epochs more.
    process, born = start(whole), time.monotonic()
    while not checkpoint_path(whole, "last").exists() and process.is_alive():
        time.sleep(0.01)
    first = time.monotonic() - born
    process.join()
    assert process.exitcode == 0
    longest = first + 8 * (time.monotonic() - born - first) / CONFIG.epochs

    moments, epochs = random.Random(0), []
    for kill in range(KILLS):
        process = start(parts)
        process.join(moments.uniform(0.0, longest) if kill else 0.0)
        process.kill()
        process.join()
        assert process.exitcode == -9, (
            "the run was over before it could be killed: give it more epochs"
        )
        last = checkpoint_path(parts, "last")
        epochs.append(len(load_checkpoint(last)["history"]) if last.exists() else 0)
    assert epochs == sorted(epochs)
    assert epochs[-1] > 2
    process = start(parts)
    process.join()
    assert process.exitcode == 0

    for which in ("last", "best"):
        states = [load_checkpoint(checkpoint_path(run, which)) for run in (whole, parts)]
        assert_same(*states)
        assert "optimizer" in states[0]
    tables = []
    for run in (whole, parts):
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            tables.append(without_clocks(list(csv.DictReader(stream))))
    assert len(tables[0]) == CONFIG.epochs
    assert tables[0] == tables[1]
    assert not [path for path in parts.rglob(".*.part")]

    for run in (whole, parts):
        evaluate_run(run, num_samples=50, num_data=20, method="importance", progress=False)
    evaluations = [json.loads((run / "evaluation.json").read_text()) for run in (whole, parts)]
    for evaluation in evaluations:
        assert len(evaluation.pop("sha256")) == 2  # of files with times in them
    assert evaluations[0] == evaluations[1]
    assert torch.get_num_threads() == threads
