"""Groups of the cells of a run by the names of their columns, in Python and at the command line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import differential_expression
from pyro_bvae.runs import TrainConfig, compare_groups, evaluate_run, load, score, train

anndata = pytest.importorskip("anndata")

N = 90


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of cells of which a kind has four times the first gene, and plate q no zeros."""
    folder = tmp_path_factory.mktemp("groups")
    number = np.arange(N)
    rates = np.tile(np.linspace(2, 8, 5), (N, 1))
    rates[number % 3 == 0, 0] *= 4
    x = np.random.default_rng(0).poisson(rates).astype(np.float32)
    x[number % 2 == 1] += 1
    obs = pd.DataFrame(
        {
            "kind": np.array(["up", "same", "other"])[number % 3],
            "plate": np.array(["p", "q"])[number % 2],
            "donor": [f"d{i}" for i in number // 3 % 5],
        },
        index=[f"cell{i}" for i in number],
    )
    adata = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=list("abcde")))
    adata.write_h5ad(folder / "cells.h5ad")
    config = TrainConfig(
        dataset="h5ad", path=str(folder / "cells.h5ad"), label_column="kind", batch_column="plate",
        likelihood="negative-binomial", hidden=(8,), latent_dim=2, epochs=3, batch_size=32,
    )  # fmt: skip
    train(config, folder / "run", progress=False)
    return folder / "run"


def test_groups_are_taken_by_name_with_donors_and_a_reference_batch(run: Path) -> None:
    opened = load(run)
    found = compare_groups(
        opened, "up", "same", donor_column="donor", reference_batches=("p", "q"), num_samples=50
    )
    assert found.num_cells == (30, 30) and found.num_donors == (5, 5)
    assert found.feature_names.tolist() == list("abcde") and found.log_fold_change[0] > 0.8
    adata = anndata.read_h5ad(run.parent / "cells.h5ad")
    data, _ = opened.record.cells.read(adata)
    kind, donor = adata.obs["kind"].to_numpy(), adata.obs["donor"].str[1:].astype(int).to_numpy()
    groups = np.select([kind == "up", kind == "same"], [1, 0], -1)
    direct = differential_expression(
        opened.vae, data, groups, donors=donor, references=torch.eye(2), num_samples=50
    )
    assert np.allclose(found.log_fold_change, direct.log_fold_change)
    rest = compare_groups(opened, "up", num_samples=20)
    assert rest.num_cells == (30, 60) and rest.num_donors is None


def test_the_command_writes_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["differential", str(run), "--group", "up", "--num-samples", "20", "--threshold", "0.5"]
    assert main([*given, "--donor-column", "donor"]) == 0
    said = capsys.readouterr().out
    assert "of 5 features changed by more than 0.5 in log2" in said and "5 and 5 donors" in said
    table = pd.read_csv(run / "latents" / "differential.csv")
    assert list(table["feature"]) == list("abcde")
    assert (table["lower"] <= table["log_fold_change"]).all()
    for words, message in (
        (["--group", "upp"], "unknown --group 'upp'. Did you mean 'up'"),
        (["--group", "up", "--against", "up"], "another group than"),
        (["--group", "up", "--reference-batches", "z"], "unknown batch 'z'"),
        (["--group", "up", "--group-column", "kin"], "unknown obs column 'kin'"),
    ):
        assert main(["differential", str(run), *words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], lines


def test_a_run_without_groups_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(
        dataset="counts", likelihood="poisson", hidden=(4,), latent_dim=2, epochs=1, batch_size=2000
    )
    train(config, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="has no labels, which would be the groups"):
        compare_groups(tmp_path / "run", "a")
    with pytest.raises(InputError, match="'donor_column' is a column"):
        compare_groups(tmp_path / "run", "a", donor_column="d")


def test_an_evaluation_says_misfit_by_batch(run: Path) -> None:
    evaluation = evaluate_run(run, num_samples=20, progress=False, method="importance")
    assert evaluation.counts is not None and evaluation.counts.group_names == ("p", "q")
    assert evaluation.to_dict()["counts"]["verdict"] == evaluation.counts.verdict


def test_the_mean_of_all_cells_is_that_of_a_sample_by_label_with_its_error(run: Path) -> None:
    path = run.parent / "cells.h5ad"
    options = {"num_samples": 50, "method": "importance"}
    whole = score(run, path, **options)
    found = score(run, path, num_data=45, **options)
    assert len(found.index) == 45 and found.size == N and whole.mean is None
    assert set(np.bincount([int(name[4:]) % 3 for name in found.index])) == {15}
    away = found.mean.value - whole.evidence.mean()
    assert 0 < found.mean.standard_error < whole.evidence.std() / np.sqrt(45)
    assert abs(away) < 4 * np.hypot(found.mean.standard_error, found.mean.monte_carlo_error)
    assert "of all 90 data, from 45 of them by label" in str(found)
    assert "mean" not in found.table()
