"""Presets: options by one name, which options that are given replace and a run writes out."""

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import pyro_bvae
from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.runs import TrainConfig, check_config, load, read_config
from pyro_bvae.runs.presets import NONE, PRESETS, as_flags

SMALL: dict[str, Any] = {"hidden": (4,), "latent_dim": 2, "batch_size": 32}
FLAGS = ["--hidden", "4", "--latent-dim", "2", "--batch-size", "32"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of 80 cells and 6 genes."""
    counts = np.random.default_rng(0).poisson(3.0, (80, 6)).astype(np.float32)
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    anndata.AnnData(counts).write_h5ad(path)
    return str(path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration_that_differs_from_the_defaults(name: str) -> None:
    config = TrainConfig.preset(name)
    check_config(config)
    assert {key: config.options()[key] for key in PRESETS[name].options} == PRESETS[name].options
    assert config != TrainConfig()
    rest = config.options().keys() - PRESETS[name].options.keys()
    assert all(config.options()[key] == TrainConfig().options()[key] for key in rest)


def test_options_that_are_given_replace_those_of_a_preset() -> None:
    config = TrainConfig.preset("counts-nb", likelihood="poisson", dataset="counts")
    assert (config.likelihood, config.dataset) == ("poisson", "counts")
    assert config.hidden == PRESETS["counts-nb"].options["hidden"]
    assert TrainConfig.preset("counts-nb").steps is not None
    assert TrainConfig.preset("counts-nb", epochs=7).steps is None
    assert TrainConfig.preset(NONE, epochs=7) == TrainConfig(epochs=7)
    with pytest.raises(
        InputError, match=r"unknown preset 'counts'\. Did you mean 'counts-nb'\? Known: "
    ):
        TrainConfig.preset("counts")
    with pytest.raises(TypeError, match="betta"):
        TrainConfig.preset("counts-nb", betta=1.0)


def test_steps_are_the_first_epochs_that_hold_them(tmp_path: Path) -> None:
    config = TrainConfig(dataset="linear-gaussian", likelihood="normal", steps=95, **SMALL)
    assert config.resolved().warmup_epochs is None
    exact, more = config.in_epochs(19), config.in_epochs(18)
    assert (exact.epochs, exact.steps, exact.warmup_epochs) == (5, None, 1.0)
    assert (more.epochs, more.warmup_epochs) == (6, 1.2)
    assert TrainConfig(epochs=3).in_epochs(18) == TrainConfig(epochs=3)


def test_cells_take_their_preset_and_say_so(
    cells: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = ["train", "--dataset", "h5ad", "--path", cells, *FLAGS, "--output", str(output)]
    assert main([*words, "--steps", "3", "--encoder-hidden", "5"]) == 0
    shown = capsys.readouterr().out.splitlines()[0]
    config = read_config(output / "config.json")
    assert shown.startswith("preset counts-nb: --likelihood negative-binomial")
    assert "--hidden" not in shown
    own = PRESETS["counts-nb"].options
    assert (config.likelihood, config.learning_rate) == (own["likelihood"], own["learning_rate"])
    assert (config.hidden, config.steps, config.epochs) == ((4,), None, 2)
    # Loading and continuing look at the file alone.
    saved = json.loads((output / "config.json").read_text())
    assert "preset" not in saved
    assert load(output).config == config
    assert main([*words, "--resume", "--preset", "mnist-mlp"]) == 0
    shown = capsys.readouterr()
    assert "preset counts-nb" not in shown.out
    assert "--preset has no effect with --resume" in shown.err
    assert read_config(output / "config.json") == config


def test_no_preset_is_taken_on_request(cells: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--dataset", "h5ad", "--path", cells, "--preset", NONE]
    assert main([*words, "--output", "/nowhere"]) == 2
    assert "preset" not in capsys.readouterr().out


def test_a_sweep_takes_presets_too(
    cells: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    words = ["sweep", "--dataset", "h5ad", "--path", cells, *FLAGS, "--betas", "1", "2"]
    assert main([*words, "--steps", "3", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith("preset counts-nb: ")
    configs = [read_config(path) for path in sorted(output.glob("*/config.json"))]
    assert [(run.beta, run.epochs, run.steps) for run in configs] == [
        (1.0, 2, None),
        (2.0, 2, None),
    ]
    assert {run.likelihood for run in configs} == {"negative-binomial"}


def test_help_lists_each_preset_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = "".join(capsys.readouterr().out.replace("│", "").split())
    for name, preset in PRESETS.items():
        assert f"{name}(for{preset.data}".replace(" ", "") in shown
        assert as_flags(preset.options, ", ", "").replace(" ", "") in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "mnist"], "unknown --preset 'mnist'. Did you mean 'mnist-mlp'? Known: "),
        (["--steps", "0"], "--steps must be a positive integer, got 0"),
        (["--steps", "5", "--epochs", "5"], "'--epochs' and '--steps' exclude each other"),
    ],
)
def test_presets_and_steps_that_make_no_sense_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--output", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_page_of_presets_has_each_with_its_options() -> None:
    page = (Path(pyro_bvae.__file__).parents[1] / "docs" / "presets.md").read_text("utf-8")
    for name, preset in PRESETS.items():
        assert f"| `{name}` | {preset.data} | `{as_flags(preset.options)}` |" in page
