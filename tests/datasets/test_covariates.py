"""Several covariates of cells, stratified splits, and categories that no training cell had."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_bvae import Context, evidence
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, ObsColumns, from_anndata, split
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.runs import TrainConfig, annotate, load, read_config, train

anndata = pytest.importorskip("anndata")

N, GENES = 120, 6
COLUMNS = ObsColumns(
    label="kind", batch="plate", categorical=("sex",), continuous=("depth", "age"), stratify="kind"
)


def cells(rows: int = N, first: int = 0) -> anndata.AnnData:
    number = np.arange(first, first + rows)
    obs = pd.DataFrame(
        {
            "kind": np.where(number % 10 == 0, "rare", "common"),
            "plate": np.array(["p", "q", "r"])[number % 3],
            "sex": np.array(["f", "m"])[number // 3 % 2],
            "depth": 50.0 + number,
            "age": number % 7,
        },
        index=[f"cell{i}" for i in number],
    )
    x = np.random.default_rng(first).poisson(3.0, size=(rows, GENES)).astype(np.float32)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=list("abcdef")))


def test_covariates_are_indicators_and_numbers_standardised_by_the_training_cells() -> None:
    adata = cells()
    splits = from_anndata(adata, columns=COLUMNS)
    seen, covariates = splits.format, splits.train.context.covariates
    assert seen.batches == ("p", "q", "r") and seen.categories == (("sex", ("f", "m")),)
    own = adata.obs.loc[splits.train_names]
    assert torch.equal(covariates[:, 0], torch.tensor((own["plate"] == "p").to_numpy()).float())
    assert torch.equal(covariates[:, 4], torch.tensor((own["sex"] == "m").to_numpy()).float())
    numbers = covariates[:, 5:].double()
    assert torch.allclose(numbers.mean(0), torch.zeros(2, dtype=torch.double), atol=1e-6)
    assert torch.allclose(numbers.std(0, correction=0), torch.ones(2, dtype=torch.double))
    assert seen.scales[0][:1] == ("depth",) and math.isclose(seen.scales[0][1], own["depth"].mean())
    assert np.allclose(seen.shares[1], [(own["sex"] == s).mean() for s in "fm"])
    test = adata.obs.loc[splits.test_names, "depth"].to_numpy()
    found = splits.test.context.covariates[:, 5].numpy()
    assert np.allclose(found, (test - seen.scales[0][1]) / seen.scales[0][2], atol=1e-5)


def test_the_record_keeps_them_and_reads_other_cells_likewise() -> None:
    splits = from_anndata(cells(), columns=COLUMNS)
    record = DataRecord.of(splits)
    again = DataRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again.cells == splits.format
    data, _ = again.cells.read(cells(9, first=200))
    assert data.context.covariates.shape == (9, 3 + 2 + 2)
    assert data.context.covariates[:, 5].min() > 2  # deeper than any training cell


def test_columns_that_are_no_covariates_are_refused_in_words() -> None:
    adata = cells()
    adata.obs["same"] = 1.0
    for options, words in (
        ({"continuous": ("kind",)}, "obs column 'kind' must hold numbers to be continuous"),
        ({"continuous": ("same",)}, "obs column 'same' is 1 for all training cells"),
        ({"categorical": ("sect",)}, "unknown obs column 'sect'"),
        ({"stratify": "kin"}, "unknown obs column 'kin'"),
    ):
        with pytest.raises(InputError, match=words):
            from_anndata(adata, columns=ObsColumns(**options))
    other = cells(6)
    other.obs["sex"] = "unknown"
    with pytest.raises(InputError, match="'unknown' of cell 'cell0' in obs column 'sex' is not am"):
        from_anndata(adata, columns=COLUMNS).format.read(other)


def test_a_stratified_split_has_each_label_in_proportion_in_each_part() -> None:
    labels = torch.tensor([0] * 170 + [1] * 20 + [2] * 10)
    data = Dataset(torch.arange(200.0)[:, None], labels=labels, label_names=("a", "b", "c"))
    for seed in range(5):
        parts = split(data, validation=0.2, test=0.3, seed=seed, name="", stratify=True)
        sizes = [torch.bincount(part.labels, minlength=3) for part in
                 (parts.train, parts.validation, parts.test)]  # fmt: skip
        assert [int(size.sum()) for size in sizes] == [100, 40, 60]
        for size, share in zip(sizes, (0.5, 0.2, 0.3), strict=True):
            assert ((size - share * torch.tensor([170, 20, 10])).abs() <= 1).all()
        rows = torch.cat([part.x for part in (parts.train, parts.validation, parts.test)])
        assert len(rows.unique()) == 200
        assert not torch.equal(parts.test.x, parts.test.x.sort(0).values)  # at random
    plain = split(data, validation=0.2, test=0.3, seed=0, name="")
    assert not torch.equal(plain.test.x, parts.test.x)
    with pytest.raises(InputError, match="'stratify' takes data with labels"):
        split(Dataset(data.x), validation=0.2, test=0.3, seed=0, name="", stratify=True)
    splits = from_anndata(cells(), columns=COLUMNS, test=0.25)
    kinds = cells().obs["kind"]
    assert (kinds[splits.test_names] == "rare").sum() == 3  # of 12 in 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("covariates")
    cells().write_h5ad(folder / "cells.h5ad")
    config = TrainConfig(
        dataset="h5ad", path=str(folder / "cells.h5ad"), label_column="kind", batch_column="plate",
        categorical_columns=("sex",), continuous_columns=("depth", "age"), stratify="label",
        likelihood="poisson", hidden=(8,), latent_dim=2, epochs=2, batch_size=32,
    )  # fmt: skip
    train(config, folder / "run", progress=False)
    assert read_config(folder / "run" / "config.json") == config.resolved()
    return folder / "run"


def test_a_run_has_its_covariates_again_and_cells_get_their_part(run: Path) -> None:
    opened = load(run)
    assert opened.splits.train.context.covariates.shape[1] == 7
    assert (opened.splits.test.labels == 1).sum() == 2  # a tenth of 24 is rare
    adata = anndata.concat([cells(), cells(5, first=300)])
    annotate(adata, opened, num_samples=20)
    found = adata.obs["pyro_bvae_split"]
    assert set(found[opened.splits.test_names]) == {"test"} and set(found[-5:]) == {"new"}
    assert set(found[opened.splits.train_names]) == {"train"}
    assert adata.obs["pyro_bvae_evidence_trusted"].dtype == bool


def test_an_unseen_category_is_marginalised_over_those_that_there_were(run: Path) -> None:
    opened, adata = load(run), cells(8)
    adata.obs["plate"] = ["p", "new", "q", "newer", "r", "p", "new", "q"]
    with pytest.raises(InputError, match="batch 'new' of cell 'cell1'"):
        annotate(adata, opened, num_samples=20)
    annotate(adata, opened, num_samples=3000, unseen="marginalise")
    seen = opened.record.cells
    terms = []
    for plate, share in zip(seen.batches, seen.shares[0], strict=True):
        assumed = adata.copy()
        new = assumed.obs["plate"].isin(["new", "newer"])
        assumed.obs.loc[new, "plate"] = plate
        data = seen.read(assumed)[0].dense()
        estimate = evidence(
            opened.vae.model, opened.vae.guide, data.x, data.context, num_samples=3000, seed=9
        )
        terms.append(estimate.per_datum + math.log(share))
        error = estimate.errors
    expected = torch.stack(terms).logsumexp(0).numpy()
    found = adata.obs["pyro_bvae_evidence"].to_numpy()
    assert (np.abs(found - expected) < 6 * error.numpy() + 1e-4).all()
    own = Context(data.context.size_factor, data.context.covariates)
    assert np.allclose(
        adata.obsm["X_pyro_bvae"][4], opened.vae.encode(data.x, own)[4], atol=1e-5
    )  # a cell of a known plate is encoded in its own
