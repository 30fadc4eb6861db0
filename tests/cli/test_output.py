"""The output as JSON and none at all, switches with and without a value, and the home directory."""

import json
import warnings
from pathlib import Path

import pytest

from pyro_bvae.cli import main
from pyro_bvae.cli._main import _COMMANDS as COMMANDS
from pyro_bvae.cli.usage import options_of
from pyro_bvae.cli.words.output import Output, output_of, printing, report
from pyro_bvae.cli.words.switches import at_home, completed

TINY = ["--dataset", "linear-gaussian", "--likelihood", "normal", "--hidden", "4", "--epochs", "1"]
TINY += ["--latent-dim", "2", "--batch-size", "2000", "--warmup-epochs", "0"]
QUICK = ["--num-samples", "5", "--num-data", "6", "--method", "importance"]


def test_a_run_as_json_and_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["train", *TINY, "--output", "~/run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "train" and found["run"] == str(tmp_path / "run")
    assert found["last"]["epoch"] == 1 and "objective" in found["text"][0]
    assert main(["--quiet", "evaluate", "~/run", *QUICK]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["evaluate", str(tmp_path / "run"), *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["evaluation"]["evidence"]["value"] == written["evidence"]["value"]
    assert found["written"] == [
        str(tmp_path / "run" / f"evaluation.{kind}") for kind in ("json", "nc")
    ]
    assert main(["report", "~/nothing", "--json", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and "~" not in shown.err


@pytest.mark.filterwarnings("always")
def test_json_has_no_number_that_it_lacks_and_warnings_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with printing(Output(json=True), "verify"):
        report(values=[1.0, float("nan")], path=Path("a"))
        print("a line")
        warnings.warn("odd", stacklevel=1)
    shown = capsys.readouterr()
    content = {"command": "verify", "values": [1.0, None], "path": "a", "text": ["a line"]}
    assert json.loads(shown.out) == content and shown.err == "warning: odd\n"
    report(values=2)  # without a command it goes nowhere


def test_json_and_quiet_stand_anywhere_but_behind_the_end_of_the_options() -> None:
    assert output_of(["--json", "train", "--quiet"]) == (["train"], Output(True, True))
    assert output_of(["report", "--", "--json"]) == (["report", "--", "--json"], Output())


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("--compile", "--compile True"),
        ("--compile --epochs 3", "--compile True --epochs 3"),
        ("--no-compile", "--compile False"),
        ("--compile False", "--compile False"),
        ("--compile=None", "--compile=None"),
        ("--backed --seed 1", "--backed True --seed 1"),
        ("--standardize", "--standardize"),
        ("--standardize True --seed 1", "--standardize --seed 1"),
        ("--standardize=False", "--no-standardize"),
        ("--no-standardize", "--no-standardize"),
        ("--standardize=yes", "--standardize=yes"),
        ("--compile maybe", "--compile maybe"),
        ("--output --compile", "--output --compile True"),
    ],
)
def test_options_of_true_and_false_are_typed_alike(typed: str, taken: str) -> None:
    assert completed(COMMANDS, ["train", *typed.split()]) == ["train", *taken.split()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_true_and_false_takes_both_forms(name: str) -> None:
    for option in options_of(COMMANDS[name]).values():
        if bool not in option.type.kinds:
            continue
        long = completed(COMMANDS, [name, option.flag, "True"])
        assert completed(COMMANDS, [name, option.flag]) == long


def test_every_path_of_a_command_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-a-person")
    train = COMMANDS["train"](output=Path("~/run"))
    config = train.config.with_options(path="~/t.csv", data_root="~", dataset="file")
    moved = at_home(COMMANDS["train"](config, output=Path("~/run")))
    assert moved.output == Path("/home-of-a-person/run")
    assert (moved.config.path, moved.config.data_root) == (
        "/home-of-a-person/t.csv",
        "/home-of-a-person",
    )
    assert at_home(train).config == train.config
    several = at_home(COMMANDS["report"]((Path("~/a"), Path("b~"), Path("~nobody-of-this-name/c"))))
    assert several.directories[0] == Path("/home-of-a-person/a")
    assert several.directories[1:] == (Path("b~"), Path("~nobody-of-this-name/c"))
