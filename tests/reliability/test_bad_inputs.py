"""Bad input ends in one line: a sample of the table here, all of it in `make batteries`."""

import random
from pathlib import Path

import pytest

from pyro_bvae import runs
from pyro_bvae.cli._main import _COMMANDS as COMMANDS
from pyro_bvae.cli.usage import options_of
from pyro_bvae.core.errors import InputError
from tests.reliability.bad_inputs import Row, all_rows, fault, prepare

ROWS = all_rows()
SAMPLE = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_inputs")
    prepare(folder)
    return folder


def faults(rows: list[Row], folder: Path) -> dict[str, str]:
    found = {row.name: fault(row, folder) for row in rows}
    return {name: wrong for name, wrong in found.items() if wrong is not None}


def test_the_table_has_rows_of_every_option_of_every_command() -> None:
    assert len(ROWS) >= 300
    assert sum(row.call is not None for row in ROWS) >= 100
    words = {(row.words[0], word.split("=")[0]) for row in ROWS if row.words for word in row.words}
    for command, kind in COMMANDS.items():
        for option in options_of(kind).values():
            assert option.is_positional or (command, option.flag) in words


def test_a_sample_of_bad_inputs_ends_in_one_line(folder: Path) -> None:
    assert faults(random.Random(0).sample(ROWS, SAMPLE), folder) == {}


def crash() -> None:
    raise ZeroDivisionError


def refuse() -> None:
    raise InputError("'epochs' must be positive")


def test_the_table_sees_answers_that_are_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = ("embed", "run", "--output", "kept.npz")
    assert "status 0" in str(fault(Row("accepted", "", accepted), folder))
    assert "another error" in str(fault(Row("a defect", "", call=crash), folder))
    assert fault(Row("refused", "'epochs' must", call=refuse), folder) is None
    assert "expected 'beta'" in str(fault(Row("another line", "beta", call=refuse), folder))
    assert fault(Row("refused", "--epochs", ("train", "--epochs", "0")), folder) is None

    def write(*_: object, **__: object) -> None:
        Path("left").write_text("over")
        refuse()

    monkeypatch.setattr(runs, "train", write)
    assert "changed" in str(fault(Row("a file is left", "", ("train",)), folder))
    monkeypatch.setattr(runs, "train", lambda *_, **__: crash())
    assert "traceback" in str(fault(Row("a traceback", "", ("train",)), folder))
