"""Every example runs as a program, and an example that is not listed here fails the suite."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.reliability.children import output_of

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
    "svi.py": (["--epochs", "3", "--num-samples", "100", "--num-data", "8"], "local refits"),
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_example_runs(name: str) -> None:
    options, expected = COMMANDS[name]

    def program() -> None:
        sys.argv[:] = [str(EXAMPLES / name), *options]
        torch.set_num_threads = lambda number: None  # one for each process of the suite
        warnings.resetwarnings()
        warnings.simplefilter("error")
        runpy.run_path(sys.argv[0], run_name="__main__")

    status, said = output_of(program)
    assert status == 0, said
    assert expected in said
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 100
