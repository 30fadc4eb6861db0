"""Run directories: trained into, read back, measured, continued, and never lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bvae import fit, load, runs
from pyro_bvae.core.disk.digests import remove_files, write_files
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.runs import Shape, TrainConfig, build_vae, read_config
from pyro_bvae.training import load_checkpoint, save_checkpoint

CONFIG = TrainConfig(
    dataset="digits",
    hidden=(8,),
    latent_dim=2,
    epochs=2,
    warmup_epochs=0.0,
    batch_size=256,
    learning_rate=3e-2,
)
TINY = {"num_samples": 20, "num_data": 6, "progress": False}


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    runs.train(CONFIG, output, progress=False)
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a trained run that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_directory_holds_configuration_metrics_and_checkpoints(trained: Path) -> None:
    checkpoints = ["checkpoints", "checkpoints/best.pt", "checkpoints/last.pt"]
    files = ["config.json", "data.json", "digests.sha256", "metrics.csv"]
    assert sorted(tree(trained)) == [*checkpoints, *files]
    assert read_config(trained / "config.json") == CONFIG


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_run_reads_back(trained: Path, checkpoint: str) -> None:
    run = load(trained, checkpoint=checkpoint)
    state = load_checkpoint(trained / "checkpoints" / f"{checkpoint}.pt")
    assert all(
        torch.equal(state["model"][name], value) for name, value in run.vae.state_dict().items()
    )
    assert run.config == CONFIG
    assert not run.vae.training
    assert run.directory == trained
    assert run.splits.name == "digits"


def test_the_history_is_that_of_the_whole_run_whatever_the_checkpoint(run: Path) -> None:
    # As if the first of the two epochs had been the best one.
    state = load_checkpoint(run / "checkpoints" / "best.pt")
    state["history"] = state["history"][:1]
    save_checkpoint(run / "checkpoints" / "best.pt", state)
    assert load(run).history["epoch"] == [1, 2]
    remove_files(run, ["metrics.csv"])
    assert load(run).history["epoch"] == [1]


def test_a_run_of_ones_own_parts_reads_back_into_a_model(tmp_path: Path) -> None:
    data = Dataset(torch.rand(40, 5))
    vae = build_vae(CONFIG, Shape(5, None))
    fit(vae, data, epochs=1, output=tmp_path / "own", progress=False)
    target = build_vae(CONFIG.with_options(seed=1), Shape(5, None))
    run = load(tmp_path / "own", model=target)
    assert run.vae is target
    assert (run.config, run.splits) == (None, None)
    assert all(
        torch.equal(value, target.state_dict()[name]) for name, value in vae.state_dict().items()
    )
    with pytest.raises(InputError, match=r"is not a run directory: it has no config\.json"):
        load(tmp_path / "own")


def test_a_run_unpacks_into_model_configuration_and_data(trained: Path) -> None:
    vae, config, splits = load(trained)
    assert vae.latent_dim == 2 and config == CONFIG and splits.name == "digits"


def test_a_given_model_is_read_though_the_data_are_gone(tmp_path: Path) -> None:
    table = tmp_path / "table.npy"
    np.save(table, np.random.default_rng(0).random((60, 5)))
    config = CONFIG.with_options(dataset="file", path=str(table))
    trained = runs.train(config, tmp_path / "run", progress=False).vae
    table.unlink()
    assert load(tmp_path / "run").splits is None
    vae, saved, splits = load(
        tmp_path / "run", build_vae(config, Shape(5, None)), checkpoint="last"
    )
    assert splits is None and saved.path == str(table)
    assert all(
        torch.equal(a, b) for a, b in zip(trained.parameters(), vae.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_resuming_past_the_end_drops_what_was_measured_of_the_shorter_run(run: Path) -> None:
    runs.evaluate_run(run, **TINY)
    runs.train(CONFIG, run, resume=True, progress=False)  # nothing left to train
    assert (run / "evaluation.json").exists()
    runs.train(CONFIG.with_options(epochs=3), run, resume=True, progress=False)
    assert not (run / "evaluation.json").exists() and not (run / "evaluation.nc").exists()


def test_a_warmup_cut_short_is_measured_at_the_beta_that_it_reached(tmp_path: Path) -> None:
    config = CONFIG.with_options(beta=4.0, warmup_epochs=8.0)
    with pytest.warns(UserWarning, match="outlives the training"):
        trained = runs.train(config, tmp_path / "run", progress=False)
    reached = trained.history["beta"][-1]
    assert 0.5 < reached < 1.0
    runs.evaluate_run(tmp_path / "run", **TINY)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert written["beta"] == trained.training_beta == reached
    parts = written["distortion"]["value"] + reached * written["rate"]["value"]
    assert written["objective"]["value"] == pytest.approx(parts)


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no run directory .*missing"):
        load(tmp_path / "missing")
    with pytest.raises(InputError, match=r"unknown checkpoint 'bst'\. Did you mean 'best'\?"):
        load(run, checkpoint="bst")
    with pytest.raises(InputError, match=r"does not fit this model: .*size mismatch"):
        load(run, model=build_vae(CONFIG, Shape(5, None)))
    write_files({run / "metrics.csv": b"spoiled\nx\n"})
    with pytest.raises(InputError, match="does not hold the metrics of a training run"):
        load(run)


def test_training_is_a_function_of_its_configuration(trained: Path, tmp_path: Path) -> None:
    torch.rand(3)
    runs.train(CONFIG, tmp_path / "again", progress=False)
    one, other = (
        load_checkpoint(path / "checkpoints" / "last.pt") for path in (trained, tmp_path / "again")
    )
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_a_run_writes_down_the_warmup_that_it_had(tmp_path: Path) -> None:
    trained = runs.train(
        CONFIG.with_options(beta=2.0, epochs=5, warmup_epochs=None), tmp_path, progress=False
    )
    assert read_config(tmp_path / "config.json").training.warmup_epochs == 1.0
    assert trained.config == read_config(tmp_path / "config.json")
    assert trained.history["beta"][1:] == [2.0] * 4
    resumed = read_config(tmp_path / "config.json").with_options(epochs=7)
    assert (
        runs.train(resumed, tmp_path, resume=True, progress=False).history["beta"][1:] == [2.0] * 6
    )


def test_resuming_continues_and_takes_more_epochs(run: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the learning rate jumps from"):
        result = runs.train(CONFIG.with_options(epochs=4), run, resume=True, progress=False)
    assert result.history["epoch"] == [1, 2, 3, 4]
    assert read_config(run / "config.json").training.epochs == 4


def test_resuming_to_fewer_epochs_than_are_done_is_said_and_changes_nothing(run: Path) -> None:
    before = tree(run)
    with pytest.warns(UserWarning, match="2 epochs are done and 'epochs' is 1: nothing is trained"):
        result = runs.train(CONFIG.with_options(epochs=1), run, resume=True, progress=False)
    assert result.config.training.epochs == 2
    assert tree(run) == before


def test_resuming_a_finished_run_writes_down_where_its_data_lie_now(run: Path) -> None:
    config = CONFIG.with_options(data_root=str(run.parent))
    runs.train(config, run, resume=True, progress=False)
    assert read_config(run / "config.json").data.data_root == str(run.parent)


def test_a_run_stopped_before_its_first_checkpoint_can_be_resumed(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert runs.train(CONFIG, run, resume=True, progress=False).history["epoch"] == [1, 2]


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "report.html").write_text("old")
    (run / "evaluation.json").write_text("{}")
    runs.train(CONFIG.with_options(epochs=1), run, overwrite=True, progress=False)
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "report.html").exists()
    assert not (run / "evaluation.json").exists()
    assert load(run).history["epoch"] == [1]


def test_an_empty_directory_can_be_trained_into(tmp_path: Path) -> None:
    runs.train(CONFIG.with_options(epochs=1), tmp_path, progress=False)
    assert (tmp_path / "checkpoints" / "last.pt").exists()


def spoil_checkpoint(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:500])


def remove_config(run: Path) -> None:
    (run / "config.json").unlink()


def nothing(run: Path) -> None:
    pass


REFUSALS: dict[str, tuple[Callable[[Path], None], dict[str, object], dict[str, bool], str]] = {
    "exists": (nothing, {}, {}, "exists: pass --resume to continue it, --overwrite to replace it"),
    "both": (nothing, {}, {"resume": True, "overwrite": True}, "exclude each other"),
    "other beta": (nothing, {"beta": 3.0}, {"resume": True}, "with another configuration: beta was "
                                                             "1.0, got 3.0"),
    "no run": (remove_config, {}, {"overwrite": True}, "is not a run directory .* so it is not "
                                                       "overwritten"),
    "nothing to resume": (remove_config, {}, {"resume": True}, "is not a run directory"),
    "truncated": (spoil_checkpoint, {"epochs": 9}, {"resume": True}, "was changed or damaged since "
                                                                     "the run wrote it"),
    "epochs": (nothing, {"epochs": 0}, {"overwrite": True}, "'epochs' must be a positive integer, "
                                                            "got 0"),
    "batch size": (nothing, {"batch_size": 0}, {"overwrite": True}, "'batch_size' must be"),
    "clip": (nothing, {"gradient_clip": -1.0}, {"overwrite": True}, "'gradient_clip' must be"),
    "early stopping": (nothing, {"early_stopping": 0}, {"overwrite": True}, "'early_stopping' must "
                                                                            "be"),
    "learning rate": (nothing, {"learning_rate": -1.0}, {"overwrite": True}, "'learning_rate' must "
                                                                             "be"),
    "latents": (nothing, {"latent_dim": 0}, {"overwrite": True}, "'latent_dim' must be"),
    "hidden": (nothing, {"hidden": (0,)}, {"overwrite": True}, "'hidden' must be"),
    "scale": (nothing, {"likelihood": "normal", "likelihood_scale": 0.0}, {"overwrite": True}, "got .* 0.0"),
    "validation": (nothing, {"validation": 5000.0}, {"overwrite": True}, "'validation' must be"),
    "binarization": (nothing, {"binarize": "dynamc"}, {"overwrite": True}, "Did you mean "
                                                                           "'dynamic'"),
    "device": (nothing, {"device": "cudda"}, {"overwrite": True}, "'device' must be .* got "
                                                                  "'cudda'"),
    "meta device": (nothing, {"device": "meta"}, {"overwrite": True}, "'device' must be .* got "
                                                                      "'meta'"),
    "support": (nothing, {"dataset": "linear-gaussian"}, {"overwrite": True}, "outside the "
                                                                              "likelihood's"),
    "images": (nothing, {"network": "convolutional", "dataset": "linear-gaussian", "likelihood": "normal"},
               {"overwrite": True}, "needs images"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_training_neither_writes_nor_removes_anything(kind: str, run: Path) -> None:
    spoil, changes, options, message = REFUSALS[kind]
    spoil(run)
    before = tree(run)
    with pytest.raises(InputError, match=message):
        runs.train(CONFIG.with_options(**changes), run, progress=False, **options)
    assert tree(run) == before


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="'output' must be a directory, got the file"):
        runs.train(CONFIG, tmp_path / "file", overwrite=True, progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_evaluation_says_on_what_it_was_made(run: Path) -> None:
    evaluation = runs.evaluate_run(run, checkpoint="last", seed=3, **TINY)
    written = json.loads((run / "evaluation.json").read_text())
    assert {name: written[name] for name in ("dataset", "split", "checkpoint", "seed", "num_data", "num_samples")} == {
        "dataset": "digits", "split": "test", "checkpoint": "last", "seed": 3, "num_data": 6, "num_samples": 20,
    }  # fmt: skip
    assert written["evidence"]["value"] == evaluation.evidence.value
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_data": 0}, "'num_data' must be a positive integer or None, got 0"),
        ({"num_samples": 0}, "'num_samples' must be"),
        ({"seed": -1}, "'seed' must be a non-negative integer, got -1"),
        ({"checkpoint": "lst"}, "unknown checkpoint 'lst'. Did you mean 'last'?"),
        ({"device": "cudda"}, "'device' must be"),
    ],
)
def test_a_refused_evaluation_writes_nothing(
    run: Path, option: dict[str, object], message: str
) -> None:
    before = tree(run)
    with pytest.raises(InputError, match=message):
        runs.evaluate_run(run, **{**TINY, **option})
    assert tree(run) == before


def test_test_data_are_chosen_by_the_seed_and_kept_in_order() -> None:
    data = Dataset(torch.arange(50.0).unsqueeze(1))
    chosen = runs.choose_data(data, 10, seed=0)
    rows = chosen.x[:, 0].tolist()
    assert rows == sorted(rows)
    assert len(set(rows)) == 10
    assert torch.equal(chosen.x, runs.choose_data(data, 10, seed=0).x)
    assert not torch.equal(chosen.x, runs.choose_data(data, 10, seed=1).x)
    assert runs.choose_data(data, None, seed=0) is data
    assert runs.choose_data(data, 60, seed=0) is data


def test_a_run_whose_last_checkpoint_is_gone_is_read_from_its_best(run: Path) -> None:
    before = load(run).history.remarks
    assert any("features have one value" in remark.seen for remark in before)
    (run / "checkpoints" / "last.pt").unlink()
    assert load(run).history.remarks == before
