"""A disk that is full: one line, and every file that was there is there, for each command."""

import resource
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_bvae import runs
from pyro_bvae.cli import main
from pyro_bvae.cli._main import _COMMANDS
from pyro_bvae.report import write_report
from tests.reliability.children import (
    CONFIG,
    QUICK,
    TINY,
    coarse_figures,  # noqa: F401
    output_of,
    tree,
)

WRITING = {
    "train": ["train", *TINY, "--output", "new"],
    "train with pictures": ["train", *TINY, "--snapshots", "1", "--output", "new"],
    "resume": ["train", "--resume", "--epochs", "3", "--output", "run"],
    "overwrite": ["train", *TINY, "--beta", "3", "--overwrite", "--output", "run"],
    "sweep": ["sweep", *TINY, "--betas", "1", "2", "--output", "sweep"],
    "sweep, overwriting": ["sweep", *TINY, "--betas", "1", "2", "--overwrite", "--output", "runs"],
    "evaluate": ["evaluate", "run", *QUICK],
    "report": ["report", "run"],
    "report of several": ["report", "run", "runs/beta1-seed0", "--output", "new.html"],
    "improve": ["improve", "run", *QUICK, "--epochs", "1", "--output", "new"],
    "compare": [
        "compare",
        "run",
        "runs/beta1-seed0",
        *QUICK,
        "--method",
        "importance",
        "--output",
        "new.png",
    ],
    "export": ["export", "run"],
    "demo": ["demo", "--epochs", "1", "--output", "new"],
    "traverse": ["traverse", "run"],
    "traverse, animated": ["traverse", "run", "--output", "new.gif", "--num-steps", "2"],
    "interpolate": ["interpolate", "run"],
    "embed": ["embed", "run"],
    "embed in a table": ["embed", "run", "--output", "new.csv"],
    "reconstruct": ["reconstruct", "run"],
    "generate": ["generate", "run", "--num-samples", "4"],
    "score": ["score", "run", "--num-samples", "20", "--method", "importance"],
    "differential": ["differential", "counted", "--group", "a", "--num-samples", "20"],
    "impute": ["impute", "gaps", "--split", "train"],
}
# Commands that write no file.
READING = {"verify", "watch"}
# Bytes that a file may have: none, a configuration, all but checkpoints, figures and evaluations.
LIMITS = (0, 2_000, 5_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an evaluated run, its page, and a sweep."""
    folder = tmp_path_factory.mktemp("runs")
    runs.train(CONFIG, folder / "run", progress=False)
    runs.evaluate_run(folder / "run", num_samples=20, num_data=6, progress=False)
    write_report(folder / "run")
    table = np.random.default_rng(0).normal(size=(400, 3))
    pd.DataFrame(table, columns=["a", "b", "c"]).to_csv(folder / "data.csv", index=False)
    options = {"dataset": "file", "path": str(folder / "data.csv"), "missing": "nan"}
    runs.train(CONFIG.with_options(**options), folder / "gaps", progress=False)
    counts = pd.DataFrame(np.random.default_rng(0).poisson(3, size=(60, 60)))
    counts.assign(label=list("ab") * 30).to_csv(folder / "counts.csv", index=False)
    options = {"dataset": "file", "path": str(folder / "counts.csv"), "likelihood": "poisson"}
    runs.train(CONFIG.with_options(**options), folder / "counted", progress=False)
    for beta in (1, 2):
        shutil.copytree(folder / "run", folder / "runs" / f"beta{beta}-seed0")
    return folder


def test_every_command_is_in_this_battery() -> None:
    assert {arguments[0] for arguments in WRITING.values()} | READING == set(_COMMANDS)


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
@pytest.mark.parametrize(
    "limit", [LIMITS[1], *(pytest.param(n, marks=pytest.mark.slow) for n in LIMITS[::2])]
)
@pytest.mark.parametrize("kind", WRITING)
def test_a_file_that_the_disk_does_not_take_is_one_line_and_costs_nothing(
    kind: str, limit: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = tree(folder)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return main(WRITING[kind])

    status, said = output_of(limited)  # through a pipe, which the limit does not bound
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2, said
    assert len(errors) == 1 and said.endswith(f"{errors[0]}\n"), said
    assert errors[0].startswith("error: cannot write ") and "File too large" in errors[0], said
    assert "Traceback" not in said and "Exception" not in said
    assert tree(folder) == before
