"""Cells in an AnnData or an h5ad file, and results written back, against the matrix they were made
of."""

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets import (
    CellFormat,
    CellSplits,
    Dataset,
    LazyDataset,
    ObsColumns,
    from_anndata,
    h5ad,
)
from pyro_bvae.datasets.counts import anndata as cells
from pyro_bvae.datasets.counts import tables as count_tables
from pyro_bvae.evaluation import Estimate
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import TrainConfig, annotate, load, train

anndata = pytest.importorskip("anndata")

N, GENES = 60, 9
PLATES = ObsColumns(label="kind", batch="plate")
KINDS = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr array": sp.csr_array}


def counts() -> np.ndarray:
    """Counts with two poor cells, numbers 5 and 17, one empty gene, number 4, and one in two cells
    only, number 7."""
    x = np.random.default_rng(1).poisson(2.0, size=(N, GENES)).astype(np.float32)
    x[[5, 17]] = 0
    x[5, 0] = 2
    x[:, [4, 7]] = 0
    x[[20, 30], 7] = 3
    return x


KEPT = np.delete(np.arange(N), [5, 17])
SEEN = np.delete(np.arange(GENES), 4)


def cells_of(x: object, **layers: object) -> anndata.AnnData:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.array(["b", "a", "c"])[np.arange(N) % 3]),
            "plate": np.arange(N) % 2 + 10,
            "part": np.array(["train", "train", "test", "validation"])[np.arange(N) % 4],
            "depth": np.linspace(0, 1, N),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    return anndata.AnnData(
        X=x, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(GENES)]), layers=layers
    )


def written(tmp_path: Path, x: object, **layers: object) -> Path:
    path = tmp_path / "cells.h5ad"
    cells_of(x, **layers).write_h5ad(path)
    return path


def rows_of(splits: CellSplits) -> dict[str, np.ndarray]:
    names = {
        "train": splits.train_names,
        "validation": splits.validation_names,
        "test": splits.test_names,
    }
    return {
        part: np.array([int(name[4:]) for name in results], int) for part, results in names.items()
    }


@pytest.mark.parametrize("backed", [False, True], ids=["in memory", "backed"])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_file_in_the_order_of_the_permutation(
    kind: str, backed: bool, tmp_path: Path
) -> None:
    path = written(tmp_path, KINDS[kind](counts()))
    if backed and kind == "csc":
        with pytest.raises(InputError, match="read by rows if it is dense or csr, got csc"):
            h5ad(path, backed=True)
        return
    splits = h5ad(path, min_counts=3, columns=PLATES, backed=backed, seed=3)
    assert isinstance(splits.train, Dataset if kind == "dense" and not backed else LazyDataset)
    assert isinstance(splits.test, Dataset) and splits.validation is None and splits.name == "cells"
    order = KEPT[np.random.default_rng(3).permutation(len(KEPT))]
    expected = {
        "train": order[:46],
        "validation": order[46:46],
        "test": order[46:],
    }  # 12 of 58 test
    results = rows_of(splits)
    assert all(np.array_equal(results[part], expected[part]) for part in results)
    for part, data in (("train", splits.train), ("test", splits.test)):
        rows = results[part]
        x = counts()[rows][:, SEEN]
        assert data.x.dtype == torch.float32 and np.array_equal(data.x.numpy(), x)
        assert np.array_equal(data.context.size_factor.numpy(), x.sum(1, keepdims=True))
        assert np.array_equal(data.context.covariates.numpy(), np.eye(2)[rows % 2])
        assert data.label_names == ("a", "b", "c")
        assert np.array_equal(data.labels.numpy(), np.array([1, 0, 2])[rows % 3])
    assert splits.format.batches == ("10", "11") and splits.format.genes == tuple(
        f"gene{i}" for i in SEEN
    )
    assert splits.train.feature_names == splits.test.feature_names == splits.format.genes
    assert splits.train.dense().feature_names == splits.format.genes
    assert (splits.dropped_cells, splits.dropped_genes) == (2, 1)
    assert str(splits).startswith(
        "cells: 58 cells x 8 genes (left out: 2 cells with fewer than 3 counts, 1 genes"
    )


def test_the_default_split_is_the_first_four_fifths_of_a_permutation() -> None:
    splits = from_anndata(cells_of(counts()), min_counts=3)
    order = KEPT[np.random.default_rng(0).permutation(len(KEPT))]
    assert np.array_equal(rows_of(splits)["train"], order[: int(0.8 * len(order))])
    assert np.array_equal(rows_of(splits)["test"], order[int(0.8 * len(order)) :])


def test_validation_is_taken_from_training_and_dense() -> None:
    plain = from_anndata(cells_of(sp.csr_matrix(counts())), min_counts=3)
    splits = from_anndata(cells_of(sp.csr_matrix(counts())), min_counts=3, validation=6)
    assert isinstance(splits.validation, Dataset) and len(splits.validation) == 6
    assert np.array_equal(splits.test_names, plain.test_names)
    assert np.array_equal([*splits.train_names, *splits.validation_names], plain.train_names)


def test_a_large_test_part_stays_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MOST_DENSE", 50)
    splits = from_anndata(cells_of(sp.csr_matrix(counts())), min_counts=3)
    assert isinstance(splits.test, LazyDataset)
    assert np.array_equal(splits.test.x.numpy(), counts()[rows_of(splits)["test"]][:, SEEN])


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = from_anndata(cells_of(sp.csr_matrix(counts())), min_counts=9, min_cells=3)
    monkeypatch.setattr(count_tables, "_BLOCK", 4 * GENES)
    parts = from_anndata(cells_of(sp.csr_matrix(counts())), min_counts=9, min_cells=3)
    assert np.array_equal(whole.train.x, parts.train.x) and whole.format == parts.format
    broken = counts()
    broken[50, 3] = -1
    with pytest.raises(InputError, match=r"index \(50, 3\) \(row 'cell50'\) \(column 'gene3'\)"):
        from_anndata(cells_of(broken))


def test_every_cell_and_gene_kept_has_enough_of_those_kept() -> None:
    x = np.zeros((N, GENES))
    x[:30, :3] = 2
    x[28:31, 3] = 1  # in three cells, until cell 30 goes
    x[30:32, 8] = 6  # in two: without gene 8 cells 30 and 31 are poor
    splits = from_anndata(cells_of(x), min_counts=5, min_cells=3, size_factor=False)
    assert splits.format.genes == ("gene0", "gene1", "gene2")
    assert sorted(np.concatenate(list(rows_of(splits).values()))) == list(range(30))
    assert (splits.dropped_cells, splits.dropped_genes) == (30, 6) and splits.train.context is None


def test_parts_of_ones_own_and_layers() -> None:
    x = counts() + 1
    splits = from_anndata(
        cells_of(np.log1p(x), raw=sp.csr_matrix(x)),
        layer="raw",
        columns=ObsColumns(batch="plate", split="part"),
        seed=9,
    )
    expected = {"train": [0, 1], "test": [2], "validation": [3]}
    for part, rows in rows_of(splits).items():
        assert np.array_equal(rows, np.flatnonzero(np.isin(np.arange(N) % 4, expected[part])))
        assert np.array_equal(getattr(splits, part).x.numpy(), x[rows])
    assert splits.format.layer == "raw"


def test_what_rounding_left_is_rounded_and_the_cells_are_not_changed() -> None:
    for kind in ("dense", "csr"):
        x = (counts() + 2e-5 * (counts() > 0)).astype(np.float64)
        adata = cells_of(KINDS[kind](x.copy()))
        splits = from_anndata(adata, min_counts=3)
        rows = rows_of(splits)["train"]
        assert np.array_equal(splits.train.x.numpy(), counts()[rows][:, SEEN])
        assert np.array_equal(splits.train.context.size_factor[:, 0].numpy(), counts()[rows].sum(1))
        held = adata.X if kind == "dense" else adata.X.toarray()
        assert np.array_equal(held, x)


def test_the_registry_reads_h5ad_files(tmp_path: Path) -> None:
    path = written(tmp_path, counts())
    options = {
        "min_counts": 3,
        "label_column": "kind",
        "batch_column": "plate",
        "validation": 5,
        "seed": 2,
    }
    splits = datasets.load("h5ad", path=path, **options)
    old = (
        r"'label_column', 'batch_column' of h5ad is now columns=ObsColumns\(label=..., batch=...\)"
    )
    with pytest.warns(DeprecationWarning, match=old):
        same = h5ad(path, **options)
    assert (
        torch.equal(splits.train.x, same.train.x)
        and splits.format == same.format
        and len(splits.validation) == 5
    )
    with pytest.raises(InputError, match="data set 'h5ad' needs 'path'"):
        datasets.load("h5ad")
    with pytest.raises(
        InputError, match="'layer' = 'raw' is for data set 'h5ad', got data set 'digits'"
    ):
        datasets.load("digits", layer="raw")
    with pytest.raises(InputError, match=r"an .h5ad file is data set 'h5ad'"):
        datasets.from_path(path)


def changed(change: object) -> anndata.AnnData:
    adata = cells_of(counts())
    change(adata)
    return adata


def put(row: int, gene: int, value: float) -> object:
    def change(adata: anndata.AnnData) -> None:
        adata.X[row, gene] = value

    return change


def two_layers(adata: anndata.AnnData) -> None:
    adata.layers.update(counts=adata.X, raw=adata.X)


def without_x(adata: anndata.AnnData) -> None:
    two_layers(adata)
    adata.X = None


def assign(name: str, values: object) -> object:
    return lambda adata: adata.obs.__setitem__(name, values)


ODD = ["odd" if i == 2 else "even" for i in range(N)]
GAPS = pd.Series(
    ["a"] * 3 + [None] * 2 + ["b"] * (N - 5), index=[f"cell{i}" for i in range(N)], dtype="category"
)
REFUSED = {
    "negative": (put(3, 2, -1), {}, r"counts in 'X' must be non-negative, got -1 at index \(3, 2\) "
                                    r"\(row 'cell3'\)"),
    "fraction": (put(3, 2, 0.5), {}, r"must be whole numbers, neither normalised.*got 0.5 "
                                     r".*\(column 'gene2'\)"),
    "infinite": (put(3, 2, np.inf), {}, r"must be finite, got inf at index \(3, 2\)"),
    "NaN": (put(3, 2, np.nan), {}, r"must be finite, got nan at index \(3, 2\)"),
    "in a gene without counts": (put(3, 4, -1), {}, r"must be non-negative, got -1 at index \(3, "
                                                    r"4\)"),
    "no count": (lambda a: None, {}, r"row 17 \('cell17'\) has no count at all: .*min_counts=1"),
    "layer": (two_layers, {"layer": "count"}, r"unknown layer 'count'. Did you mean 'counts'.* "
                                              r"Known: counts, raw"),
    "no layers": (lambda a: None, {"layer": "raw"}, "unknown layer 'raw': there are no layers"),
    "no X": (without_x, {}, "there is no X; give one of the layers: counts, raw"),
    "labels": (lambda a: None, {"columns": ObsColumns(label="kinds")}, r"obs column 'kinds'. Did you mean "
                                                          r"'kind'.* Known: depth, "),
    "batch": (lambda a: None, {"columns": ObsColumns(batch="plat")}, "unknown obs column 'plat'. Did you mean "
                                                        "'plate'"),
    "fractions as labels": (lambda a: None, {"columns": ObsColumns(label="depth")}, "'depth': labels must be "
                                                                       "whole numbers"),
    "gaps": (assign("kind", GAPS), {"columns": ObsColumns(label="kind")}, "'kind' has no value for 2 cells, the "
                                                             "first is 'cell3'"),
    "unseen batch": (
        assign("odd", ODD),
        {"columns": ObsColumns(batch="odd", split="part")},
        "batch 'odd' of cell 'cell2' in obs column 'odd' is not among those of the training cells: "
        "even",
    ),
    "parts": (lambda a: None, {"columns": ObsColumns(split="kind")}, r"obs column 'kind' must be 'train', .* "
                                                        r"got 'a', 'b', 'c'"),
    "too few counts": (lambda a: None, {"min_counts": 1000}, "no cell has 'min_counts' = 1000 "
                                                             "counts, the most is"),
    "too few cells": (lambda a: None, {"min_cells": 61}, "no gene has counts in 'min_cells' = 61 "
                                                         "cells, the most is"),
    "negative minimum": (lambda a: None, {"min_counts": -1}, "'min_counts' must be non-negative "
                                                             "and finite, got -1"),
    "test": (lambda a: None, {"test": 0}, "'test' must hold at least one datum"),
    "seed": (lambda a: None, {"seed": -1}, "'seed' must be a non-negative integer, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_cells_are_refused_in_words(kind: str) -> None:
    change, options, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        from_anndata(changed(change), **({"min_counts": 0 if kind == "no count" else 3} | options))


def test_a_layer_is_named_in_errors_of_its_counts() -> None:
    with pytest.raises(InputError, match=r"counts in 'log' must be whole numbers"):
        from_anndata(cells_of(counts(), log=sp.csr_matrix(np.log1p(counts()))), layer="log")


@pytest.mark.parametrize("backed", [False, True], ids=["in memory", "backed"])
def test_files_that_are_no_h5ad(backed: bool, tmp_path: Path) -> None:
    text, other, folder = tmp_path / "text.h5ad", tmp_path / "other.h5ad", tmp_path / "folder.h5ad"
    text.write_text("gene,count\n")
    with h5py.File(other, "w") as file:
        file["z"] = np.zeros(3)
    folder.mkdir()
    with pytest.raises(InputError, match=r"folder.h5ad: this is a folder, and a regular file is"):
        h5ad(folder, backed=backed)
    for path in (text, other):
        with pytest.raises(InputError, match=rf"{path.name}: this is not a readable h5ad file: "):
            h5ad(path, backed=backed)
    with pytest.raises(InputError, match=r"none.h5ad: there is no such file"):
        h5ad(tmp_path / "none.h5ad", backed=backed)
    path = written(tmp_path, -counts())
    with pytest.raises(InputError, match=r"cells.h5ad: counts in 'X' must be non-negative"):
        h5ad(path, backed=backed)


def test_without_anndata_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = written(tmp_path, counts()), builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "anndata":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "anndata"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs AnnData: pip install 'pyro-bvae\[anndata\]'"):
        h5ad(path)


def test_repeated_gene_names_are_told_apart(tmp_path: Path) -> None:
    adata = cells_of(counts())
    adata.var.index = ["a", "b", "a", "a", *adata.var_names[4:]]
    path = tmp_path / "repeated.h5ad"
    with pytest.warns(UserWarning, match="names are not unique"):
        adata.write_h5ad(path) or adata.copy()
        anndata.read_h5ad(path)
    assert h5ad(path, min_counts=3).format.genes[:4] == ("a", "b", "a-1", "a-2")


# -- written back
# ---------------------------------------------------------------------------------------------


def trained(splits: CellSplits) -> BetaVAE:
    torch.manual_seed(0)
    features = splits.train.num_features
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(4, features, hidden=(8,)), NormalLikelihood(1.0), num_covariates=2),
        NormalPosterior(MLP(features + 2, 4, hidden=(8,)), num_covariates=2),
    )
    fit(vae, splits.train, epochs=2, batch_size=16, progress=False)
    return vae


def expected(vae: BetaVAE, data: Dataset) -> tuple[Tensor, Tensor]:
    """Return latents, and evidence with the seed of the first block."""
    measured = evidence(
        vae.model, vae.guide, data.x, data.context, num_samples=200, seed=stream_seed(4, 0)
    )
    return vae.encode(data.x, data.context), measured


@pytest.mark.parametrize("kind", ["dense", "csr", "backed"])
def test_latents_and_evidence_are_written_back_to_their_cells(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, counts() if kind == "dense" else sp.csr_matrix(counts()))
    splits = h5ad(path, min_counts=3, columns=PLATES, backed=kind == "backed")
    vae = trained(splits)
    adata = anndata.read_h5ad(path, backed="r" if kind == "backed" else None)
    annotate(adata, vae, splits.format, num_samples=200, seed=4)
    kept, _ = splits.format.read(adata)
    latents, measured = expected(vae, kept.dense())
    assert adata.obsm["X_pyro_bvae"].shape == (N, 2)
    assert np.allclose(adata.obsm["X_pyro_bvae"][KEPT], latents.numpy(), atol=1e-6)
    assert np.allclose(adata.obs["pyro_bvae_evidence"].to_numpy()[KEPT], measured.per_datum.numpy())
    assert np.allclose(
        adata.obs["pyro_bvae_evidence_error"].to_numpy()[KEPT], measured.errors.numpy()
    )
    assert np.array_equal(
        adata.obs["pyro_bvae_evidence_trusted"].to_numpy()[KEPT], measured.reliable.numpy()
    )
    assert (
        0 < measured.reliable.sum() < len(KEPT)
    )  # this guide is a poor one: both answers are put back
    for left_out in (5, 17):
        assert np.isnan(adata.obsm["X_pyro_bvae"][left_out]).all()
        assert np.isnan(adata.obs["pyro_bvae_evidence"].iloc[left_out])
        assert not adata.obs["pyro_bvae_evidence_trusted"].iloc[left_out]
    assert adata.uns["pyro_bvae"] == {"seed": 4, "num_samples": 200, "num_genes": 8, "layer": "X"}
    copy = tmp_path / "annotated.h5ad"
    adata.write_h5ad(copy)
    again = anndata.read_h5ad(copy)
    assert np.array_equal(again.obsm["X_pyro_bvae"], adata.obsm["X_pyro_bvae"], equal_nan=True)
    assert (
        again.obs["pyro_bvae_evidence"].isna().sum() == 2
        and again.uns["pyro_bvae"]["num_samples"] == 200
    )


def test_blocks_of_cells_are_put_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = cells_of(sp.csr_matrix(counts()))
    splits = from_anndata(adata, min_counts=3, columns=ObsColumns(batch="plate"))
    vae = trained(splits)
    annotate(adata, vae, splits.format, num_samples=2000)
    monkeypatch.setattr("pyro_bvae.runs.applied._annotate._MOST_NUMBERS", 8 * 7)
    annotate(adata, vae, splits.format, num_samples=2000, seed=1, key="again")
    assert np.allclose(adata.obsm["X_again"], adata.obsm["X_pyro_bvae"], equal_nan=True, atol=1e-6)
    one, other = (adata.obs.iloc[KEPT][f"{key}_evidence"] for key in ("pyro_bvae", "again"))
    errors = (adata.obs.iloc[KEPT][f"{key}_evidence_error"] for key in ("pyro_bvae", "again"))
    assert ((one - other).abs() < 6 * np.hypot(*errors)).all() and (one != other).all()


def test_other_cells_are_seen_as_the_training_cells() -> None:
    adata = cells_of(sp.csr_matrix(counts()))
    splits = from_anndata(adata, min_counts=3, columns=PLATES)
    vae = trained(splits)
    annotate(adata, vae, splits.format, num_samples=50)
    other = adata[
        10:40, ::-1
    ].copy()  # genes in another order, one more than the model knows, and no labels
    other.obsm.clear()
    del other.obs["kind"]
    annotate(other, vae, splits.format, num_samples=50)
    assert np.allclose(
        other.obsm["X_pyro_bvae"], adata.obsm["X_pyro_bvae"][10:40], equal_nan=True, atol=1e-6
    )


def test_a_permuted_copy_has_the_same_results_and_all_of_them_survive_a_file(
    tmp_path: Path,
) -> None:
    adata = cells_of(sp.csr_matrix(counts()))
    splits = from_anndata(adata, min_counts=3, columns=PLATES)
    vae = trained(splits)
    other = adata[:, np.random.default_rng(2).permutation(GENES)].copy()
    other.X = other.X.astype(np.int64)
    for each in (adata, other):
        annotate(each, vae, splits.format, num_samples=50, method="importance")
    path = tmp_path / "annotated.h5ad"
    other.write_h5ad(path)
    again = anndata.read_h5ad(path)
    assert again.obsm["X_pyro_bvae"].dtype == np.float32
    assert np.allclose(again.obsm["X_pyro_bvae"], adata.obsm["X_pyro_bvae"], atol=1e-6,
                       equal_nan=True)  # fmt: skip
    kinds = {"evidence": "float32", "evidence_error": "float32", "evidence_trusted": "bool"}
    for name, kind in kinds.items():
        one, two = adata.obs[f"pyro_bvae_{name}"], again.obs[f"pyro_bvae_{name}"]
        assert one.dtype == two.dtype == kind
        assert np.allclose(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert again.uns["pyro_bvae"] == adata.uns["pyro_bvae"]


def test_the_estimator_that_answered_is_a_category(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = cells_of(sp.csr_matrix(counts()))  # cells 5 and 17 are left out
    splits = from_anndata(adata, min_counts=3, columns=ObsColumns(batch="plate"))
    asked = []

    def measure(*args: Any, method: str, **options: Any) -> Estimate:
        asked.append(method)
        return replace(evidence(*args, **options), methods=torch.arange(len(args[2])) % 3)

    monkeypatch.setattr("pyro_bvae.runs.applied._annotate.evidence", measure)
    annotate(adata, trained(splits), splits.format, num_samples=20, method="auto")
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    methods = anndata.read_h5ad(tmp_path / "annotated.h5ad").obs["pyro_bvae_evidence_method"]
    assert methods.dtype == "category" and asked == ["auto"]
    assert list(np.flatnonzero(methods.isna())) == [5, 17]
    assert list(methods[:7].dropna()) == 2 * ["guide", "refit", "annealing"]


def test_a_run_knows_how_its_cells_are_seen(tmp_path: Path) -> None:
    path = written(tmp_path, sp.csr_matrix(counts()))
    config = TrainConfig(
        dataset="h5ad", path=str(path), min_counts=3.0, batch_column="plate", hidden=(4,),
        likelihood="negative-binomial", latent_dim=2, epochs=2, batch_size=64,
    )  # fmt: skip
    train(config, tmp_path / "run", progress=False)
    run = load(tmp_path / "run")
    path.rename(tmp_path / "moved.h5ad")  # the run needs its training data no more
    results = []
    for given in (tmp_path / "run", str(tmp_path / "run"), run):
        other = cells_of(sp.csr_matrix(counts()))[:, ::-1].copy()
        annotate(other, given, num_samples=20)
        results.append(other.obs["pyro_bvae_evidence"].to_numpy())
    own = cells_of(sp.csr_matrix(counts()))
    annotate(own, run.vae, run.record.cells, num_samples=20)
    for result in results:
        assert np.allclose(result, own.obs["pyro_bvae_evidence"], rtol=1e-5, equal_nan=True)
    with pytest.raises(InputError, match="'cell_format' must be given"):
        annotate(own, run.vae)
    digits = TrainConfig(dataset="digits", hidden=(4,), latent_dim=2, epochs=1, batch_size=512)
    train(digits, tmp_path / "digits", progress=False)
    with pytest.raises(InputError, match="digits is no run of cells"):
        annotate(own, tmp_path / "digits")


def test_what_cannot_be_annotated() -> None:
    adata = cells_of(counts())
    splits = from_anndata(adata, min_counts=3, columns=ObsColumns(batch="plate"))
    vae = trained(splits)
    with pytest.raises(InputError, match=r"must not be a view .* adata.copy\(\)"):
        annotate(adata[:20], vae, splits.format)
    with pytest.raises(InputError, match="1 of 8 genes are not there, the first is 'gene0'"):
        annotate(adata[:, 1:].copy(), vae, splits.format)
    with pytest.raises(InputError, match="unknown layer 'raw'"):
        annotate(adata, vae, replace(splits.format, layer="raw"))
    new = cells_of(counts())
    new.obs["plate"] = 12
    with pytest.raises(
        InputError,
        match=r"batch '12' of cell 'cell0' .* not among those of the training cells: 10, 11",
    ):
        annotate(new, vae, splits.format)
    with pytest.raises(InputError, match=r"row 17 \('cell17'\) has no count"):
        annotate(adata, vae, replace(splits.format, min_counts=0))
    with pytest.raises(InputError, match="'x' must have 8 features, got 9"):
        annotate(adata, vae, CellFormat(tuple(adata.var_names), min_counts=3))
    assert not list(adata.obsm) and not [name for name in adata.obs if name.startswith("pyro_bvae")]
