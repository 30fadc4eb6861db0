"""Every example runs as a command, and an example that is not listed here fails the suite."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMANDS = {
    "any_pyro_program.py": (["--num-data", "40"], "amortization"),
    "beta_conditioned.py": (["--epochs", "2"], "knee at"),
    "cells.py": (["--epochs", "5"], "latents of the new cells"),
    "counts_negative_binomial.py": (["--epochs", "2", "--num-samples", "50"], "gain a cell"),
    "inpainting.py": (["--epochs", "2", "--num-draws", "5"], "of the draws lie in holes"),
    "pictures.py": (["--epochs", "2"], "written: new.png, rebuilt.png"),
    "own_likelihood.py": (["--epochs", "2"], "evidence"),
    "own_parts.py": (["--epochs", "2"], "evidence"),
    "table.py": (["--epochs", "20"], "the strangest row: 5"),
    "swap_prior.py": (["--epochs", "2"], "RingPrior"),
    "svi.py": (["--epochs", "3", "--num-samples", "100"], "local refits"),
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_example_runs(name: str) -> None:
    options, expected = COMMANDS[name]
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert expected in finished.stdout
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 100
