"""Runs whose data are deleted, moved, permuted, renamed or changed, and new data read as theirs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_bvae import compare, evidence, load
from pyro_bvae.cli import main
from pyro_bvae.core.disk.digests import SUMS
from pyro_bvae.core.errors import InputError
from pyro_bvae.runs import TrainConfig, evaluate_run, train

SMALL = {"hidden": (4,), "latent_dim": 2, "epochs": 1, "warmup_epochs": 0.0}
KINDS = ("csv", "npz", "npy", "images", "h5ad", "h5ad-backed", "labelled")


def write_data(kind: str, folder: Path, rows: int = 40) -> tuple[Path, dict]:
    """Write a file of a kind, and return its path and the options of its training."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 5)).astype(np.float32)
    if kind in ("csv", "labelled"):
        frame = pd.DataFrame(x, columns=["a", "b", "c", "d", "e"])
        if kind == "labelled":
            frame["label"] = generator.choice(["left", "right"], rows)
        frame.to_csv(folder / "data.csv", index=False)
        return folder / "data.csv", {"likelihood": "normal"}
    if kind == "npz":
        covariates = generator.integers(0, 2, (rows, 2)).astype(np.float32)
        np.savez(folder / "data.npz", x=x, covariates=covariates)
        return folder / "data.npz", {"likelihood": "normal", "prior": "vamp"}
    if kind == "npy":
        np.save(folder / "data.npy", x)
        return folder / "data.npy", {"likelihood": "normal"}
    if kind == "images":
        from PIL import Image

        for number in range(rows):
            place = folder / "images" / ("odd" if number % 2 else "even")
            place.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number:02}.png")
        return folder / "images", {"network": "convolutional"}
    import anndata

    counts = generator.poisson(3.0, (rows, 6)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "batch": generator.choice(["one", "two"], rows),
            "type": generator.choice(["B", "T"], rows),
        },
        index=[f"cell {number}" for number in range(rows)],
    )
    var = pd.DataFrame(index=[f"gene {number}" for number in range(6)])
    anndata.AnnData(counts, obs, var).write_h5ad(folder / "data.h5ad")
    options = {"dataset": "h5ad", "likelihood": "negative-binomial", "batch_column": "batch",
               "label_column": "type"}  # fmt: skip
    return folder / "data.h5ad", options | ({"backed": True} if kind == "h5ad-backed" else {})


def trained(kind: str, folder: Path, **more) -> tuple[Path, Path]:
    """Return the file of the data and the directory of a run on them."""
    path, options = write_data(kind, folder)
    given = {"dataset": "file", "path": str(path), **SMALL, **options, **more}
    train(TrainConfig(**given), folder / "run", progress=False)
    return path, folder / "run"


def values(run) -> torch.Tensor:
    data = run.part("test").dense()
    return run.vae.encode(data.x, data.context)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_needs_no_data_and_takes_them_from_another_place(kind, tmp_path):
    path, directory = trained(kind, tmp_path)
    before = load(directory)
    codes, names = values(before), before.part("test").index.tolist()
    assert before.splits.test.feature_names == before.record.feature_names
    moved = path.rename(tmp_path / f"moved{path.suffix}")
    after = load(directory)
    for name, weight in before.vae.state_dict().items():
        assert torch.equal(weight, after.vae.state_dict()[name]), name
    assert after.splits is None
    with pytest.raises(InputError, match=f"the data of {directory} are gone.*give data by"):
        after.part("test")
    again = load(directory, data=moved)
    assert again.part("test").index.tolist() == names
    assert torch.equal(values(again), codes)
    assert torch.equal(load(directory).vae.generate(3, again.part("test")[:3].dense().context),
                       before.vae.generate(3, before.part("test")[:3].dense().context))  # fmt: skip


def permute_columns(path: Path) -> None:
    frame = pd.read_csv(path)
    frame[frame.columns[::-1]].to_csv(path, index=False)


def change_cells(path: Path, change) -> None:
    import anndata

    other = path.with_name("other.h5ad")  # since a backed file is open
    change(anndata.read_h5ad(path)).copy().write_h5ad(other)
    other.replace(path)


def rename_gene(adata):
    adata.var_names = ["gene 0", "gene X", *adata.var_names[2:]]
    return adata


def rename_cell(adata):
    adata.obs_names = ["cell X", *adata.obs_names[1:]]
    return adata


def change_count(adata):
    adata.X[3, 2] += 1
    return adata


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("csv", permute_columns),
        ("h5ad", lambda path: change_cells(path, lambda adata: adata[:, ::-1])),
        ("h5ad", lambda path: change_cells(path, lambda adata: adata[::-1])),
        ("h5ad-backed", lambda path: change_cells(path, lambda adata: adata[::-1, ::-1])),
    ],
)
def test_features_and_rows_are_taken_by_name(kind, change, tmp_path):
    path, directory = trained(kind, tmp_path)
    before = load(directory)
    codes, names = values(before), before.part("test").index.tolist()
    before.part("train").dense()
    change(path)
    after = load(directory)
    assert after.part("test").index.tolist() == names
    assert torch.allclose(values(after), codes, atol=1e-6)


def swap_rows(path: Path) -> None:
    frame = pd.read_csv(path)
    frame.iloc[::-1].to_csv(path, index=False)


def rename_column(path: Path) -> None:
    pd.read_csv(path).rename(columns={"c": "z"}).to_csv(path, index=False)


def more_rows(path: Path) -> None:
    frame = pd.read_csv(path)
    pd.concat([frame, frame[:3]]).to_csv(path, index=False)


def change_value(path: Path) -> None:
    frame = pd.read_csv(path)
    frame.loc[7, "d"] += 0.1
    frame.to_csv(path, index=False)


def change_label(path: Path) -> None:
    frame = pd.read_csv(path)
    frame.loc[7, "label"] = "right" if frame.loc[7, "label"] == "left" else "left"
    frame.to_csv(path, index=False)


def swap_images(path: Path) -> None:
    first, second = sorted((path / "even").iterdir())[:2]
    first.rename(path / "x.png")
    second.rename(first)
    (path / "x.png").rename(second)


def swap_array(path: Path) -> None:
    np.save(path, np.load(path)[:, ::-1])


def add_cell(adata):
    import anndata

    more = adata[:1].copy()
    more.obs_names = ["a new cell"]
    return anndata.concat([adata, more])


CHANGES = [
    ("csv", swap_rows, "row .* of the .* data is not as it was in training"),
    ("csv", rename_column, "feature 'c' is not there"),
    ("csv", more_rows, "row 41 is a new one"),
    ("csv", change_value, "row 8 of the .* data is not as it was"),
    ("labelled", change_label, "row 8 of the .* data is not as it was"),
    ("npy", swap_array, "is not as it was in training"),
    ("images", swap_images, "is not as it was in training"),
    ("h5ad", lambda path: change_cells(path, rename_gene), "the first is 'gene 1'"),
    ("h5ad", lambda path: change_cells(path, rename_cell), "cell 'cell 0' is not there"),
    ("h5ad", lambda path: change_cells(path, change_count), "row 'cell 3' of the .* data is not"),
    ("h5ad", lambda path: change_cells(path, lambda adata: adata[1:]), "cell 'cell 0' is not"),
    ("h5ad", lambda path: change_cells(path, add_cell), "cell 'a new cell' is a new one"),
    ("h5ad-backed", lambda path: change_cells(path, add_cell), "cell 'a new cell' is a new one"),
]


@pytest.mark.parametrize(("kind", "change", "message"), CHANGES)
def test_other_data_are_refused_by_the_first_that_differs(kind, change, message, tmp_path):
    path, directory = trained(kind, tmp_path)
    change(path)
    files = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=f"{path.name}.*{message}"):
        load(directory).part("test")
    with pytest.raises(InputError, match=message):
        evaluate_run(directory, num_samples=10, num_data=3, progress=False)
    config = load(directory).config.with_options(epochs=2)
    with pytest.raises(InputError, match=message):
        train(config, directory, resume=True, progress=False)
    assert files == {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    assert load(directory).vae.generate(2, _context(directory)).shape[0] == 2


def _context(directory: Path):
    contexts = load(directory).record.contexts
    return contexts and contexts.take(slice(0, 2))


@pytest.mark.parametrize("kind", ["csv", "h5ad"])
def test_a_run_is_resumed_on_reordered_and_moved_data_to_the_same_weights(kind, tmp_path):
    for name in ("straight", "interrupted"):
        (tmp_path / name).mkdir()
    _, straight = trained(kind, tmp_path / "straight", epochs=2)
    path, directory = trained(kind, tmp_path / "interrupted", epochs=2)
    shutil.rmtree(directory)
    config = load(straight).config.with_options(path=str(path), epochs=2)
    train(config.with_options(epochs=1), directory, progress=False)
    if kind == "csv":
        permute_columns(path)
    else:
        change_cells(path, lambda adata: adata[::-1, ::-1])
    moved = path.rename(path.with_name(f"moved{path.suffix}"))
    train(config.with_options(path=str(moved)), directory, resume=True, progress=False)
    once = train(config.with_options(path=str(moved), epochs=2), tmp_path / "other", progress=False)
    run = load(directory)
    assert run.config.path == str(moved)
    assert run.part("test").index.tolist() == load(straight).part("test").index.tolist()
    assert len(once.history.rows) == len(run.history.rows) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_new_data_are_read_as_the_run_saw_its_own(kind, tmp_path):
    path, directory = trained(kind, tmp_path)
    run = load(directory)
    whole = run.read(path)
    assert len(whole) == 40
    parts = run.record.part_of(whole)
    own = run.part("test").dense()
    some = whole[parts == "test"].dense()
    assert sorted(some.index.tolist()) == sorted(own.index.tolist())
    order = [some.index.tolist().index(name) for name in own.index.tolist()]
    assert torch.equal(some[order].x, own.x)
    if own.context is not None:
        for one, other in zip(some[order].context, own.context, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
    assert (parts == "train").sum() == len(run.part("train"))


def test_new_tables_may_have_other_columns_and_their_order(tmp_path):
    path, directory = trained("csv", tmp_path)
    frame = pd.read_csv(path)
    frame.insert(0, "name", [f"row {row}" for row in range(len(frame))])
    frame[["e", "name", "b", "a", "d", "c"]].to_csv(tmp_path / "new.csv", index=False)
    run = load(directory)
    assert torch.equal(run.read(tmp_path / "new.csv").x, run.read(path).x)
    frame.drop(columns="b").to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(InputError, match=r"new\.csv: .*feature 'b' is not there"):
        run.read(tmp_path / "new.csv")
    np.save(tmp_path / "new.npy", np.ones((3, 4), np.float32))
    with pytest.raises(InputError, match="the training data have 5 features, got 4 features"):
        run.read(tmp_path / "new.npy")


def test_a_record_of_a_newer_version_or_that_is_gone_is_refused(tmp_path):
    _, directory = trained("csv", tmp_path)
    path = directory / "data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(InputError, match=r"data\.json was changed or damaged"):
        load(directory)
    (directory / SUMS).rename(tmp_path / "sums")
    path.unlink()
    (tmp_path / "sums").rename(directory / SUMS)
    with pytest.raises(InputError, match=r"data\.json was changed .*it is gone"):
        load(directory)


def test_a_newer_format_is_refused_in_words():
    from pyro_bvae.datasets.record import DataRecord

    with pytest.raises(InputError, match=r"newer version of pyro_bvae .format 99.*upgrade"):
        DataRecord.from_dict({"format": 99})
    with pytest.raises(InputError, match="no record of data"):
        DataRecord.from_dict({"format": 1})


def test_fit_resumes_on_the_data_that_it_had_alone(tmp_path):
    from pyro_bvae import fit
    from pyro_bvae.datasets import Dataset
    from pyro_bvae.runs import Shape, build_vae

    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    names = ("a", "b", "c", "d")
    config = TrainConfig(likelihood="normal", **SMALL)

    def go(data, epochs, **more):
        vae = build_vae(config, Shape(4))
        return fit(vae, data, epochs=epochs, output=tmp_path / "run", progress=False, **more)

    go(Dataset(x, feature_names=names), 1)
    order, rows = torch.tensor([1, 0, 2, 3]), []
    swapped = Dataset(x[:, order], feature_names=("b", "a", "c", "d"))
    for data, message in (
        (Dataset(x, feature_names=("a", "b", "c", "e")), "feature 4 was 'd', got 'e'"),
        (Dataset(x[:, order], feature_names=names), "first in row 1 of the training data"),
        (Dataset(x.flip(0), feature_names=names), "first in row 1 of the training data"),
        (x[:, order], "first in row 1 of the training data"),
        (x[:29], "'num_data' was 30, got 29"),
    ):
        with pytest.raises(InputError, match=message):
            go(data, 2, resume=True)
    assert len(go(Dataset(x, feature_names=names), 2, resume=True).rows) == 2
    # By name, for training and validation data alike.
    for data in (swapped, Dataset(x, feature_names=names)):
        shutil.rmtree(tmp_path / "run")
        go(Dataset(x, feature_names=names), 1, validation=Dataset(x[:9], feature_names=names))
        history = go(data, 3, resume=True, validation=data[:9])
        rows.append([{**row, "seconds": 0} for row in history.rows])
    assert rows[0] == rows[1]


def test_new_rows_are_known_with_other_labels_and_classes_have_one_number(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "who": [f"p{i}" for i in range(60)],
            "a": generator.normal(size=60),
            "b": generator.normal(size=60),
            "kind": ["x", "y", "z"] * 20,
        }
    )
    parts = {
        "all": table,
        "some": table[table.kind != "x"],
        "none": table.drop(columns="kind"),
        "renamed": table.assign(kind="w"),
        "others": table.assign(a=table.a + 1),
    }
    for name, part in parts.items():
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "all.csv"), index_column="who", label_column="kind",
        likelihood="normal", latent_dim=1, hidden=(4,), epochs=1,
    )  # fmt: skip
    run = train(config, tmp_path / "run", progress=False)
    own = dict(
        zip(
            run.rows(tmp_path / "all.csv").index,
            run.record.part_of(run.rows(tmp_path / "all.csv")),
            strict=True,
        )
    )
    assert sorted(set(own.values())) == ["test", "train", "validation"]
    for name in parts:
        data = run.rows(tmp_path / f"{name}.csv")
        found = run.record.part_of(data)
        right = ["new"] * len(data) if name == "others" else [own[each] for each in data.index]
        assert found.tolist() == right, name
    some = run.rows(tmp_path / "some.csv")
    assert some.label_names == ("x", "y", "z")
    assert some.labels.unique().tolist() == [1, 2]


def test_the_page_and_the_cure_take_data_that_were_moved(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    np.savetxt(tmp_path / "x.csv", rows, delimiter=",", header="a,b,c", comments="")
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "x.csv"), likelihood="normal", latent_dim=1,
        hidden=(4,), epochs=1,
    )  # fmt: skip
    train(config, tmp_path / "run", progress=False)
    (tmp_path / "x.csv").rename(tmp_path / "moved.csv")
    for command in ("report", "improve"):
        words = [command, str(tmp_path / "run")]
        assert main(words) == 2
        few = ["--epochs", "1", "--num-data", "2", "--num-samples", "10"]
        moved = ["--data", str(tmp_path / "moved.csv")]
        assert main([*words, *moved, *(few if command == "improve" else [])]) == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run-improved" / "config.json").exists()


def test_an_evidence_of_training_data_is_told_from_a_held_out_one(tmp_path: Path) -> None:
    path, directory = trained("csv", tmp_path)
    few = {"num_samples": 5, "method": "importance", "progress": False}
    with pytest.warns(UserWarning, match="of 40 data are training data of .*, whose evidence is"):
        evaluate_run(directory, data=path, **few)
    run = load(directory)
    with pytest.warns(UserWarning, match="are training data of"):
        compare({"a": run, "b": run}, path, **few)


def test_an_argument_that_is_missing_is_told_in_the_words_of_the_program() -> None:
    def program(x, scale):
        raise AssertionError

    with pytest.raises(InputError, match=r"write evidence\(model, guide, x, scale\)"):
        evidence(program, program, torch.zeros(3, 2))
