"""Output that a terminal or a pipe cannot show, or that nobody reads, and text for spreadsheets."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_bvae
from pyro_bvae import runs
from pyro_bvae.cli import main
from pyro_bvae.evaluation.latent_results import Embedding, columns_of, write_numbers
from pyro_bvae.runs import TrainConfig

ENCODINGS = ("ascii", "cp1252", "latin-1", "cp437", "shift_jis", "utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("encodings") / "run"
    runs.train(TrainConfig(hidden=(8,), latent_dim=2, epochs=2), output, progress=False)
    return output


@contextmanager
def output_in(encoding: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[io.TextIOWrapper]]:
    """Give the process a standard output and standard errors of an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        yield streams


def text_of(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_help_is_shown_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["--help"], ["train", "--help"], ["sweep", "-h"], ["traverse", "--help"]):
        with output_in(encoding, monkeypatch) as (out, _), pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert "--" in text_of(out) and out.errors == "strict"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_evaluation_is_printed_in_every_encoding(
    encoding: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with output_in(encoding, monkeypatch) as (out, _):
        status = main(["evaluate", str(run), "--num-samples", "20", "--num-data", "4"])
    beta = "β" if encoding == "utf-8" else "beta"
    assert status == 0
    assert f"trained at {beta} = 1" in text_of(out)


def test_names_that_cannot_be_shown_are_escaped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("übermaß.npz", "数据.npz", os.fsdecode(b"\xff.npz")):
        with output_in("ascii", monkeypatch) as (out, errors):
            assert main(["embed", str(run), "--output", str(tmp_path / name)]) == 0
            assert main(["embed", str(tmp_path / name)]) == 2
        assert (tmp_path / name).exists()
        assert "written: " in text_of(out) and text_of(errors).startswith("error: ")
    with output_in("utf-8", monkeypatch) as (out, _):
        assert main(["embed", str(run), "--output", str(tmp_path / name)]) == 0
    assert "\\udcff.npz" in text_of(out)


@pytest.mark.parametrize("words", [["--help"], ["evaluate"], ["embed"]])
def test_a_reader_that_is_gone_is_no_error(
    words: list[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words[0] == "evaluate":
        words = ["evaluate", str(run), "--num-samples", "20", "--num-data", "4"]
    elif words[0] == "embed":
        words = ["embed", str(run)]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as gone, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stdout", gone)
        patch.setattr(sys, "stderr", errors := io.StringIO())
        assert main(words) == 141
        assert "rror" not in errors.getvalue()


def program(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell."""
    search = {"PYTHONPATH": str(Path(pyro_bvae.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    line = words.replace("pyro-bvae", f"'{sys.executable}' -m pyro_bvae")
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=folder, env={**os.environ, **search, **environment},
        capture_output=True, text=True, timeout=120, check=False, encoding="utf-8",
        errors="replace",
    )  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
    ],
)
def test_the_help_of_a_process_in_any_locale(environment: dict[str, str], tmp_path: Path) -> None:
    result = program("pyro-bvae --help", tmp_path, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "autoencoders as Pyro programs" in result.stdout


def test_a_process_whose_reader_is_gone_says_nothing(tmp_path: Path) -> None:
    line = "{ pyro-bvae train --help; echo status $? >&2; } | head -c 5"
    result = program(line, tmp_path)
    assert result.stderr in ("status 141\n", "status 0\n")  # by the time that head takes
    result = program("{ sleep 1; pyro-bvae train --help; echo status $? >&2; } | true", tmp_path)
    assert result.stderr == "status 141\n"


@pytest.mark.parametrize("words", ["train --help >&-", "train --beta -1 2>&-"])
def test_output_that_is_closed_is_no_error(words: str, tmp_path: Path) -> None:
    result = program(f"pyro-bvae {words}", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2 * ("beta" in words), "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_the_output_is_one_line(tmp_path: Path) -> None:
    result = program("pyro-bvae train --help > /dev/full", tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: No space left on device\n"


@pytest.mark.slow
def test_a_process_prints_its_evaluation_in_ascii(run: Path) -> None:
    line = "pyro-bvae evaluate run --num-samples 20 --num-data 4"
    result = program(line, run.parent, PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "trained at beta = 1" in result.stdout and "Traceback" not in result.stderr


# -- text for spreadsheets


def test_a_csv_holds_no_formula(tmp_path: Path) -> None:
    names = (
        "=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\r=x", "＝1", "-1.5", "+3e-2",
        "-", "a=b", "", "'quoted", "β", "a\r=b",
    )  # fmt: skip
    labels = torch.arange(len(names))
    means = -torch.ones(len(names), 2)
    factors = torch.zeros(len(names), 1)
    Embedding(means, None, labels, factors, names, ("=cmd()",)).save(tmp_path / "codes.csv")
    table = pd.read_csv(tmp_path / "codes.csv", keep_default_na=False, dtype=str)
    assert list(table["label_name"]) == [
        "'=1+1", "'+1+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)", "'\tx", "'\n=x", "'＝1", "-1.5",
        "+3e-2", "'-", "a=b", "", "'quoted", "β", "a\n=b",
    ]  # fmt: skip
    assert list(table.columns) == ["z0", "z1", "label", "label_name", "'=cmd()"]
    assert set(table["z0"]) == {"-1.0"}  # numbers stay numbers


def test_names_of_features_are_no_formulas_and_arrays_stay_as_they_are(tmp_path: Path) -> None:
    x = np.array([[-1.5, 2.0]])
    names = ("=HYPERLINK(1)", "-gene")
    write_numbers(tmp_path / "x.csv", {"x": x}, lambda: columns_of(names, x))
    assert (tmp_path / "x.csv").read_text() == "'=HYPERLINK(1),'-gene\n-1.5,2.0\n"
    write_numbers(tmp_path / "x.npz", {"x": x, "names": np.array(names)}, dict)
    with np.load(tmp_path / "x.npz") as kept:
        assert tuple(kept["names"]) == names
