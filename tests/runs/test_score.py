"""Scores of each row under a run, on its own data and on new ones, and the commands on new data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_bvae import elbo, evidence, load
from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.runs import TrainConfig, score, train

COLUMNS = ["index", "split", "elbo", "evidence", "monte_carlo_error", "pareto_k", "trusted", "rate",
           "distortion", "rank"]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Return a folder with a table of 60 rows of linear-Gaussian data, and a run on it."""
    folder = tmp_path_factory.mktemp("score")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 2, generator=generator)
    weight = torch.randn(4, 2, generator=generator)
    x = z @ weight.T + 0.5 * torch.randn(60, 4, generator=generator)
    frame = pd.DataFrame(x.numpy(), columns=["a", "b", "c", "d"])
    frame["label"] = ["yes" if value > 0 else "no" for value in z[:, 0]]
    frame.to_csv(folder / "data.csv", index=False)
    config = TrainConfig(
        dataset="file", path=str(folder / "data.csv"), likelihood="normal", hidden=(8,),
        latent_dim=2, epochs=20, batch_size=16, warmup_epochs=0.0,
    )  # fmt: skip
    train(config, folder / "run", progress=False)
    return folder


def test_scores_are_the_evidence_and_bound_of_each_row(table):
    run = load(table / "run")
    scores = score(run, num_samples=2000)
    test = run.part("test")
    exact = evidence(run.vae.model, run.vae.guide, test.x, num_samples=100_000, seed=1)
    error = np.hypot(scores.monte_carlo_error, exact.errors.numpy())
    assert (np.abs(scores.evidence - exact.per_datum.numpy()) < 5 * error).all()
    assert np.allclose(scores.elbo, -scores.rate - scores.distortion, atol=1e-4)
    bound = elbo(run.vae.model, run.vae.guide, test.x, num_samples=20_000)
    assert np.abs(scores.elbo - bound.per_datum.numpy()).max() < 0.3
    assert list(scores.table().columns) == COLUMNS
    assert set(scores.split) == {"test"}
    assert scores.index.tolist() == test.index.tolist()
    order = np.argsort(scores.evidence)
    assert np.allclose(scores.rank[order], np.arange(1, len(test) + 1) / len(test))


def test_the_command_names_rows_and_the_part_they_were_in(table, capsys):
    frame = pd.read_csv(table / "data.csv")
    strange = frame[:1].assign(a=40.0)
    both = pd.concat([frame, strange])[["d", "label", "b", "a", "c"]]
    both.to_csv(table / "new.csv", index=False)
    output = table / "scores.csv"
    words = ["score", str(table / "run"), "--data", str(table / "new.csv"), "--num-samples", "200"]
    assert main([*words, "--output", str(output)]) == 0
    assert "mean evidence" in capsys.readouterr().out
    found = pd.read_csv(output)
    assert list(found.columns) == COLUMNS
    assert found["index"].tolist() == list(range(61))
    run = load(table / "run")
    for part in ("train", "validation", "test"):
        own = found["index"][found["split"] == part]
        assert sorted(own) == sorted(run.part(part).index.tolist())
    assert found["split"].iloc[-1] == "new"
    assert found["rank"].iloc[-1] == 0  # stranger than all held-out data
    assert found["evidence"].iloc[-1] < found["evidence"][:60].min()


@pytest.mark.filterwarnings("ignore:.* are training data of")
def test_commands_take_new_data_after_their_own_are_gone(table, tmp_path, capsys):
    new, run = table / "data.csv", tmp_path / "run"
    frame = pd.read_csv(new)
    frame.to_csv(tmp_path / "own.csv", index=False)
    config = load(table / "run").config.with_options(path=str(tmp_path / "own.csv"), epochs=1)
    train(config, run, progress=False)
    given = ["--data", str(new)]
    assert main(["evaluate", str(run), "--num-samples", "20"]) == 0
    (tmp_path / "own.csv").unlink()
    path = tmp_path / "scores.csv"
    assert main(["score", str(run), *given, "--num-samples", "20", "--output", str(path)]) == 0
    rank = pd.read_csv(path)["rank"]  # among the test data that the evaluation has measured
    assert rank.notna().all() and rank.max() == 1
    shutil.rmtree(run)
    frame.to_csv(tmp_path / "own.csv", index=False)
    train(config, run, progress=False)
    (tmp_path / "own.csv").unlink()
    few = ["--num-samples", "20", "--num-data", "5"]
    assert main(["evaluate", str(run), *given, *few]) == 0
    assert json.loads((run / "evaluation-data.json").read_text())["split"] == "new"
    assert not (run / "evaluation.json").exists()
    for command, name in (("embed", "codes"), ("reconstruct", "means")):
        path = tmp_path / f"{name}.csv"
        assert main([command, str(run), *given, "--output", str(path)]) == 0
        columns = pd.read_csv(path)
        assert columns["index"].tolist() == list(range(60))
    assert list(columns.columns) == ["index", "split", "a", "b", "c", "d"]
    codes = pd.read_csv(tmp_path / "codes.csv")
    assert codes["label_name"].tolist() == frame["label"].tolist()
    assert set(codes["split"]) == {"train", "validation", "test"}
    path = tmp_path / "made.csv"
    assert main(["generate", str(run), "--num-samples", "3", "--output", str(path)]) == 0
    assert list(pd.read_csv(path).columns) == ["a", "b", "c", "d"]
    capsys.readouterr()
    for command in ("evaluate", "embed", "reconstruct", "score"):
        assert main([command, str(run)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: the data of") and "'--data'" in error
        assert error.count("\n") == 1


def test_embed_takes_all_parts(table, tmp_path):
    path = tmp_path / "codes.csv"
    assert main(["embed", str(table / "run"), "--split", "all", "--output", str(path)]) == 0
    codes = pd.read_csv(path)
    assert sorted(codes["index"]) == list(range(60))
    run = load(table / "run")
    for part in ("train", "validation", "test"):
        own = codes[codes["split"] == part]
        data = run.part(part)
        assert own["index"].tolist() == data.index.tolist()
        assert np.allclose(own[["z0", "z1"]], run.vae.encode(data.x), atol=1e-6)


def test_impute_fills_the_missing_entries_alone(tmp_path, capsys):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(40, 3)), columns=["a", "b", "c"])
    frame.iloc[3, 1] = frame.iloc[7, 0] = np.nan
    frame.to_csv(tmp_path / "data.csv", index=False)
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "data.csv"), likelihood="normal", missing="nan",
        hidden=(4,), latent_dim=1, epochs=1,
    )  # fmt: skip
    train(config, tmp_path / "run", progress=False)
    path = tmp_path / "filled.csv"
    words = ["impute", str(tmp_path / "run"), "--data", str(tmp_path / "data.csv")]
    assert main([*words, "--output", str(path)]) == 0
    assert "2 missing entries of 40 data filled" in capsys.readouterr().out
    filled = pd.read_csv(path)
    assert filled["index"].tolist() == list(range(40))
    seen = frame.notna()
    assert np.allclose(filled[["a", "b", "c"]].where(seen, 0), frame.where(seen, 0), atol=1e-6)
    assert filled.notna().all(axis=None)


def test_data_that_the_run_cannot_read_are_refused(table, tmp_path):
    pd.DataFrame({"a": [1.0], "b": [2.0]}).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(InputError, match=r"few\.csv: .*feature 'c' is not there"):
        score(table / "run", tmp_path / "few.csv")
    with pytest.raises(InputError, match="there is no such file"):
        score(table / "run", tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"\.h5ad has cells, and the run"):
        score(table / "run", tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match="'data' must be"):
        score(table / "run", 3)
