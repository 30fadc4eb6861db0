"""The command line: the whole path from data to page, and one clear line for everything that cannot
be used."""

import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_bvae
from pyro_bvae import runs
from pyro_bvae.cli import main
from pyro_bvae.cli._main import _COMMANDS as COMMANDS
from pyro_bvae.cli.usage import options_of
from pyro_bvae.cli.words.wording import as_typed
from pyro_bvae.runs import read_config
from pyro_bvae.training import load_checkpoint, save_checkpoint

TINY = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "256", "--learning-rate", "0.03"]
QUICK = ["--num-samples", "30", "--num-data", "8"]
ESTIMATES = [
    "elbo",
    "evidence",
    "distortion",
    "rate",
    "objective",
    "variational_gap",
    "approximation_gap",
    "beta_gap",
    "amortization_gap",
]


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on digits, trained and evaluated from the command line."""
    output = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", *TINY, "--beta", "3", "--epochs", "2", "--output", str(output)]) == 0
    assert main(["evaluate", str(output), *QUICK]) == 0
    return output


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that a test may spoil."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


# -- the whole path
# --------------------------------------------------------------------------------------------------


def test_training_writes_its_configuration_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    options = [
        "--beta",
        "0.5",
        "--epochs",
        "1",
        "--seed",
        "3",
        "--likelihood",
        "normal-per-feature",
        "--hidden",
        "9",
        "7",
    ]
    assert main(["train", *TINY, *options, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"run directory: {output}" in shown
    assert "objective" in shown
    config = read_config(output / "config.json")
    training, model = config.training, config.model
    assert (training.beta, training.epochs, training.seed, model.hidden) == (0.5, 1, 3, (9, 7))
    assert (model.likelihood, model.latent_dim) == ("normal-per-feature", 2)
    assert config.data.dataset == "digits"
    # The file and the command line are one thing: every field of the one is an option of the other.
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    options = set(re.findall(r"(?m)^[│ ]{1,2} ?--([a-z][a-z-]+)", capsys.readouterr().out))
    assert {name.replace("_", "-") for name in json.loads((output / "config.json").read_text())} - {
        "digests"
    } == (
        options
        - {"preset", "output", "resume", "overwrite", "force", "snapshots", "tensorboard", "live"}
    )


def test_the_default_output_names_data_set_and_beta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--beta", "0.5", "--epochs", "1"]) == 0
    assert (tmp_path / "runs" / "digits-beta0.5" / "config.json").exists()


def test_every_promised_option_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    promised = [
        "dataset", "data-root", "path", "split-column", "prior", "likelihood", "posterior", "network", "hidden",
        "latent-dim", "beta", "epochs", "batch-size", "seed", "device", "output", "resume", "overwrite",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in promised:
        assert f"--{option}" in shown
    assert "Weight of the KL" in shown


def test_the_evaluation_holds_the_promised_numbers_and_they_agree(evaluated: Path) -> None:
    written = json.loads((evaluated / "evaluation.json").read_text())
    value = {name: written[name]["value"] for name in ESTIMATES}
    for name in ESTIMATES:
        assert math.isfinite(value[name])
        assert written[name]["standard_error"] > 0
        assert written[name]["monte_carlo_error"] >= 0
    assert value["elbo"] == pytest.approx(-(value["distortion"] + value["rate"]), rel=1e-9)
    assert written["beta"] == 3.0
    assert value["objective"] == pytest.approx(value["distortion"] + 3 * value["rate"], rel=1e-9)
    parts = value["approximation_gap"] + value["beta_gap"] + value["amortization_gap"]
    assert value["variational_gap"] == pytest.approx(parts, rel=1e-6, abs=1e-6)
    assert value["variational_gap"] == pytest.approx(
        value["evidence"] - value["elbo"], rel=1e-6, abs=1e-6
    )
    kl = written["kl_per_dimension"]
    assert len(kl["values"]) == len(kl["standard_errors"]) == 2
    assert sum(kl["values"]) == pytest.approx(value["rate"], rel=1e-4)
    units = written["active_units"]
    assert units["count"] == sum(units["active"])
    assert units["active"] == [variance > 0.01 for variance in units["variances"]]
    assert 0 <= written["pareto_k"]["share_above_0.7"] <= 1
    assert written["evidence"]["cost"] >= 8 * 30
    assert written["variational_gap"]["cost"] > 8 * 1000  # refits and all


def test_the_verdict_and_what_it_rests_on_are_written_down_and_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *QUICK, "--families", "full-rank"]) == 0
    lines = capsys.readouterr().out.splitlines()
    written = json.loads((run / "evaluation.json").read_text())
    # The file may be moved with its run, whose directory is not in it.
    assert f"verdict: {written['verdict'].replace('improve RUN', f'improve {run}')}" in lines
    assert " nats" in written["verdict"]
    assert written["refits"].keys() == {"converged", "certified", "steps", "num_data"}
    certified, untrusted = written["refits"]["certified"], written["pareto_k"]["untrusted"]
    assert f"local refits certified to have converged: {certified} of 8 data" in lines
    estimators = written["estimators"]
    assert estimators["data"] == {"guide": 0, "refit": 8, "annealing": 0}
    assert len(estimators["untrusted_rows"]) == untrusted
    assert estimators["cost"] <= estimators["budget"]
    shown = next(line for line in lines if line.startswith("evidence: "))
    assert shown.startswith(f"evidence: guide 0, refit 8, annealing 0, untrusted {untrusted}")
    assert shown.endswith(f"decoder evaluations of at most {estimators['budget']:,}")
    assert list(written["families"]) == ["full-rank"]
    row = next(line for line in lines if line.startswith("– with a full-rank guide"))
    assert row.split()[5] == f"{written['families']['full-rank']['value']:.3f}"
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert written["verdict"].split(":")[0][1:] in page and "– with a full-rank guide" in page


def test_the_evaluation_by_importance_samples_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *QUICK, "--method", "importance"]) == 0
    written = json.loads((run / "evaluation.json").read_text())
    assert written["estimators"] is None
    untrusted = written["pareto_k"]["untrusted"]
    assert f"evidence not to be trusted: {untrusted} of 8 data" in capsys.readouterr().out


def test_a_run_without_gaps_has_no_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    state["history"][-1]["beta"] = 0.0
    save_checkpoint(run / "checkpoints" / "best.pt", state)
    assert main(["evaluate", str(run), *QUICK]) == 0
    shown = capsys.readouterr().out
    written = json.loads((run / "evaluation.json").read_text())
    assert (written["verdict"], written["refits"], written["families"]) == (None, None, {})
    assert "verdict" not in shown and f"no gaps: {written['gaps_note']}" in shown


def test_the_draws_read_back_with_arviz(evaluated: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        data = arviz.from_netcdf(evaluated / "evaluation.nc", engine="h5netcdf")
    written = json.loads((evaluated / "evaluation.json").read_text())
    assert data["posterior"]["z"].shape == (1, 30, 8, 2)
    assert data["sample_stats"]["log_weight"].shape == (1, 30, 8)
    for name in ("elbo", "evidence"):
        assert float(data["constant_data"][name].mean()) == pytest.approx(
            written[name]["value"], rel=1e-6
        )
    assert json.loads(data.attrs["config"])["beta"] == 3.0


def test_the_report_is_one_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run)
    assert main(["report", str(run)]) == 0
    assert f"page: {run / 'report.html'}" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 and page.count('class="chart"') >= 5
    own = {"report.html", "digests.sha256"}  # the page of the training was there before
    assert {name: content for name, content in tree(run).items() if name not in own} == {
        name: content for name, content in before.items() if name not in own
    }
    assert (run / "report.html").read_bytes() != before["report.html"]


def test_the_same_evaluation_twice_gives_the_same_file(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "evaluation.json").read_bytes()
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert (run / "evaluation.json").read_bytes() == before
    shown = capsys.readouterr().out
    assert "Objective, D + βR" in shown
    assert "8 test data, 30 particles each, trained at β = 3" in shown
    assert "of 2 latents active" in shown


def write_table(path: Path, count: int = 60) -> None:
    values = np.random.default_rng(0).normal(size=(count, 3)).round(3)
    lines = [",".join(map(str, row)) for row in values]
    path.write_text("a,b,c\n" + "\n".join(lines) + "\n")


def write_images(path: Path, count: int = 60, **changes: np.ndarray) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(count, 4, 4), dtype=np.uint8)
    np.savez(path, **{"x": pixels, "labels": np.arange(count) % 3, **changes})


@pytest.mark.parametrize("kind", ["csv", "npz", "csv with parts"])
def test_ones_own_data_go_the_whole_path(kind: str, tmp_path: Path) -> None:
    options = ["--likelihood", "normal"]
    if kind == "npz":
        path, options = tmp_path / "data.npz", []
        write_images(path)
    else:
        path = tmp_path / "data.csv"
        write_table(path)
    if kind == "csv with parts":
        lines = path.read_text().splitlines()
        parts = ["part", *(["train"] * 40 + ["test"] * 20)]
        path.write_text(
            "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
        )
        options += ["--split-column", "part"]
    run = str(tmp_path / "run")
    data = ["--dataset", "file", "--path", str(path)]
    assert main(["train", *TINY, *data, *options, "--epochs", "1", "--output", run]) == 0
    assert main(["evaluate", run, *QUICK]) == 0
    assert main(["report", run]) == 0
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["dataset"] == "file"
    assert written["num_data"] == (8 if kind == "csv with parts" else 6)


def test_beta_zero_goes_the_whole_path(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert main(["train", *TINY, "--beta", "0", "--epochs", "1", "--output", run]) == 0
    assert main(["evaluate", run, *QUICK]) == 0
    assert main(["report", run]) == 0
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["objective"]["value"] == pytest.approx(written["distortion"]["value"])


@pytest.mark.slow
def test_the_demo_goes_the_whole_path_and_replaces_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--epochs", "2", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"page: {output / 'report.html'}" in shown
    after = re.search(r"variational gap .* ([\d.]+) ± [\d.]+ +[-+][\d.]+\n", shown)
    left = re.search(r"20 local steps for each datum \S+ leave ([\d.]+) nats", shown)
    assert after and left and float(left[1]) < float(after[1])
    assert (output / "report.html").stat().st_size > 50_000
    written = json.loads((output / "evaluation.json").read_text())
    assert (written["dataset"], written["beta"], written["num_samples"]) == ("digits", 2.0, 5000)


# -- resuming and overwriting
# ------------------------------------------------------------------------------------------


def test_resume_without_further_options_continues_with_the_saved_configuration(run: Path) -> None:
    saved = read_config(run / "config.json")
    (run / "checkpoints" / "last.pt").unlink()  # as if it had been stopped in its first epoch
    assert main(["train", "--resume", "--output", str(run)]) == 0
    assert read_config(run / "config.json") == saved
    assert len(load_checkpoint(run / "checkpoints" / "last.pt")["history"]) == 2


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_resume_takes_more_epochs_and_keeps_the_rest(run: Path) -> None:
    saved = read_config(run / "config.json")
    assert main(["train", "--resume", "--epochs", "3", "--output", str(run)]) == 0
    config = read_config(run / "config.json")
    assert config == saved.with_options(epochs=3)
    assert len(load_checkpoint(run / "checkpoints" / "last.pt")["history"]) == 3


def test_overwrite_replaces_a_run(run: Path) -> None:
    assert main(["train", *TINY, "--epochs", "1", "--overwrite", "--output", str(run)]) == 0
    assert read_config(run / "config.json").training.beta == 1.0
    assert not (run / "evaluation.json").exists()


# -- bad input
# --------------------------------------------------------------------------------------------------


def nothing(directory: Path) -> None:
    pass


def table(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "data.csv").write_text(text)


def images(**changes: np.ndarray) -> Callable[[Path], None]:
    return lambda directory: write_images(directory / "data.npz", **changes)


def cut(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = directory / "run" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def foreign(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "run" / name).write_bytes(pickle.dumps(os.getcwd))


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "run" / name).unlink()


def wrong_version(directory: Path) -> None:
    save_checkpoint(directory / "run" / "checkpoints" / "best.pt", {"version": 7})


def a_file(directory: Path) -> None:
    (directory / "file").write_text("mine")


def no_run(directory: Path) -> None:
    (directory / "other").mkdir()
    (directory / "other" / "thesis.txt").write_text("mine")


GOOD_ROW = "0.5,0.5\n" * 20
CSV = ["train", *TINY, "--dataset", "file", "--path", "data.csv", "--output", "new"]
NPZ = ["train", *TINY, "--dataset", "file", "--path", "data.npz", "--output", "new"]
NEW = ["train", *TINY, "--epochs", "1", "--output", "new"]
RESUME_MORE = ["train", "--resume", "--output", "run", "--epochs", "9"]


def cells(*rows: list[float]) -> Callable[[Path], None]:
    """Write twenty good cells, and then some."""

    def write(folder: Path) -> None:
        anndata = pytest.importorskip("anndata")
        adata = anndata.AnnData(
            np.array([[3.0, 1.0], [0.0, 2.0]] * 10 + list(rows), dtype=np.float32)
        )
        adata.obs["kind"] = "a"
        adata.layers["raw"] = adata.X.copy()
        adata.write_h5ad(folder / "cells.h5ad")

    return write


def not_h5ad(folder: Path) -> None:
    pytest.importorskip("anndata")
    (folder / "cells.h5ad").write_bytes(b"x" * 99)


H5AD = [*NEW, "--dataset", "h5ad", "--path", "cells.h5ad", "--likelihood", "negative-binomial"]
SPOILED = np.full((30, 4), 0.5)
SPOILED[11, 2] = np.nan
BAD_INPUT: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "pixels above one": (table("a,b\n" + GOOD_ROW + "0.5,1.5\n"), CSV, "is 1.5, outside "
                                                                       "the likelihood's support"),
    "pixels below zero": (table("a,b\n" + GOOD_ROW + "-1,0.5\n"), CSV, "feature 'a' of the datum with index 20 is -1, outside"),
    "NaN in a table": (table("a,b\n" + GOOD_ROW + "0.5,\n"), CSV, "got nan in row 21, column 'b'"),
    "Inf in a table": (table("a,b\n0.5,0.5\ninf,0.5\n" + GOOD_ROW), CSV, "got inf in row 2, column "
                                                                         "'a'"),
    "NaN in an archive": (images(x=SPOILED, labels=np.arange(30)), NPZ, "got nan at index (11, 2)"),
    "text in a table": (table("a,b\n" + GOOD_ROW + "0.5,red\n"), CSV, "must be numbers, got 'red' "
                                                                      "in row 21"),
    "empty table": (table("a,b\n"), CSV, "empty data set"),
    "empty file": (table(""), CSV, "empty data set"),
    "empty archive": (images(x=np.zeros((0, 4)), labels=np.zeros(0)), NPZ, "empty data set"),
    "negative counts": (cells([-1, 2]), H5AD, "-1"),
    "fractional counts": (cells([1, 0.5]), H5AD, "0.5"),
    "infinite counts": (cells([1, np.inf]), H5AD, "inf"),
    "an empty cell": (cells([0, 0]), H5AD, "size factor"),
    "no such layer": (cells(), [*H5AD, "--layer", "row"], "Did you mean 'raw'?"),
    "no such label": (cells(), [*H5AD, "--label-column", "kinds"], "Did you mean 'kind'?"),
    "no such batch": (cells(), [*H5AD, "--batch-column", "batch"], "kind"),
    "no h5ad": (not_h5ad, H5AD, "cells.h5ad: "),
    "a layer for digits": (nothing, [*NEW, "--layer", "raw"], "is for data set 'h5ad'"),
    "missing": (nothing, [*NEW, "--missing", "nans"], "Did you mean 'nan'?"),
    "size factor": (nothing, [*NEW, "--size-factor", "observe"], "Did you mean 'observed'?"),
    "no counts to size": (nothing, [*NEW, "--size-factor", "observed"], "count"),
    "dispersion": (nothing, [*NEW, "--dispersion", "features"], "Did you mean 'feature'?"),
    "prior components": (nothing, [*NEW, "--prior-components", "0"], "--prior-components must be a "
                                                                     "positive integer"),
    "pixels for counts": (nothing, [*NEW, "--likelihood", "poisson"], "outside the likelihood's support"),
    "no file": (nothing, CSV, "there is no such file"),
    "no path": (nothing, [*NEW, "--dataset", "file"], "needs --path"),
    "a path for digits": (table("a\n1\n"), [*NEW, "--path", "data.csv"], "is for data set 'file'"),
    "wrong column": (table("a,b\n" + GOOD_ROW), [*CSV, "--split-column", "part"], "must be one of "
                                                                                  "the columns a, "
                                                                                  "b"),
    "negative beta": (nothing, [*NEW, "--beta", "-1"], "--beta must be non-negative and finite, "
                                                       "got -1.0"),
    "NaN beta": (nothing, [*NEW, "--beta", "nan"], "--beta must be non-negative and finite, got "
                                                   "nan"),
    "infinite beta": (nothing, [*NEW, "--beta", "inf"], "--beta must be non-negative and finite, "
                                                        "got inf"),
    "data set": (nothing, [*NEW, "--dataset", "digts"], "Did you mean 'digits'?"),
    "prior": (nothing, [*NEW, "--prior", "norml"], "Did you mean 'normal'?"),
    "likelihood": (nothing, [*NEW, "--likelihood", "bernouli"], "Did you mean 'bernoulli'?"),
    "posterior": (nothing, [*NEW, "--posterior", "normall"], "Did you mean 'normal'?"),
    "network": (nothing, [*NEW, "--network", "mpl"], "Did you mean 'mlp'?"),
    "binarization": (nothing, [*NEW, "--binarize", "statics"], "Did you mean 'static'?"),
    "device": (nothing, [*NEW, "--device", "cudda"], "--device must be one that torch can use "
                                                     "here"),
    "no epochs": (nothing, [*NEW, "--epochs", "0"], "--epochs must be a positive integer, got 0"),
    "no latents": (nothing, [*NEW, "--latent-dim", "0"], "--latent-dim must be a positive integer, "
                                                         "got 0"),
    "no hidden layer": (nothing, [*NEW, "--hidden"], "--hidden must name at least one width"),
    "negative seed": (nothing, [*NEW, "--seed", "-3"], "--seed must be"),
    "no images": (nothing, [*NEW, "--network", "convolutional", "--dataset", "linear-gaussian",
                            "--likelihood", "normal"], "needs images"),
    "output exists": (nothing, ["train", *TINY, "--output", "run"], "pass --resume to continue it, "
                                                                    "--overwrite"),
    "output is a file": (a_file, ["train", *TINY, "--output", "file"], "--output must be a "
                                                                       "directory, got the file"),
    "output under a file": (a_file, ["train", *TINY, "--output", "file/run"], "Not a directory"),
    "output is no run": (no_run, ["train", *TINY, "--output", "other", "--overwrite"], "so it is not overwritten"),
    "demo over no run": (no_run, ["demo", "--output", "other"], "so it is not overwritten"),
    "overwrite, but beta": (nothing, ["train", "--output", "run", "--overwrite", "--beta", "-1"], "--beta must be"),
    "overwrite, but clip": (nothing, ["train", "--output", "run", "--overwrite", "--gradient-clip", "0"], "--gradient-clip"),
    "resume and overwrite": (nothing, ["train", "--output", "run", "--overwrite", "--resume"], "exclude each other"),
    "resume nothing": (nothing, ["train", "--output", "new", "--resume"], "is not a run directory"),
    "resume no run": (no_run, ["train", "--output", "other", "--resume"], "is not a run directory"),
    "resume another beta": (nothing, ["train", "--output", "run", "--resume", "--beta", "1"], "beta was 3.0, got 1.0"),
    "resume what is cut": (cut("checkpoints/last.pt"), RESUME_MORE, "last.pt was changed or damaged"),
    "resume foreign": (foreign("checkpoints/last.pt"), ["train", "--output", "run", "--resume"], "last.pt was changed"),
    "resume cut config": (cut("config.json"), ["train", "--output", "run", "--resume"], "config.json was changed"),
    "evaluate nothing": (nothing, ["evaluate", "new"], "there is no run directory new"),
    "evaluate no run": (no_run, ["evaluate", "other"], "is not a run directory"),
    "evaluate what is cut": (cut("checkpoints/best.pt"), ["evaluate", "run"], "best.pt was changed or damaged"),
    "evaluate foreign": (foreign("checkpoints/best.pt"), ["evaluate", "run"], "best.pt was changed or damaged"),
    "evaluate a version": (wrong_version, ["evaluate", "run"], "has checkpoint version 7"),
    "evaluate a lost one": (without("checkpoints/best.pt"), ["evaluate", "run"], "there is no "
                                                                                 "checkpoint at"),
    "evaluate no sample": (nothing, ["evaluate", "run", "--num-samples", "0"], "--num-samples must "
                                                                               "be"),
    "evaluate no datum": (nothing, ["evaluate", "run", "--num-data", "0"], "--num-data must be"),
    "evaluate seed": (nothing, ["evaluate", "run", "--seed", "-1"], "--seed must be"),
    "evaluate unknown": (nothing, ["evaluate", "run", "--checkpoint", "bset"], "Did you mean "
                                                                               "'best'?"),
    "evaluate family": (nothing, ["evaluate", "run", "--families", "fullrank"], "Did you mean "
                                                                                "'full-rank'?"),
    "verify device": (nothing, ["verify", "--device", "tpu"], "--device must be"),
    "evaluate device": (nothing, ["evaluate", "run", "--device", "tpu"], "--device must be"),
    "report nothing": (nothing, ["report", "new"], "is not a run directory"),
    "report what is cut": (cut("checkpoints/best.pt"), ["report", "run"], "best.pt was changed or damaged"),
    "report cut evaluation": (cut("evaluation.json"), ["report", "run"], "evaluation.json was changed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_line_and_costs_nothing(
    kind: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, arguments, message = BAD_INPUT[kind]
    monkeypatch.chdir(run.parent)
    spoil(run.parent)
    before = tree(run.parent)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert tree(run.parent) == before


def test_data_that_changed_since_the_training_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "data.csv")
    assert main([*CSV, "--likelihood", "normal", "--epochs", "1"]) == 0
    text = (tmp_path / "data.csv").read_text()
    (tmp_path / "data.csv").write_text(text.replace("\n", ",0.5\n").replace("c,0.5", "c,d", 1))
    before = tree(tmp_path)
    capsys.readouterr()
    assert main(["evaluate", "new", *QUICK]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "these are other features than those of the training" in shown.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train", "--latent-dim", "two"], ["train", "--bta", "2"]]
)
def test_a_command_that_cannot_be_parsed_ends_with_status_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_that_are_checked_are_those_of_the_help(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(COMMANDS[command]).values()
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = set(re.findall(r"(?m)^[│ ]{1,2} ?(?:-h, )?--([a-z][a-z-]+)", capsys.readouterr().out))
    own = {option.flag.removeprefix("--") for option in options if not option.is_positional}
    assert own == shown - {"help"}


def test_the_last_of_an_option_that_is_repeated_is_taken(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", str(run), "--split", "train", "--split=test", "--no-scales", "--scales"]
    assert main(words) == 0
    assert "359 codes" in capsys.readouterr().out
    with np.load(run / "latents" / "embedding.npz") as arrays:
        assert "scales" in arrays


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--bs", "--batch-size"),
        ("--batch", "--batch-size"),
        ("--Latent_Dim", "--latent-dim"),
        ("-epochs", "--epochs"),
        ("--latents", "--latent-dim"),
        ("--n-epochs", "--epochs"),
        ("--xyzzy", None),
    ],
)
def test_an_option_that_is_none_gets_a_sensible_suggestion(
    typed: str, meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", typed, "3"])
    shown = capsys.readouterr().err
    if meant is None:
        assert "Did you mean" not in shown and "train --help" in shown
    elif typed == "--latents":  # of another command
        assert "but of traverse" in shown
    else:
        assert shown.endswith(f"Did you mean '{meant}'?\n")


def test_an_option_without_effect_is_said_once_and_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "run")
    words = ["train", *TINY, "--epochs", "1", "--prior-components", "4", "--output", output]
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: --prior" in line]
    assert lines == [
        "warning: --prior-components has no effect with --prior normal, but with mixture or vamp"
    ]
    assert main([*words, "--prior", "mixture", "--overwrite"]) == 0
    assert "no effect" not in capsys.readouterr().err


def test_a_file_in_place_of_a_data_set_is_told_how_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in (("a.csv", "file"), ("a.h5ad", "h5ad"), ("pictures", "file")):
        (path := tmp_path / name).mkdir()
        assert main(["train", "--dataset", str(path)]) == 2
        assert f"--dataset is {kind} and --path is {path}" in capsys.readouterr().err


def test_messages_name_options_as_they_are_typed() -> None:
    train, sweep = COMMANDS["train"], COMMANDS["sweep"]
    for message, expected in {
        "'latent_dim' must be 3": "--latent-dim must be 3",
        "'nats' must be positive": "--target-rate must be positive",
        "row 3, column 'seed'; missing=True takes it": "row 3, column 'seed'; --missing nan takes it",
        "data set 'path' needs 'path'": "data set 'path' needs --path",
        "unknown data set 'a'": "unknown --dataset 'a'",
        "other: beta was 1, got 2": "other: --beta was 1, got 2",
        "'image_shape' must be": "'image_shape' must be",
        "cannot use 'prior'": "cannot use 'prior'",
    }.items():
        assert as_typed(message, train, ["train", "--path", "prior"]) == expected
    assert as_typed("'beta' must be", sweep, []) == "--betas must be"


def test_a_message_is_one_line_of_a_thousand_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ",".join(f"column{i}" for i in range(9000))
    (tmp_path / "wide.csv").write_text(f"{names}\n" + ",".join("1" * 9000) + "\n")
    words = ["train", "--dataset", "file", "--path", str(tmp_path / "wide.csv")]
    assert main([*words, "--split-column", "x\x1b[31m\ny"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and len(shown) < 1010 and "\x1b" not in shown
    assert main(["evaluate", "y" * 200_000]) == 2
    assert len(capsys.readouterr().err) < 1010


def test_a_memory_that_is_too_small_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(error: Exception) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise error

        return call

    for error in (
        MemoryError("Unable to allocate 7.28 TiB\nfor an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        monkeypatch.setattr(runs, "load", refuse(error))
        assert main(["embed", str(run)]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: the memory is too small: ") and shown.count("\n") == 1
    monkeypatch.setattr(runs, "load", refuse(RuntimeError("a defect of memory formats")))
    with pytest.raises(RuntimeError, match="a defect"):
        main(["embed", str(run)])


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_a_loss_that_turns_nan_ends_with_status_one_and_keeps_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyro_bvae.networks import MLP

    before = (run / "checkpoints" / "last.pt").read_bytes()
    forward = MLP.forward
    monkeypatch.setattr(
        MLP, "forward", lambda self, x: forward(self, x) * (float("nan") if self.training else 1.0)
    )
    assert main(["train", "--resume", "--epochs", "4", "--output", str(run)]) == 1
    shown = capsys.readouterr().err
    line = shown.strip().split("\n")[-1]
    where = "epoch 3, step 1 (batch 0)"
    assert line.startswith(
        f"error: training stopped at {where}: site 'z' of the guide has a value that is not"
    )
    assert "Traceback" not in shown
    assert (run / "checkpoints" / "last.pt").read_bytes() == before
    monkeypatch.undo()
    assert main(["train", "--resume", "--output", str(run)]) == 0
    assert pyro_bvae.load(run).history["epoch"] == [1, 2, 3, 4]


def test_a_learning_rate_that_explodes_ends_with_status_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        *TINY,
        "--learning-rate",
        "1e30",
        "--likelihood",
        "normal",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.count("error: training stopped at epoch 1, step 2 (batch 1): site '") == 1
    assert "Traceback" not in shown


def test_an_interrupt_ends_with_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupt)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == (
        "interrupted; 'train --resume' continues from the last finished epoch\n"
    )


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "train", defect)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


def test_warnings_are_one_line_and_the_process_keeps_its_own_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        *TINY,
        "--epochs",
        "1",
        "--warmup-epochs",
        "4",
        "--output",
        str(tmp_path / "run"),
    ]
    with warnings.catch_warnings():
        shown_before = warnings.showwarning
        warnings.simplefilter("default")
        assert main(arguments) == 0
        assert warnings.showwarning is shown_before
    lines = [line for line in capsys.readouterr().err.split("\n") if "warning:" in line]
    assert len(lines) == 1
    assert (
        "warning: the warm-up of β outlives the training: it ends at β = 0.25, not at 1" in lines[0]
    )


# -- real processes
# --------------------------------------------------------------------------------------------------


def start(arguments: list[str], directory: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pyro_bvae.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pyro_bvae", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def heed_interrupts() -> None:  # a shell's background jobs inherit that they are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        preexec_fn=heed_interrupts,  # noqa: PLW1509
        **pipes,
    )


@pytest.mark.slow
def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    process = start(["train", "--beta", "-1"], tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err == "error: --beta must be non-negative and finite, got -1.0\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_stops_the_program_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    process = start(["train", *TINY, "--epochs", "1900", "--output", "run"], tmp_path)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.rstrip().endswith(
        "interrupted; 'train --resume' continues from the last finished epoch"
    )
    done = len(load_checkpoint(last)["history"])
    assert done >= 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_counts_go_through_the_whole_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated counts, a conditional evidence that says so, the checks on the page, and a prior of
    pseudo-inputs."""
    run = tmp_path / "run"
    parts = [
        "--likelihood",
        "zero-inflated-negative-binomial",
        "--dispersion",
        "decoder",
        "--prior",
        "vamp",
    ]
    parts += ["--prior-components", "5", "--posterior", "full-rank", "--network", "residual"]
    assert (
        main(["train", *TINY, "--dataset", "counts", *parts, "--epochs", "1", "--output", str(run)])
        == 0
    )
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert "all densities are given the size factors of the data" in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["given"] == "size factors"
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Posterior predictive checks" in page and "simulated" in page


def test_plain_counts_have_their_totals_as_size_factors(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).poisson(3.0, size=(60, 4)) + 1)
    parts = [
        "--likelihood",
        "poisson",
        "--size-factor",
        "observed",
        "--output",
        str(tmp_path / "run"),
    ]
    assert (
        main(
            [
                "train",
                *TINY,
                "--dataset",
                "file",
                "--path",
                str(tmp_path / "data.npz"),
                *parts,
                "--epochs",
                "1",
            ]
        )
        == 0
    )
    loaded = pyro_bvae.load(tmp_path / "run")
    test = loaded.splits.test
    assert torch.equal(test.context.size_factor.squeeze(1), test.x.sum(1))
    assert torch.allclose(
        loaded.vae.reconstruct(test.x, test.context).sum(1), test.x.sum(1), rtol=1e-4
    )


def test_missing_entries_are_masked_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 4))
    x[generator.random(x.shape) < 0.2] = np.nan
    np.savez(tmp_path / "data.npz", x=x)
    common = [
        "train",
        *TINY,
        "--dataset",
        "file",
        "--path",
        str(tmp_path / "data.npz"),
        "--likelihood",
        "normal",
    ]
    assert main([*common, "--epochs", "1", "--output", str(tmp_path / "run")]) == 2
    assert "missing" in capsys.readouterr().err
    assert (
        main([*common, "--epochs", "1", "--missing", "nan", "--output", str(tmp_path / "run")]) == 0
    )
    np.savez(tmp_path / "masked.npz", x=np.nan_to_num(x), mask=~np.isnan(x))
    common[common.index(str(tmp_path / "data.npz"))] = str(tmp_path / "masked.npz")
    assert main([*common, "--epochs", "1", "--output", str(tmp_path / "masked")]) == 0
    columns = ("objective", "distortion", "rate", "validation_objective")
    histories = [pyro_bvae.load(tmp_path / name).history.rows for name in ("run", "masked")]
    assert [[row[key] for key in columns] for row in histories[0]] == [
        [row[key] for key in columns] for row in histories[1]
    ]
    assert main(["evaluate", str(tmp_path / "run"), *QUICK]) == 0
    evidence = json.loads((tmp_path / "run" / "evaluation.json").read_text())["evidence"]
    assert np.isfinite(evidence["value"])
